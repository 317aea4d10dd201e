"""Dynamic tanh, layer scale, modulation and adaptive instance norm: the oracles, closed forms, what is kept, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import (
    AffineParams,
    DynamicTanhParams,
    adaptive_instance_norm,
    batch_norm,
    conditional_batch_norm,
    dynamic_tanh,
    init_batch_norm,
    init_conditional_batch_norm,
    init_dynamic_tanh,
    init_layer_scale,
    layer_scale,
    modulate,
)
from jaxnorm.benchmarks._costs import residuals

X = data((8, 3, 4, 5))


def numbers(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(-2, 3, shape), jnp.float32)


# Dynamic tanh and layer scale


@pytest.mark.parametrize("used", [(1, 1), (1, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("axis", [-1, 1])
def test_dynamic_tanh_equals_the_oracle(used: tuple[int, int], axis: int) -> None:
    parts = (numbers(X.shape[axis], seed=seed) if use else None for seed, use in enumerate(used))
    params = DynamicTanhParams(*parts, alpha=jnp.float32(0.3))
    expected = oracles.dynamic_tanh(params, X, channel_axis=axis)
    assert_allclose(dynamic_tanh(params, X, channel_axis=axis), expected, rtol=1e-5, atol=1e-6)


def test_dynamic_tanh_is_linear_near_0_and_bounded() -> None:
    """Methods 3.19."""
    params = init_dynamic_tanh(5, alpha=1e-3)._replace(scale=numbers(5), bias=numbers(5, seed=2))
    assert params.scale is not None
    assert params.bias is not None
    scale, bias = (part[None, None, None] for part in (params.scale, params.bias))
    assert_allclose(dynamic_tanh(params, X), 1e-3 * scale * X + bias, rtol=1e-3, atol=1e-6)
    assert (jnp.abs(dynamic_tanh(params, 1e6 * X) - bias) <= jnp.abs(scale) + 1e-6).all()


@pytest.mark.parametrize("shape", [(5,), ()], ids=str)
def test_layer_scale_equals_the_oracle(shape: tuple[int, ...]) -> None:
    params = AffineParams(numbers(*shape), numbers(*shape, seed=2))
    assert_allclose(layer_scale(params, X), oracles.layer_scale(params, X), rtol=1e-6, atol=1e-6)


def test_a_scale_of_0_is_the_identity_of_a_residual_block() -> None:
    """Supplement S1.13: at the start the branch gets no gradient, and the scale gets <g, branch>."""
    params = init_layer_scale((), scale=0.0)
    y, pullback = jax.vjp(lambda params, x: x + layer_scale(params, 2 * x), params, X)
    assert_array_equal(y, X)
    g = jnp.cos(X)
    of_params, of_x = pullback(g)
    assert_array_equal(of_x, g)
    assert_allclose(of_params.scale, jnp.vdot(g, 2 * X), rtol=1e-5)
    assert_array_equal(init_layer_scale(3).scale, jnp.full(3, 1e-5))


# Modulation


@pytest.mark.parametrize("scale", [None, (5,), (8, 5), (8, 3, 4, 5), (8, 1, 4, 1), (1, 1, 1, 5)], ids=str)
@pytest.mark.parametrize("bias", [None, (5,), (8, 5), (1, 3, 4, 1)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_modulation_equals_the_oracle(scale: Any, bias: Any, offset: float) -> None:
    given = tuple(None if shape is None else numbers(*shape, seed=seed) for seed, shape in enumerate((scale, bias)))
    expected = oracles.modulate(X, *given, scale_offset=offset)
    assert_allclose(modulate(X, *given, scale_offset=offset), expected, rtol=1e-5, atol=1e-5)
    first = jnp.moveaxis(X, -1, 1)
    moved = tuple(a if a is None or a.ndim < 4 else jnp.moveaxis(a, -1, 1) for a in given)
    y = modulate(first, *moved, scale_offset=offset, channel_axis=1)
    assert_allclose(jnp.moveaxis(y, 1, -1), expected, rtol=1e-5, atol=1e-5)


def test_a_conditional_norm_is_a_norm_and_a_modulation() -> None:
    """Supplement S1.10."""
    labels, params = jnp.arange(8) % 3, AffineParams(numbers(3, 5), numbers(3, 5, seed=2))
    state = init_conditional_batch_norm(5)[1]
    wanted, _ = conditional_batch_norm(params, state, X, labels, train=True)
    plain, _ = batch_norm(*init_batch_norm(5, use_scale=False, use_bias=False), X, train=True)
    assert_allclose(modulate(plain, *(part[labels] for part in params)), wanted, rtol=1e-5, atol=1e-5)


# Adaptive instance norm


@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
def test_adaptive_instance_norm_equals_the_oracle(masked: bool) -> None:
    style = data((8, 2, 6, 5), seed=3)
    masks = {"where": counted((8, 3, 4, 5)), "style_where": style > 0} if masked else {}
    expected = oracles.adaptive_instance_norm(X, style, **masks)
    assert_allclose(adaptive_instance_norm(X, style, **masks), expected, rtol=1e-5, atol=1e-5)


def test_the_style_gives_its_moments_and_x_itself_changes_nothing() -> None:
    """Supplement S1.10."""
    style = data((8, 2, 6, 5), seed=3)
    y = np.float64(adaptive_instance_norm(X, style, epsilon=0.0))
    assert_allclose(y.mean((1, 2)), np.float64(style).mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert_allclose(y.var((1, 2)), np.float64(style).var((1, 2)), rtol=1e-5)
    assert_allclose(adaptive_instance_norm(X, X), X, rtol=1e-5, atol=1e-6)


def test_divided_positions_give_what_whole_ones_give() -> None:
    style = data((8, 6, 2, 5), seed=3)
    x = jnp.tile(X, (1, 1, 1, 1))
    parts = [jnp.moveaxis(a.reshape(8, 3, -1, *a.shape[2:]), 1, 0) for a in (x, style)]
    y = jax.vmap(lambda x, style: adaptive_instance_norm(x, style, axis_name="d"), axis_name="d")(*parts)
    assert_allclose(jnp.moveaxis(y, 0, 1).reshape(x.shape), adaptive_instance_norm(x, style), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_x_is_kept_for_the_gradient_and_numbers_of_channels(dtype: Any) -> None:
    x = data((8, 16, 16, 32), dtype)
    for params, function in (
        (init_dynamic_tanh(32), dynamic_tanh),
        (init_layer_scale(32), layer_scale),
        ((numbers(8, 32), numbers(8, 32)), lambda params, x: modulate(x, *params)),
    ):
        kept = residuals(lambda params, x, f=function: (f(params, x), None), params, x)
        assert kept.keeps_input
        assert kept.nbytes <= 4 * 4 * 8 * 32


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x: dynamic_tanh(AffineParams(None, None), x), TypeError, "params must be DynamicTanhParams, got AffineParams"),
        (
            lambda x: dynamic_tanh(DynamicTanhParams(None, None, jnp.ones(5)), x),
            ValueError,
            r"params.alpha must have shape \[\] \(whatever x is\), got \[5\]",
        ),
        (lambda x: dynamic_tanh(DynamicTanhParams(None, None, None), x), TypeError, "params.alpha must be an array of floating"),
        (lambda _: init_dynamic_tanh(5, alpha=-1.0), ValueError, r"alpha must be in \[0, inf\), got -1"),
        (lambda x: layer_scale(AffineParams(jnp.ones(4), None), x), ValueError, r"params.scale must have shape \[5\]"),
        (lambda x: modulate(x, jnp.ones(4), None), ValueError, r"scale must have the shape of the channels .*, got \[4\]"),
        (lambda x: modulate(x, None, jnp.ones((3, 5))), ValueError, r"bias must have the shape of the channels .*, got \[3, 5\]"),
        (lambda x: modulate(x, jnp.ones((8, 3, 1, 4)), None), ValueError, r"scale must have .*, got \[8, 3, 1, 4\]"),
        (lambda x: modulate(x, jnp.ones(5, int), None), TypeError, "scale must be an array of floating point numbers"),
        (lambda x: modulate(x, jnp.ones((8, 8)), None, channel_axis=0), ValueError, "scale must have the shape"),
        (lambda x: adaptive_instance_norm(x, x[:4]), ValueError, r"style must have the examples and channels of x"),
        (lambda x: adaptive_instance_norm(x, x[..., :4]), ValueError, r"style must have the examples and channels of x"),
        (lambda x: adaptive_instance_norm(x, x[0]), ValueError, r"style must have the examples and channels of x"),
        (lambda x: adaptive_instance_norm(x, x, style_where=x), TypeError, "style_where must be an array of bool"),
        (
            lambda x: adaptive_instance_norm(x, x, style_where=jnp.ones((8, 5), bool)),
            ValueError,
            "style_where must have the rank of style",
        ),
    ],
)
def test_bad_input_is_named(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(X)
