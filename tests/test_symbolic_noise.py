"""Noise in programs that are exported with symbolic sizes: what the function gives for the size, at every size.

Masks bit for bit, values and gradients within rounding, however the sizes are written; beyond 2^32 elements too.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import export
from numpy.testing import assert_allclose, assert_array_equal
from platforms import as_on

import jaxnorm
from jaxnorm._bits import multiply_add, random_integers

PLATFORMS = ("cpu", "cuda", "tpu")
RATES = np.array([0.1, 0.3, 0.8], np.float32).reshape(1, 1, 3)
Layer = Callable[[jax.Array, jax.Array], jax.Array]


def layer(function: Any, amount: Any, **options: Any) -> Layer:
    return lambda key, x: function(key, x, amount, **options)


# A layer, a symbolic shape of x, and sizes that it is called with: whole groups of elements or not, ends of groups, one element.
PROGRAMS = {
    "batch": (layer(jaxnorm.dropout, 0.3), "b, 32", [(1, 32), (5, 32)]),
    "batch, odd rows": (layer(jaxnorm.dropout, 0.3), "b, 7", [(1, 7), (64, 7)]),
    "one axis": (layer(jaxnorm.dropout, 0.3), "b", [(1,), (1001,)]),
    "features": (layer(jaxnorm.dropout, 0.3), "3, c", [(3, 8), (3, 13)]),
    "expressions": (layer(jaxnorm.dropout, 0.3), "2*b + 1, t, 4*c", [(3, 1, 4), (5, 3, 20)]),
    "8 bits": (layer(jaxnorm.dropout, 0.25, bits=8), "b, t, 8*c", [(1, 3, 8), (2, 5, 24)]),
    "8 bits, odd rows": (layer(jaxnorm.dropout, 0.25, bits=8), "b, t, 12", [(1, 3, 12), (4, 2, 12)]),
    "32 bits": (layer(jaxnorm.dropout, 0.3, bits=32), "b, 32", [(1, 32), (5, 32)]),
    "32 bits, any size": (layer(jaxnorm.dropout, 0.3, bits=32), "b, c", [(1, 1), (5, 31)]),
    "shared": (layer(jaxnorm.dropout, 0.3, broadcast_dims=(1,)), "b, t, 4*c", [(1, 3, 4), (6, 2, 12)]),
    "a rate for each channel": (layer(jaxnorm.dropout, RATES), "b, t, 3", [(1, 3, 3), (8, 4, 3)]),
    "classic": (layer(jaxnorm.classic_dropout, 0.3), "b, c", [(1, 3), (8, 16)]),
    "Gaussian": (layer(jaxnorm.gaussian_dropout, 0.3), "b, 4*c", [(1, 4), (5, 12)]),
    "Gaussian, 32 bits": (layer(jaxnorm.gaussian_dropout, 0.3, bits=32), "b, c", [(2, 3), (5, 12)]),
    "uniform": (layer(jaxnorm.uniform_dropout, 0.3), "b, c", [(2, 3), (5, 12)]),
    "uniform, 32 bits": (layer(jaxnorm.uniform_dropout, 0.3, bits=32, broadcast_dims=(0,)), "b, c", [(2, 3), (5, 12)]),
}

FIRST = ("expressions", "32 bits, any size")  # those that the others are like


def sample(shape: tuple[int, ...]) -> jax.Array:
    return jnp.linspace(0.5, 2, int(np.prod(shape)), dtype=jnp.float32).reshape(shape)


def exported(function: Callable[..., Any], *arguments: Any, derivatives: int = 0) -> export.Exported:
    """The function's program for all platforms, as it comes back from a file."""
    serialized = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).serialize(vjp_order=derivatives)
    return export.deserialize(serialized)


def symbolic(shape: str, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(export.symbolic_shape(shape), dtype)


def value_and_gradient(run: Layer, key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, pull = jax.vjp(functools.partial(run, key), x)
    return y, pull(jnp.cos(x))[0]


def compare(got: Any, expected: Any) -> None:
    for a, b in zip(got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert_array_equal(a == 0, b == 0)
        assert_allclose(a, b, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FIRST else pytest.mark.slow) for n in PROGRAMS])
def test_a_program_of_unknown_sizes_gives_what_the_function_gives(name: str) -> None:
    run, shape, sizes = PROGRAMS[name]
    both = functools.partial(value_and_gradient, run)
    key = jax.random.PRNGKey(7)
    program = exported(both, key, symbolic(shape))
    for size in sizes:
        x = sample(size)
        expected = jax.jit(both)(key, x)
        compare(program.call(key, x), expected)
    if name in ("expressions", "Gaussian"):
        for platform in ("cuda", "tpu"):
            compare(as_on(platform, program).call(key, x), expected)


def test_the_derivative_of_an_exported_program_draws_the_same() -> None:
    run, shape, sizes = PROGRAMS["expressions"]
    key = jax.random.PRNGKey(7)
    program = exported(run, key, symbolic(shape), derivatives=1)
    assert program.has_vjp()
    x = sample(sizes[-1])
    compare(jax.jit(functools.partial(value_and_gradient, program.call))(key, x), value_and_gradient(run, key, x))


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("bits", [16, 32])
def test_typed_keys_of_every_generator(impl: str, bits: int) -> None:
    run = layer(jaxnorm.dropout, 0.3, bits=bits)
    key = jax.random.key(7, impl=impl)
    program = exported(run, key, symbolic("b, 4*c"))
    for size in [(1, 4), (5, 12)]:
        x = sample(size)
        compare([program.call(jax.random.clone(key), x)], [jax.jit(run)(jax.random.clone(key), x)])


def test_a_rate_for_each_of_an_unknown_number_of_channels() -> None:
    run = lambda key, x, rates: jaxnorm.dropout(key, x, rates)  # noqa: E731
    key = jax.random.PRNGKey(7)
    b, c = export.symbolic_shape("b, c")
    x, rates = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((b, c), (1, c)))
    program = exported(run, key, x, rates)
    for size in [(4, 6), (3, 8)]:
        x, rates = sample(size), jnp.linspace(0, 1, size[1])[None]
        compare([program.call(key, x, rates)], [jax.jit(run)(key, x, rates)])
    with pytest.raises(ValueError, match="rate must be a scalar or have a shape like"):
        export.export(jax.jit(run))(key, jax.ShapeDtypeStruct((b, c), jnp.float32), jax.ShapeDtypeStruct((1, b), jnp.float32))


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("shape", ["b, c", "8*b, 8*c", "b, c, 8"])
@pytest.mark.parametrize("show_blocks", [True, False])
def test_positions_beyond_32_bits(shape: str, bits: int, show_blocks: bool) -> None:
    """Of an array that no machine could hold: the program computes one element of it."""
    size = {"b, c": (2**20 + 1, 2**13 + 1), "8*b, 8*c": (2**20, 2**13), "b, c, 8": (2**20 + 1, 2**13 + 1, 8)}[shape]
    index = tuple(n - 3 for n in size)
    sizes = export.symbolic_shape(shape)

    def element(key: jax.Array, index: jax.Array, *axes: jax.Array) -> jax.Array:
        array = random_integers(key, [axis.size for axis in axes], bits, show_blocks=show_blocks)
        return jax.lax.dynamic_slice(array, tuple(index), (1,) * array.ndim).ravel()[0]

    arguments = jax.random.PRNGKey(9), jnp.asarray(index, jnp.int32)
    program = export.export(jax.jit(element))(*arguments, *(jax.ShapeDtypeStruct((n,), jnp.bool_) for n in sizes))
    arguments = (*arguments, *(jnp.zeros(n, jnp.bool_) for n in size))
    compiled = jax.jit(program.call).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10_000
    position = int(np.ravel_multi_index(index, size))
    assert position > 2**32
    assert int(compiled(*arguments)) == int(oracles.random_integers((0, 9), (), bits, start=position))


def test_products_of_two_words() -> None:
    random = np.random.default_rng(0)
    ends = [0, 1, 2**16 - 1, 2**16, 2**31, 2**32 - 1]
    words = [[*ends, *map(int, random.integers(0, 2**32, 60))] for _ in range(4)]
    for column in (1, 2, 3):
        random.shuffle(words[column])
    upper, lower = jax.jit(multiply_add)(*(jnp.asarray(word, jnp.uint32) for word in words))
    for i, (a, b, n, plus) in enumerate(zip(*words, strict=True)):
        assert (int(upper[i]) << 32) + int(lower[i]) == ((2**32 * a + b) * n + plus) % 2**64
