"""Calibration: float64 by hand, closed forms of the supplement's S2.18, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm.uncertainty import brier_score, expected_calibration_error, reliability, temperature_scaling


def predictions(n: int, classes: int, seed: int = 0, sharpness: float = 2.0) -> tuple[jax.Array, jax.Array]:
    """Logits, and labels drawn from their softmax."""
    random = np.random.default_rng(seed)
    logits = sharpness * random.normal(size=(n, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) < random.random((n, 1))).sum(1)
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32)


def in_bins(confidence: np.ndarray, bins: int, adaptive: bool) -> list[np.ndarray]:
    """The examples of each bin, one by one."""
    if adaptive:
        order = np.argsort(confidence, kind="stable")
        return [order[[i for i in range(len(order)) if i * bins // len(order) == b]] for b in range(bins)]
    edges = np.float32(np.arange(bins + 1) / bins)
    return [
        np.flatnonzero((confidence > edges[b]) & (confidence <= edges[b + 1]) | ((confidence == 0) & (b == 0)))
        for b in range(bins)
    ]


@pytest.mark.parametrize("adaptive", [False, True], ids=["equal width", "equal mass"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_bins_and_errors_are_those_counted_one_by_one(adaptive: bool, dtype: Any) -> None:
    logits, labels = predictions(101, 3)
    p = jax.nn.softmax(logits).astype(dtype)
    confidence, correct = np.float64(p.max(1)), np.asarray(p.argmax(1) == labels, np.float64)
    found = in_bins(np.float32(confidence), 7, adaptive)
    wanted = [(confidence[i].mean(), correct[i].mean(), len(i)) if len(i) else (0, 0, 0) for i in found]
    diagram = jax.jit(reliability, static_argnames=("bins", "adaptive"))(p, labels, bins=7, adaptive=adaptive)
    assert_allclose(np.stack(diagram, 1), wanted, rtol=1e-5)
    gaps = np.array([abs(accuracy - sure) for sure, accuracy, _ in wanted])
    counts = np.array([n for *_, n in wanted])
    error = expected_calibration_error(p, labels, bins=7, adaptive=adaptive)
    assert_allclose(error.expected, (counts * gaps).sum() / 101, rtol=1e-5)
    assert_allclose(error.largest, gaps.max(), rtol=1e-5)


def test_edges_belong_to_the_bin_below_and_0_to_the_first() -> None:
    p = jnp.asarray([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25], [0.0, 0.0]])
    assert_array_equal(reliability(p, jnp.zeros(4, jnp.int32), bins=4).n, [1, 1, 1, 1])


def test_closed_forms() -> None:
    """S2.18: one bin has the gap of the means, no binning less; sure and right has none; the error is at least that gap."""
    logits, labels = predictions(400, 4, sharpness=3)
    p = jax.nn.softmax(2 * logits)
    gap = abs(p.max(1).mean() - (p.argmax(1) == labels).mean())
    assert_allclose(expected_calibration_error(p, labels, bins=1).expected, gap, rtol=1e-5)
    assert all(expected_calibration_error(p, labels, bins=b).expected >= gap - 1e-6 for b in (2, 15, 100))
    assert expected_calibration_error(jax.nn.one_hot(labels, 4), labels).expected == 0
    uniform = jnp.full((400, 4), 0.25)
    assert_allclose(brier_score(uniform, labels).score, 1 - 1 / 4, rtol=1e-6)


@pytest.mark.parametrize(("n", "published"), [(100, 0.125), (1000, 0.039), (10_000, 0.0125)])
def test_the_bias_is_what_calibrated_predictions_show(n: int, published: float) -> None:
    """S2.18: of confidences spread evenly, in 15 bins; and a miscalibrated model shows far more."""
    random = np.random.default_rng(0)
    sure = random.random(n)
    p = jnp.asarray(np.stack([sure, np.zeros(n)], 1), jnp.float32)  # one class with any confidence
    shown = [expected_calibration_error(p, jnp.asarray(random.random(n) >= sure, jnp.int32)).expected for _ in range(10)]
    bias = expected_calibration_error(p, jnp.zeros(n, jnp.int32)).bias
    assert_allclose(bias, published, rtol=0.06)
    assert_allclose(np.mean(shown), bias, rtol=0.12)
    overconfident = expected_calibration_error(jnp.sqrt(p), jnp.asarray(random.random(n) >= sure, jnp.int32))
    assert n == 100 or overconfident.expected > overconfident.bias + 0.05


@pytest.mark.parametrize("bins", [1, 5, 40])
def test_the_parts_of_the_brier_score_add_up(bins: int) -> None:
    logits, labels = predictions(300, 3, sharpness=1)
    p = jax.nn.softmax(1.5 * logits)
    parts = brier_score(p, labels, bins=bins)
    direct = ((np.float64(p) - np.eye(3)[np.asarray(labels)]) ** 2).sum(1).mean()
    assert_allclose(parts.score, direct, rtol=1e-5)
    assert_allclose(parts.reliability - parts.resolution + parts.uncertainty + parts.within, direct, rtol=1e-5)
    assert parts.reliability >= 0 <= parts.resolution
    frequency = np.bincount(np.asarray(labels), minlength=3) / 300
    assert_allclose(parts.uncertainty, (frequency * (1 - frequency)).sum(), rtol=1e-5)


def test_forecasts_of_a_few_values_have_nothing_within_the_bins() -> None:
    p = jnp.asarray([[0.8, 0.2]] * 5 + [[0.2, 0.8]] * 5)
    assert_allclose(brier_score(p, jnp.asarray([0, 0, 0, 1, 0, 1, 1, 1, 0, 1])).within, 0, atol=1e-6)


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_is_that_of_the_labels_and_the_best_one(true: float) -> None:
    logits, labels = predictions(4000, 5)
    found = jax.jit(temperature_scaling)(true * logits, labels)
    assert_allclose(found, true, rtol=0.06)
    loss = lambda t: -jnp.take_along_axis(jax.nn.log_softmax(true * logits / t), labels[:, None], 1).mean()  # noqa: E731
    assert_allclose(jax.grad(loss)(found) * true, 0, atol=1e-4)
    assert jnp.all(jax.nn.softmax(true * logits / found).argmax(1) == logits.argmax(1))


def test_temperatures_at_the_ends_and_labels_that_do_not_count() -> None:
    logits, labels = predictions(50, 3)
    assert temperature_scaling(logits, logits.argmax(1)) < 2**-19
    assert temperature_scaling(logits, logits.argmin(1)) > 2**19
    more = jnp.concatenate([logits, 9 * logits]), jnp.concatenate([labels, jnp.full_like(labels, -1)])
    assert_allclose(temperature_scaling(*more), temperature_scaling(logits, labels), rtol=1e-6)
    assert not jnp.any(jax.grad(lambda logits: temperature_scaling(logits, labels))(logits))


def test_no_examples_have_no_error() -> None:
    p, labels = jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)
    for adaptive in (False, True):
        assert not np.any(np.stack(expected_calibration_error(p, labels, adaptive=adaptive)))
    assert not np.any(np.stack(brier_score(p, labels)))


P, LABELS = jnp.full((4, 2), 0.5), jnp.zeros(4, jnp.int32)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: reliability(P[0], LABELS), ValueError, r"probabilities must have shape \[N, K\], got \[2\]"),
        (lambda: reliability(P, LABELS[:3]), ValueError, r"labels must be .* shape \[4\].* got shape \[3\]"),
        (lambda: reliability(P, P[:, 0]), TypeError, "labels must be an array of ints"),
        (lambda: reliability(LABELS[:, None], LABELS), TypeError, "probabilities must be an array of floating point numbers"),
        (lambda: expected_calibration_error(P, LABELS, bins=0), ValueError, "bins must be at least 1, got 0"),
        (lambda: brier_score(P, LABELS, bins=1.5), TypeError, "bins must be an int"),
        (lambda: reliability(P, LABELS, adaptive=2), TypeError, "adaptive must be True or False"),
        (lambda: temperature_scaling(P[:, :, None], LABELS), ValueError, r"logits must have shape \[N, K\]"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
