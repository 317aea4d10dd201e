"""batch_norm against the oracle, where rounding, axes, epsilon and offsets could go wrong."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from jax.experimental.layout import Format, Layout
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import AffineParams, RunningStats, batch_norm, init_batch_norm

EPS32 = np.finfo(np.float32).eps
compiled = jax.jit(batch_norm, static_argnames=("train", "channel_axis", "unbiased"))
inference_or_training = pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])


def parameters(features: int, seed: int = 1) -> tuple[AffineParams, RunningStats]:
    random = np.random.default_rng(seed)
    scale, bias, mean = (jnp.asarray(random.uniform(low, 3, features), jnp.float32) for low in (0.5, -2, 1))
    return AffineParams(scale, bias), RunningStats(mean, jnp.full(features, 7.0))


def plain(features: int) -> tuple[AffineParams, RunningStats]:
    return AffineParams(None, None), init_batch_norm(features)[1]


def normal(shape: tuple[int, ...], mean: Any = 0.0, std: Any = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, shape).astype(np.float32)


@inference_or_training
@pytest.mark.parametrize("shape", [(5, 3), (7, 5), (2, 33), (4, 2, 3, 5), (2, 3, 4, 2, 3), (6,)], ids=str)
@pytest.mark.parametrize("unbiased", [False, True], ids=["biased", "unbiased"])
def test_equals_the_oracle_in_every_rank(train: bool, shape: tuple[int, ...], unbiased: bool) -> None:
    x = data(shape)
    params, state = parameters(shape[-1])
    options = {"train": train, "momentum": 0.8, "epsilon": 1e-3, "unbiased": unbiased}
    y, new = compiled(params, state, x, **options)
    expected = oracles.batch_norm(params, state, x, **options)
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(new.mean, expected.mean, rtol=1e-6, atol=1e-6)
    assert_allclose(new.var, expected.var, rtol=1e-6)


@inference_or_training
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -4, (1, 3), (3, 1), (-1, 1), (0, 1, 2, 3), ()], ids=str)
def test_equals_the_oracle_on_every_channel_axis(train: bool, axis: Any) -> None:
    """Pitfalls 31 and 33."""
    x = data((4, 2, 3, 5))
    channels = (axis,) if isinstance(axis, int) else axis
    shape = tuple(x.shape[a] for a in sorted(a % 4 for a in channels))
    random = np.random.default_rng(2)
    arrays = [jnp.asarray(random.uniform(0.5, 3, shape), jnp.float32) for _ in range(4)]
    params, state = AffineParams(*arrays[:2]), RunningStats(*arrays[2:])
    y, new = compiled(params, state, x, train=train, momentum=0.8, channel_axis=axis)
    expected = oracles.batch_norm(params, state, x, train=train, momentum=0.8, channel_axis=axis)
    # With every axis a channel the batch has one element for each, and y is the bias.
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(new.mean, expected.mean, rtol=1e-6, atol=1e-6)
    assert_allclose(new.var, expected.var, rtol=1e-6)


@inference_or_training
def test_channel_axis_is_a_move_of_the_axis(train: bool) -> None:
    """Pitfall 71."""
    x = data((4, 2, 3, 5), channel_axis=1)
    params, state = parameters(2)
    y, new = compiled(params, state, x, train=train, channel_axis=1)
    moved, new_moved = compiled(params, state, jnp.moveaxis(x, 1, -1), train=train)
    assert_allclose(y, jnp.moveaxis(moved, -1, 1), rtol=1e-6, atol=1e-6)
    assert_allclose(new.var, new_moved.var, rtol=1e-6)


@inference_or_training
@pytest.mark.parametrize("parts", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_scale_and_bias_may_be_left_out(train: bool, parts: tuple[bool, bool]) -> None:
    x = data((5, 3))
    params, state = parameters(3)
    params = AffineParams(*(part if used else None for part, used in zip(params, parts, strict=True)))
    y, _ = compiled(params, state, x, train=train)
    assert_allclose(y, oracles.batch_norm(params, state, x, train=train).y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [1e2, 1e3, 1e4, 1e5, -1e4])
def test_a_mean_far_from_zero_costs_no_more_than_the_rounding_of_x(offset: float) -> None:
    """Pitfalls 2 and 3."""
    x = normal((8, 3)) + np.float32(offset)
    params, state = plain(3)
    y, new = compiled(params, state, x, train=True, momentum=0.0)
    expected = oracles.batch_norm(params, state, x, train=True, momentum=0.0)
    _, var, _ = oracles.moments(x, (0,))
    tolerance = 8 * EPS32 * (1 + abs(offset) / np.sqrt(var.min()))
    assert_allclose(y, expected.y, atol=tolerance)
    assert_allclose(np.asarray(y, np.float64).std(0), 1, atol=1e-3)
    assert_allclose(new.var, expected.var, rtol=1e-5)


def test_standard_deviation_at_mean_ten_thousand_in_large_batches() -> None:
    x = normal((4096, 4, 5, 3), 1e4, 1)
    y, _ = compiled(*plain(3), x, train=True)
    assert_allclose(np.asarray(y, np.float64).std((0, 1, 2)), 1, atol=1e-3)


@pytest.mark.parametrize("first", [1e6, -1e4, 3e18])
def test_an_outlier_in_the_first_place_is_an_outlier_like_any_other(first: float) -> None:
    x = normal((64, 3), 5, 2)
    x[0] = first
    y, new = compiled(*plain(3), x, train=True, momentum=0.0)
    expected = oracles.batch_norm(*plain(3), x, train=True, momentum=0.0)
    assert_allclose(y, expected.y, atol=1e-5)
    assert_allclose(new.var, expected.var, rtol=1e-5)
    assert_allclose(new.mean, expected.mean, atol=1e-5 * np.sqrt(expected.var.max()))


@pytest.mark.parametrize("shape", [(3,), (64, 1), (8, 8, 8, 4), (1000, 3)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
def test_a_constant_channel_becomes_the_bias(shape: tuple[int, ...], masked: bool) -> None:
    """No rounding error of the mean is blown up by the root of epsilon. Pitfall 1."""
    random = np.random.default_rng(3)
    constants = np.float32([11, 11 + 3e-6, 123456789.0, 1e-3, 0, 1e15, *10 ** random.uniform(-3, 6, 100)])
    counts = random.random(shape) < 0.6
    counts.reshape(-1, shape[-1])[0] = True  # of each channel one counts
    where = jnp.asarray(counts) if masked else None
    for constant in constants:
        for sign in (1, -1):
            x = jnp.full(shape, sign * constant, jnp.float32)
            y, new = compiled(*plain(shape[-1]), x, train=True, momentum=0.0, where=where)
            assert np.abs(y).max() <= 1e-2, constant
            assert (np.asarray(new.var) >= 0).all()
            assert_allclose(new.mean, sign * constant, rtol=2 * EPS32)


@pytest.mark.parametrize("std", [1e-3, 1.0, 1e3])
def test_epsilon_is_added_to_the_variance(std: float) -> None:
    """Dividing by `var + epsilon`, its square, or `std + epsilon` gives another variance; unit deviations hide it.

    Pitfall 12.
    """
    x = normal((64, 3), 5 * std, std)
    for epsilon in (1e-5, 1e-3, 0.5):
        y, _ = compiled(*plain(3), x, train=True, epsilon=epsilon)
        _, var, _ = oracles.moments(x, (0,))
        assert_allclose(np.asarray(y, np.float64).var(0), (var / (var + epsilon))[0], rtol=1e-4)


def test_inference_subtracts_the_mean_before_it_scales() -> None:
    """Pitfall 9."""
    state = RunningStats(jnp.full(2, 1e6), jnp.full(2, 1e-4))
    x = jnp.asarray([[1e6, 1e6 + 0.0625]], jnp.float32)
    for call in (batch_norm, compiled):
        y, _ = call(AffineParams(None, None), state, x, train=False, epsilon=1e-3)
        assert_allclose(y, [[0, 0.0625 / np.sqrt(1e-4 + 1e-3)]], rtol=1e-5)
    with jax.disable_jit():
        assert_allclose(batch_norm(AffineParams(None, None), state, x, train=False, epsilon=1e-3)[0], y, rtol=1e-6)
    huge = RunningStats(jnp.full(3, 1e15), jnp.full(3, 2.0))
    y, _ = compiled(AffineParams(None, jnp.ones(3) * 4), huge, jnp.full((3, 3), 1e15), train=False)
    assert_array_equal(y, jnp.full((3, 3), 4.0))


@pytest.mark.parametrize("features", [1, 2, 3, 31, 33, 63, 65, 127, 129, 384])
def test_numbers_of_channels(features: int) -> None:
    """Pitfall 15."""
    x = normal((4, 2, features), np.linspace(-3, 5, features), np.linspace(0.5, 4, features))
    y, new = compiled(*plain(features), x, train=True)
    expected = oracles.batch_norm(*plain(features), x, train=True)
    assert_allclose(y, expected.y, atol=1e-4)
    assert_allclose(new.var, expected.var, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 65535, 65536, 65537, 10_000])
def test_numbers_of_elements(rows: int) -> None:
    """Pitfall 15."""
    x = normal((rows, 33), 4, 2)
    y, new = compiled(*plain(33), x, train=True, momentum=0.5)
    expected = oracles.batch_norm(*plain(33), x, train=True, momentum=0.5)
    assert_allclose(y, expected.y, atol=1e-4)
    assert_allclose(new.var, expected.var, rtol=1e-5)


def test_complex_numbers_have_a_complex_mean_and_a_real_variance() -> None:
    """Pitfall 21."""
    x = data((6, 4, 3), jnp.complex64)
    params, _ = parameters(3)
    state = RunningStats(jnp.full(3, 1 - 2j, jnp.complex64), jnp.full(3, 7.0))
    for train in (True, False):
        y, new = compiled(params, state, x, train=train, momentum=0.8)
        expected = oracles.batch_norm(params, state, x, train=train, momentum=0.8)
        assert (y.dtype, new.mean.dtype, new.var.dtype) == (jnp.complex64, jnp.complex64, jnp.float32)
        assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
        assert_allclose(new.mean, expected.mean, rtol=1e-6, atol=1e-6)
        assert_allclose(new.var, expected.var, rtol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
def test_gradient_equals_the_analytic_one(mean: float, masked: bool) -> None:
    """Pitfall 6."""
    x = normal((8, 2, 4, 3), mean, [0.5, 2, 3])
    dy = normal(x.shape, 0.3, 2, seed=5)
    params, state = parameters(3)
    where = counted() if masked else None

    @jax.jit
    def gradient(scale: jax.Array, bias: jax.Array, x: jax.Array, dy: jax.Array) -> Any:
        def loss(scale: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
            y, _ = batch_norm(AffineParams(scale, bias), state, x, train=True, epsilon=1e-3, where=where)
            return jnp.sum(y * dy)

        return jax.grad(loss, (2, 0, 1))(scale, bias, x)

    expected = oracles.batch_norm_gradient(x, params.scale, dy, epsilon=1e-3, where=where)
    tolerance = 1e-4 if mean == 0 else 2e-2  # x itself is rounded to 6e-5 at 1e3
    for got, right in zip(gradient(*params, jnp.asarray(x), jnp.asarray(dy)), expected, strict=True):
        assert_allclose(got, right, rtol=2e-3, atol=tolerance)
    with jax.enable_x64(True):
        wide = [jnp.asarray(oracles.wide(a)) for a in (*params, x, dy)]
        for got, right in zip(gradient(*wide), expected, strict=True):
            assert_allclose(got, right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True], ids=["all", "where"])
def test_gradients_of_complex_numbers(masked: bool) -> None:
    with jax.enable_x64(True):
        params, state = init_batch_norm(3, param_dtype=jnp.float64, dtype=jnp.complex128)
        x, where = data((4, 2, 4, 3), jnp.complex128), counted((4, 2, 4, 3)) if masked else None
        f = jax.jit(lambda x: batch_norm(params, state, x, train=True, epsilon=1e-2, where=where)[0])
        check_grads(f, (x,), order=2, modes=("fwd", "rev"), rtol=1e-5, atol=1e-5)


def test_gradient_at_zero_variance_is_bounded_by_the_root_of_epsilon() -> None:
    """Pitfalls 4 and 14."""
    params, state = parameters(3)
    dy = data((4, 3, 5), seed=4)

    def loss(x: jax.Array, params: AffineParams) -> jax.Array:
        return jnp.sum(batch_norm(params, state, x, train=True, epsilon=1e-3, channel_axis=1)[0] * dy)

    for constant in (-11 + 3e-6, 0.0, 1e4):
        dx, dparams = jax.jit(jax.grad(loss, (0, 1)))(jnp.full((4, 3, 5), constant), params)
        assert all(jnp.isfinite(leaf).all() for leaf in (dx, *dparams))
        assert np.abs(dx).max() <= 2 * np.abs(dy).max() * np.abs(params.scale).max() / np.sqrt(1e-3)


def test_y_does_not_depend_on_the_running_statistics_in_training() -> None:
    """Pitfall 59."""
    params, state = parameters(3)
    x = data((5, 3))
    gradient = jax.grad(lambda state: jnp.sum(jnp.square(batch_norm(params, state, x, train=True)[0])))(state)
    for leaf in gradient:
        assert_array_equal(leaf, jnp.zeros(3))


@inference_or_training
def test_a_batch_of_one_row(train: bool) -> None:
    """One element for each channel: its variance is 0, y is the bias, and `unbiased` has no 0 / 0. Pitfalls 28 and 35."""
    x = jnp.asarray([[1.0, -2, 30]])
    params, state = parameters(3)
    for unbiased in (False, True):
        y, new = compiled(params, state, x, train=train, momentum=0.9, unbiased=unbiased)
        if train:
            assert_array_equal(y, params.bias[None])
            assert_allclose(new.mean, 0.9 * state.mean + 0.1 * x[0], rtol=1e-6)
            assert_allclose(new.var, 0.9 * state.var, rtol=1e-6)
        else:
            assert_array_equal(new.var, state.var)


@inference_or_training
@pytest.mark.parametrize("shape", [(0, 3), (0, 4, 2, 3), (4, 0, 3)], ids=str)
def test_an_empty_batch_changes_nothing(train: bool, shape: tuple[int, ...]) -> None:
    """Pitfall 29."""
    params, state = parameters(3)
    x = jnp.zeros(shape)
    for call in (batch_norm, compiled):
        y, new = call(params, state, x, train=train)
        assert y.shape == shape
        assert_array_equal(new.mean, state.mean)
        assert_array_equal(new.var, state.var)
    gradient = jax.grad(lambda params, x: jnp.sum(batch_norm(params, state, x, train=train)[0]), (0, 1))(params, x)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_no_channels() -> None:
    params, state = AffineParams(jnp.zeros(0), jnp.zeros(0)), RunningStats(jnp.zeros(0), jnp.zeros(0))
    y, new = batch_norm(params, state, jnp.zeros((4, 0)), train=True)
    assert y.shape == (4, 0)
    assert new.mean.shape == (0,)


def test_fresh_inference_is_the_affine_map_but_for_epsilon() -> None:
    """Pitfall 48."""
    x = data((5, 3))
    params, state = init_batch_norm(3)
    y, _ = compiled(params, state, x, train=False, epsilon=1e-3)
    assert_allclose(y, x / np.sqrt(np.float32(1 + 1e-3)), rtol=1e-6)
    deep = x
    for _ in range(50):
        deep, _ = compiled(params, state, deep, train=False)
    assert np.abs(deep).max() <= np.abs(x).max()


def test_inputs_transposed_inside_jit() -> None:
    """Pitfall 71."""
    x = data((3, 5, 4))
    params, state = parameters(3)
    y, _ = jax.jit(lambda x: batch_norm(params, state, x.T, train=True))(x)
    assert_allclose(y, oracles.batch_norm(params, state, np.asarray(x).T, train=True).y, rtol=1e-5, atol=1e-5)


def test_orders_in_memory_change_nothing() -> None:
    """Pitfall 71: that of x, and that of the gradient, where the two differ."""
    x, dy, (params, state) = data((5, 4, 3)), data((5, 4, 3), seed=3), parameters(3)

    @jax.jit
    def run(x: jax.Array, dy: jax.Array) -> Any:
        y, pullback = jax.vjp(lambda params, x: batch_norm(params, state, x, train=True)[0], params, x)
        return y, pullback(dy)

    first = Format(Layout(major_to_minor=(0, 2, 1)), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    for layouts in ((first, None), (None, first), (first, first)):
        given = [a if layout is None else jax.device_put(a, layout) for a, layout in zip((x, dy), layouts, strict=True)]
        for got, expected in zip(jax.tree.leaves(run(*given)), jax.tree.leaves(run(x, dy)), strict=True):
            assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_eager_and_compiled_training_have_no_collective_and_no_concatenation() -> None:
    """What pooling over devices needs must cost nothing without it. Pitfall 65."""
    params, state = parameters(3)
    text = compiled.lower(params, state, data((8, 3)), train=True).compile().as_text()
    assert not any(op in text for op in (" all-reduce(", " concatenate(", " all-gather("))


def test_inference_compiles_to_the_program_of_flax() -> None:
    """Operation for operation: where the two take different times, that is noise. Pitfall 65."""
    params, state = parameters(3)
    layer = nn.BatchNorm(use_running_average=True, epsilon=1e-5, dtype=jnp.bfloat16)
    variables = {"params": params._asdict(), "batch_stats": state._asdict()}
    x = data((8, 3)).astype(jnp.bfloat16)
    ours = jax.jit(lambda params, state, x: batch_norm(params, state, x, train=False)[0]).lower(params, state, x)
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.jit(lambda variables, x: layer.apply(variables, x)).lower(variables, x)

    def operations(lowered: jax.stages.Lowered) -> list[str]:
        return sorted(re.findall(r" = (\S+ [a-z-]+)\(", lowered.compile().as_text()))

    assert operations(ours) == operations(theirs)
    assert any(" fusion" in operation for operation in operations(ours))
