"""Closed forms of variances under multiplicative noise, against values of the literature and against drawn noise."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm import diagnostics as closed

# Mean and variance of the positive part of a standard normal variable.
RELU_MEAN, RELU_VAR = 1 / np.sqrt(2 * np.pi), 0.5 - 0.5 / np.pi
DRAWS = 400_000


def bernoulli(rng: np.random.Generator, shape: tuple[int, ...], rate: float) -> np.ndarray:
    return (rng.random(shape) >= rate) / (1 - rate)


def uniform(rng: np.random.Generator, shape: tuple[int, ...], beta: float) -> np.ndarray:
    return rng.uniform(1 - beta, 1 + beta, shape)


NOISES = [
    pytest.param(bernoulli, 0.5, closed.dropout_noise_variance(0.5), id="dropout 0.5"),
    pytest.param(bernoulli, 0.1, closed.dropout_noise_variance(0.1), id="dropout 0.1"),
    pytest.param(uniform, 0.5, closed.uniform_noise_variance(0.5), id="Uout 0.5"),
]


def correlated(rng: np.random.Generator, features: int) -> np.ndarray:
    """Positive, correlated, far from normal."""
    mixing = rng.normal(size=(features, features))
    return np.maximum(rng.normal(size=(DRAWS, features)) @ mixing + 0.5, 0)


@pytest.mark.parametrize("draw, amount, variance", NOISES)
def test_noise_has_this_variance(draw, amount, variance):
    noise = draw(np.random.default_rng(0), (DRAWS,), amount)
    assert noise.mean() == pytest.approx(1, rel=0.01)
    assert noise.var() == pytest.approx(variance, rel=0.01)


@pytest.mark.parametrize("draw, amount, variance", NOISES)
def test_noisy_variance_is_that_of_drawn_noise(draw, amount, variance):
    rng = np.random.default_rng(1)
    x = np.maximum(rng.normal(size=DRAWS), 0)
    expected = (x * draw(rng, x.shape, amount)).var()
    assert closed.noisy_variance(x.mean(), x.var(), variance) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("draw, amount, variance", NOISES)
def test_noisy_dense_variance_is_exact_for_correlated_inputs(draw, amount, variance):
    rng = np.random.default_rng(2)
    x, kernel = correlated(rng, 6), rng.normal(size=(6, 3))
    expected = ((x * draw(rng, x.shape, amount)) @ kernel).var(0)
    var = (x @ kernel).var(0)
    got = closed.noisy_dense_variance(jnp.asarray(kernel), jnp.asarray((x**2).mean(0)), jnp.asarray(var), variance)
    np.testing.assert_allclose(got, expected, rtol=0.02)
    assert np.all(np.abs(expected / var - 1) > 0.02), "noise must matter for the comparison to say anything"


@pytest.mark.parametrize("rate, expected", [(0.5, 0.4054), (0.1, 0.8598), (0.0, 1.0)])
def test_li_shift_ratio_of_the_positive_part_of_a_normal_variable(rate, expected):
    assert closed.li_shift_ratio(RELU_MEAN, RELU_VAR, closed.dropout_noise_variance(rate)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("beta, expected", [(0.1, 300 / 301), (0.5, 12 / 13), (1.0, 0.75)])
def test_li_shift_ratio_of_uout_at_mean_zero(beta, expected):
    assert closed.li_shift_ratio(0.0, 1.0, closed.uniform_noise_variance(beta)) == pytest.approx(expected, abs=1e-6)


def test_uout_is_dropout_of_the_same_noise():
    beta = 0.7
    rate = beta**2 / (3 + beta**2)
    assert closed.uniform_noise_variance(beta) == pytest.approx(closed.dropout_noise_variance(rate))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.7])
def test_li_shift_ratio_at_mean_zero_is_the_probability_to_keep(rate):
    assert closed.li_shift_ratio(0.0, 2.0, closed.dropout_noise_variance(rate)) == pytest.approx(1 - rate, rel=1e-6)


def test_li_dense_shift_ratio_of_alike_inputs_is_that_of_drawn_noise():
    rng = np.random.default_rng(3)
    features, rate = 5, 0.5
    shared, own = rng.normal(size=(DRAWS, 1)), rng.normal(size=(DRAWS, features))
    x = 0.4 + np.sqrt(0.3) * shared + np.sqrt(0.7) * own  # mean 0.4, variance 1, correlation 0.3
    kernel = rng.normal(size=(features, 4)) + 0.5
    expected = (x @ kernel).var(0) / ((x * bernoulli(rng, x.shape, rate)) @ kernel).var(0)
    got = closed.li_dense_shift_ratio(jnp.asarray(kernel), 0.4, 1.0, 0.3, closed.dropout_noise_variance(rate))
    np.testing.assert_allclose(got, expected, rtol=0.02)


def test_li_dense_shift_ratio_is_the_form_printed_in_the_paper():
    kernel = jnp.asarray(np.random.default_rng(4).normal(size=(8, 3)) + 1)
    c, v, rho, keep = 0.4, 0.34, 0.2, 0.7
    k = jnp.sum(kernel, 0) ** 2 / jnp.sum(kernel**2, 0)
    printed = (v * rho + v * (1 - rho) / k) / (v * rho + ((1 / keep - 1) * c**2 + v * (1 / keep - rho)) / k)
    got = closed.li_dense_shift_ratio(kernel, c, v, rho, closed.dropout_noise_variance(1 - keep))
    np.testing.assert_allclose(got, printed, rtol=1e-5)
