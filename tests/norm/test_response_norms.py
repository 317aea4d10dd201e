"""Filter, global and local response norm: the oracles, closed forms, what is kept, devices, and errors."""

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
    FilterResponseParams,
    filter_response_norm,
    global_response_norm,
    init_filter_response_norm,
    init_global_response_norm,
    local_response_norm,
    rms_norm,
)
from jaxnorm.benchmarks._costs import residuals

SHAPES = [(8, 5), (8, 6, 5), (8, 3, 4, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
masked = pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])


def numbers(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(-2, 3, shape), jnp.float32)


def filter_params(channels: int = 5) -> FilterResponseParams:
    return FilterResponseParams(numbers(channels), numbers(channels, seed=2), numbers(channels, seed=3) / 4, jnp.float32(-0.2))


def mask(shape: tuple[int, ...], masked: bool) -> jax.Array | None:
    if not masked:
        return None
    return counted(shape) if len(shape) > 2 else jnp.arange(shape[0])[:, None] % 3 != 1


# Filter response norm


@each_shape
@masked
@pytest.mark.parametrize("used", [(1, 1, 1, 1), (1, 1, 0, 0), (0, 0, 1, 0), (0, 1, 0, 1), (0, 0, 0, 0)], ids=str)
def test_filter_response_equals_the_oracle(shape: tuple[int, ...], masked: bool, used: tuple[int, ...]) -> None:
    params = FilterResponseParams(*(part if use else None for part, use in zip(filter_params(), used, strict=True)))
    x, where = data(shape), mask(shape, masked)
    expected = oracles.filter_response_norm(params, x, epsilon=1e-3, where=where)
    assert_allclose(filter_response_norm(params, x, epsilon=1e-3, where=where), expected, rtol=1e-5, atol=1e-5)


def test_filter_response_on_other_axes() -> None:
    x, params = data((4, 5, 6, 3)), filter_params()
    expected = oracles.filter_response_norm(params, x, channel_axis=1, reduction_axes=(2,))
    assert_allclose(filter_response_norm(params, x, channel_axis=1, reduction_axes=2), expected, rtol=1e-5, atol=1e-5)
    moved = filter_response_norm(params, jnp.moveaxis(x, 1, -1), reduction_axes=1)
    assert_allclose(jnp.moveaxis(moved, -1, 1), expected, rtol=1e-5, atol=1e-5)


def test_filter_response_of_one_position_is_nearly_the_sign() -> None:
    """Methods 3.9: `sign(x) |x| / sqrt(x^2 + epsilon)`."""
    x, params = data((8, 1, 1, 5)), init_filter_response_norm(5, use_threshold=False)
    assert_allclose(filter_response_norm(params, x, epsilon=0.1), x / np.sqrt(np.square(x) + 0.1), rtol=1e-6)
    assert_allclose(filter_response_norm(params, x, epsilon=0.0), np.sign(x), rtol=1e-6)


def test_filter_response_does_not_depend_on_the_scale_of_x_and_has_a_known_mean_square() -> None:
    """Methods 3.9."""
    x, params = data((8, 3, 4, 5)), init_filter_response_norm(5, use_threshold=False)
    y = filter_response_norm(params, x, epsilon=0.0)
    assert_allclose(filter_response_norm(params, 1e3 * x, epsilon=0.0), y, rtol=1e-5)
    squares = np.square(np.float64(x)).mean((1, 2))
    wanted = squares / (squares + 0.1)
    assert_allclose(np.square(np.float64(filter_response_norm(params, x, epsilon=0.1))).mean((1, 2)), wanted, rtol=1e-5)


def test_a_threshold_of_0_is_a_relu_and_of_minus_infinity_nothing() -> None:
    """Methods 3.9."""
    x, params = data((8, 3, 4, 5)), filter_params()
    plain = filter_response_norm(params._replace(threshold=None), x)
    cut = filter_response_norm(params._replace(threshold=jnp.zeros(5)), x)
    assert_allclose(cut, jnp.maximum(plain, 0), rtol=1e-6, atol=1e-6)
    assert_array_equal(cut == 0, plain <= 0)
    whole = filter_response_norm(params._replace(threshold=jnp.full(5, -jnp.inf)), x)
    assert_allclose(whole, plain, rtol=1e-6, atol=1e-6)
    assert init_filter_response_norm(5).threshold is not None


def test_the_gradient_of_the_threshold_counts_what_is_cut_off() -> None:
    x, params = data((8, 3, 4, 5)), filter_params()
    gradient = jax.grad(lambda params: jnp.sum(filter_response_norm(params, x)))(params)
    plain = filter_response_norm(params._replace(threshold=None), x)
    assert params.threshold is not None
    assert_array_equal(gradient.threshold, jnp.sum(plain < params.threshold[None, None, None], (0, 1, 2)))


def test_a_new_filter_response_norm() -> None:
    params = init_filter_response_norm((2, 3), learned_epsilon=1e-4, use_bias=False, param_dtype=jnp.bfloat16)
    assert [None if part is None else part.shape for part in params] == [(2, 3), None, (2, 3), ()]
    assert {part.dtype for part in params if part is not None} == {jnp.dtype(jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"learned_epsilon must be in .*, got -1"):
        init_filter_response_norm(3, learned_epsilon=-1.0)


# Global response norm


@each_shape
@masked
@pytest.mark.parametrize("used", [(1, 1), (1, 0), (0, 0)], ids=str)
def test_global_response_equals_the_oracle(shape: tuple[int, ...], masked: bool, used: tuple[int, ...]) -> None:
    params = AffineParams(*(part if use else None for part, use in zip(filter_params()[:2], used, strict=True)))
    x, where = data(shape), mask(shape, masked)
    expected = oracles.global_response_norm(params, x, epsilon=1e-3, where=where)
    assert_allclose(global_response_norm(params, x, epsilon=1e-3, where=where), expected, rtol=1e-5, atol=1e-5)


def test_a_new_global_response_norm_is_the_identity() -> None:
    """Supplement S1.2."""
    x = data((8, 3, 4, 5))
    assert_array_equal(global_response_norm(init_global_response_norm(5), x), x)


def test_shares_have_the_mean_1_and_a_single_channel_is_affine() -> None:
    """Supplement S1.2: the mean of the shares is 1; with one channel `y = (1 + scale) x + bias`."""
    x = data((8, 3, 4, 5))
    shares = global_response_norm(AffineParams(None, None), x, epsilon=0.0) / x - 1
    assert_allclose(jnp.mean(shares, -1), 1, rtol=1e-4)
    one = AffineParams(jnp.asarray([0.7]), jnp.asarray([-2.0]))
    assert_allclose(global_response_norm(one, x[..., :1], epsilon=0.0), 1.7 * x[..., :1] - 2, rtol=1e-5, atol=1e-6)


def test_global_response_scales_with_x_and_moves_with_positions() -> None:
    """Supplement S1.2."""
    x, params = data((8, 3, 4, 5)), AffineParams(numbers(5), None)
    y = global_response_norm(params, x, epsilon=0.0)
    assert_allclose(global_response_norm(params, 100 * x, epsilon=0.0), 100 * y, rtol=1e-5)
    assert_allclose(global_response_norm(params, x[:, ::-1], epsilon=0.0), y[:, ::-1], rtol=1e-5)


def test_a_dead_channel_stays_dead_and_its_gradient_is_finite() -> None:
    """Supplement S1.2."""
    x, params = data((8, 3, 4, 5)).at[..., 2].set(0), AffineParams(numbers(5), None)
    y, pullback = jax.vjp(lambda x: global_response_norm(params, x), x)
    assert_array_equal(y[..., 2], jnp.zeros((8, 3, 4)))
    assert jnp.isfinite(pullback(jnp.cos(y))[0]).all()
    for epsilon in (0.0, 1e-6):
        gradient = jax.grad(lambda x, e=epsilon: jnp.sum(global_response_norm(params, x, epsilon=e)))(jnp.zeros_like(x))
        assert_array_equal(gradient, jnp.ones_like(x))


# Local response norm


@each_shape
@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_local_response_equals_the_oracle(shape: tuple[int, ...], size: int) -> None:
    x, options = data(shape), {"size": size, "k": 1.5, "alpha": 0.3, "beta": 0.6}
    assert_allclose(local_response_norm(x, **options), oracles.local_response_norm(x, **options), rtol=1e-5, atol=1e-6)
    first = local_response_norm(jnp.moveaxis(x, -1, 0), channel_axis=0, **options)
    assert_allclose(jnp.moveaxis(first, 0, -1), oracles.local_response_norm(x, **options), rtol=1e-5, atol=1e-6)


def test_local_response_in_its_limits() -> None:
    """Supplement S1.3: without alpha a power of k; over all channels a unit vector, or RMS norm."""
    x = data((8, 3, 4, 5))
    assert_allclose(local_response_norm(x, alpha=0.0, k=3.0, beta=0.75), x / 3**0.75, rtol=1e-6)
    unit = local_response_norm(x, size=11, k=0.0, alpha=1.0, beta=0.5)
    assert_allclose(jnp.linalg.norm(unit, axis=-1), 1, rtol=1e-6)
    rms = local_response_norm(x, size=11, k=0.0, alpha=0.2, beta=0.5)
    assert_allclose(rms, rms_norm(AffineParams(None, None), x, epsilon=0.0), rtol=1e-5)


def test_local_response_is_that_of_pytorch() -> None:
    """Supplement S1.3: its alpha is divided by the size, at the borders too."""
    torch = pytest.importorskip("torch")
    x = data((2, 4, 3, 7))
    for size in (3, 4, 5):
        wanted = torch.nn.LocalResponseNorm(size, alpha=0.5, beta=0.6, k=1.2)(torch.tensor(np.array(jnp.moveaxis(x, -1, 1))))
        got = local_response_norm(x, size=size, alpha=0.5 / size, beta=0.6, k=1.2)
        assert_allclose(jnp.moveaxis(got, -1, 1), wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_squares_of_half_precision_do_not_overflow() -> None:
    x = jnp.full((2, 5), 6e4, jnp.float16)
    y = local_response_norm(x, size=3, k=0.0, alpha=1.0, beta=0.5)
    assert_allclose(y[:, 1:4], 1 / np.sqrt(3), rtol=1e-3)


# What is kept, and devices


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_x_is_kept_for_the_gradient_and_numbers_of_channels(dtype: Any) -> None:
    x = data((8, 16, 16, 32), dtype)
    params = init_filter_response_norm(32, learned_epsilon=1e-4)
    affine = AffineParams(params.scale, params.bias)
    for kept in (
        residuals(lambda params, x: (filter_response_norm(params, x), None), params, x),
        residuals(lambda params, x: (global_response_norm(params, x), None), affine, x),
        residuals(lambda params, x: (local_response_norm(x), None), affine, x),
    ):
        assert kept.keeps_input
        assert kept.nbytes <= 10 * 4 * 8 * 32


@pytest.mark.parametrize("function", [filter_response_norm, global_response_norm])
def test_divided_positions_give_what_whole_ones_give(function: Any) -> None:
    params = filter_params() if function is filter_response_norm else AffineParams(*filter_params()[:2])
    x, where = data((3, 8, 4, 5)), jnp.moveaxis(counted((8, 3, 4, 5)), 0, 1)
    expected = function(params, x, where=where)
    parts = [jnp.moveaxis(a.reshape(3, 4, 2, *a.shape[2:]), 1, 0) for a in (x, where)]
    y = jax.vmap(lambda x, where: function(params, x, where=where, axis_name="d"), axis_name="d")(*parts)
    assert_allclose(jnp.moveaxis(y, 0, 1).reshape(x.shape), expected, rtol=1e-5, atol=1e-5)


# Errors


def test_bad_parameters_are_named() -> None:
    x = data((8, 3, 5))
    with pytest.raises(TypeError, match="params must be FilterResponseParams, got AffineParams"):
        filter_response_norm(AffineParams(None, None), x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"params.threshold must have shape \[5\] \(the channels of x\), got \[4\]"):
        filter_response_norm(filter_params()._replace(threshold=jnp.zeros(4)), x)
    with pytest.raises(ValueError, match=r"params.epsilon must have shape \[\] \(whatever x is\), got \[5\]"):
        filter_response_norm(filter_params()._replace(epsilon=jnp.zeros(5)), x)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": 2.0}, TypeError, "size must be an int of at least 1, got 2.0"),
        ({"k": -1.0}, ValueError, r"k must be in \[0, inf\), got -1"),
        ({"alpha": -0.1}, ValueError, r"alpha must be in \[0, inf\), got -0.1"),
        ({"beta": float("nan")}, ValueError, r"beta must be in \[0, inf\), got nan"),
        ({"channel_axis": 3}, ValueError, "channel_axis is out of range"),
        ({"channel_axis": (0, 1)}, ValueError, r"channel_axis must be one axis, got \(0, 1\)"),
    ],
)
def test_bad_windows_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        local_response_norm(data((8, 3, 5)), **options)


@pytest.mark.parametrize("function", [filter_response_norm, global_response_norm])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1.0}, r"epsilon must be in \[0, inf\), got -1"),
        ({"channel_axis": 0}, "channel_axis must not be the first axis"),
        ({"reduction_axes": (1, 2)}, r"reduction_axes must not name an axis of the channels, -1, got \(1, 2\)"),
        ({"where": jnp.ones((8, 5), bool)}, "where must have the rank of x"),
        ({"axis_index_groups": [[0]]}, "axis_index_groups needs an axis_name"),
    ],
    ids=str,
)
def test_bad_options_are_named(function: Any, options: dict[str, Any], message: str) -> None:
    params = filter_params() if function is filter_response_norm else AffineParams(None, None)
    with pytest.raises(ValueError, match=message):
        function(params, data((8, 3, 5)), **options)
