"""Norms of length: vectors of features are divided by their Euclidean length, and the kernels that meet them too.

There is no state, and training is inference.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._axes import canonical_axes, count_of
from jaxnorm._checks import Scalar, check_dtype, check_float, check_output_dtype, check_scalar, check_shape, check_size
from jaxnorm._moments import AxisName, abs_square, select
from jaxnorm._normalize import inverse_length
from jaxnorm._sample_layer import SampleCall, checked_sample_call
from jaxnorm._types import AffineParams, widened, widest_dtype


def unit_norm(
    x: jax.Array,
    *,
    k: Scalar = 1.0,
    epsilon: Scalar = 1e-6,
    reduction_axes: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Divides every vector of features by its length, and multiplies by a power of their number.

    Training and inference: `y = C^(k / 2) x / max(sqrt(sum(|x|^2)), epsilon)`, where the sum is over the C features.

    With k = 1 every y has the root mean square 1, as in RMS norm; with k = 0 the length 1, as Keras's `UnitNormalization`. All of
    it is computed in float32 or wider; x and a number an example are kept for the gradient, which is finite for an x of 0.

    Args:
      x: array of real or complex numbers, `[..., C]` or with the features on `reduction_axes`.
      k: the power, at least 0; a number or a traced scalar, into which no gradient flows.
      epsilon: the least length that is divided by, at least 0; a number or a traced scalar. With 0, an x of 0 gives 0.
      reduction_axes: the axis of the features, or several axes.
      where: bool array of x's rank that broadcasts to x: the elements that count in the length and in C, as in `rms_norm`.
      axis_name: name or names of mapped axes over which the features are divided: the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if k is negative; else as `rms_norm`.
      TypeError: as `rms_norm`.

    References:
      Huang, Kümmerle, Zhang, "UnitNorm: rethinking normalization for transformers in time series", 2024,
      https://arxiv.org/abs/2405.15903.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> print(jaxnorm.unit_norm(jnp.array([[3.0, 4.0], [0.0, -2.0]]), k=0.0))
      [[ 0.6  0.8]
       [ 0.  -1. ]]
    """
    call = _checked(
        AffineParams(None, None),
        x,
        epsilon=epsilon,
        reduction_axes=reduction_axes,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _unit_norm(call, check_scalar("k", k, low=0), name="unit_norm")


def init_scale_norm(num_features: int, *, param_dtype: Any = jnp.float32) -> AffineParams:
    """Returns the parameters of a new scale norm: `scale = sqrt(C)`, with which it is RMS norm.

    Args:
      num_features: number of features, C.
      param_dtype: type of the scale.

    Returns:
      `AffineParams(scale, bias)`, of which the scale is one number, of shape `[]`, and the bias None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if param_dtype is none of floating point numbers.

    References:
      Nguyen, Salazar, "Transformers without tears: improving the normalization of self-attention", IWSLT 2019,
      https://arxiv.org/abs/1910.05895.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_scale_norm(16)
      AffineParams(scale=Array(4., dtype=float32), bias=None)
    """
    size, param_dtype = check_size("num_features", num_features), check_dtype("param_dtype", param_dtype)
    return AffineParams(scale=jnp.asarray(size**0.5, param_dtype), bias=None)


def scale_norm(
    params: AffineParams,
    x: jax.Array,
    *,
    epsilon: Scalar = 1e-5,
    reduction_axes: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Gives every vector of features one learned length.

    Training and inference: `y = scale x / max(sqrt(sum(|x|^2)), epsilon) + bias`, where the sum is over the features.

    All of it is computed in float32 or wider; x and a number an example are kept for the gradient, which is finite for an x of 0.

    Args:
      params: `AffineParams(scale, bias)`, each one number, of shape `[]`, or None.
      x: array of real or complex numbers, `[..., C]` or with the features on `reduction_axes`.
      epsilon: the least length that is divided by, at least 0; a number or a traced scalar. With 0, an x of 0 gives the bias.
      reduction_axes: the axis of the features, or several axes.
      where: bool array of x's rank that broadcasts to x: the elements that count in the length, as in `rms_norm`.
      axis_name: name or names of mapped axes over which the features are divided: the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if a part of params is not one number; else as `rms_norm`.
      TypeError: as `rms_norm`.

    References:
      Nguyen, Salazar, "Transformers without tears: improving the normalization of self-attention", IWSLT 2019,
      https://arxiv.org/abs/1910.05895.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.AffineParams(scale=jnp.array(10.0), bias=None)
      >>> print(jaxnorm.scale_norm(params, jnp.array([[3.0, 4.0], [0.0, -2.0]])))
      [[  6.   8.]
       [  0. -10.]]
    """
    call = _checked(
        params,
        x,
        epsilon=epsilon,
        reduction_axes=reduction_axes,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _unit_norm(call, None, name="scale_norm")


def cosine_norm(
    kernel: jax.Array, x: jax.Array, *, centered: bool = False, epsilon: Scalar = 1e-6, dtype: Any = None
) -> jax.Array:
    """Multiplies by a kernel whose columns, like x, are divided by their length: a layer of cosines.

    Training and inference: `y = sum(x kernel) / (max(|x|, epsilon) max(|kernel|, epsilon))`, where the sum and the lengths
    `|a| = sqrt(sum(a^2))` are over the C features; if centered, their means are subtracted from both before, which makes y a
    correlation.

    It lies between -1 and 1 in place of a dense layer's output, and an activation may follow.

    Args:
      kernel: array of real numbers, `[C, F]`.
      x: array of real numbers, `[..., C]`.
      centered: whether the means over the features are subtracted.
      epsilon: the least length that is divided by, at least 0; a number or a traced scalar. With 0, a length of 0 gives 0.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of shape `[..., F]`.

    Raises:
      ValueError: if kernel is no matrix whose first size is that of x's last axis; if epsilon is negative.
      TypeError: if x or kernel does not hold real floating point numbers; if dtype is none of these.

    References:
      Luo, Zhan, Wang, Yang, "Cosine normalization: using cosine similarity instead of dot product in neural networks", ICANN
      2018, https://arxiv.org/abs/1702.05870.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> kernel = jnp.array([[2.0, 1.0], [0.0, 1.0]])
      >>> print(jaxnorm.cosine_norm(kernel, jnp.array([[5.0, 5.0], [-3.0, 0.0]])).round(3))
      [[ 0.707  1.   ]
       [-1.    -0.707]]
    """
    x, kernel = check_float("x", x), check_float("kernel", kernel)
    if not x.ndim:
        raise ValueError("x must have an axis of features, got shape []")
    outputs = kernel.shape[-1] if kernel.ndim else 0
    check_shape("kernel", kernel, (x.shape[-1], outputs), "the features of x, and those of y")
    check_scalar("epsilon", epsilon, low=0)
    return _cosine_norm(kernel, x, epsilon, centered=bool(centered), dtype=check_output_dtype(dtype, x))


def _checked(params: AffineParams, x: jax.Array, *, reduction_axes: int | Sequence[int], **options: Any) -> SampleCall:
    x = check_float("x", x, allow_complex=True)
    reduced = canonical_axes("reduction_axes", reduction_axes, x.ndim)
    return checked_sample_call(params, x, reduced=reduced, features=(), **options)


@functools.partial(jax.jit, static_argnames=("name",))
def _unit_norm(call: SampleCall, k: Scalar | None, *, name: str) -> jax.Array:
    with jax.named_scope(f"jaxnorm.{name}"):
        wide = widened(call.x)
        square, n = call.mean_square(wide)
        factor = select(n > 0, inverse_length(square * n, call.epsilon))
        if k is not None:
            factor = factor * n ** (lax.stop_gradient(jnp.asarray(k, n.dtype)) / 2)
        return call.rescale(wide, None, factor)


@functools.partial(jax.jit, static_argnames=("centered", "dtype"))
def _cosine_norm(kernel: jax.Array, x: jax.Array, epsilon: Scalar, *, centered: bool, dtype: Any) -> jax.Array:
    wide = widest_dtype(x, kernel)

    def direction(a: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        a = a.astype(wide)
        if centered:
            a = a - jnp.sum(a, axis, keepdims=True) / count_of((a.shape[axis],), wide)
        return a, inverse_length(jnp.sum(abs_square(a), axis, keepdims=True), epsilon)

    with jax.named_scope("jaxnorm.cosine_norm"):
        (vectors, of_x), (columns, of_kernel) = direction(x, -1), direction(kernel, 0)
        product = lax.dot_general(vectors, columns, (((x.ndim - 1,), (0,)), ((), ())))
        return (product * of_x * jnp.expand_dims(jnp.squeeze(of_kernel, 0), tuple(range(x.ndim - 1)))).astype(dtype)
