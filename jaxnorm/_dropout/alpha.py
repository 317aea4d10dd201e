"""Alpha dropout: what is dropped becomes what a SELU saturates to, and mean and variance stay."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._axes import canonical_axes, noise_shape
from jaxnorm._checks import Scalar, check_amount_shape, check_decision_bits, check_float, check_key, check_number, is_concrete
from jaxnorm._noise import keep_or_saturate, keep_probability, multiply_noise
from jaxnorm._types import wide_dtype


def alpha_dropout(
    key: jax.Array,
    x: jax.Array,
    rate: Scalar,
    *,
    mean: Scalar = 0.0,
    var: Scalar = 1.0,
    broadcast_dims: Sequence[int] = (),
    bits: int = 16,
) -> jax.Array:
    """Sets elements at random to the value at which a SELU saturates, such that mean and variance of all stay as they are.

    Training: `y = a (d x + (1 - d) s) + b` with `d = 1` with probability `q = 1 - rate`, else 0, independently for every element,
    `s = -1.7580993`, `a = sqrt(var / (q ((1 - q) (s - mean)^2 + var)))` and `b = mean - a (q mean + (1 - q) s)`. Inference: the
    identity; do not call it.

    If the elements of x have this mean and this variance, y has them in expectation, exactly: q is the probability that the bits
    realise, a multiple of 2^-8, 2^-16 or 2^-23. One element keeps neither: `E[y | x]` is not x. It is meant for networks of
    SELUs, which keep mean 0 and variance 1, with rates of 0.05 to 0.1.

    The masks are those of `dropout`; all elements of a channel share one (feature alpha dropout) with `broadcast_dims=(1, 2)` for
    `[B, H, W, C]`. Only the key is kept for the gradient, which is `a` for what is kept and 0 for the rest. At rate 1 nothing is
    kept that could be scaled to have a variance.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, any shape.
      rate: the probability of dropping, in [0, 1); a number or a traced scalar, or an array of x's rank that broadcasts to the
        mask. No gradient flows into it. A traced rate outside [0, 1) gives NaN everywhere.
      mean: the mean to keep, a number or a traced scalar, or an array of x's rank that broadcasts to x. No gradient flows into
        it.
      var: the variance to keep, at least 0, as the mean. A negative traced one gives NaN everywhere.
      broadcast_dims: axes along which all elements share one draw.
      bits: random bits an element that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if a concrete rate is outside [0, 1), or has another shape than the mask, or is not held by 8 bits where 8 are
        asked for, if var is negative, if mean or var does not broadcast to x, if bits is another number, if an axis is out of
        range or named twice, or if key is an array of several keys.
      TypeError: if x does not hold floating point numbers, if an amount is no number or bits no int, or if key is no key.

    References:
      Klambauer, Unterthiner, Mayr, Hochreiter, "Self-normalizing neural networks", NIPS 2017, https://arxiv.org/abs/1706.02515.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> x = jax.random.normal(jax.random.key(1), (100_000,))
      >>> y = jaxnorm.alpha_dropout(jax.random.key(0), x, 0.1)
      >>> print(f"mean {abs(y.mean()):.2f}, variance {y.var():.2f}")
      mean 0.00, variance 1.00
    """
    key = check_key(key)
    x = check_float("x", x)
    check_number("rate", rate, low=0, high=1, open_high=True)
    bits = check_decision_bits(bits, rate)
    shared = canonical_axes("broadcast_dims", broadcast_dims, x.ndim)
    check_amount_shape("rate", rate, noise_shape(x.shape, shared))
    for name, moment, low in (("mean", mean, -np.inf), ("var", var, 0)):
        check_number(name, moment, low=low)
        check_amount_shape(name, moment, x.shape)
    dtype = wide_dtype(x.dtype)
    amount = keep_probability(rate, dtype), _of_type(mean, dtype), _of_type(var, dtype)
    return multiply_noise(key, x, amount, keep_or_saturate, shared, bits)


def _of_type(moment: Scalar, dtype: Any) -> jax.Array | np.ndarray:
    return np.asarray(moment, dtype) if is_concrete(moment) else jnp.asarray(moment, dtype)
