"""Rates by depth and by time (methods_supplement.md S2.4, S2.6, S2.8, S2.10)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxnorm
from jaxnorm import schedules


def test_both_conventions_of_rates_by_depth() -> None:
    assert_allclose(schedules.linear_rates(0.1, 12), np.linspace(0, 0.1, 12))
    assert_allclose(schedules.linear_rates(0.5, 54, first_is_zero=False), np.arange(1, 55) / 54 * 0.5)
    assert schedules.linear_rates(0.3, 1) == (0.0,)
    assert schedules.linear_rates(0.3, 1, first_is_zero=False) == (0.3,)
    # The expected depth of Huang's network of 54 blocks: (3 L - 1) / 4.
    assert_allclose(sum(1 - rate for rate in schedules.linear_rates(0.5, 54, first_is_zero=False)), 40.25)


def test_stages_share_one_line() -> None:
    stages = schedules.stagewise_rates(0.1, (3, 3, 6))
    assert [len(stage) for stage in stages] == [3, 3, 6]
    assert_allclose(np.concatenate(stages), np.linspace(0, 0.1, 12))
    assert_allclose(stages[0], [0, 0.1 / 11, 0.2 / 11])


def test_rates_by_depth_may_be_traced() -> None:
    run = jax.jit(lambda rate: schedules.linear_rates(rate, 3))
    assert_allclose(run(0.4), [0, 0.2, 0.4], rtol=1e-6)


FORMULAS = {
    "ramped_rate": (schedules.ramped_rate(0.4, 100), lambda t: 0.4 * np.minimum(1, t / 100)),
    "curriculum_rate": (schedules.curriculum_rate(0.4, 0.02), lambda t: 1 - ((1 - 0.6) * np.exp(-0.02 * t) + 0.6)),
    "early_rate": (schedules.early_rate(0.4, 100), lambda t: 0.4 * np.maximum(0, 1 - t / 100)),
    "early_rate, constant": (schedules.early_rate(0.4, 100, linear=False), lambda t: np.where(t < 100, 0.4, 0)),
    "late_rate": (schedules.late_rate(0.4, 100), lambda t: np.where(t < 100, 0, 0.4)),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.jax_defaults  # which Optax needs
def test_rates_by_time_and_one_compilation_for_all_of_them(name: str) -> None:
    """Pitfall 81."""
    schedule, formula = FORMULAS[name]
    steps = np.array([0, 1, 50, 99, 100, 101, 10_000])
    assert_allclose([schedule(step) for step in steps], formula(steps), rtol=1e-5, atol=1e-7)
    traces = []

    @jax.jit
    def run(key: jax.Array, step: jax.Array) -> jax.Array:
        traces.append(step)
        return jnp.mean(jaxnorm.dropout(key, jnp.ones(20_000), schedule(step)) == 0)

    for step in steps:
        assert_allclose(run(jax.random.key(step), step), formula(step), atol=4 * np.sqrt(0.25 / 20_000))
    assert len(traces) == 1


def test_bad_input_is_named() -> None:
    for make in (
        lambda rate: schedules.linear_rates(rate, 3),
        lambda rate: schedules.ramped_rate(rate, 3),
        lambda rate: schedules.curriculum_rate(rate, 0.1),
        lambda rate: schedules.early_rate(rate, 3),
        lambda rate: schedules.late_rate(rate, 3),
    ):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1.5"):
            make(1.5)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        schedules.linear_rates(0.5, 0)
    with pytest.raises(ValueError, match="depths must be at least 1, got 0"):
        schedules.stagewise_rates(0.5, (2, 0))
    with pytest.raises(ValueError, match="gamma must be in"):
        schedules.curriculum_rate(0.5, -1)
    with pytest.raises(TypeError, match="cutoff must be an int"):
        schedules.late_rate(0.5, 2.5)
