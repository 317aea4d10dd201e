"""Calibration: whether predicted probabilities are the frequencies of what happens, and the temperature that makes them so."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._checks import check_float, check_kinds, check_known_flag, check_size
from jaxnorm._types import widened


class Reliability(NamedTuple):
    """A reliability diagram: of every bin the mean confidence, the accuracy and the number of examples, all 0 of none."""

    confidence: jax.Array
    accuracy: jax.Array
    n: jax.Array


class CalibrationError(NamedTuple):
    """The expected calibration error, the largest of a bin that holds something, and what calibrated predictions would show."""

    expected: jax.Array
    largest: jax.Array
    bias: jax.Array


class BrierScore(NamedTuple):
    """The Brier score, `score = reliability - resolution + uncertainty + within`, to rounding.

    `within` is what the bins do not see: how predictions and outcomes vary together inside them.
    """

    score: jax.Array
    reliability: jax.Array
    resolution: jax.Array
    uncertainty: jax.Array
    within: jax.Array


def reliability(probabilities: jax.Array, labels: jax.Array, *, bins: int = 15, adaptive: bool = False) -> Reliability:
    """Returns the reliability diagram of a classifier: what it is sure of, and how often it is right.

    Of each example the largest probability is its confidence. Bins are `(i / bins, (i + 1) / bins]`, a confidence of 0 is in the
    first; adaptive ones hold equally many examples, sorted by confidence, and of equal confidence in the order given.

    Args:
      probabilities: array of floating point numbers, `[N, K]`, whose rows add up to 1.
      labels: indices of the classes, integers `[N]`; one outside `[0, K)` is never predicted.
      bins: number of bins.
      adaptive: whether the bins hold equally many examples.

    Returns:
      `Reliability(confidence, accuracy, n)`, each `[bins]`, in float32 or wider.

    Raises:
      ValueError: if probabilities are not `[N, K]` for labels `[N]`; if bins is below 1.
      TypeError: if probabilities are no floating point numbers, labels or bins no integers, or adaptive no bool.

    References:
      Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015,
      https://ojs.aaai.org/index.php/AAAI/article/view/9602.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.uncertainty import reliability
      >>> probabilities = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
      >>> diagram = reliability(probabilities, jnp.array([0, 0, 1, 0]), bins=2)
      >>> print(diagram.confidence, diagram.accuracy, diagram.n)
      [0.   0.75] [0.   0.75] [0. 4.]
    """
    confidence, correct = _top(probabilities, labels)
    where = _in_bins(confidence, check_size("bins", bins), check_known_flag("adaptive", adaptive))
    accuracy = _mean_of_bins(where, correct)
    return Reliability(_mean_of_bins(where, confidence), accuracy, _count_of_bins(where, confidence))


def expected_calibration_error(
    probabilities: jax.Array, labels: jax.Array, *, bins: int = 15, adaptive: bool = False
) -> CalibrationError:
    """Returns by how much a classifier's confidence misses its accuracy, on average over bins of confidence.

    `expected = sum_b n_b / N |accuracy_b - confidence_b|` (ECE), `largest = max_b |accuracy_b - confidence_b|` (MCE). Neither is
    0 for a calibrated classifier: few examples in a bin are right more or less often than they should by chance. How much that
    makes is the bias, in the normal approximation `sum_b sqrt(2 / pi sum_i c_i (1 - c_i)) / N` of the confidences c of a bin:
    0.04 for 1,000 examples of evenly spread confidences in 15 bins. So report N and bins, and judge an error by its bias.

    Args:
      probabilities: array of floating point numbers, `[N, K]`, whose rows add up to 1.
      labels: indices of the classes, integers `[N]`.
      bins: number of bins; 15 is the paper's.
      adaptive: whether the bins hold equally many examples (adaptive calibration error).

    Returns:
      `CalibrationError(expected, largest, bias)`, scalars; 0 of no examples.

    Raises:
      ValueError: as `reliability`.
      TypeError: as `reliability`.

    References:
      Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017, https://arxiv.org/abs/1706.04599.
      Nixon, Dusenberry, Zhang, Jerfel, Tran, "Measuring calibration in deep learning", 2019, https://arxiv.org/abs/1904.01685.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.uncertainty import expected_calibration_error
      >>> probabilities = jnp.array([[0.9, 0.1]] * 10)
      >>> print(f"{expected_calibration_error(probabilities, jnp.array([0] * 6 + [1] * 4)).expected:.2f}")
      0.30
    """
    confidence, correct = _top(probabilities, labels)
    where = _in_bins(confidence, check_size("bins", bins), check_known_flag("adaptive", adaptive))
    total = max(confidence.shape[0], 1)
    gap, variance = jnp.abs(_sum_of_bins(where, correct - confidence)), _sum_of_bins(where, confidence * (1 - confidence))
    return CalibrationError(
        expected=jnp.sum(gap) / total,
        largest=jnp.max(gap / jnp.maximum(_count_of_bins(where, gap), 1), initial=0),
        bias=jnp.sum(jnp.sqrt(2 / np.pi * jnp.maximum(variance, 0))) / total,
    )


def brier_score(probabilities: jax.Array, labels: jax.Array, *, bins: int = 15) -> BrierScore:
    """Returns the mean squared error of predicted probabilities, and what it is made of.

    `score = sum_i sum_k (p_ik - [y_i = k])^2 / N`, from 0 to 2; of two classes it is twice the mean of `(p - y)^2`. With each
    class's predictions in bins of equal width, of mean prediction p_b and frequency o_b: `reliability = sum n_b (p_b - o_b)^2 /
    N`, which a calibrated classifier has not; `resolution = sum n_b (o_b - o)^2 / N`, which an informative one has; and
    `uncertainty = sum o (1 - o)` of the frequencies o of the classes, which is the data's.

    Args:
      probabilities: array of floating point numbers, `[N, K]`, whose rows add up to 1.
      labels: indices of the classes, integers `[N]`.
      bins: number of bins of each class.

    Returns:
      `BrierScore(score, reliability, resolution, uncertainty, within)`, scalars; 0 of no examples.

    Raises:
      ValueError: as `reliability`.
      TypeError: as `reliability`.

    References:
      Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950,
      https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2. Stephenson, Coelho, Jolliffe, "Two extra components in the
      Brier score decomposition", Weather and Forecasting 23, 2008, https://doi.org/10.1175/2007WAF2006116.1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.uncertainty import brier_score
      >>> parts = brier_score(jnp.array([[0.8, 0.2], [0.8, 0.2], [0.2, 0.8], [0.2, 0.8]]), jnp.array([0, 1, 1, 1]))
      >>> print(f"{parts.score:.2f} = {parts.reliability:.2f} - {parts.resolution:.2f} + {parts.uncertainty:.2f}")
      0.38 = 0.13 - 0.12 + 0.38
    """
    probabilities, labels = _checked(probabilities, labels)
    check_size("bins", bins)
    outcome = _chosen(labels, probabilities.shape[1]).astype(probabilities.dtype)
    total = max(probabilities.shape[0], 1)

    def of_class(p: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
        where = _in_bins(p, bins, adaptive=False)
        n = _count_of_bins(where, p) / total
        p_bin, y_bin, y_all = _mean_of_bins(where, p), _mean_of_bins(where, y), jnp.sum(y) / total
        p_rest, y_rest = (v - jnp.sum(jnp.where(where, mean[:, None], 0), 0) for v, mean in ((p, p_bin), (y, y_bin)))
        return (
            jnp.sum((p - y) ** 2) / total,
            jnp.sum(n * (p_bin - y_bin) ** 2),
            jnp.sum(n * (y_bin - y_all) ** 2),
            y_all * (1 - y_all),
            jnp.sum(p_rest**2 - 2 * p_rest * y_rest) / total,
        )

    return BrierScore(*(jnp.sum(part) for part in jax.vmap(of_class, in_axes=1)(probabilities, outcome)))


def temperature_scaling(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the temperature T at which `softmax(logits / T)` is best calibrated: of the least negative log-likelihood.

    The likelihood has one maximum in `1 / T`, where the mean logit of the labels is the mean of the logits that the
    probabilities expect; it is found by halving. Dividing by T changes no prediction. Fit it on examples that the model was not
    trained on. No gradient flows through it.

    Args:
      logits: array of floating point numbers, `[N, K]`.
      labels: indices of the classes, integers `[N]`; an example with one outside `[0, K)` does not count.

    Returns:
      T, a scalar in float32 or wider, between 2^-20 and 2^20. At the ends there is no maximum: every label has the largest logit,
      or on average labels have logits no larger than others.

    Raises:
      ValueError: if logits are not `[N, K]` for labels `[N]`.
      TypeError: if logits are no floating point numbers, or labels no integers.

    References:
      Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017, https://arxiv.org/abs/1706.04599.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.uncertainty import temperature_scaling
      >>> logits = jnp.array([[4.0, 0.0]] * 4)  # 98 % sure, and right in three of four
      >>> temperature = temperature_scaling(logits, jnp.array([0, 0, 0, 1]))
      >>> print(f"{temperature:.2f}, {jnp.exp(4 / temperature) / (1 + jnp.exp(4 / temperature)):.2f}")
      3.64, 0.75
    """
    logits, labels = _checked(logits, labels, "logits")
    logits = lax.stop_gradient(logits)
    chosen = _chosen(labels, logits.shape[1])
    counts = jnp.any(chosen, 1)
    centered = logits - jnp.max(logits, 1, keepdims=True)

    def too_cold(log_temperature: jax.Array) -> jax.Array:
        """Whether the probabilities expect more than the labels have: the likelihood rises with T."""
        expected = jnp.sum(jax.nn.softmax(centered * jnp.exp2(-log_temperature)) * centered, 1)
        return jnp.sum(jnp.where(counts, expected - jnp.sum(jnp.where(chosen, centered, 0), 1), 0)) > 0

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        cold = too_cold(middle)
        return jnp.where(cold, middle, low), jnp.where(cold, high, middle)

    ends = jnp.asarray(-20, logits.dtype), jnp.asarray(20, logits.dtype)
    low, high = lax.fori_loop(0, jnp.finfo(logits.dtype).nmant + 6, halve, ends)
    return jnp.exp2((low + high) / 2)


def _checked(values: jax.Array, labels: jax.Array, name: str = "probabilities") -> tuple[jax.Array, jax.Array]:
    values = check_float(name, values)
    if values.ndim != 2:
        raise ValueError(f"{name} must have shape [N, K], got {list(values.shape)}")
    return widened(values), check_kinds("labels", labels, values.shape[0])


def _chosen(labels: jax.Array, classes: int) -> jax.Array:
    """Returns which class is each label, `[N, K]`."""
    return labels[:, None] == jnp.arange(classes, dtype=labels.dtype)[None]


def _top(probabilities: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns of every example the confidence, and 1 where the prediction is right, else 0."""
    probabilities, labels = _checked(probabilities, labels)
    predicted = jnp.argmax(probabilities, 1)
    return jnp.max(probabilities, 1), (predicted == labels).astype(probabilities.dtype)


def _in_bins(values: jax.Array, bins: int, adaptive: bool) -> jax.Array:
    """Returns which values are in each bin, `[bins, N]`."""
    if adaptive:
        rank = jnp.argsort(jnp.argsort(values, stable=True)).astype(jnp.int32)
        index = rank * bins // max(values.size, 1)
    else:
        edges = np.arange(1, bins) / bins  # closed on the right: a value on an edge is in the bin below
        index = jnp.searchsorted(jnp.asarray(edges, values.dtype), values, side="left")
    return index[None] == jnp.arange(bins, dtype=index.dtype)[:, None]


def _mean_of_bins(where: jax.Array, values: jax.Array) -> jax.Array:
    return _sum_of_bins(where, values) / jnp.maximum(_count_of_bins(where, values), 1)


def _count_of_bins(where: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.sum(where, 1).astype(like.dtype)


def _sum_of_bins(where: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(where, values[None], 0), 1)
