"""Dropout of single elements, or of groups of elements that share one draw: Bernoulli, Gaussian, uniform, and additive noise."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import canonical_axes, noise_shape
from jaxnorm._checks import (
    NOISE_BITS,
    Scalar,
    check_amount_shape,
    check_bits,
    check_decision_bits,
    check_float,
    check_key,
    check_number,
    is_concrete,
)
from jaxnorm._noise import (
    NoiseKind,
    amount_within,
    gaussian,
    keep_or_drop,
    keep_probability,
    keep_unscaled,
    multiply_noise,
    plus_gaussian,
    uniform,
)
from jaxnorm._types import wide_dtype


def dropout(key: jax.Array, x: jax.Array, rate: Scalar, *, broadcast_dims: Sequence[int] = (), bits: int = 16) -> jax.Array:
    """Sets elements to zero at random and scales up the others (inverted dropout).

    Training: `y = x / (1 - rate)` with probability `1 - rate`, else 0, independently for every element, so that `E[y] = x` and
    `Var[y] = x^2 rate / (1 - rate)`. Inference: the identity; do not call it.

    The mask is a function of the key and the shape alone: it does not depend on how x is sharded, on `vmap`, or on the device.
    Only the key is kept for the gradient (a compiler may keep the mask instead of drawing it again: for a CPU a bit an element,
    or two, for a TPU a byte).

    With 16 or 8 bits an element, four or eight elements share a hash, and the probability to keep is `1 - rate` rounded to a
    multiple of 2^-16 or 2^-8, and not to 0 unless the rate is 1. What is kept is divided by the probability that is realised,
    so that the expectation is exact. A rate that is known while the program is traced, and above 0 and below 2^-12 or as near
    to 1, takes 32 bits where 16 are asked for; one of which 8 bits miss the probability to drop or to keep by more than 5 %
    raises where 8 are. A traced rate takes the bits asked for: one below 2^-17 drops nothing with 16.

    With 32 bits the mask is that of `jax.random.bernoulli(key, 1 - rate, shape)` in float32 and of `flax.linen.Dropout` for the
    same key. The probability to keep is rounded up to a multiple of 2^-23, and what is kept is divided by `1 - rate` itself.

    Keys of other generators than threefry: with 32 bits `jax.random.bits` draws, and what `vmap` and sharding make of the mask
    is what that generator promises; with 16 and 8 bits the mask is drawn from a threefry key that is derived from the key's
    data.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, any shape.
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar, or an array of x's rank that broadcasts to the
        mask, as with one rate for each channel. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      broadcast_dims: axes along which all elements share one draw, as `(1, 2)` to drop whole channels of `[B, H, W, C]`.
      bits: random bits an element that decide: 8, 16 or 32.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or has another shape than the mask, or is not held by 8 bits where 8 are
        asked for, if bits is another number, if an axis is out of range or named twice, or if key is an array of several keys.
      TypeError: if x does not hold floating point numbers, if rate is no number or bits no int, or if key is no key.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, https://jmlr.org/papers/v15/srivastava14a.html. The paper scales at test time, as
      `classic_dropout` and `weight_scaled` do.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> x = jnp.ones((2, 4))
      >>> jaxnorm.dropout(jax.random.key(6), x, 0.5)
      Array([[2., 0., 2., 2.],
             [0., 0., 2., 0.]], dtype=float32)
    """
    return _bernoulli(key, x, rate, keep_or_drop, broadcast_dims, bits)


def classic_dropout(
    key: jax.Array, x: jax.Array, rate: Scalar, *, broadcast_dims: Sequence[int] = (), bits: int = 16
) -> jax.Array:
    """Sets elements to zero at random and leaves the others as they are (the original, non-inverted dropout).

    Training: `y = x` with probability `1 - rate`, else 0, so that `E[y] = (1 - rate) x`. Inference: `weight_scaled(x, rate)`, of
    the same activations or of the weights that they meet.

    The masks are those of `dropout`. The probability that few bits realise is not divided by here: with 16 bits it differs from
    the `1 - rate` of inference by less than 2^-16, with 8 by less than 2^-8.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, any shape.
      rate: the probability of dropping, as in `dropout`.
      broadcast_dims: axes along which all elements share one draw.
      bits: random bits an element that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: as in `dropout`.
      TypeError: as in `dropout`.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, section 4, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> x = jnp.ones((2, 4))
      >>> jaxnorm.classic_dropout(jax.random.key(6), x, 0.5)
      Array([[1., 0., 1., 1.],
             [0., 0., 1., 0.]], dtype=float32)
    """
    return _bernoulli(key, x, rate, keep_unscaled, broadcast_dims, bits)


def weight_scaled(x: jax.Array, rate: Scalar) -> jax.Array:
    """Scales activations, or the weights that they meet, by the probability of having been kept.

    Inference with `classic_dropout`: `y = (1 - rate) x`, the expectation of its output in training.

    Args:
      x: array of floating point numbers, any shape: activations, or weights.
      rate: the probability of dropping in training, in [0, 1]; a number or a traced scalar, or an array of x's rank that
        broadcasts to x. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or does not broadcast to x.
      TypeError: if x does not hold floating point numbers.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, section 4, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.weight_scaled(jnp.ones(3), 0.25)
      Array([0.75, 0.75, 0.75], dtype=float32)
    """
    x = check_float("x", x)
    check_number("rate", rate, low=0, high=1)
    check_amount_shape("rate", rate, x.shape)
    keep = lax.stop_gradient(jnp.asarray(keep_probability(rate, wide_dtype(x.dtype))))
    return (x.astype(keep.dtype) * keep).astype(x.dtype)


def gaussian_dropout(
    key: jax.Array, x: jax.Array, rate: Scalar, *, broadcast_dims: Sequence[int] = (), bits: int = 16
) -> jax.Array:
    """Multiplies every element by Gaussian noise of mean 1, as much noise as dropout of the same rate.

    Training: `y = x n`, `n ~ N(1, rate / (1 - rate))`, so that `E[y] = x` and `Var[y] = x^2 rate / (1 - rate)`. Inference: the
    identity; do not call it.

    The normal numbers are made of 16 or 32 random bits each, by the inverse of the distribution function: one bit is the sign,
    the others are the probability of lying further from 0. 16 bits stand for 65536 intervals of equal probability, by their
    middles, which reach 4.3 standard deviations and are scaled so that their variance is exact; four elements share a hash. 32
    bits reach 6.3 standard deviations. Neither are the numbers of `jax.random.normal`, which uses 23 bits.

    Only the key is kept for the gradient (a program that jax 0.10 compiles for a CPU keeps the 16 bits of each element instead).

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, any shape.
      rate: the amount of noise, in [0, 1) (at 1 the variance is infinite); a number or a traced scalar, or an array of x's rank
        that broadcasts to the noise. No gradient flows into it. A traced rate outside [0, 1) gives NaN everywhere.
      broadcast_dims: axes along which all elements share one draw.
      bits: random bits an element of which a number is made: 16 or 32.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if a concrete rate is outside [0, 1) or has another shape than the noise, if an axis is out of range or named
        twice, if bits is another number, or if key is an array of several keys.
      TypeError: if x does not hold floating point numbers, if bits is no int, or if key is no key.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, section 10, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> y = jaxnorm.gaussian_dropout(jax.random.key(0), jnp.ones(100_000), 0.2)
      >>> print(f"mean {y.mean():.2f}, variance {y.var():.2f}")
      mean 1.00, variance 0.25
    """
    bits = check_bits(bits, NOISE_BITS)
    return _noisy(key, x, "rate", rate, _std_of_rate, gaussian, broadcast_dims, bits, open_high=True)


def uniform_dropout(
    key: jax.Array, x: jax.Array, beta: Scalar, *, broadcast_dims: Sequence[int] = (), bits: int = 16
) -> jax.Array:
    """Multiplies every element by uniform noise around 1 (Uout).

    Training: `y = x n`, `n ~ U(1 - beta, 1 + beta)`, so that `E[y] = x` and `Var[y] = x^2 beta^2 / 3`. Inference: the identity;
    do not call it.

    The noise is as much as that of dropout at the rate `beta^2 / (3 + beta^2)`, at most 0.25: that, and nothing about the uniform
    distribution, is why it shifts the variances of a following batch norm so little.

    The uniform numbers are made of 16 or 32 random bits each. 16 bits stand for 65536 intervals, by their middles, and four
    elements share a hash; with 32 bits they are those of `jax.random.uniform` in float32 for the same key.

    Only the key is kept for the gradient (a program that jax 0.10 compiles for a CPU keeps the 16 bits of each element instead).

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, any shape.
      beta: the half width of the noise, in [0, 1]; a number or a traced scalar, or an array of x's rank that broadcasts to the
        noise. No gradient flows into it. A traced beta outside [0, 1] gives NaN everywhere.
      broadcast_dims: axes along which all elements share one draw.
      bits: random bits an element of which a number is made: 16 or 32.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if a concrete beta is outside [0, 1] or has another shape than the noise, if an axis is out of range or named
        twice, if bits is another number, or if key is an array of several keys.
      TypeError: if x does not hold floating point numbers, if bits is no int, or if key is no key.

    References:
      Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
      https://arxiv.org/abs/1801.05134.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> y = jaxnorm.uniform_dropout(jax.random.key(0), jnp.ones(10_000), 0.5)
      >>> print(f"from {y.min():.2f} to {y.max():.2f}, mean {y.mean():.2f}")
      from 0.50 to 1.50, mean 1.00
    """
    return _noisy(key, x, "beta", beta, _half_width, uniform, broadcast_dims, check_bits(bits, NOISE_BITS))


def gaussian_noise(key: jax.Array, x: jax.Array, std: Scalar, *, broadcast_dims: Sequence[int] = (), bits: int = 16) -> jax.Array:
    """Adds Gaussian noise to every element.

    Training: `y = x + n`, `n ~ N(0, std^2)`, so that `E[y] = x` and `Var[y] = std^2`, whatever x is. Inference: the identity; do
    not call it.

    For a linear regression of n examples that is the penalty `n std^2 |w|^2` exactly. The normal numbers are those of
    `gaussian_dropout`, of 16 or 32 random bits each. Nothing is kept for the gradient, which passes as it is.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, any shape.
      std: the standard deviation of the noise, in x's units, at least 0; a number or a traced scalar, or an array of x's rank
        that broadcasts to the noise. No gradient flows into it. A traced std below 0 or infinite gives NaN everywhere.
      broadcast_dims: axes along which all elements share one draw.
      bits: random bits an element of which a number is made: 16 or 32.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if a concrete std is below 0 or not finite, or has another shape than the noise, if an axis is out of range or
        named twice, if bits is another number, or if key is an array of several keys.
      TypeError: if x does not hold floating point numbers, if bits is no int, or if key is no key.

    References:
      Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural Computation 7, 1995,
      https://doi.org/10.1162/neco.1995.7.1.108.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> y = jaxnorm.gaussian_noise(jax.random.key(0), jnp.full(100_000, 3.0), 0.5)
      >>> print(f"mean {y.mean():.2f}, variance {y.var():.2f}")
      mean 3.00, variance 0.25
    """
    return _noisy(key, x, "std", std, _std, plus_gaussian, broadcast_dims, check_bits(bits, NOISE_BITS), high=np.inf)


def _bernoulli(
    key: jax.Array, x: jax.Array, rate: Scalar, kind: NoiseKind, broadcast_dims: Sequence[int], bits: int
) -> jax.Array:
    check_number("rate", rate, low=0, high=1)
    return _noisy(key, x, "rate", rate, keep_probability, kind, broadcast_dims, check_decision_bits(bits, rate))


def _noisy(
    key: jax.Array,
    x: jax.Array,
    name: str,
    amount: Scalar,
    convert: Callable[[Scalar, np.dtype], Any],
    kind: NoiseKind,
    broadcast_dims: Sequence[int],
    bits: int,
    *,
    high: float = 1,
    open_high: bool = False,
) -> jax.Array:
    """Checks the arguments of noise for single elements, of which the amount is the named one, and applies it."""
    key = check_key(key)
    x = check_float("x", x)
    check_number(name, amount, low=0, high=high, open_high=open_high)
    shared = canonical_axes("broadcast_dims", broadcast_dims, x.ndim)
    check_amount_shape(name, amount, noise_shape(x.shape, shared))
    return multiply_noise(key, x, convert(amount, wide_dtype(x.dtype)), kind, shared, bits)


def _std_of_rate(rate: Scalar, dtype: np.dtype) -> jax.Array | np.ndarray:
    """Returns `sqrt(rate / (1 - rate))`; NaN for a rate outside [0, 1)."""
    if is_concrete(rate):
        rate = np.asarray(rate, np.float64)
        return np.asarray(np.sqrt(rate / (1 - rate)), dtype)
    rate = rate.astype(dtype)
    inside = (rate >= 0) & (rate < 1)
    safe = jnp.where(inside, rate, 0)
    return jnp.where(inside, jnp.sqrt(safe / (1 - safe)), jnp.nan)


def _std(std: Scalar, dtype: np.dtype) -> jax.Array | np.ndarray:
    """Returns `std`; NaN for one that is negative or infinite."""
    return amount_within(std, dtype, lambda std: (std >= 0) & (std < jnp.inf))


def _half_width(beta: Scalar, dtype: np.dtype) -> jax.Array | np.ndarray:
    """Returns `beta`; NaN for one outside [0, 1]."""
    return amount_within(beta, dtype, lambda beta: (beta >= 0) & (beta <= 1))
