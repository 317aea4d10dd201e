"""Predictions from samples: the formulas in float64, limits, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxnorm.uncertainty import predictive


def samples(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "probabilities"])
def test_a_classifier_by_the_formulas(logits: bool) -> None:
    """methods.md 5.5."""
    z = 3 * samples(9, 2, 5, 4)
    p, labels = softmax(z), np.random.default_rng(1).integers(0, 4, (2, 5))
    given = jnp.asarray(z if logits else p, jnp.float32)
    found = jax.jit(predictive, static_argnames="logits")(given, targets=jnp.asarray(labels), logits=logits)
    mean = p.mean(0)
    entropy, expected = -(mean * np.log(mean)).sum(-1), -(p * np.log(p)).sum(-1).mean(0)
    votes = np.stack([(p.argmax(-1) == k).sum(0) for k in range(4)], -1).max(-1)
    assert_allclose(found.probabilities, mean, rtol=1e-5)
    assert_allclose(found.entropy, entropy, rtol=1e-5)
    assert_allclose(found.expected_entropy, expected, rtol=1e-5)
    assert_allclose(found.mutual_information, entropy - expected, rtol=1e-4, atol=1e-6)
    assert_allclose(found.variation_ratio, 1 - votes / 9, rtol=1e-6)
    assert_allclose(found.log_likelihood, np.log(np.take_along_axis(mean, labels[..., None], -1)[..., 0]), rtol=1e-4)


def test_limits_of_a_classifier() -> None:
    """methods.md 5.5: equal samples know nothing of each other, and sure ones that disagree know all, log K."""
    same = predictive(jnp.broadcast_to(jnp.asarray(samples(1, 6, 3), jnp.float32), (20, 6, 3)))
    assert_allclose(same.mutual_information, 0, atol=1e-6)
    assert_allclose(same.variation_ratio, 0)
    sure = jax.nn.one_hot(jnp.arange(4)[:, None], 4)
    found = predictive(sure, logits=False, targets=jnp.asarray([2]))
    assert_allclose(found.mutual_information, np.log(4), rtol=1e-6)
    assert_allclose((found.expected_entropy, found.variation_ratio), [[0], [0.75]], atol=1e-7)
    assert_allclose(found.log_likelihood, np.log(1 / 4), rtol=1e-6)
    assert predictive(sure, logits=False, targets=jnp.asarray([7])).log_likelihood == -np.inf
    gradient = jax.grad(lambda p: predictive(p, logits=False).mutual_information.sum())(sure)
    assert jnp.all(jnp.isfinite(gradient))


def test_a_regression_by_the_formulas() -> None:
    """S2.20: with D / 2 for targets of D numbers; one sample is a Gaussian, and the order does not count."""
    y, target, tau = samples(7, 5, 3), samples(5, 3, seed=1), 2.5
    found = jax.jit(predictive)(jnp.asarray(y, jnp.float32), targets=jnp.asarray(target, jnp.float32), tau=jnp.float32(tau))
    assert_allclose(found.mean, y.mean(0), rtol=1e-5)
    assert_allclose(found.variance, 1 / tau + y.var(0), rtol=1e-5)
    density = (tau / (2 * np.pi)) ** 1.5 * np.exp(-tau / 2 * ((y - target) ** 2).sum(-1))
    assert_allclose(found.log_likelihood, np.log(density.mean(0)), rtol=1e-5)
    one = predictive(jnp.asarray(y[:1], jnp.float32), targets=jnp.asarray(target, jnp.float32), tau=tau)
    assert_allclose(one.log_likelihood, np.log(density[0]), rtol=1e-5)
    again = predictive(jnp.asarray(y[::-1].copy(), jnp.float32), targets=jnp.asarray(target, jnp.float32), tau=tau)
    assert_allclose(again.log_likelihood, found.log_likelihood, rtol=1e-6)


def test_samples_far_from_zero_keep_their_variance() -> None:
    y = jnp.asarray(samples(50, 4) + 1e4, jnp.float32)
    assert_allclose(predictive(y, tau=1e9).variance, np.float64(y).var(0), rtol=1e-4)


def test_a_program_may_know_its_precision() -> None:
    y, tau = jnp.asarray(samples(7, 5, 3), jnp.float32), jnp.float32(2.5)
    assert_allclose(jax.jit(lambda y: predictive(y, tau=tau).variance)(y), predictive(y, tau=2.5).variance, rtol=1e-6)


@pytest.mark.parametrize("tau", [0.0, -1.0, np.nan])
def test_a_traced_precision_that_is_none_gives_nan(tau: float) -> None:
    assert jnp.all(jnp.isnan(jax.jit(predictive)(jnp.ones((2, 3)), tau=jnp.float32(tau)).variance))


S = jnp.ones((3, 4, 2))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: predictive(jnp.ones(3)), ValueError, r"samples must have shape \[T, ..., K\].* got \[3\]"),
        (lambda: predictive(S[:0]), ValueError, "T of at least 1"),
        (lambda: predictive(S.astype(jnp.int32)), TypeError, "samples must be an array of floating point numbers"),
        (lambda: predictive(S, targets=jnp.zeros(4)), TypeError, "targets must be an array of integers"),
        (lambda: predictive(S, targets=jnp.zeros(3, jnp.int32)), ValueError, r"targets must have shape \[4\]"),
        (lambda: predictive(S, tau=0), ValueError, "tau must be above 0, got 0"),
        (lambda: predictive(S, tau=-1.0), ValueError, "tau must be"),
        (lambda: predictive(S, tau=1.0, targets=jnp.zeros(4)), ValueError, r"targets must have shape \[4, 2\]"),
        (lambda: predictive(S, logits=None), TypeError, "logits must be True or False"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
