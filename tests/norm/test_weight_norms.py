"""Weight norm, weight standardization and spectral norm: the oracles, closed forms, what is kept, and errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import (
    SpectralStats,
    WeightNormParams,
    init_spectral_norm,
    init_weight_norm,
    init_weight_norm_from_data,
    spectral_norm,
    weight_norm,
    weight_standardization,
)
from jaxnorm.benchmarks._costs import residuals

AXES = [((4, 5), -1), ((3, 3, 4, 5), -1), ((5, 4, 3), 0), ((3, 4, 5), (0, 2)), ((4, 5), ())]
each = pytest.mark.parametrize(("shape", "axis"), AXES, ids=str)


def gain_of(shape: tuple[int, ...], axis: Any) -> jax.Array:
    axes = (axis,) if isinstance(axis, int) else axis
    return jnp.asarray(np.random.default_rng(4).uniform(-2, 3, tuple(shape[a] for a in axes)), jnp.float32)


def matrix(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# Weight norm


@each
@pytest.mark.parametrize("used", [True, False], ids=["gain", "none"])
def test_weight_norm_equals_the_oracle(shape: tuple[int, ...], axis: Any, used: bool) -> None:
    params = WeightNormParams(data(shape), gain_of(shape, axis) if used else None)
    expected = oracles.weight_norm(params, channel_axis=axis, epsilon=0.1)
    assert_allclose(weight_norm(params, channel_axis=axis, epsilon=0.1), expected, rtol=1e-5, atol=1e-6)


@each
def test_a_new_weight_norm_gives_its_kernel(shape: tuple[int, ...], axis: Any) -> None:
    kernel = data(shape)
    params = init_weight_norm(kernel, channel_axis=axis)
    assert_array_equal(params.direction, kernel)
    assert_allclose(weight_norm(params, channel_axis=axis), kernel, rtol=1e-6)


def test_lengths_are_those_of_the_gain_and_gradients_those_of_the_paper() -> None:
    """Methods 3.13: the direction's gradient is orthogonal to it, and the gain's is the kernel's along it."""
    params = WeightNormParams(data((6, 5)), gain_of((6, 5), -1))
    kernel, pullback = jax.vjp(lambda params: weight_norm(params, epsilon=0.0), params)
    assert params.gain is not None
    assert_allclose(jnp.linalg.norm(kernel, axis=0), jnp.abs(params.gain), rtol=1e-5)
    g = np.float64(jnp.cos(data((6, 5), seed=3)))
    (gradient,) = pullback(jnp.float32(g))
    v, gain = np.float64(params.direction), np.float64(params.gain)
    length = np.linalg.norm(v, axis=0)
    of_gain = (g * v).sum(0) / length
    assert_allclose(gradient.gain, of_gain, rtol=1e-4, atol=1e-6)
    assert_allclose(gradient.direction, gain / length * g - gain * of_gain / length**2 * v, rtol=1e-4, atol=1e-6)
    assert_allclose((np.float64(gradient.direction) * v).sum(0), 0, atol=1e-5)


def test_outputs_of_the_first_batch_have_mean_0_and_variance_1() -> None:
    """Methods 3.13, the data-dependent start."""
    x, kernel = data((64, 6)) + 3, matrix(6, 5)
    params, bias = init_weight_norm_from_data(kernel, x @ kernel)
    y = np.float64(x @ weight_norm(params) + bias[None])
    assert_allclose(y.mean(0), 0, atol=1e-5)
    assert_allclose(y.var(0), 1, rtol=1e-4)
    images, filters = data((4, 8, 8, 3)), matrix(3, 3, 3, 5)
    dimensions = ("NHWC", "HWIO", "NHWC")
    convolve = lambda k: jax.lax.conv_general_dilated(images, k, (1, 1), "SAME", dimension_numbers=dimensions)  # noqa: E731
    params, bias = init_weight_norm_from_data(filters, convolve(filters))
    y = np.float64(convolve(weight_norm(params)) + bias[None, None, None])
    assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    assert_allclose(y.var((0, 1, 2)), 1, rtol=1e-4)


# Weight standardization


@each
@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "plain"])
@pytest.mark.parametrize("used", [True, False], ids=["gain", "none"])
def test_weight_standardization_equals_the_oracle(shape: tuple[int, ...], axis: Any, scaled: bool, used: bool) -> None:
    options = {"gain": gain_of(shape, axis) if used else None, "scaled": scaled, "channel_axis": axis, "epsilon": 1e-3}
    kernel = data(shape)
    assert_allclose(
        weight_standardization(kernel, **options), oracles.weight_standardization(kernel, **options), rtol=1e-5, atol=1e-5
    )


def test_weights_have_mean_0_and_variance_1_whatever_their_own() -> None:
    """Methods 3.14: the same for `a kernel + b`, also far from 0, and the sum over what an output takes is 0."""
    kernel = matrix(3, 3, 4, 5)
    y = weight_standardization(kernel, epsilon=0.0)
    assert_allclose(jnp.sum(y, (0, 1, 2)), 0, atol=1e-5)
    assert_allclose(np.float64(y).var((0, 1, 2)), 1, rtol=1e-5)
    assert_allclose(weight_standardization(7 * kernel + 1000, epsilon=0.0), y, atol=1e-4)


def test_scaled_weights_keep_the_variance_of_white_input() -> None:
    x, kernel = matrix(20000, 50, seed=1), matrix(50, 3)
    y = x @ weight_standardization(kernel, scaled=True)
    assert_allclose(np.float64(y).var(0), 1, rtol=0.05)


# Spectral norm


@pytest.mark.parametrize(("shape", "axis"), [((6, 5), -1), ((3, 3, 4, 5), -1), ((5, 4, 3), 0), ((4, 1), 1)], ids=str)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
def test_spectral_norm_equals_the_oracle(shape: tuple[int, ...], axis: int, steps: int, train: bool) -> None:
    kernel, state = data(shape), init_spectral_norm(jax.random.key(2), shape[axis])
    options = {"train": train, "steps": steps, "channel_axis": axis}
    y, new = spectral_norm(state, kernel, **options)
    expected = oracles.spectral_norm(state, kernel, **options)
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-6)
    for part, wanted in zip(new, expected[1:], strict=True):
        assert_allclose(part, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 12), (3, 3, 8, 12)], ids=str)
def test_sigma_converges_from_below_to_the_largest_singular_value(shape: tuple[int, ...]) -> None:
    """Methods 3.15, against an SVD; pitfall 114."""
    kernel = matrix(*shape)
    values = np.linalg.svd(np.float64(kernel).reshape(-1, shape[-1]), compute_uv=False)
    state, found = init_spectral_norm(jax.random.key(0), shape[-1]), []
    for _ in range(300):
        y, state = spectral_norm(state, kernel, train=True)
        found.append(float(state.sigma))
    assert (np.diff(found) > -1e-5).all()
    assert max(found) <= values[0] * (1 + 1e-6)
    assert_allclose(found[-1], values[0], rtol=1e-6)
    assert_allclose(np.linalg.svd(np.float64(y).reshape(-1, shape[-1]), compute_uv=False)[0], 1, rtol=1e-6)


def test_a_matrix_of_rank_1_takes_one_step() -> None:
    """Methods 3.15."""
    kernel = matrix(6, 1) @ matrix(1, 5, seed=1)
    y, state = spectral_norm(init_spectral_norm(jax.random.key(0), 5), kernel, train=True)
    assert_allclose(state.sigma, jnp.linalg.norm(kernel), rtol=1e-6)
    assert_allclose(jnp.linalg.norm(y), 1, rtol=1e-6)


def test_derivatives_of_every_order_take_u_and_v_for_constants() -> None:
    """Methods 3.15: `(g - <g, y> u v^T) / sigma`, and of second order that of the quotient."""
    kernel, state = matrix(6, 5), init_spectral_norm(jax.random.key(0), 5)
    _, new = spectral_norm(state, kernel, train=True)
    v = kernel @ (state.u / jnp.linalg.norm(state.u))
    outer = jnp.outer(v / jnp.linalg.norm(v), new.u)
    weights = jnp.cos(matrix(6, 5, seed=3))
    ours = lambda kernel: jnp.sum(weights * jnp.sin(spectral_norm(state, kernel, train=True)[0]))  # noqa: E731
    plain = lambda kernel: jnp.sum(weights * jnp.sin(kernel / jnp.sum(outer * kernel)))  # noqa: E731
    assert_allclose(jax.grad(ours)(kernel), jax.grad(plain)(kernel), rtol=1e-4, atol=1e-6)
    along = matrix(6, 5, seed=4)
    second, expected = (jax.jvp(jax.grad(f), (kernel,), (along,))[1] for f in (ours, plain))
    assert_allclose(second, expected, rtol=1e-3, atol=1e-5)


def test_inference_does_not_change_the_state_and_is_repeatable() -> None:
    """Pitfall 114: u is not updated in inference."""
    kernel, state = matrix(6, 5), init_spectral_norm(jax.random.key(0), 5)
    first, new = spectral_norm(state, kernel, train=False)
    for part, old in zip(new, state, strict=True):
        assert_array_equal(part, old)
    assert_array_equal(spectral_norm(new, kernel, train=False)[0], first)
    traced = jax.jit(lambda train: spectral_norm(state, kernel, train=train))
    for train in (True, False):
        jax.tree.map(functools.partial(assert_allclose, rtol=1e-6), traced(train), spectral_norm(state, kernel, train=train))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_kernel_that_is_0_or_not_finite_changes_nothing_of_the_state(bad: float) -> None:
    state = init_spectral_norm(jax.random.key(0), 5)
    kernel = jnp.zeros((6, 5)) if bad == 0 else matrix(6, 5).at[2, 3].set(bad)
    y, new = spectral_norm(state, kernel, train=True)
    for part, old in zip(new, state, strict=True):
        assert_array_equal(part, old)
    if bad == 0:
        assert_array_equal(y, kernel)
        gradient = jax.grad(lambda k: jnp.sum(spectral_norm(state, k, train=True)[0]))(kernel)
        assert_array_equal(gradient, jnp.ones((6, 5)))


def test_a_norm_that_overflows_changes_nothing_of_the_state() -> None:
    state = init_spectral_norm(jax.random.key(0), 5)
    _, new = spectral_norm(state, jnp.full((6, 5), 1e38), train=True)
    jax.tree.map(assert_array_equal, new, state)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_squares_of_large_and_small_kernels_neither_overflow_nor_vanish(size: float) -> None:
    kernel, state = matrix(6, 5), init_spectral_norm(jax.random.key(0), 5)
    y, new = spectral_norm(state, kernel, train=True, epsilon=0.0)
    scaled, of_scaled = spectral_norm(state, size * kernel, train=True, epsilon=0.0)
    assert_allclose(scaled, y, rtol=1e-5)
    assert_allclose(of_scaled.sigma / size, new.sigma, rtol=1e-5)


def test_spectral_norm_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    kernel = matrix(6, 5)
    layer = torch.nn.Linear(5, 6, bias=False)
    layer.weight.data = torch.tensor(np.array(kernel))
    normed = torch.nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=1)
    for _ in range(300):
        wanted = normed.weight.detach().numpy()
    y, _ = spectral_norm(init_spectral_norm(jax.random.key(0), 5), kernel, train=True, steps=300)
    assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


# What is kept, and errors


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_kernel_is_kept_for_the_gradient_and_numbers_of_outputs(dtype: Any) -> None:
    kernel = data((3, 3, 64, 32), dtype)
    params, state = init_weight_norm(kernel), init_spectral_norm(jax.random.key(0), 32)
    for kept in (
        residuals(lambda gain, x: (weight_norm(WeightNormParams(x, gain)), None), params.gain, kernel),
        residuals(lambda gain, x: (weight_standardization(x, gain=gain), None), params.gain, kernel),
        residuals(lambda _, x: spectral_norm(state, x, train=True), params.gain, kernel),
    ):
        assert kept.keeps_input
        assert kept.nbytes <= 12 * 4 * 32 + 2 * 4 * 9 * 64


KERNEL, STATE = data((4, 5)), SpectralStats(jnp.ones(5), jnp.ones(()))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: weight_norm(KERNEL), TypeError, "params must be WeightNormParams, got"),  # type: ignore[arg-type]
        (lambda: weight_norm(WeightNormParams(KERNEL, jnp.ones(4))), ValueError, r"params.gain must have shape \[5\]"),
        (
            lambda: weight_norm(WeightNormParams(KERNEL[0], None)),
            ValueError,
            "channel_axis must leave an axis of params.direction",
        ),
        (lambda: weight_norm(WeightNormParams(jnp.ones((4, 5), int), None)), TypeError, "params.direction must be an array of"),
        (lambda: weight_norm(WeightNormParams(KERNEL, None), epsilon=-1), ValueError, r"epsilon must be in \[0, inf\), got -1"),
        (lambda: weight_norm(WeightNormParams(KERNEL, None), channel_axis=2), ValueError, "channel_axis is out of range"),
        (lambda: init_weight_norm(KERNEL, channel_axis=(0, 1)), ValueError, r"channel_axis must leave an axis .*, got \(0, 1\)"),
        (lambda: init_weight_norm_from_data(KERNEL, jnp.ones((8, 4))), ValueError, r"preactivation must have shape .*\[8, 4\]"),
        (lambda: init_weight_norm_from_data(KERNEL, jnp.ones(())), ValueError, r"preactivation must have shape .*, got \[\]"),
        (lambda: weight_standardization(KERNEL, gain=jnp.ones(4)), ValueError, r"gain must have shape \[5\]"),
        (lambda: weight_standardization(KERNEL[0]), ValueError, "channel_axis must leave an axis of kernel"),
        (lambda: weight_standardization(KERNEL, epsilon=float("nan")), ValueError, "epsilon must be in"),
        (lambda: spectral_norm(STATE, KERNEL, train=True, steps=0), ValueError, "steps must be at least 1, got 0"),
        (lambda: spectral_norm(STATE, KERNEL, train=True, steps=1.5), TypeError, "steps must be an int"),  # type: ignore[arg-type]
        (lambda: spectral_norm(STATE, KERNEL, train=1), TypeError, "train must be True or False"),  # type: ignore[arg-type]
        (lambda: spectral_norm(STATE, KERNEL.T, train=True), ValueError, r"state.u must have shape \[4\] .*, got \[5\]"),
        (lambda: spectral_norm(STATE, KERNEL, train=True, channel_axis=()), ValueError, "channel_axis must be one axis"),  # type: ignore[arg-type]
        (lambda: spectral_norm(STATE, KERNEL[0], train=True), ValueError, "channel_axis must leave an axis of kernel"),
        (lambda: spectral_norm((1, 2), KERNEL, train=True), TypeError, "state must be SpectralStats"),  # type: ignore[arg-type]
        (
            lambda: spectral_norm(STATE._replace(u=jnp.ones(5, jnp.bfloat16)), KERNEL, train=True),
            TypeError,
            "state.u must be kept in float32 or wider",
        ),
        (lambda: init_spectral_norm(jax.random.key(0), 0), ValueError, "num_features must be at least 1, got 0"),
        (lambda: init_spectral_norm(3, 5), TypeError, "key must be"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
