"""The networks of which dropout is an ensemble: all of them, one by one, or the moments of their sums in closed form."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._checks import Scalar, check_amount_shape, check_float, check_number, check_scalar, check_shape, check_size
from jaxnorm._types import widened

_MOST = 20  # 2^20 networks take minutes where one takes a tenth of a millisecond


class Ensemble(NamedTuple):
    """Probabilities of an ensemble: the mean of its members', and their geometric mean, normalized; both `[..., K]`."""

    arithmetic: jax.Array
    geometric: jax.Array


class Moments(NamedTuple):
    """Mean and variance of every unit."""

    mean: jax.Array
    var: jax.Array


def exact_ensemble(apply: Callable[[jax.Array], jax.Array], h: int, rate: Scalar, *, batch_size: int = 64) -> Ensemble:
    """Returns the exact mean of all 2^h networks that dropout of h units stands for.

    `arithmetic = sum_m P(m) softmax(apply(m))`, `geometric = softmax(sum_m P(m) log softmax(apply(m)))`, with `P(m) = (1 -
    rate)^k rate^(h - k)` for a mask m that keeps k units. Sampled masks give the arithmetic mean. Weight scaling gives the
    geometric one, exactly, where only a softmax follows the mask: `apply(m) = (m * x) @ w + b`.

    Args:
      apply: from a mask, `bool[h]`, True for what is kept, to logits `[..., K]`; it scales what is kept, if that is to be scaled.
      h: number of units, at most 20.
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      batch_size: how many masks are run at once: memory is for the outputs of so many.

    Returns:
      `Ensemble(arithmetic, geometric)`, in float32 or wider.

    Raises:
      ValueError: if h is below 1 or above 20, rate outside [0, 1], or batch_size below 1.
      TypeError: if h or batch_size is no int, rate no number, or apply does not give floating point numbers.

    References:
      Baldi, Sadowski, "Understanding dropout", NIPS 2013,
      https://papers.nips.cc/paper/4878-understanding-dropout.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm.uncertainty import exact_ensemble
      >>> x, w = jnp.array([1.0, -2.0, 3.0]), jnp.array([[1.0, 0.0], [0.5, 1.0], [0.0, 2.0]])
      >>> found = exact_ensemble(lambda mask: jnp.where(mask, x, 0) @ w, 3, 0.5)
      >>> for p in (*found, jax.nn.softmax(0.5 * x @ w)):
      ...     print(f"{p[0]:.3f} {p[1]:.3f}")
      0.360 0.640
      0.119 0.881
      0.119 0.881
    """
    check_size("h", h)
    check_size("batch_size", batch_size)
    check_scalar("rate", rate, low=0, high=1)
    mask = jax.ShapeDtypeStruct((h,), jnp.bool_)
    out = jax.eval_shape(apply, mask)
    if h > _MOST:
        mib = math.prod(out.shape) * out.dtype.itemsize * min(batch_size, 2**h) / 2**20
        raise ValueError(
            f"h must be at most {_MOST}, got {h}: {2**h} networks, whose outputs take {mib:.1f} MiB for {batch_size} at once; "
            "draw masks instead"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"apply must give logits, floating point numbers, got {out.dtype}{list(out.shape)}")
    dtype = widened(jnp.zeros((), out.dtype)).dtype
    rate = jnp.asarray(rate, dtype)
    inside = (rate >= 0) & (rate <= 1)
    count = min(batch_size, 2**h)

    def weight(masks: jax.Array) -> jax.Array:
        """P(m), as a product, so that a rate of 0 or 1 has no logarithm."""
        of_unit = jnp.where(masks, 1 - rate, rate)
        return jnp.prod(of_unit, 1)

    def step(carry: tuple[jax.Array, jax.Array], first: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        number = first + jnp.arange(count, dtype=jnp.int32)
        masks = (number[:, None] >> jnp.arange(h, dtype=jnp.int32)[None] & 1) == 1
        weights = jnp.where(number < 2**h, weight(masks), 0)
        log_p = jax.nn.log_softmax(jax.vmap(apply)(masks).astype(dtype))
        weights = weights.reshape(weights.shape + (1,) * (log_p.ndim - 1))
        terms = weights * jnp.exp(log_p), jnp.where(weights > 0, weights * log_p, 0)
        return (carry[0] + jnp.sum(terms[0], 0), carry[1] + jnp.sum(terms[1], 0)), None

    zeros = jnp.zeros(out.shape, dtype)
    starts = jnp.arange(0, 2**h, count, dtype=jnp.int32)
    (arithmetic, log_geometric), _ = lax.scan(step, (zeros, zeros), starts)
    return Ensemble(*(jnp.where(inside, mean, jnp.nan) for mean in (arithmetic, jax.nn.softmax(log_geometric))))


def fast_dropout_dense(mean: jax.Array, var: jax.Array, kernel: jax.Array, bias: jax.Array | None, rate: Scalar) -> Moments:
    """Returns mean and variance of a dense layer after dropout, of inputs of which these are known: no mask is drawn.

    With `y = (d x / (1 - rate)) W + b`, d Bernoulli and the inputs independent: `E[y] = E[x] W + b` and `Var[y] = (Var[x] +
    rate E[x]^2) / (1 - rate) W^2`. A sum of many inputs is nearly Gaussian, of which these are the parameters; `relu_moments` and
    `sigmoid_mean` go on from there, and so a network is gone through once, without a sample.

    Args:
      mean: means of the inputs, `[..., C]`; the inputs themselves where they are known.
      var: their variances, of the same shape; zeros where they are known.
      kernel: `[C, D]`.
      bias: `[D]`, or None.
      rate: the probability of dropping an input, in [0, 1); a number or a traced scalar, or an array that broadcasts to mean.

    Returns:
      `Moments(mean, var)`, each `[..., D]`, in float32 or wider.

    Raises:
      ValueError: if shapes do not fit, or rate is outside [0, 1).
      TypeError: if an array does not hold floating point numbers, or rate is no number.

    References:
      Wang, Manning, "Fast dropout training", ICML 2013, https://proceedings.mlr.press/v28/wang13a.html.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.uncertainty import fast_dropout_dense
      >>> x = jnp.array([1.0, 2.0])
      >>> fast_dropout_dense(x, jnp.zeros(2), jnp.ones((2, 1)), None, 0.5)
      Moments(mean=Array([3.], dtype=float32), var=Array([5.], dtype=float32))
    """
    mean, var = _moments(mean, var)
    kernel = widened(check_float("kernel", kernel))
    if kernel.ndim != 2 or not mean.ndim or kernel.shape[0] != mean.shape[-1]:
        raise ValueError(f"kernel must have shape [C, D] for inputs of shape {list(mean.shape)}, got {list(kernel.shape)}")
    check_number("rate", rate, low=0, high=1, open_high=True)
    check_amount_shape("rate", rate, mean.shape)
    rate = lax.stop_gradient(jnp.asarray(rate, mean.dtype))
    rate = jnp.where((rate >= 0) & (rate < 1), rate, jnp.nan)
    exact = lax.Precision.HIGHEST
    spread = jnp.matmul((var + rate * mean**2) / (1 - rate), kernel.astype(mean.dtype) ** 2, precision=exact)
    center = jnp.matmul(mean, kernel.astype(mean.dtype), precision=exact)
    if bias is not None:
        check_shape("bias", check_float("bias", bias), kernel.shape[1:], "that of the outputs")
        center = center + bias.astype(center.dtype).reshape((1,) * (center.ndim - 1) + bias.shape)
    return Moments(center, spread)


def relu_moments(mean: jax.Array, var: jax.Array) -> Moments:
    """Returns mean and variance of a ReLU of Gaussian inputs, exactly.

    With `s = sqrt(var)`, `r = mean / s`, the density phi and the distribution function Phi of the standard normal distribution:
    `E = mean Phi(r) + s phi(r)` and `E[y^2] = (mean^2 + var) Phi(r) + mean s phi(r)`.

    Args:
      mean: means of the inputs, any shape.
      var: their variances, of the same shape, at least 0.

    Returns:
      `Moments(mean, var)`, in float32 or wider.

    Raises:
      ValueError: if the shapes differ.
      TypeError: if one does not hold floating point numbers.

    References:
      Wang, Manning, "Fast dropout training", ICML 2013, https://proceedings.mlr.press/v28/wang13a.html.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.uncertainty import relu_moments
      >>> found = relu_moments(jnp.zeros(1), jnp.ones(1))
      >>> print(found.mean.round(4), found.var.round(4))
      [0.3989] [0.3408]
    """
    mean, var = _moments(mean, var)
    known = var <= 0
    s = jnp.sqrt(jnp.where(known, 1, var))
    r = jnp.clip(mean / s, -50, 50)  # beyond, the distribution function is 0 or 1
    density = jnp.exp(-(r**2) / 2) / np.sqrt(2 * np.pi).astype(mean.dtype)
    above, below = jax.scipy.stats.norm.cdf(r), jax.scipy.stats.norm.cdf(-r)
    first = mean * above + s * density
    # E[y^2] - E[y]^2 in terms of which none is large where r is.
    spread = above + r**2 * above * below + r * density * (below - above) - density**2
    return Moments(jnp.where(known, jax.nn.relu(mean), first), jnp.where(known, 0, s**2 * jnp.maximum(spread, 0)))


def sigmoid_mean(mean: jax.Array, var: jax.Array) -> jax.Array:
    """Returns the mean of a sigmoid of Gaussian inputs, to about 0.02.

    `E = sigmoid(mean / sqrt(1 + pi var / 8))`.

    Args:
      mean: means of the inputs, any shape.
      var: their variances, of the same shape, at least 0.

    Returns:
      Array of their shape, in float32 or wider.

    Raises:
      ValueError: if the shapes differ.
      TypeError: if one does not hold floating point numbers.

    References:
      Wang, Manning, "Fast dropout training", ICML 2013, https://proceedings.mlr.press/v28/wang13a.html.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.uncertainty import sigmoid_mean
      >>> print(sigmoid_mean(jnp.array([2.0]), jnp.array([4.0])).round(3))
      [0.777]
    """
    mean, var = _moments(mean, var)
    return jax.nn.sigmoid(mean / jnp.sqrt(1 + np.pi / 8 * var))


def _moments(mean: jax.Array, var: jax.Array) -> Moments:
    mean, var = check_float("mean", mean), check_float("var", var)
    check_shape("var", var, mean.shape, "that of the means")
    mean = widened(mean)
    return Moments(mean, var.astype(mean.dtype))
