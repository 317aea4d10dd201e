"""Concrete dropout (methods.md 5.3) and standout (S2.16): values by the oracle's draws, probabilities, regularizer, limits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from cases import data
from numpy.testing import assert_allclose, assert_array_equal
from randomness import ALPHA

from jaxnorm import (
    ConcreteDropoutParams,
    StandoutParams,
    classic_dropout,
    concrete_dropout,
    init_concrete_dropout,
    init_standout,
    standout,
    standout_mean,
)
from jaxnorm.benchmarks._costs import residuals

X, PREACTIVATION = data((7, 5)), data((7, 5), seed=3)
PARAMS = init_concrete_dropout(rate=0.3)
ACTIVE = StandoutParams(jnp.asarray(0.7), jnp.asarray(-0.4))
COUNT = 4_000_000


def new_key(seed: int = 12) -> jax.Array:
    return jax.random.key(seed)


def words(key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def within_four_sigma(values: np.ndarray, mean: Any) -> bool:
    return bool((np.abs(values.mean(0) - mean) <= 4 * values.std(0) / np.sqrt(len(values))).all())


def multipliers(rate: float, temperature: float = 0.1, bits: int = 16, count: int = COUNT) -> np.ndarray:
    """(1 - z) / (1 - rate) of many elements."""
    params = init_concrete_dropout(rate=rate)
    y, _ = concrete_dropout(new_key(), params, jnp.ones(count), temperature=temperature, bits=bits)
    return np.asarray(y, np.float64)


def quadrature(rate: float, temperature: float) -> float:
    """The mean of 1 - z."""
    u = (np.arange(400_000) + 0.5) / 400_000
    return float(np.mean(1 - oracles.concrete_mask(np.log(u / (1 - u)), rate, temperature)))


# Concrete dropout


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("dims", [(), (0,), (0, 1)], ids=str)
def test_concrete_dropout_is_the_oracle_s(bits: int, dims: tuple[int, ...]) -> None:
    y, _ = concrete_dropout(new_key(), PARAMS, X, temperature=0.4, broadcast_dims=dims, bits=bits)
    shape = [1 if axis in dims else size for axis, size in enumerate(X.shape)]
    mask = oracles.concrete_mask(oracles.logistic_noise(words(new_key()), shape, bits), 0.3, 0.4)
    assert_allclose(y, np.asarray(X, np.float64) * (1 - mask) / 0.7, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_what_is_more_dropped_than_kept_has_the_rate(rate: float, bits: int) -> None:
    """methods.md 5.3: P(z > 1/2) = rate exactly, at any temperature."""
    dropped = multipliers(rate, 0.5, bits) * (1 - rate) < 0.5
    assert randomness.rate(dropped, rate) > ALPHA
    assert randomness.rate(dropped, 1.01 * rate) < ALPHA  # a control
    assert_array_equal(dropped, multipliers(rate, 0.1, bits) * (1 - rate) < 0.5)


def test_the_mean_is_not_quite_1() -> None:
    """methods.md 5.3: of z at a rate of 0.3 it is 0.3014."""
    assert_allclose(1 - quadrature(0.3, 0.1), 0.3014, atol=6e-5)
    drawn = multipliers(0.3)[:, None] * 0.7
    assert within_four_sigma(drawn, quadrature(0.3, 0.1))
    assert not within_four_sigma(drawn, 0.7)  # a control


def test_cold_decisions_are_those_of_dropout() -> None:
    drawn = multipliers(0.3, 1e-6, 32, 100_000)
    assert_allclose(np.unique(drawn.round(5)), [0, 1.42857], atol=1e-5)
    assert randomness.rate(drawn == 0, 0.3) > ALPHA


def test_the_gradient_of_the_rate_is_that_of_the_expectation() -> None:
    """By the relaxed draws; a control is what the division by 1 - rate alone gives."""
    temperature, step = 0.4, 1e-4
    rates = [1 / (1 + np.exp(-(np.log(3 / 7) + sign * step))) for sign in (1, -1)]
    ahead, behind = (quadrature(rate, temperature) / (1 - rate) for rate in rates)
    run = lambda logit, key: concrete_dropout(key, ConcreteDropoutParams(logit), jnp.ones((1,)), temperature=temperature)[0][0]  # noqa: E731
    slopes = jax.jit(jax.vmap(jax.grad(run), (None, 0)))(PARAMS.logit, jax.random.split(new_key(), 200_000))
    slopes = np.asarray(slopes, np.float64)[:, None]
    assert within_four_sigma(slopes, (ahead - behind) / (2 * step))
    assert not within_four_sigma(slopes, 0.3 * quadrature(0.3, temperature) / 0.7)


def test_the_regularizer_is_the_authors() -> None:
    """methods.md 5.3: wr |W|^2 / (1 - p) + dr K (p log p + (1 - p) log(1 - p)), the squared error's share over N tau / 2."""
    count, tau, scale, p = 50, 3.0, 0.2, 0.3
    kernel = {"a": data((5, 2)), "b": [data((3,), jnp.bfloat16)]}
    squares = sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(kernel))
    weights, entropy = scale**2 / (tau * count), 2 / (tau * count)
    expected = weights * squares / (1 - p) + entropy * 5 * (p * np.log(p) + (1 - p) * np.log(1 - p))
    _, regularizer = concrete_dropout(new_key(), PARAMS, X, kernel=kernel, length_scale=scale)
    assert_allclose(regularizer * 2 / (tau * count), expected, rtol=1e-5)
    assert regularizer.dtype == jnp.float32


def test_the_entropy_is_largest_at_a_half_and_counts_the_features() -> None:
    regularizer = lambda logit, **more: concrete_dropout(new_key(), ConcreteDropoutParams(logit), X, **more)[1]  # noqa: E731
    half = jnp.zeros(())
    assert_allclose(regularizer(half), -5 * np.log(2), rtol=1e-6)
    assert_allclose(regularizer(half, broadcast_dims=(0,)), -5 * np.log(2), rtol=1e-6)
    assert_allclose(regularizer(half, broadcast_dims=(1,)), -np.log(2), rtol=1e-6)
    assert_allclose(jax.grad(regularizer)(half), 0, atol=1e-6)
    assert_allclose(jax.hessian(regularizer)(half), 5 / 4, rtol=1e-5)
    assert_allclose(regularizer(jnp.asarray(-40.0)), -5 * 41 * np.exp(-40), rtol=1e-4)


@pytest.mark.parametrize("logit", [-200.0, -30.0, 30.0, 200.0])
def test_rates_next_to_0_and_1_have_finite_derivatives(logit: float) -> None:
    """Pitfall 78."""

    def loss(logit: jax.Array, x: jax.Array) -> jax.Array:
        y, regularizer = concrete_dropout(new_key(), ConcreteDropoutParams(logit), x)
        return jnp.sum(y**2) + regularizer

    at = jnp.asarray(logit)
    assert np.isfinite(jax.hessian(loss)(at, X))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(loss, (0, 1))(at, X)))
    y, _ = concrete_dropout(new_key(), ConcreteDropoutParams(at), X)
    assert_allclose(y, X if logit < 0 else 0 * X, atol=1e-5)


def test_a_traced_temperature_that_is_none_gives_nan() -> None:
    """Pitfalls 80 and 81."""
    run = jax.jit(lambda temperature: concrete_dropout(new_key(), PARAMS, X, temperature=temperature)[0])
    for bad in (0.0, -1.0, np.inf, np.nan):
        assert np.isnan(run(np.float32(bad))).all()
    assert_allclose(run(np.float32(0.2)), concrete_dropout(new_key(), PARAMS, X, temperature=0.2)[0], rtol=1e-5)


def test_concrete_dropout_keeps_no_mask() -> None:
    def run(given: Any, x: jax.Array) -> tuple[jax.Array, None]:
        return concrete_dropout(jax.random.wrap_key_data(given[0]), given[1], x)[0], None

    x = jnp.ones((64, 8, 16), jnp.bfloat16)
    kept = residuals(run, (np.zeros(2, np.uint32), PARAMS), x)
    assert kept.nbytes <= x.nbytes + 64  # x itself


# Standout


def keep_of(params: StandoutParams, preactivation: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-(float(params.alpha) * np.asarray(preactivation, np.float64) + float(params.beta))))


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_standout_keeps_what_the_oracle_keeps(bits: int) -> None:
    y = standout(new_key(), ACTIVE, PREACTIVATION, X, bits=bits)
    mask = oracles.keep_mask(words(new_key()), X.shape, 1 - keep_of(ACTIVE, PREACTIVATION), bits)
    assert_array_equal(y, np.where(mask, X, 0))
    assert 0 < mask.mean() < 1


def test_standout_keeps_with_the_probability_of_each_unit() -> None:
    """Pitfall 102: its mean is `standout_mean`'s, and units that are alike are kept independently."""
    preactivation = jnp.asarray([-3.0, -0.5, 0.4, 2.0])
    y = standout(new_key(), ACTIVE, jnp.broadcast_to(preactivation, (1_000_000, 4)), jnp.ones((1_000_000, 4)))
    kept, keep = np.asarray(y, np.float64), keep_of(ACTIVE, preactivation)
    assert within_four_sigma(kept, keep)
    assert not within_four_sigma(kept, keep + 0.01)  # a control
    assert_allclose(standout_mean(ACTIVE, preactivation, jnp.full(4, 3.0)), 3 * keep, rtol=1e-6)
    assert within_four_sigma((kept - keep)[:, :1] * (kept - keep)[:, 1:], 0)
    assert within_four_sigma((kept - keep)[1:] * (kept - keep)[:-1], 0)
    assert not within_four_sigma((kept - keep) ** 2, 0)  # a control


def test_without_a_factor_standout_is_classic_dropout() -> None:
    """S2.16: alpha = 0 is a constant probability to keep, sigmoid(beta)."""
    params = init_standout(alpha=0.0)
    assert_array_equal(standout(new_key(), params, PREACTIVATION, X), classic_dropout(new_key(), X, 0.5))
    assert_allclose(standout_mean(params, PREACTIVATION, X), X / 2, rtol=1e-6)


def test_standout_has_the_derivative_of_its_mask_and_its_mean_has_all() -> None:
    """Pitfall 85: at probabilities far from a half too."""
    run = lambda params, preactivation, x: jnp.sum(standout(new_key(), params, preactivation, x))  # noqa: E731
    params, preactivation, x = jax.grad(run, (0, 1, 2))(ACTIVE, PREACTIVATION, X)
    assert_array_equal(x, standout(new_key(), ACTIVE, PREACTIVATION, jnp.ones_like(X)))
    assert all((np.asarray(leaf) == 0).all() for leaf in (*params, preactivation))
    keep = keep_of(ACTIVE, PREACTIVATION)
    mean = jax.grad(lambda *given: jnp.sum(standout_mean(*given)), (0, 1, 2))(ACTIVE, PREACTIVATION, X)
    slope = np.asarray(X) * keep * (1 - keep)
    assert_allclose(mean[0].beta, slope.sum(), rtol=1e-5)
    assert_allclose(mean[0].alpha, (slope * np.asarray(PREACTIVATION)).sum(), rtol=1e-5)
    assert_allclose(mean[1], 0.7 * slope, rtol=1e-4, atol=1e-6)
    assert_allclose(mean[2], keep, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_standout_drops_is_gone_whatever_it_is(bad: float) -> None:
    """Pitfall 78, of infinities and NaN."""
    preactivation = jnp.asarray([-1000.0, 1000.0, -1000.0])
    x = jnp.asarray([bad, 2.0, bad])
    assert_array_equal(standout(new_key(), init_standout(), preactivation, x), [0, 2, 0])
    gradient = jax.grad(lambda x: jnp.sum(standout(new_key(), init_standout(), preactivation, x) ** 2))(x)
    assert_array_equal(gradient, [0, 4, 0])
    y = standout(new_key(), init_standout(), preactivation.at[0].set(np.nan), jnp.ones(3))
    assert_array_equal(y, [np.nan, 1, 0])


def test_standout_keeps_no_mask_for_the_gradient() -> None:
    def run(given: Any, x: jax.Array) -> tuple[jax.Array, None]:
        key, params, preactivation = given
        return standout(jax.random.wrap_key_data(key), params, preactivation, x), None

    preactivation = jnp.ones((64, 8, 16), jnp.bfloat16)
    kept = residuals(run, (np.zeros(2, np.uint32), ACTIVE, preactivation), jnp.ones((64, 8, 16), jnp.bfloat16))
    assert kept.nbytes <= preactivation.nbytes + 64  # itself
    assert not kept.keeps_input


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no params": (lambda: concrete_dropout(new_key(), jnp.zeros(()), X), TypeError, "params must be ConcreteDropoutParams"),
    "logits": (
        lambda: concrete_dropout(new_key(), ConcreteDropoutParams(jnp.zeros(5)), X),
        ValueError,
        r"params.logit must have shape \[\]",
    ),
    "no features": (lambda: concrete_dropout(new_key(), PARAMS, jnp.ones(())), ValueError, "x must have an axis of features"),
    "temperature 0": (lambda: concrete_dropout(new_key(), PARAMS, X, temperature=0), ValueError, "must be above 0, got 0"),
    "temperature": (
        lambda: concrete_dropout(new_key(), PARAMS, X, temperature=-1.0),
        ValueError,
        "temperature must be in .*-1.0",
    ),
    "temperatures": (
        lambda: concrete_dropout(new_key(), PARAMS, X, temperature=jnp.ones(5)),
        ValueError,
        "temperature must have shape",
    ),
    "scale": (lambda: concrete_dropout(new_key(), PARAMS, X, length_scale=-1.0), ValueError, "length_scale must be in .*-1.0"),
    "kernel": (
        lambda: concrete_dropout(new_key(), PARAMS, X, kernel={"a": jnp.ones(3, int)}),
        TypeError,
        r"kernel\['a'\] must be .*int32",
    ),
    "dims": (lambda: concrete_dropout(new_key(), PARAMS, X, broadcast_dims=2), ValueError, "broadcast_dims is out of range"),
    "8 bits": (lambda: concrete_dropout(new_key(), PARAMS, X, bits=8), ValueError, "bits must be 16 or 32, got 8"),
    "rate": (lambda: init_concrete_dropout(rate=0), ValueError, "rate must be above 0, got 0"),
    "rate None": (lambda: init_concrete_dropout(rate=None), TypeError, "rate must be a number"),  # type: ignore[arg-type]
    "no standout params": (lambda: standout(new_key(), PARAMS, X, X), TypeError, "params must be StandoutParams"),
    "alphas": (
        lambda: standout(new_key(), ACTIVE._replace(alpha=jnp.ones(5)), X, X),
        ValueError,
        r"params.alpha must have shape \[\]",
    ),
    "preactivation": (lambda: standout(new_key(), ACTIVE, X[0], X), ValueError, r"preactivation must have shape \[7, 5\]"),
    "4 bits": (lambda: standout(new_key(), ACTIVE, X, X, bits=4), ValueError, "bits must be 8, 16 or 32, got 4"),
    "integers": (lambda: standout_mean(ACTIVE, X, jnp.ones((7, 5), int)), TypeError, "x must be .*int32"),
    "beta": (lambda: init_standout(beta=-np.inf), ValueError, "beta must be finite"),
    "key": (lambda: standout(None, ACTIVE, X, X), TypeError, "key must be one key"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name: str) -> None:
    """Pitfalls 80, 83, 88, 103."""
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
