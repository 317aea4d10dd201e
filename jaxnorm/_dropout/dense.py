"""DropConnect of each example: a dense layer whose weights are dropped anew for every example of the batch."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import outer_sharding
from jaxnorm._checks import (
    Scalar,
    check_decision_bits,
    check_float,
    check_key,
    check_number,
    check_output_dtype,
    check_scalar,
    check_shape,
)
from jaxnorm._compiler import recomputed
from jaxnorm._noise import Draw, NoiseKind, draw_again, draw_size, keep_or_drop, keep_probability
from jaxnorm._types import widest_dtype


def drop_connect_dense(
    key: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    x: jax.Array,
    rate: Scalar,
    *,
    bits: int = 16,
    dtype: Any = None,
) -> jax.Array:
    """A dense layer whose weights are dropped anew for every example (DropConnect).

    Training: `y = sum(m kernel x) / (1 - rate) + n bias / (1 - rate)` with m and n 1 with probability `1 - rate`, else 0,
    independently for every weight and every example. Inference: `y = x kernel + bias`, its expectation, or draws from a normal
    distribution with the mean and variance of `drop_connect_moments`, averaged after the activation, as in the paper.

    An example is a vector of features: of `[B, T, C]` every position has a draw of its own.

    That is F decisions for every element of x. They are drawn while products are summed, forward and backward: neither they nor
    the examples' kernels are kept for the gradient (the key is, and kernel and x), and at no time there is more of them than for
    one unit: arrays of x's size. In time it is so many single products, many times that of a product of matrices. `drop_connect`
    has one draw for the batch, and is cheap.

    A weight that is dropped counts as 0 whatever it is, NaN and infinity too.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      kernel: array of floating point numbers, `[C, F]`.
      bias: array of floating point numbers, `[F]`, or None.
      x: array of floating point numbers, `[..., C]`.
      rate: the probability of dropping a weight, in [0, 1]; a number or a traced scalar. No gradient flows into it. A traced rate
        outside [0, 1] gives NaN everywhere.
      bits: random bits a weight that decide: 8, 16 or 32, as in `dropout`.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of shape `[..., F]`.

    Raises:
      ValueError: if kernel is no matrix whose first size is that of x's last axis, or bias has not as many entries as the second
        is; if rate is an array; else as `dropout`.
      TypeError: if x, kernel or bias does not hold real floating point numbers; if dtype is no type of them; else as `dropout`.

    References:
      Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of neural networks using DropConnect", ICML 2013,
      https://proceedings.mlr.press/v28/wan13.html. The paper does not scale up in training, but down at test time.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> kernel, bias = jnp.array([[1.0], [10.0]]), jnp.zeros(1)
      >>> jaxnorm.drop_connect_dense(jax.random.key(0), kernel, bias, jnp.ones((6, 2)), 0.5).T
      Array([[22., 22.,  2., 20.,  0.,  0.]], dtype=float32)
    """
    key = check_key(key)
    kernel, bias, x = checked_dense("kernel", kernel, "bias", bias, x)
    check_scalar("rate", rate, low=0, high=1)
    keep = keep_probability(rate, widest_dtype(x, kernel, bias))
    bits, dtype = check_decision_bits(bits, rate), check_output_dtype(dtype, x)
    biases = () if bias is None else (bias,)
    return _drop_connect_dense(key, kernel, biases, x, keep, bits=bits).astype(dtype)


def drop_connect_moments(
    kernel: jax.Array, bias: jax.Array | None, x: jax.Array, rate: Scalar, *, dtype: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the variance of `drop_connect_dense` over its draws, for inference.

    `mean = x kernel + bias` and `var = rate / (1 - rate) (x^2 kernel^2 + bias^2)`, both exact. A sum of many weights is nearly
    normal, so that the paper draws from a normal distribution with these moments, applies the activation, and takes the mean.

    Args:
      kernel: array of floating point numbers, `[C, F]`.
      bias: array of floating point numbers, `[F]`, or None.
      x: array of floating point numbers, `[..., C]`.
      rate: the probability of dropping in training, in [0, 1); a number or a traced scalar. No gradient flows into it. A traced
        rate outside [0, 1) gives variances of NaN.
      dtype: type of both, to which they are rounded once; None for that of x.

    Returns:
      Mean and variance, `[..., F]` each.

    Raises:
      ValueError: if kernel or bias does not fit x, or if a concrete rate is outside [0, 1) or an array.
      TypeError: if x, kernel or bias does not hold real floating point numbers, or if dtype is no type of them.

    References:
      Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of neural networks using DropConnect", ICML 2013,
      https://proceedings.mlr.press/v28/wan13.html. There weights are not scaled up in training: the mean is `1 - rate` times,
      the variance `(1 - rate)^2` times this one.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> mean, var = jaxnorm.drop_connect_moments(jnp.array([[1.0], [10.0]]), None, jnp.ones((1, 2)), 0.5)
      >>> print(mean, var)
      [[11.]] [[101.]]
    """
    kernel, bias, x = checked_dense("kernel", kernel, "bias", bias, x)
    check_number("rate", rate, low=0, high=1, open_high=True)
    check_shape("rate", rate, (), "a scalar")
    dtype = check_output_dtype(dtype, x)
    wide = widest_dtype(x, kernel, bias)
    keep = lax.stop_gradient(jnp.asarray(keep_probability(rate, wide)))
    spread = jnp.where(keep > 0, (1 - keep) / jnp.where(keep > 0, keep, 1), jnp.nan)
    kernel, x, bias = kernel.astype(wide), x.astype(wide), None if bias is None else bias.astype(wide)
    var = spread * dense(jnp.square(kernel), None if bias is None else jnp.square(bias), jnp.square(x))
    return dense(kernel, bias, x).astype(dtype), var.astype(dtype)


def linear(kernel: jax.Array, bias: jax.Array | None, x: jax.Array, *, dtype: np.dtype) -> jax.Array:
    """Returns `x kernel + bias`, rounded once to this type."""
    wide = widest_dtype(x, kernel, bias)
    return dense(kernel.astype(wide), None if bias is None else bias.astype(wide), x.astype(wide)).astype(dtype)


def checked_dense(
    kernel_name: str, kernel: Any, bias_name: str, bias: Any, x: Any
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Returns kernel, bias and x as arrays, or raises unless they fit each other; the bias may be None."""
    x, kernel = check_float("x", x), check_float(kernel_name, kernel)
    if not x.ndim:
        raise ValueError("x must have an axis of features, got shape []")
    outputs = kernel.shape[-1] if kernel.ndim else 0
    check_shape(kernel_name, kernel, (x.shape[-1], outputs), "the features of x, and those of y")
    if bias is not None:
        bias = check_float(bias_name, bias)
        check_shape(bias_name, bias, (outputs,), "the features of y")
    return kernel, bias, x


def dense(kernel: jax.Array, bias: jax.Array | None, x: jax.Array) -> jax.Array:
    """Returns `x kernel + bias` of arrays of one type."""
    product = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return product if bias is None else product + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))


@functools.partial(jax.jit, static_argnames=("bits",))
def _drop_connect_dense(
    key: jax.Array, kernel: jax.Array, biases: tuple[jax.Array, ...], x: jax.Array, keep: Any, *, bits: int
) -> jax.Array:
    of_biases = [((*x.shape[:-1], *bias.shape), outer_sharding(x, bias, (0,))) for bias in biases]
    return draw_again(key, (kernel, biases, x), keep, _DROP_CONNECT_DENSE, (draw_size(x, ()), *of_biases), bits)


def _sum_of_kept_weights(of_unit: Draw, *others: Any) -> jax.Array:
    *of_biases, (kernel, biases, x), (threshold, scale) = others
    leading = tuple(range(x.ndim - 1))
    wide = x.astype(scale.dtype)  # once, for the sum of what the units give of its gradient

    def kept(draw: Draw, weights: jax.Array) -> jax.Array:
        weights = jnp.expand_dims(weights.astype(scale.dtype), leading)
        return jnp.where(draw.below(threshold), weights, np.zeros((), scale.dtype))

    @recomputed  # or each step of a scan would keep its mask
    def unit(key: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(kept(replace(of_unit, key=key), weights) * wide, -1)

    # A unit has a key of its own, and a mask like x. GPUs draw where they sum, for all units at once; others would store all.
    keys = jax.random.split(of_unit.key, kernel.shape[1])
    if of_unit.form == "any":
        total = jax.vmap(unit, out_axes=-1)(keys, kernel.T)
    else:
        total = jnp.moveaxis(lax.scan(lambda _, given: (None, unit(*given)), None, (keys, kernel.T))[1], 0, -1)
    for draw, bias in zip(of_biases, biases, strict=True):
        total = total + kept(draw, bias)
    return total * scale


_DROP_CONNECT_DENSE = NoiseKind(keep_or_drop.prepare, _sum_of_kept_weights, decides=True)
