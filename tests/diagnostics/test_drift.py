"""Drift of running statistics: the formulas, every kind of statistics, limits, and errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm
from jaxnorm import RunningStats
from jaxnorm.diagnostics import statistics_drift

C = 4


def stats(seed: int, *shape: int) -> RunningStats:
    rng = np.random.default_rng(seed)
    return RunningStats(*(jnp.asarray(part, jnp.float32) for part in (rng.normal(size=shape), rng.gamma(2, size=shape) + 0.1)))


@pytest.mark.parametrize("shape", [(C,), (3, C)], ids=["one", "stacked"])
def test_the_formulas(shape: tuple[int, ...]) -> None:
    new, old = stats(0, *shape), stats(1, *shape)
    found = jax.jit(statistics_drift)({"a": {"norm": new._asdict()}}, {"a": {"norm": old}})["a/norm"]
    (mean, var), (mean_0, var_0) = (np.asarray(part, np.float64) for part in (new, old))
    step, log = (mean - mean_0) / np.sqrt(var_0), np.log(var / var_0)
    assert_allclose(found.mean, step, rtol=1e-5)
    assert_allclose(found.log_var, log, rtol=1e-4, atol=1e-6)
    assert_allclose(found.rms_mean, np.sqrt((step**2).mean(-1)), rtol=1e-5)
    assert_allclose(found.rms_log_var, np.sqrt((log**2).mean(-1)), rtol=1e-5)
    same = statistics_drift(new, new)[""]
    assert not any(np.any(part) for part in same)


def test_other_kinds_of_statistics() -> None:
    ones, mean = jnp.ones(C), jnp.arange(float(C))

    def tree(spread: float) -> dict[str, Any]:
        return {
            "std": jaxnorm.RenormStats(mean, spread * ones),
            "scale": jaxnorm.LpStats(mean, spread * ones),
            "cov": jaxnorm.CovarianceStats(mean, jnp.tile(spread**2 * jnp.eye(2), (2, 1, 1))),
            "var": jaxnorm.RunningVar(spread**2 * ones),
            "mean": jaxnorm.RunningMean(mean),
        }

    found = statistics_drift(tree(2.0), tree(1.0))
    assert sorted(found) == ["cov", "scale", "std", "var"]
    for name, drift in found.items():
        assert_allclose(drift.log_var, np.full(C, np.log(4)), rtol=1e-6)
        assert (drift.mean is None) == (drift.rms_mean is None) == (name == "var")


def test_without_variance_nothing_drifts_unless_it_does() -> None:
    old = RunningStats(jnp.zeros(3), jnp.array([0.0, 0.0, 1.0]))
    new = RunningStats(jnp.array([0.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 0.0]))
    found = statistics_drift(new, old)[""]
    assert_array_equal(found.mean, [0, np.inf, 0])
    assert_array_equal(found.log_var, [0, np.inf, -np.inf])


def test_complex_means() -> None:
    old = RunningStats(jnp.zeros(1, jnp.complex64), jnp.full(1, 4.0))
    found = statistics_drift(old._replace(mean=jnp.full(1, 2j, jnp.complex64)), old)[""]
    assert_array_equal(found.mean, [1j])
    assert_array_equal(found.rms_mean, 1)


def test_averages_of_few_steps_are_still_where_they_began() -> None:
    """After 10 steps with a momentum of 0.99 a mean of 3 is short of 0.99^10 of it."""
    x = 3 + 2 * np.random.default_rng(0).normal(size=(5000, C)).astype(np.float32)
    params, state = jaxnorm.init_batch_norm(C)

    def update(state: RunningStats, momentum: float) -> RunningStats:
        return jaxnorm.batch_norm(params, state, x, train=True, momentum=momentum)[1]

    stale = state
    for _ in range(10):
        stale = update(stale, 0.99)
    found = statistics_drift(stale, update(state, 0.0))[""]
    assert_allclose(found.rms_mean, 0.99**10 * 1.5, rtol=0.05)
    assert_allclose(found.log_var, np.log(0.99**10 / 4 + 1 - 0.99**10), rtol=0.1)


OLD = {"norm": stats(0, C)}


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: statistics_drift({"params": {"kernel": jnp.ones((1, 2))}}, OLD), ValueError, "stats must hold running"),
        (lambda: statistics_drift(OLD, {}), ValueError, "reference must hold running statistics"),
        (
            lambda: statistics_drift(jaxnorm.RunningMean(jnp.ones(2)), OLD),
            ValueError,
            "stats must hold a variance, as of a batch",
        ),
        (
            lambda: statistics_drift(OLD, {"other": OLD["norm"]}),
            ValueError,
            r"reference must have the statistics of stats: norm/",
        ),
        (lambda: statistics_drift(OLD, {"norm": stats(0, 3)}), ValueError, r"norm/mean of shape \[4\], got .* of shape \[3\]"),
        (lambda: statistics_drift({"norm": RunningStats(1, 2)}, OLD), TypeError, "stats must hold arrays in float32 or wider"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
