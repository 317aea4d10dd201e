"""batch_norm with what follows it: the result of three steps, and no array kept between them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import counted, data
from numpy.testing import assert_allclose, assert_array_equal
from promises import assert_higher_derivatives

from jaxnorm import AffineParams, RunningStats, batch_norm

SHAPE = (8, 2, 4, 3)
PARAMS = AffineParams(jnp.asarray([1.5, -0.7, 2.0]), jnp.asarray([0.3, -1.0, 0.5]))
STATE = RunningStats(jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([7.0, 5.0, 3.0]))
WEIGHTS = jnp.cos(jnp.arange(np.prod(SHAPE), dtype=jnp.float32)).reshape(SHAPE)
activations = pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.silu, jax.nn.gelu, jnp.tanh], ids=lambda f: f.__name__)
modes = pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
Function = Callable[..., jax.Array]


def in_one_step(activation: Any, **options: Any) -> Function:
    return lambda params, x, residual: batch_norm(params, STATE, x, residual=residual, activation=activation, **options)[0]


def in_three_steps(activation: Any, **options: Any) -> Function:
    def steps(params: AffineParams, x: jax.Array, residual: jax.Array | None) -> jax.Array:
        y, _ = batch_norm(params, STATE, x, **options)
        y = y if residual is None else y + residual
        return y if activation is None else activation(y)

    return steps


def gradients(function: Function, x: jax.Array, residual: jax.Array | None) -> Any:
    def loss(params: AffineParams, x: jax.Array, residual: jax.Array | None) -> jax.Array:
        return jnp.sum(function(params, x, residual).astype(jnp.float32) * WEIGHTS)

    return jax.jit(jax.grad(loss, (0, 1) if residual is None else (0, 1, 2)))(PARAMS, x, residual)


@activations
@modes
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("masked", [True, False], ids=["where", "all"])
def test_equals_three_steps(activation: Any, train: bool, with_residual: bool, masked: bool) -> None:
    x, residual = data(), data(seed=3) if with_residual else None
    options = {"train": train, "where": counted() if masked else None, "epsilon": 1e-3}
    one, three = in_one_step(activation, **options), in_three_steps(activation, **options)
    assert_allclose(one(PARAMS, x, residual), three(PARAMS, x, residual), rtol=2e-6, atol=2e-6)
    for ours, expected in zip(*(jax.tree.leaves(gradients(f, x, residual)) for f in (one, three)), strict=True):
        assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))


def test_a_residual_needs_no_activation() -> None:
    x, residual = data(), data(seed=3)
    one, three = in_one_step(None, train=True), in_three_steps(None, train=True)
    assert_allclose(one(PARAMS, x, residual), three(PARAMS, x, residual), rtol=1e-6, atol=1e-6)
    for ours, expected in zip(*(jax.tree.leaves(gradients(f, x, residual)) for f in (one, three)), strict=True):
        assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [jax.nn.silu, jnp.tanh], ids=lambda f: f.__name__)
def test_every_mode_of_differentiation(activation: Any) -> None:
    with jax.enable_x64(True):
        x, residual = (data((4, 2, 3), jnp.float64, seed=seed) for seed in (0, 3))
        params = jax.tree.map(jnp.float64, PARAMS)
        f = in_one_step(activation, train=True, epsilon=1e-2)
        assert_higher_derivatives(lambda given: jnp.sum(jnp.sin(f(*given))), (params, x, residual))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
def test_half_precision_is_rounded_once(dtype: Any) -> None:
    x, residual = data(dtype=dtype), data(dtype=dtype, seed=3)
    y = in_one_step(jax.nn.silu, train=True)(PARAMS, x, residual)
    exact = in_three_steps(jax.nn.silu, train=True)(PARAMS, x.astype(jnp.float32), residual.astype(jnp.float32))
    assert y.dtype == dtype
    assert_allclose(y.astype(jnp.float32), exact, rtol=float(jnp.finfo(dtype).eps) / 2, atol=1e-6)


def kept(function: Callable[..., Any], *arguments: Any) -> list[jax.Array]:
    """The arrays as large as x that the gradient keeps; an argument of the function counts once, wherever it is used."""
    _, pullback = jax.vjp(function, *arguments)
    leaves = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size == arguments[-1].size]
    return list({leaf.unsafe_buffer_pointer(): leaf for leaf in leaves}.values())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("activation", [None, jax.nn.relu, jax.nn.gelu], ids=["none", "relu", "gelu"])
def test_x_alone_is_kept(dtype: Any, activation: Any) -> None:
    x = data((16, 4, 4, 3), dtype)
    arrays = kept(lambda x: batch_norm(PARAMS, STATE, x, train=True, activation=activation)[0], x)
    assert [leaf.dtype for leaf in arrays] == [dtype]
    assert_array_equal(arrays[0].astype(jnp.float32), x.astype(jnp.float32))


@pytest.mark.parametrize("activation", [None, jax.nn.relu], ids=["alone", "relu"])
def test_a_program_for_cpus_needs_no_memory_beside_its_outputs(activation: Any) -> None:
    """No array of x's size, as of `x - mean`, though several sums and the output take it: each computes it for itself.

    Pitfall 66.
    """
    shape = (64, 16, 16, 3)

    def forward_and_backward(params: AffineParams, x: jax.Array, dy: jax.Array) -> Any:
        y, pullback = jax.vjp(lambda params, x: batch_norm(params, STATE, x, train=True, activation=activation)[0], params, x)
        return y, pullback(dy)

    x = jnp.ones(shape)
    memory = jax.jit(forward_and_backward).lower(PARAMS, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * x.nbytes


def test_x_and_the_residual_are_kept() -> None:
    x, residual = data((16, 4, 4, 3)), data((16, 4, 4, 3), seed=3)
    arrays = kept(
        lambda residual, x: batch_norm(PARAMS, STATE, x, train=True, residual=residual, activation=jax.nn.relu)[0], residual, x
    )
    assert len(arrays) == 2


def test_what_does_not_count_stays_away_from_the_rest() -> None:
    where = counted()
    x = jnp.where(where, data(), jnp.nan)
    one = in_one_step(jax.nn.silu, train=True, where=where)
    y = one(PARAMS, x, jnp.zeros(SHAPE))
    uncounted = ~jnp.broadcast_to(where, SHAPE)
    assert_allclose(y[uncounted], jnp.broadcast_to(jax.nn.silu(PARAMS.bias), SHAPE)[uncounted], rtol=1e-6)
    _, of_x, _ = gradients(one, x, jnp.zeros(SHAPE))
    assert jnp.isfinite(of_x).all()
    assert (of_x[uncounted] == 0).all()


@pytest.mark.parametrize(
    "options, kind, words",
    [
        ({"residual": jnp.ones((8, 2, 4, 1))}, ValueError, r"residual must have shape \[8, 2, 4, 3\] .*got \[8, 2, 4, 1\]"),
        ({"residual": jnp.ones(SHAPE, jnp.int32)}, TypeError, r"residual must be an array of floating point numbers, got int32"),
        ({"residual": 1.0}, TypeError, r"residual must be an array of floating point numbers, got 1.0"),
        ({"residual": jnp.ones(SHAPE, jnp.complex64)}, TypeError, r"residual must be real, got complex64"),
        ({"activation": "relu"}, TypeError, r"activation must be a function of an array, got 'relu'"),
        (
            {"activation": jnp.sum},
            ValueError,
            r"activation must map float32\[8, 2, 4, 3\] to an array of the same shape, got \[\]",
        ),
        ({"activation": lambda x: x > 0}, TypeError, r"activation must map float32.* same dtype, got .*bool"),
    ],
)
def test_errors(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        batch_norm(PARAMS, STATE, data(), train=True, **options)
