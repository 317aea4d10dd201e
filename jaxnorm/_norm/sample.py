"""Norms of the example: each is normalized by itself, so that there is no state and training is inference."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._axes import canonical_axes
from jaxnorm._batch_layer import init_affine
from jaxnorm._checks import Scalar, check_float, check_sizes
from jaxnorm._moments import AxisName
from jaxnorm._sample_layer import SampleCall, checked_sample_call
from jaxnorm._types import AffineParams, widened


def init_layer_norm(
    num_features: int | Sequence[int], *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32
) -> AffineParams:
    """Returns the parameters of a new layer norm: `scale = 1`, `bias = 0`.

    Args:
      num_features: size of the feature axis, or sizes of several in ascending order of the axes.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.

    Returns:
      `AffineParams(scale, bias)`, each with these sizes as its shape; a part that is not used is None.

    Raises:
      ValueError: if a size is below 1.
      TypeError: if a size is no int, or if param_dtype is none of floating point numbers.

    References:
      Ba, Kiros, Hinton, "Layer normalization", 2016, https://arxiv.org/abs/1607.06450.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_layer_norm(3, use_bias=False)
      AffineParams(scale=Array([1., 1., 1.], dtype=float32), bias=None)
    """
    return init_affine(check_sizes("num_features", num_features), use_scale, use_bias, param_dtype)


def layer_norm(
    params: AffineParams,
    x: jax.Array,
    *,
    epsilon: Scalar = 1e-6,
    reduction_axes: int | Sequence[int] = -1,
    feature_axes: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Normalizes every example, and every position in it, by the mean and variance of its features.

    Training and inference: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where `mean = sum(x) / n` and
    `var = sum(|x - mean|^2) / n` are those over the reduction axes.

    They are exact for means far from zero and for masks, and are computed in float32 or wider. No example depends on another.
    For the gradient nothing is kept but x and numbers of the statistics' size.

    Args:
      params: `AffineParams(scale, bias)`, each with the sizes of the feature axes as its shape, or None.
      x: array of real or complex numbers, `[..., C]`.
      epsilon: added to the variance, at least 0; a number or a traced scalar. PyTorch's and Haiku's is 1e-5, Keras's 1e-3.
      reduction_axes: the axis, or axes, over which mean and variance are taken.
      feature_axes: the axis, or axes, along which scale and bias vary; their sizes in ascending order of the axes are the shape
        of the parameters.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics. The others are normalized
        with them; a NaN or an infinity there gives the bias, has gradient 0 and reaches nothing else. Where nothing counts at
        all, y is the bias and the gradient 0.
      axis_name: name or names of mapped axes (of `jax.shard_map` or `jax.vmap`) over which the features are divided: the
        statistics are pooled over them, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if a part of params has another shape than the features of x; if epsilon is out of range; if an axis is out
        of range or named twice; if where has another rank than x or does not broadcast to it; if axis_name is not bound where
        the function is called, or axis_index_groups does not fit it.
      TypeError: if x holds integers or bools; if where does not hold bools; if dtype is none of floating point numbers, or real
        for a complex x.

    References:
      Ba, Kiros, Hinton, "Layer normalization", 2016, https://arxiv.org/abs/1607.06450.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_layer_norm(4)
      >>> print(jaxnorm.layer_norm(params, jnp.array([[1.0, 1.0, 3.0, 3.0], [50.0, 10.0, 50.0, 10.0]])).round(3))
      [[-1. -1.  1.  1.]
       [ 1. -1.  1. -1.]]
    """
    x = check_float("x", x, allow_complex=True)
    call = checked_sample_call(
        params,
        x,
        epsilon=epsilon,
        reduced=canonical_axes("reduction_axes", reduction_axes, x.ndim),
        features=canonical_axes("feature_axes", feature_axes, x.ndim),
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _layer_norm(call)


@jax.jit
def _layer_norm(call: SampleCall) -> jax.Array:
    with jax.named_scope("jaxnorm.layer_norm"):
        wide = widened(call.x)
        return call.normalize(wide, *call.moments(wide))
