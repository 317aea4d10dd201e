"""Averages of statistics, against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm import CovarianceStats, RenormStats, RunningMean, RunningStats
from jaxnorm.statistics import combine_stats, cumulative_momentum, debias_stats, debiased_momentum, reset_stats

PARAMS, STATE = jaxnorm.init_batch_norm(2)


def batches(count: int = 5) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (count, 8, 2)) + jnp.arange(count, dtype=jnp.float32)[:, None, None]


def averaged(momentum, x: jax.Array) -> RunningStats:
    def step(state, given):
        number, x = given
        return jaxnorm.batch_norm(PARAMS, state, x, train=True, momentum=momentum(number))[1], None

    return jax.lax.scan(step, STATE, (jnp.arange(len(x)), x))[0]


def moments_of(x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(x, np.float64).mean(1), np.asarray(x, np.float64).var(1)


def test_cumulative_momentum_is_the_plain_mean() -> None:
    """Pitfall 57."""
    means, variances = moments_of(batches())
    for momentum in (cumulative_momentum, lambda step: debiased_momentum(step, 1.0)):
        state = averaged(momentum, batches())
        np.testing.assert_allclose(state.mean, means.mean(0), rtol=1e-6)
        np.testing.assert_allclose(state.var, variances.mean(0), rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 0.999999])
def test_debiased_averages_and_momentum_agree(momentum: float) -> None:
    means, variances = moments_of(batches())
    weights = momentum ** np.arange(4.0, -1, -1) if momentum else np.eye(5)[4]
    weights /= weights.sum()
    for state in (
        averaged(lambda step: debiased_momentum(step, momentum), batches()),
        averaged(lambda step: debiased_momentum(step, jnp.float32(momentum)), batches()),
    ):
        np.testing.assert_allclose(state.mean, weights @ means, rtol=1e-5)
        np.testing.assert_allclose(state.var, weights @ variances, rtol=1e-5)
    if momentum < 0.999:
        state = debias_stats(averaged(lambda _: momentum, batches()), momentum, 5)
        np.testing.assert_allclose(state.mean, weights @ means, rtol=1e-4)
        np.testing.assert_allclose(state.var, weights @ variances, rtol=1e-4)


def test_debias_of_ten_alike_batches() -> None:
    """Pitfall 49: without, 10 batches of mean 10 give 10 (1 - 0.99^10) = 0.956."""
    x = jnp.broadcast_to(jnp.array([8.0, 12.0])[None, :, None], (10, 2, 2))
    state = averaged(lambda _: 0.99, x)
    np.testing.assert_allclose(state.mean, 0.956, rtol=1e-3)
    np.testing.assert_allclose(debias_stats(state, 0.99, 10).mean, 10.0, rtol=1e-4)
    np.testing.assert_allclose(debias_stats(state, 0.99, 10).var, 4.0, rtol=1e-4)
    np.testing.assert_array_equal(debias_stats(state, 0.99, 10**6).mean, state.mean)  # no underflow matters
    traced = jax.jit(debias_stats)(state, 0.99, 10)
    np.testing.assert_allclose(traced.mean, 10.0, rtol=1e-4)


def test_reset() -> None:
    tree = {
        "a": RunningStats(jnp.full(2, 3.0), jnp.full(2, 4.0)),
        "b": CovarianceStats(jnp.full(4, 3.0), jnp.full((2, 2, 2), 5.0)),
        "c": {"mean": jnp.full(2, 3.0), "std": jnp.full(2, 9.0)},
        "u": jnp.full(2, 7.0),
    }
    new = reset_stats(tree)
    np.testing.assert_array_equal(new["a"], [[0, 0], [1, 1]])
    np.testing.assert_array_equal(new["b"].cov, np.stack([np.eye(2)] * 2))
    np.testing.assert_array_equal(new["c"]["std"], 1.0)
    np.testing.assert_array_equal(new["u"], 7.0)


def test_statistics_that_are_nan_are_reset() -> None:
    np.testing.assert_array_equal(reset_stats(RunningStats(jnp.full(2, jnp.nan), jnp.full(2, jnp.nan))), [[0, 0], [1, 1]])


def test_sets_are_pooled_exactly() -> None:
    x = np.random.default_rng(0).normal(size=(60, 4)) * [1, 2, 3, 4] + [0, 5, -5, 100]
    parts = np.split(x, [3, 40, 41])
    counts = [len(part) for part in parts]

    def arrays(function) -> list[jax.Array]:
        return [jnp.asarray(function(part), jnp.float32) for part in parts]

    means, variances = arrays(lambda p: p.mean(0)), arrays(lambda p: p.var(0))
    covs = arrays(lambda p: np.stack([np.cov(g.T, bias=True) for g in np.split(p, 2, 1)]))
    trees = [
        (RunningStats(m, v), {"mean": m, "std": jnp.sqrt(v)}, CovarianceStats(m, c), RunningMean(m))
        for m, v, c in zip(means, variances, covs, strict=True)
    ]
    run, renorm, cov, mean = combine_stats(trees, counts)
    np.testing.assert_allclose(run.mean, x.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.var, x.var(0), rtol=1e-4)
    np.testing.assert_allclose(renorm["std"], x.std(0), rtol=1e-4)
    whole = np.stack([np.cov(g.T, bias=True) for g in np.split(x, 2, 1)])
    np.testing.assert_allclose(cov.cov, whole, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(mean.mean, run.mean)
    jitted = jax.jit(combine_stats)(trees, [jnp.float32(n) for n in counts])
    np.testing.assert_allclose(jitted[0].var, run.var, rtol=1e-5)


def test_a_set_of_nothing_counts_nothing_whatever_it_holds() -> None:
    one, nan = RunningStats(jnp.ones(1), jnp.full(1, 2.0)), RunningStats(jnp.full(1, jnp.nan), jnp.full(1, jnp.inf))
    for order in ([one, nan], [nan, one]):
        counts = [0 if tree is nan else 5 for tree in order]
        np.testing.assert_array_equal(combine_stats(order, counts), one)


def test_complex_means() -> None:
    z = np.random.default_rng(0).normal(size=(12, 2, 2)) @ np.array([1, 1j])
    parts = [z[:5], z[5:]]
    trees = [RunningStats(jnp.asarray(p.mean(0), jnp.complex64), jnp.asarray(p.var(0), jnp.float32)) for p in parts]
    found = combine_stats(trees, [5, 7])
    np.testing.assert_allclose(found.mean, z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.var, z.var(0), rtol=1e-5)


@pytest.mark.parametrize(
    "call, error, said",
    [
        (lambda: cumulative_momentum(-1), ValueError, "step must be in"),
        (lambda: cumulative_momentum("1"), TypeError, "step must be a number"),
        (lambda: debiased_momentum(1, 1.5), ValueError, "momentum must be in"),
        (lambda: debias_stats(STATE, 1.0, 5), ValueError, r"momentum must be in \[0, 1\)"),
        (lambda: debias_stats(STATE, 0.9, 0), ValueError, "steps must be in"),
        (lambda: debias_stats({"w": jnp.ones(2)}, 0.9, 1), ValueError, "stats must hold running statistics"),
        (lambda: reset_stats(()), ValueError, "stats must hold running statistics"),
        (lambda: reset_stats(RunningStats(jnp.zeros(2, jnp.bfloat16), jnp.ones(2))), TypeError, "float32 or wider"),
        (lambda: reset_stats(RunningStats(jnp.zeros(2), -jnp.ones(2))), ValueError, "at least 0"),
        (lambda: combine_stats([], []), ValueError, "at least one"),
        (lambda: combine_stats([STATE], [1, 2]), ValueError, "as many"),
        (lambda: combine_stats([STATE, STATE], [0, 0]), ValueError, "not all be 0"),
        (lambda: combine_stats([STATE, STATE], [1, -1]), ValueError, r"counts\[1\]"),
        (lambda: combine_stats(STATE, [1, 2]), TypeError, "stats must be a list"),
        (lambda: combine_stats([STATE, jaxnorm.init_batch_norm(3)[1]], [1, 1]), ValueError, r"mean of shape \[2\], got mean"),
        (lambda: combine_stats([STATE, RenormStats(*STATE)], [1, 1]), ValueError, r"stats\[1\].*got no var"),
    ],
)
def test_bad_input(call, error, said) -> None:
    with pytest.raises(error, match=said):
        call()
