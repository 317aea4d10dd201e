"""Which elements are dropped: equal to jax's and Flax's choice, stored for ever, and a function of the key alone."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import data
from numpy.testing import assert_array_equal

from jaxnorm import classic_dropout, dropout, gaussian_dropout

SHAPES = ((7,), (3, 5), (2, 4, 4, 3))
KEPT = {  # of key(0): by the oracle, by jax.random.bernoulli, and what every release must draw; bits from the first element on
    ((7,), 0.1): "0011111",
    ((7,), 0.5): "0011011",
    ((3, 5), 0.1): "001111111101111",
    ((3, 5), 0.5): "001101100101000",
    ((2, 4, 4, 3), 0.1): "001111111101111011111011111111111111111111111111011111111111111111111111111111111011111111111111",
    ((2, 4, 4, 3), 0.5): "001101100101000000011000000011101010011111000111000110001011111001101000000010101000000011100101",
}


def kept(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    return dropout(key, jnp.ones(shape), rate) != 0


@pytest.mark.parametrize("shape, rate", KEPT, ids=str)
def test_stored_masks(shape: tuple[int, ...], rate: float) -> None:
    stored = np.array([bit == "1" for bit in KEPT[shape, rate]]).reshape(shape)
    assert_array_equal(kept(jax.random.key(0), shape, rate), stored)
    assert_array_equal(oracles.keep_mask((0, 0), shape, rate), stored)
    assert_array_equal(jax.random.bernoulli(jax.random.key(0), 1 - rate, shape), stored)


@pytest.mark.parametrize("rate", [0.0, 1e-8, 0.1, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_the_choice_of_bernoulli(rate: float) -> None:
    for seed, shape in enumerate(((1000,), (33, 17), (5, 6, 7), ())):
        expected = jax.random.bernoulli(jax.random.key(seed), jnp.float32(1 - rate), shape)
        assert_array_equal(kept(jax.random.key(seed), shape, rate), expected)
        traced = jax.jit(lambda key, rate, shape=shape: kept(key, shape, rate))(jax.random.key(seed), rate)
        assert_array_equal(traced, jax.random.bernoulli(jax.random.key(seed), 1 - jnp.float32(rate), shape))


@pytest.mark.jax_defaults
@pytest.mark.parametrize("dims", [(), (1, 2)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_choice_of_flax(dims: tuple[int, ...], dtype: np.dtype) -> None:
    x = data(dtype=dtype)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            key = self.scope.rngs["dropout"].as_jax_rng()
            y = nn.Dropout(0.3, broadcast_dims=dims, deterministic=False)(x, rng=key)
            with jax.debug_key_reuse(False):
                return y, dropout(key, x, 0.3, broadcast_dims=dims)

    with jax.debug_key_reuse(False):
        for key in (jax.random.key(5), jax.random.PRNGKey(5)):
            theirs, ours = Layer().apply({}, x, rngs={"dropout": key})
            assert_array_equal(theirs == 0, ours == 0)
            # Flax divides in x's type by a rounded probability; in float32 the two are equal to the bit.
            if dtype == jnp.float32:
                assert_array_equal(theirs, ours)


def test_legacy_keys_draw_as_typed_ones() -> None:
    x = data()
    for key in (jax.random.PRNGKey(5), np.asarray(jax.random.PRNGKey(5))):
        assert_array_equal(dropout(key, x, 0.3), dropout(jax.random.key(5), x, 0.3))
    assert_array_equal(jax.jit(dropout)(jax.random.PRNGKey(5), x, 0.3), jax.jit(dropout)(jax.random.key(5), x, 0.3))
    keys = jax.random.split(jax.random.PRNGKey(5), 3)
    assert_array_equal(jax.vmap(lambda key: dropout(key, x, 0.3))(keys)[1], dropout(keys[1], x, 0.3))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg", "philox2x32", "threefry4x32"])
def test_other_generators_draw_as_jax_draws_with_them(impl: str) -> None:
    try:
        key = jax.random.key(3, impl=impl)
    except ValueError:  # a generator that this version of jax does not have
        assert impl in ("philox2x32", "threefry4x32")
        return
    mask = kept(key, (300, 5), 0.3)
    assert_array_equal(mask, jax.random.bernoulli(jax.random.key(3, impl=impl), 0.7, (300, 5)))
    total = lambda x: jnp.sum(dropout(jax.random.key(3, impl=impl), x, 0.3))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.ones((300, 5)))
    assert_array_equal(gradient != 0, mask)
    assert jnp.isfinite(value)


def test_other_generators_differ_between_lanes() -> None:
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 4)
    masks = np.asarray(jax.vmap(lambda key: dropout(key, jnp.ones(200), 0.3))(keys) != 0)
    assert len({mask.tobytes() for mask in masks}) == 4


def test_same_key_same_mask_other_key_other_mask_in_one_compiled_step() -> None:
    step = jax.jit(lambda key: dropout(key, jnp.ones(100), 0.3))
    first, again, other = (np.asarray(step(jax.random.key(seed))) for seed in (1, 1, 2))
    assert_array_equal(first, again)
    assert (first != other).any()


def test_all_masks_of_many_steps_and_layers_differ() -> None:
    def mask(step: jax.Array, layer: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), layer)
        return dropout(key, jnp.ones(128), 0.3) != 0

    over_layers = jax.vmap(mask, (None, 0))
    masks = np.asarray(jax.jit(jax.vmap(over_layers, (0, None)))(jnp.arange(100), jnp.arange(10))).reshape(1000, 128)
    assert len({row.tobytes() for row in np.packbits(masks, axis=1)}) == 1000


def test_a_large_draw_is_not_many_small_ones() -> None:
    """Documented: keys are split by the caller, and a batch under vmap needs a key a lane."""
    x = jnp.ones((8, 50))
    lanes = jax.vmap(lambda key, row: dropout(key, row, 0.3))(jax.random.split(jax.random.key(4), 8), x)
    assert (lanes != dropout(jax.random.key(4), x, 0.3)).any()


def test_classic_and_inverted_dropout_draw_the_same_mask_for_the_same_key() -> None:
    x = data()
    assert_array_equal(dropout(jax.random.key(2), x, 0.3) != 0, classic_dropout(jax.random.key(2), x, 0.3) != 0)


def test_gaussian_noise_is_that_of_jax() -> None:
    normal = jax.random.normal(jax.random.key(2), (300, 5))
    noise = gaussian_dropout(jax.random.key(2), jnp.ones((300, 5)), 0.5)
    np.testing.assert_allclose(noise, 1 + normal, atol=1e-6)


def test_no_configuration_of_jax_changes_a_mask() -> None:
    """Neither the partitionable generator, nor x64, nor the default generator."""
    program = (
        "import jax, jaxnorm, jax.numpy as jnp, numpy as np;"
        "[jax.config.update(*c) for c in {config}];"
        "call = lambda key, x: jaxnorm.dropout(key, x, 0.3);"
        "key = jax.random.key(3, impl='threefry2x32'); x = jnp.ones((20, 5), jnp.float32);"
        "a, b = call(key, x), jax.jit(call)(key, x);"
        "assert (a == b).all(); print(np.packbits(np.asarray(a) != 0).tobytes().hex())"
    )
    expected = np.packbits(oracles.keep_mask((0, 3), (20, 5), 0.3)).tobytes().hex()
    configs = [("jax_threefry_partitionable", False)], [("jax_enable_x64", True), ("jax_default_prng_impl", "rbg")]
    for config in configs:
        command = [sys.executable, "-c", program.format(config=config)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True)
        assert printed.stdout.strip() == expected
