"""Statistics between those of training and those at hand, against NumPy in float64 and their limits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm import AffineParams, CovarianceStats, RunningStats
from jaxnorm.statistics import blend_stats, blended_batch_norm, eval_batch_norm

PARAMS = AffineParams(jnp.array([1.0, 2.0, 0.5]), jnp.array([0.0, -1.0, 3.0]))
STATE = RunningStats(jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 4.0, 0.25]))


def images(dtype=jnp.float32, seed: int = 0) -> jax.Array:
    return (2 * jax.random.normal(jax.random.key(seed), (4, 5, 5, 3)) + 1).astype(dtype)


def normalized(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    scale, bias = (np.asarray(part, np.float64) for part in PARAMS)
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def test_blended_statistics() -> None:
    source = {"a": STATE, "b": {"mean": jnp.array([0.0]), "std": jnp.array([1.0])}}
    target = {"a": RunningStats(jnp.full(3, 2.0), jnp.full(3, 3.0)), "b": {"mean": jnp.array([4.0]), "std": jnp.array([3.0])}}
    found = blend_stats(source, target, 0.25)
    np.testing.assert_allclose(found["a"].mean, 0.75 * STATE.mean + 0.5, rtol=1e-6)
    np.testing.assert_allclose(found["a"].var, 0.75 * STATE.var + 0.75, rtol=1e-6)
    np.testing.assert_allclose(found["b"]["std"], np.sqrt(3.0), rtol=1e-6)
    mixed = blend_stats(source, target, 0.25, mixture=True)
    np.testing.assert_allclose(mixed["a"].var, found["a"].var + 0.1875 * (2 - STATE.mean) ** 2, rtol=1e-6)
    np.testing.assert_allclose(mixed["b"]["std"], np.sqrt(3 + 0.1875 * 16), rtol=1e-6)
    for weight, wanted in ((0.0, source), (1.0, target)):
        jax.tree.map(np.testing.assert_array_equal, jax.jit(blend_stats)(source, target, weight), wanted)


def test_a_mixture_has_the_statistics_of_all_its_examples() -> None:
    x, z = (np.random.default_rng(seed).normal(size=(n, 4)) * [1, 2, 3, 4] + seed for seed, n in ((0, 30), (5, 10)))

    def stats(rows: np.ndarray) -> CovarianceStats:
        return CovarianceStats(*(jnp.asarray(part, jnp.float32) for part in (rows.mean(0), np.cov(rows.T, bias=True)[None])))

    found, whole = blend_stats(stats(x), stats(z), 0.25, mixture=True), stats(np.concatenate([x, z]))
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(found.cov, whole.cov, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per, axes", [("batch", (0, 1, 2)), ("example", (1, 2))])
@pytest.mark.parametrize("mixture", [False, True])
def test_blended_batch_norm(per: str, axes: tuple[int, ...], mixture: bool) -> None:
    x = images()
    wide = np.asarray(x, np.float64)
    m, v = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
    mean, var = (np.asarray(part, np.float64) for part in STATE)
    wanted = normalized(wide, 0.7 * mean + 0.3 * m, 0.7 * var + 0.3 * v + (0.21 * (m - mean) ** 2 if mixture else 0))
    y = blended_batch_norm(PARAMS, STATE, x, 0.3, per=per, mixture=mixture)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    first = blended_batch_norm(PARAMS, STATE, jnp.moveaxis(x, -1, 1), 0.3, per=per, mixture=mixture, channel_axis=1)
    np.testing.assert_allclose(jnp.moveaxis(first, 1, -1), wanted, rtol=1e-5, atol=1e-5)
    half = blended_batch_norm(PARAMS, STATE, x.astype(jnp.bfloat16), 0.3, per=per, mixture=mixture)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), wanted, rtol=0.05, atol=0.05)


def test_limits_of_the_blended_norm() -> None:
    x = images()
    inference = jaxnorm.batch_norm(PARAMS, STATE, x, train=False)[0]
    training = jaxnorm.batch_norm(PARAMS, STATE, x, train=True)[0]
    instance = jaxnorm.instance_norm(PARAMS, x, epsilon=1e-5)
    np.testing.assert_allclose(blended_batch_norm(PARAMS, STATE, x, 0.0), inference, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(blended_batch_norm(PARAMS, STATE, x, 1.0), training, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(blended_batch_norm(PARAMS, STATE, x, 1.0, per="example"), instance, rtol=1e-5, atol=1e-5)
    traced = jax.jit(blended_batch_norm)(PARAMS, STATE, x, jnp.float32(0.0))
    np.testing.assert_allclose(traced, inference, rtol=1e-6, atol=1e-6)


def test_masks_of_the_blended_norm_and_over_devices() -> None:
    x = images()
    where = jnp.zeros((4, 5, 5, 1), bool).at[:2, :3].set(True)
    bad = jnp.where(where, x, jnp.nan)
    counted = np.asarray(x, np.float64)[:2, :3]
    mean, var = (np.asarray(part, np.float64) for part in STATE)
    y = blended_batch_norm(PARAMS, STATE, bad, 0.3, where=where)
    wanted = normalized(counted, 0.7 * mean + 0.3 * counted.mean((0, 1, 2)), 0.7 * var + 0.3 * counted.var((0, 1, 2)))
    np.testing.assert_allclose(y[:2, :3], wanted, rtol=1e-5, atol=1e-5)
    for norm, amount in ((blended_batch_norm, 0.3), (eval_batch_norm, 8)):
        none = norm(PARAMS, STATE, x, amount, where=jnp.zeros((1, 1, 1, 1), bool))
        np.testing.assert_allclose(none, jaxnorm.batch_norm(PARAMS, STATE, x, train=False)[0], rtol=1e-5, atol=1e-5)
    mapped = jax.vmap(lambda x, w: blended_batch_norm(PARAMS, STATE, x, 0.3, where=w, axis_name="i"), axis_name="i")
    parts = mapped(bad.reshape(2, 2, 5, 5, 3), where.reshape(2, 2, 5, 5, 1))
    np.testing.assert_allclose(parts.reshape(y.shape)[:2, :3], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_finite_and_those_of_numbers() -> None:
    x = images()[:2, :2, :2]
    for norm, amount in ((blended_batch_norm, 0.3), (eval_batch_norm, 4)):

        def loss(x, norm=norm, amount=amount):
            return jnp.sum(jnp.sin(norm(PARAMS, STATE, x, amount)))

        gradient = jax.grad(loss)(x)
        way = jax.random.normal(jax.random.key(1), x.shape)
        numeric = (loss(x + 1e-2 * way) - loss(x - 1e-2 * way)) / 2e-2
        np.testing.assert_allclose(jnp.vdot(gradient, way), numeric, rtol=2e-2)


def test_the_rule_for_small_batches() -> None:
    """Supplement S1.14."""
    x = images()
    wide = np.asarray(x, np.float64)
    m, v = wide.mean((1, 2), keepdims=True), wide.var((1, 2), keepdims=True)
    mean, var = (np.asarray(part, np.float64) for part in STATE)
    between = np.array([0.1, 0.2, 0.05])
    for given, of_batches in ((None, var), (jnp.asarray(between, jnp.float32), var - between / 8)):
        wanted = normalized(wide, m / 8 + 7 / 8 * mean, v / 8 + 7 / 8 * of_batches + 7 / 64 * (m - mean) ** 2)
        y = eval_batch_norm(PARAMS, STATE, x, 8, var_of_means=given)
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        eval_batch_norm(PARAMS, STATE, x, 1), jaxnorm.instance_norm(PARAMS, x, epsilon=1e-5), rtol=1e-5, atol=1e-5
    )
    inference = jaxnorm.batch_norm(PARAMS, STATE, x, train=False)[0]
    np.testing.assert_allclose(eval_batch_norm(PARAMS, STATE, x, float("inf")), inference, rtol=1e-5, atol=1e-5)
    each = jnp.concatenate([eval_batch_norm(PARAMS, STATE, x[i : i + 1], 8) for i in range(4)])
    np.testing.assert_allclose(each, eval_batch_norm(PARAMS, STATE, x, 8), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", [1, 6])
def test_the_rule_is_the_expectation_over_batches_with_the_example(positions: int) -> None:
    """By drawing: mates of a known distribution, with means of their own, join one example."""
    rng = np.random.default_rng(0)
    size, spread = 4, 0.8 if positions > 1 else 0.0
    x = rng.normal(1.5, 1.0, positions)
    draws = 200_000
    mates = rng.normal(size=(draws, size - 1, positions)) + spread * rng.normal(size=(draws, size - 1, 1))
    batches = np.concatenate([np.broadcast_to(x, (draws, 1, positions)), mates], 1).reshape(draws, -1)
    mean, var = batches.mean(), batches.var(1).mean()
    mean = batches.mean(1).mean()
    of_means = spread**2 + 1 / positions
    state = RunningStats(jnp.zeros(1), jnp.full(1, 1 + spread**2))
    y = eval_batch_norm(
        AffineParams(None, None), state, jnp.asarray(x, jnp.float32)[None, :, None], size, var_of_means=jnp.full(1, of_means)
    )
    np.testing.assert_allclose(y[0, :, 0], (x - mean) / np.sqrt(var + 1e-5), atol=5e-3)


def test_a_model_of_flax_with_blended_statistics() -> None:
    x = images()
    net = nn.BatchNorm(use_running_average=True)
    variables = net.init(jax.random.key(0), x)
    found = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
    stats = blend_stats(variables["batch_stats"], found, 1.0)
    y = net.apply({**variables, "batch_stats": stats}, x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-5)


@pytest.mark.parametrize(
    "call, error, said",
    [
        (lambda: blend_stats(STATE, STATE, 1.5), ValueError, "weight must be in"),
        (lambda: blend_stats(STATE, {"a": STATE}, 0.5), ValueError, "batch must have the statistics of stats"),
        (lambda: blend_stats(STATE, STATE, 0.5, mixture=1), TypeError, "mixture must be True or False"),
        (lambda: blended_batch_norm(PARAMS, STATE, images(), -0.1), ValueError, "weight must be in"),
        (lambda: blended_batch_norm(PARAMS, STATE, images(), 0.1, per="row"), ValueError, "per must be 'batch' or 'example'"),
        (lambda: blended_batch_norm(PARAMS, STATE, images()[..., :2], 0.1), ValueError, "params.scale must have shape"),
        (lambda: eval_batch_norm(PARAMS, STATE, images(), 0), ValueError, "batch_size must be in"),
        (lambda: eval_batch_norm(PARAMS, STATE, images(), 4, var_of_means=jnp.ones(2)), ValueError, "var_of_means"),
        (lambda: eval_batch_norm(PARAMS, STATE, images(), 4, channel_axis=0), ValueError, "shape|first axis"),
        (lambda: eval_batch_norm(PARAMS, STATE, jnp.ones((2, 3), int), 4), TypeError, "floating point"),
    ],
)
def test_bad_input(call, error, said) -> None:
    with pytest.raises(error, match=said):
        call()
