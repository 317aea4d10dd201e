"""What samples of a network's outputs say: mean, spread, entropies and likelihood."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import Scalar, check_float, check_known_flag, check_scalar, check_shape, is_known_to_be
from jaxnorm._types import widened


class ClassPrediction(NamedTuple):
    """What samples of a classifier say of each example.

    Attributes:
      probabilities: their mean, `[..., K]`.
      entropy: the entropy of the mean, in nats: the whole uncertainty.
      expected_entropy: the mean of the samples' entropies: what more data would leave (aleatoric).
      mutual_information: the difference of the two, in [0, log K]: how far the samples disagree (epistemic, BALD).
      variation_ratio: the share of samples that predict another class than most do.
      log_likelihood: the log of the mean probability of the targets, None without these.
    """

    probabilities: jax.Array
    entropy: jax.Array
    expected_entropy: jax.Array
    mutual_information: jax.Array
    variation_ratio: jax.Array
    log_likelihood: jax.Array | None


class RealPrediction(NamedTuple):
    """What samples of a regression say of each example.

    Attributes:
      mean: the mean of the samples, `[..., D]`.
      variance: the variance of the samples and of the noise, `[..., D]`.
      log_likelihood: the log of the density of the targets, None without these.
    """

    mean: jax.Array
    variance: jax.Array
    log_likelihood: jax.Array | None


def predictive(
    samples: jax.Array, *, targets: jax.Array | None = None, logits: bool = True, tau: Scalar | None = None
) -> ClassPrediction | RealPrediction:
    """Returns what samples of a network's outputs say, as of dropout that draws at test time, or of an ensemble.

    Of a classifier, with the probabilities p_t of sample t and their mean p: `entropy = H[p]`, `expected_entropy = mean_t
    H[p_t]`, `mutual_information = mean_t KL(p_t || p) = entropy - expected_entropy`, `variation_ratio = 1 - f / T` for the class
    that f of T samples predict, the most, and `log_likelihood = log p[target]`. Equal samples have no mutual information. Of few
    samples it is too low: a part of the disagreement is not seen.

    Of a regression, which is told by the precision tau of the data's noise: `mean = mean_t y_t`, `variance = 1 / tau + mean_t
    (y_t - mean)^2`, and for targets y of D numbers `log_likelihood = logsumexp_t(-tau / 2 |y - y_t|^2) - log T - D / 2 log(2 pi /
    tau)`. All are in the units of the samples: where a network was trained on standardized targets, scale its outputs back first,
    and take tau in those units. For a network with dropout at the rate r, weight decay lambda, prior length-scale l and N
    examples, trained on half the squared error, `tau = (1 - r) l^2 / (2 N lambda)`.

    Args:
      samples: array of floating point numbers, `[T, ..., K]`, T at least 1.
      targets: of a classifier the indices of the classes, integers `[...]`, of which one outside `[0, K)` has likelihood 0; of a
        regression numbers `[..., K]`; or None.
      logits: whether the samples of a classifier are logits; else probabilities, whose last axis adds up to 1.
      tau: precision of the noise, above 0, a number or a traced scalar, for a regression; None for a classifier. A traced one
        that is not above 0 gives NaN.

    Returns:
      `ClassPrediction`, or `RealPrediction` with tau, in float32 or wider.

    Raises:
      ValueError: if samples have fewer than two axes or no sample; if tau is not above 0; if targets have another shape.
      TypeError: if samples are no floating point numbers, targets of another kind, tau no number, or logits no bool.

    References:
      Gal, Ghahramani, "Dropout as a Bayesian approximation: representing model uncertainty in deep learning", ICML 2016,
      https://arxiv.org/abs/1506.02142. Houlsby, Huszár, Ghahramani, Lengyel, "Bayesian active learning for classification and
      preference learning", 2011, https://arxiv.org/abs/1112.5745.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.uncertainty import predictive
      >>> sure_of_either = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
      >>> found = predictive(sure_of_either, logits=False)
      >>> print(found.probabilities, found.expected_entropy, found.mutual_information.round(4), found.variation_ratio)
      [[0.5 0.5]] [0.] [0.6931] [0.5]
      >>> found = predictive(jnp.array([[1.0], [3.0]]), tau=4.0, targets=jnp.array([2.0]))
      >>> print(found.mean, found.variance, found.log_likelihood.round(3))
      [2.] [1.25] -2.226
    """
    samples = check_float("samples", samples)
    if samples.ndim < 2 or not samples.shape[0]:
        raise ValueError(f"samples must have shape [T, ..., K] with T of at least 1, got {list(samples.shape)}")
    are_logits = check_known_flag("logits", logits)
    if tau is not None:
        return _of_numbers(widened(samples), targets, tau)
    return _of_classes(widened(samples), targets, are_logits)


def _of_classes(samples: jax.Array, targets: jax.Array | None, logits: bool) -> ClassPrediction:
    log_p = jax.nn.log_softmax(samples) if logits else _log(samples)
    p = jnp.exp(log_p) if logits else samples
    mean = jnp.mean(p, 0)
    log_mean = _log(mean)
    classes = jnp.arange(samples.shape[-1])
    votes = jnp.sum(jnp.argmax(p, -1)[..., None] == along(classes, p), 0)
    likelihood = None
    if targets is not None:
        if not jnp.issubdtype(getattr(targets, "dtype", bool), jnp.integer):
            raise TypeError(f"targets must be an array of integers, the indices of the classes, got {targets!r}")
        check_shape("targets", targets, mean.shape[:-1], "that of the examples")
        chosen = targets[..., None] == along(classes.astype(targets.dtype), mean)
        likelihood = jnp.where(jnp.any(chosen, -1), jnp.sum(jnp.where(chosen, log_mean, 0), -1), -jnp.inf)
    return ClassPrediction(
        probabilities=mean,
        entropy=_entropy(mean, log_mean),
        expected_entropy=jnp.mean(_entropy(p, log_p), 0),
        mutual_information=jnp.maximum(jnp.mean(jnp.sum(_times(p, log_p - log_mean[None]), -1), 0), 0),
        variation_ratio=1 - jnp.max(votes, -1).astype(mean.dtype) / samples.shape[0],
        log_likelihood=likelihood,
    )


def _of_numbers(samples: jax.Array, targets: jax.Array | None, tau: Scalar) -> RealPrediction:
    check_scalar("tau", tau, low=0)
    if is_known_to_be(0, tau):
        raise ValueError(f"tau must be above 0, got {tau}")
    tau = jnp.asarray(tau, samples.dtype)
    tau = jnp.where(tau > 0, tau, jnp.nan)
    mean = jnp.mean(samples, 0)
    likelihood = None
    if targets is not None:
        targets = check_float("targets", targets)
        check_shape("targets", targets, mean.shape, "that of a sample")
        distance = jnp.sum((samples - targets.astype(samples.dtype)[None]) ** 2, -1)
        constant = samples.shape[-1] / 2 * jnp.log(2 * np.pi / tau) + np.log(samples.shape[0])
        likelihood = jax.nn.logsumexp(-tau / 2 * distance, 0) - constant
    return RealPrediction(mean, 1 / tau + jnp.mean((samples - mean[None]) ** 2, 0), likelihood)


def along(last: jax.Array, like: jax.Array) -> jax.Array:
    """Returns numbers along the last axis with axes of size 1 before it, as many as `like` has."""
    return last.reshape((1,) * (like.ndim - 1) + last.shape)


def _log(p: jax.Array) -> jax.Array:
    """Returns the logarithm, which at 0 is that of the smallest number, with a derivative of 0."""
    return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))


def _times(p: jax.Array, log: jax.Array) -> jax.Array:
    return jnp.where(p > 0, p * log, 0)


def _entropy(p: jax.Array, log_p: jax.Array) -> jax.Array:
    return -jnp.sum(_times(p, log_p), -1)
