"""l_p and mean-only batch norm: the oracles, closed forms, state, devices, and errors."""

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
    LpStats,
    RunningMean,
    RunningStats,
    batch_norm,
    init_lp_batch_norm,
    init_mean_only_batch_norm,
    lp_batch_norm,
    mean_only_batch_norm,
)
from jaxnorm.benchmarks._costs import residuals

POWERS = [1, 1.5, 2, 3.7, np.inf]
X = data((8, 3, 4, 5))
each_power = pytest.mark.parametrize("p", POWERS)


def parameters(channels: int = 5) -> AffineParams:
    random = np.random.default_rng(1)
    return AffineParams(*(jnp.asarray(random.uniform(low, 3, channels), jnp.float32) for low in (0.5, -2)))


def lp_state(channels: int = 5) -> LpStats:
    return LpStats(parameters(channels).scale * 2, parameters(channels).scale)  # type: ignore[operator]


@each_power
@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize("gaussian", [False, True], ids=["plain", "gaussian"])
def test_lp_equals_the_oracle(p: float, train: bool, masked: bool, gaussian: bool) -> None:
    options = {"train": train, "momentum": 0.8, "epsilon": 1e-3, "gaussian": gaussian}
    where = counted((8, 3, 4, 5)) if masked else None
    y, new = lp_batch_norm(parameters(), lp_state(), X, p, where=where, **options)
    expected = oracles.lp_batch_norm(parameters(), lp_state(), X, p, where=where, **options)
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(new.mean, expected.mean, rtol=1e-5, atol=1e-6)
    assert_allclose(new.scale, expected.scale, rtol=1e-5)


def test_a_power_of_2_is_batch_norm() -> None:
    """Supplement S1.7, with its gradient, also for a mean far from 0."""
    params, state = parameters(), lp_state()
    for x in (X, X + 1000):
        ours, theirs = (
            jax.value_and_grad(lambda x, f=f: jnp.sum(jnp.cos(jnp.arange(x.size)).reshape(x.shape) * f(x)[0]))(x)
            for f in (
                lambda x: lp_batch_norm(params, state, x, 2, train=True),
                lambda x: batch_norm(params, RunningStats(*state), x, train=True),
            )
        )
        assert_allclose(ours[0], theirs[0], rtol=1e-4)
        assert_allclose(ours[1], theirs[1], rtol=1e-3, atol=1e-4)


@each_power
def test_scale_and_shift_of_x_change_nothing(p: float) -> None:
    """Supplement S1.7."""
    params, state = parameters(), lp_state()
    y, _ = lp_batch_norm(params, state, X, p, train=True, epsilon=0.0)
    z, _ = lp_batch_norm(params, state, 50 * X - 300, p, train=True, epsilon=0.0)
    assert_allclose(z, y, rtol=1e-3, atol=1e-3)


@each_power
def test_the_gradient_is_that_of_the_paper(p: float) -> None:
    """Supplement S1.7: `dx = (g - mean g - (h - mean h) mean(g y)) / s` with `h = sign(y) |y|^(p - 1)`."""
    if p == np.inf:
        return
    params, state = AffineParams(None, None), lp_state(5)
    x, g = data((16, 5)), np.cos(np.float64(data((16, 5), seed=3)))
    (y, new), pullback = jax.vjp(lambda x: lp_batch_norm(params, state, x, p, train=True, epsilon=0.0, momentum=0.0), x)
    (dx,) = pullback((jnp.float32(g), jax.tree.map(jnp.zeros_like, new)))
    y, s = np.float64(y), np.float64(new.scale)
    h = np.sign(y) * np.abs(y) ** (p - 1)
    wanted = (g - g.mean(0) - (h - h.mean(0)) * (g * y).mean(0)) / s
    assert_allclose(dx, wanted, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_largest_distance_reaches_its_element_alone() -> None:
    x = data((16, 1))
    params, state = AffineParams(None, None), lp_state(1)
    moved = jax.grad(lambda x: lp_batch_norm(params, state, x, np.inf, train=False)[0].sum())(x)
    assert (moved != 0).all()
    deviation = lambda x: lp_batch_norm(params, state, x, np.inf, train=True, momentum=0.0)[1].scale[0]  # noqa: E731
    assert_array_equal(jax.grad(deviation)(x), jnp.zeros((16, 1)))  # nothing flows through the new state


@pytest.mark.parametrize(("p", "wanted"), [(1, 0.79788), (1.5, 0.90437), (2, 1.0), (3, 1.16858), (4, 1.31607)])
def test_normal_data_have_the_deviations_of_the_table(p: float, wanted: float) -> None:
    """Supplement S1.7: and divided by them the standard deviation."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200_000, 1)), jnp.float32)
    state = init_lp_batch_norm(1)[1]
    for gaussian, expected in ((False, wanted), (True, 1.0)):
        _, new = lp_batch_norm(AffineParams(None, None), state, x, p, train=True, momentum=0.0, gaussian=gaussian)
        assert_allclose(new.scale, expected, rtol=0.01)


def test_two_points() -> None:
    """Supplement S1.7: the mean distance of +-1 is 1, and 1.25331 of it for Gaussian data."""
    x, state = jnp.asarray([[1.0], [-1.0]]), init_lp_batch_norm(1)[1]
    y, _ = lp_batch_norm(AffineParams(None, None), state, x, 1, train=True, gaussian=True, epsilon=0.0)
    assert_allclose(y.ravel(), [0.79788, -0.79788], rtol=1e-5)


@pytest.mark.parametrize("p", [1, 3, 8, np.inf])
@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_powers_of_large_and_small_numbers_neither_overflow_nor_vanish(p: float, size: float) -> None:
    params = AffineParams(None, None)
    state = LpStats(jnp.zeros(5), jnp.full(5, size, jnp.float32))
    y, new = lp_batch_norm(params, state, size * X, p, train=True, epsilon=0.0, momentum=0.0)
    z, wanted = lp_batch_norm(params, lp_state(), X, p, train=True, epsilon=0.0, momentum=0.0)
    assert_allclose(y, z, rtol=1e-4, atol=1e-4)
    assert_allclose(new.scale / size, wanted.scale, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -3.0])
def test_a_bad_running_deviation_spoils_nothing(bad: float) -> None:
    params, state = AffineParams(None, None), lp_state()
    spoiled = state._replace(scale=state.scale.at[2].set(bad))
    y, _ = lp_batch_norm(params, spoiled, X, 3, train=True)
    assert_allclose(y, lp_batch_norm(params, state, X, 3, train=True)[0], rtol=1e-4, atol=1e-5)


# Mean-only


@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize("used", [(False, True), (True, True), (False, False)], ids=str)
def test_mean_only_equals_the_oracle(train: bool, masked: bool, used: tuple[bool, bool]) -> None:
    params = AffineParams(*(part if use else None for part, use in zip(parameters(), used, strict=True)))
    state = RunningMean(lp_state().mean)
    options = {"train": train, "momentum": 0.8, "where": counted((8, 3, 4, 5)) if masked else None}
    y, new = mean_only_batch_norm(params, state, X, **options)
    expected = oracles.mean_only_batch_norm(params, state, X, **options)
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(new.mean, expected.mean, rtol=1e-5, atol=1e-6)


def test_the_mean_of_y_is_the_bias_and_the_variance_that_of_x() -> None:
    """Supplement S1.8: and `dx = g - mean g`, `dbias = sum g`."""
    params, state = init_mean_only_batch_norm(5)
    params = params._replace(bias=parameters().bias)
    y, pullback, new = jax.vjp(
        lambda params, x: mean_only_batch_norm(params, state, x, train=True, momentum=0.0), params, X, has_aux=True
    )
    assert_allclose(np.float64(y).mean((0, 1, 2)), params.bias, rtol=1e-5)
    assert_allclose(np.float64(y).var((0, 1, 2)), np.float64(X).var((0, 1, 2)), rtol=1e-5)
    g = jnp.cos(X)
    of_params, dx = pullback(g)
    assert_allclose(dx, g - jnp.mean(g, (0, 1, 2), keepdims=True), atol=1e-6)
    assert_allclose(of_params.bias, jnp.sum(g, (0, 1, 2)), rtol=1e-4)
    frozen, _ = mean_only_batch_norm(params, new, X, train=False)
    assert_allclose(frozen, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("near", [0.0, 1e6, np.nan, np.inf])
def test_the_mean_is_right_wherever_the_running_one_is(near: float) -> None:
    x = X + 1e3
    y, new = mean_only_batch_norm(AffineParams(None, None), RunningMean(jnp.full(5, near)), x, train=True, momentum=0.5)
    wanted = 0.5 * near + 0.5 * np.float64(x).mean((0, 1, 2))
    assert_allclose(new.mean, wanted, rtol=1e-5)
    assert_allclose(y, np.float64(x) - np.float64(x).mean((0, 1, 2)), rtol=1e-3, atol=1e-3)


def test_a_batch_that_is_not_finite_or_empty_changes_nothing_of_the_state() -> None:
    params, state = AffineParams(None, None), RunningMean(lp_state().mean)
    _, new = mean_only_batch_norm(params, state, X.at[0, 0, 0, 2].set(jnp.inf), train=True)
    assert_array_equal(new.mean[2], state.mean[2])
    assert (new.mean != state.mean).sum() == 4
    for empty in (X[:0], X):
        where = None if not empty.size else jnp.zeros((8, 1, 1, 1), bool)
        y, new = mean_only_batch_norm(params, state, empty, train=True, where=where)
        assert_array_equal(new.mean, state.mean)
        assert_allclose(y, empty - state.mean[None, None, None], rtol=1e-6)


# Both


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_x_is_kept_for_the_gradient_and_numbers_of_channels(dtype: Any) -> None:
    x, params = data((8, 16, 16, 32), dtype), parameters(32)
    for function in (
        lambda params, x: mean_only_batch_norm(params, RunningMean(jnp.zeros(32)), x, train=True),
        lambda params, x: lp_batch_norm(params, lp_state(32), x, 1, train=True),
        lambda params, x: lp_batch_norm(params, lp_state(32), x, np.inf, train=True),
    ):
        kept = residuals(function, params, x)
        assert kept.keeps_input
        assert kept.nbytes <= 20 * 4 * 32


@pytest.mark.parametrize(
    ("p", "kind", "message"),
    [
        (0.5, ValueError, r"p must be in \[1, inf\], got 0.5"),
        (-np.inf, ValueError, r"p must be in \[1, inf\], got -inf"),
        (np.nan, ValueError, r"p must be in \[1, inf\], got nan"),
        ("1", TypeError, r"p must be a number in \[1, inf\], got '1'"),
        (True, TypeError, r"p must be a number in \[1, inf\], got True"),
        (None, TypeError, r"p must be a number in \[1, inf\], got None"),
    ],
)
def test_bad_powers_are_named(p: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        lp_batch_norm(parameters(), lp_state(), X, p, train=True)


def test_a_traced_power_is_named() -> None:
    with pytest.raises(TypeError, match="p must be known when the function is traced"):
        jax.jit(lambda p: lp_batch_norm(parameters(), lp_state(), X, p, train=True))(2.0)
