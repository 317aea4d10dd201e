"""Modulation: scales and shifts that are learned, or given with the example, where a norm is left out or has none of its own.

There is no state, and training is inference.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import canonical_axes, check_one_axis
from jaxnorm._batch_layer import init_affine
from jaxnorm._checks import (
    Scalar,
    check_affine,
    check_dtype,
    check_float,
    check_output_dtype,
    check_scalar,
    check_sizes,
    check_where,
)
from jaxnorm._moments import AxisName, moments, root
from jaxnorm._normalize import elementwise, scaled_and_shifted
from jaxnorm._sample_layer import SampleCall, checked_channel_call
from jaxnorm._types import AffineParams, DynamicTanhParams, widened


def init_dynamic_tanh(
    num_features: int | Sequence[int],
    *,
    alpha: float = 0.5,
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> DynamicTanhParams:
    """Returns the parameters of a new dynamic tanh: `scale = 1`, `bias = 0`, `alpha = 0.5`.

    Args:
      num_features: number of channels, C, or sizes of several channel axes in ascending order of the axes.
      alpha: the start of the factor of x; the paper has larger ones in the attention of large language models.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.

    Returns:
      `DynamicTanhParams(scale, bias, alpha)`, of shapes `[C]`, `[C]` and `[]`; a scale or bias that is not used is None.

    Raises:
      ValueError: if a size is below 1, or alpha is negative.
      TypeError: if a size is no int, or if param_dtype is none of floating point numbers.

    References:
      Zhu, Chen, He, LeCun, Liu, "Transformers without normalization", CVPR 2025, https://arxiv.org/abs/2503.10622.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_dynamic_tanh(2, use_bias=False)
      DynamicTanhParams(scale=Array([1., 1.], dtype=float32), bias=None, alpha=Array(0.5, dtype=float32))
    """
    shape, param_dtype = check_sizes("num_features", num_features), check_dtype("param_dtype", param_dtype)
    start = jnp.asarray(check_scalar("alpha", alpha, low=0), param_dtype)
    return DynamicTanhParams(*init_affine(shape, use_scale, use_bias, param_dtype), alpha=start)


def dynamic_tanh(
    params: DynamicTanhParams, x: jax.Array, *, channel_axis: int | Sequence[int] = -1, dtype: Any = None
) -> jax.Array:
    """Squashes every element, in the place of a norm.

    Training and inference: `y = scale tanh(alpha x) + bias`.

    There are no statistics: every element is by itself. It is computed in float32 or wider, and x alone is kept for the gradient.

    Args:
      params: `DynamicTanhParams(scale, bias, alpha)`, of shapes `[C]`, `[C]` and `[]`; scale and bias may be None.
      x: array of real numbers, `[..., C]` or with the channels on `channel_axis`.
      channel_axis: the axis of the channels; or several axes, whose sizes in ascending order are the shape of scale and bias.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if a part of params has another shape than the channels of x; if channel_axis is out of range or names an axis
        twice.
      TypeError: if params are no DynamicTanhParams; if x does not hold real floating point numbers; if dtype is none of these.

    References:
      Zhu, Chen, He, LeCun, Liu, "Transformers without normalization", CVPR 2025, https://arxiv.org/abs/2503.10622.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_dynamic_tanh(2)
      >>> print(jaxnorm.dynamic_tanh(params, jnp.array([[1.0, -100.0]])).round(3))
      [[ 0.462 -1.   ]]
    """
    x = check_float("x", x)
    channels = canonical_axes("channel_axis", channel_axis, x.ndim)
    check_affine(params, tuple(x.shape[a] for a in channels), like=x, kind=DynamicTanhParams, others={"alpha": ()})
    return _dynamic_tanh(params, x, channels=channels, dtype=check_output_dtype(dtype, x))


def init_layer_scale(num_features: int | Sequence[int], *, scale: float = 1e-5, param_dtype: Any = jnp.float32) -> AffineParams:
    """Returns the parameters of a new layer scale: `scale = 1e-5`.

    Args:
      num_features: number of channels, C, or sizes of several channel axes in ascending order of the axes; `()` for one number
        for all, as in ReZero and SkipInit, which begin with 0.
      scale: the start: in CaiT 0.1 for 18 layers or fewer, 1e-5 for 24, 1e-6 for more.
      param_dtype: type of the scale.

    Returns:
      `AffineParams(scale, bias)`, with the scale of shape `[C]`, or `[]`, and no bias.

    Raises:
      ValueError: if a size is below 1, or scale is negative.
      TypeError: if a size is no int, or if param_dtype is none of floating point numbers.

    References:
      Touvron, Cord, Sablayrolles, Synnaeve, Jégou, "Going deeper with image transformers", ICCV 2021,
      https://arxiv.org/abs/2103.17239.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_layer_scale((), scale=0.0)
      AffineParams(scale=Array(0., dtype=float32), bias=None)
    """
    shape, param_dtype = check_sizes("num_features", num_features), check_dtype("param_dtype", param_dtype)
    return AffineParams(scale=jnp.full(shape, check_scalar("scale", scale, low=0), param_dtype), bias=None)


def layer_scale(params: AffineParams, x: jax.Array, *, channel_axis: int | Sequence[int] = -1, dtype: Any = None) -> jax.Array:
    """Multiplies the branch of a residual block by a learned factor that begins near 0.

    Training and inference: `y = scale x + bias`, with a scale of each channel, or one for all (ReZero, SkipInit); the block's
    output is the shortcut plus y.

    It is computed in float32 or wider, and x alone is kept for the gradient.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]`, or `[]` for all channels, or None.
      x: array of real or complex numbers, `[..., C]` or with the channels on `channel_axis`.
      channel_axis: the axis of the channels; or several axes, whose sizes in ascending order are the shape of the parameters.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if a part of params has another shape than the channels of x, or none; if channel_axis is out of range or names
        an axis twice.
      TypeError: if x holds integers or bools; if dtype is none of floating point numbers, or real for a complex x.

    References:
      Touvron, Cord, Sablayrolles, Synnaeve, Jégou, "Going deeper with image transformers", ICCV 2021,
      https://arxiv.org/abs/2103.17239; Bachlechner, Majumder, Mao, Cottrell, McAuley, "ReZero is all you need: fast convergence
      at large depth", UAI 2021, https://arxiv.org/abs/2003.04887; De, Smith, "Batch normalization biases residual blocks towards
      the identity function in deep networks", NeurIPS 2020, https://arxiv.org/abs/2002.10444.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_layer_scale(2, scale=0.5)
      >>> print(jaxnorm.layer_scale(params, jnp.array([[2.0, -4.0]])))
      [[ 1. -2.]]
    """
    x = check_float("x", x, allow_complex=True)
    channels = canonical_axes("channel_axis", channel_axis, x.ndim)
    one = isinstance(params, AffineParams) and all(part is None or jnp.ndim(part) == 0 for part in params)
    channels = () if one else channels
    check_affine(params, tuple(x.shape[a] for a in channels), like=x)
    dtype = check_output_dtype(dtype, x)
    return _modulate(x, *params, 0.0, axes=(channels, channels), dtype=dtype, name="layer_scale")


def modulate(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    scale_offset: Scalar = 0.0,
    channel_axis: int = -1,
    dtype: Any = None,
) -> jax.Array:
    """Scales and shifts x as another array says, each example by itself: FiLM, and behind a norm conditional ones and SPADE.

    Training and inference: `y = (scale_offset + scale) x + bias`.

    It is computed in float32 or wider; x and scale are kept for the gradient. FiLM, and networks that give the difference from 1,
    have a scale_offset of 1. SPADE is a batch norm without parameters, and scale and bias that are maps.

    Args:
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      scale: array of shape `[C]`, for all, or `[B, C]`, of each example, or of x's rank, as maps are, which broadcasts to x; None
        for a scale of 1.
      bias: likewise; None for 0.
      scale_offset: added to the scale; a number or a traced scalar.
      channel_axis: the axis of the channels.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if scale or bias has none of these shapes; if channel_axis is out of range, names several axes, or the first
        where each example has its own.
      TypeError: if x, scale or bias holds integers or bools, or complex numbers for a real x; if dtype is none of floating point
        numbers, or real for a complex x.

    References:
      Perez, Strub, de Vries, Dumoulin, Courville, "FiLM: visual reasoning with a general conditioning layer", AAAI 2018,
      https://arxiv.org/abs/1709.07871; Park, Liu, Wang, Zhu, "Semantic image synthesis with spatially-adaptive normalization",
      CVPR 2019, https://arxiv.org/abs/1903.07291.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])
      >>> print(jaxnorm.modulate(x, jnp.array([[10.0, 1.0]]), None))
      [[[10.  2.]
        [30.  4.]]]
    """
    x = check_float("x", x, allow_complex=True)
    channels = canonical_axes("channel_axis", channel_axis, x.ndim)
    check_one_axis("channel_axis", channels, channel_axis)
    check_scalar("scale_offset", scale_offset, low=-np.inf)
    (scale, of_scale), (bias, of_bias) = (_given(name, a, x, channels[0]) for name, a in (("scale", scale), ("bias", bias)))
    dtype = check_output_dtype(dtype, x)
    return _modulate(x, scale, bias, scale_offset, axes=(of_scale, of_bias), dtype=dtype, name="modulate")


def adaptive_instance_norm(
    x: jax.Array,
    style: jax.Array,
    *,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    style_where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Gives every channel of every example the mean and deviation of the same channel of another one, its style.

    Training and inference: `y = std(style) (x - mean(x)) / std(x) + mean(style)`, where `std = sqrt(var + epsilon)`, and mean and
    variance are those over the positions of the example, and of its style.

    They are exact for means far from zero and for masks, and are computed in float32 or wider. A style that is x gives x. For the
    gradient nothing is kept but x, the style, and numbers of the statistics' size.

    Args:
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      style: array of x's rank, with the same examples and channels; its positions may be others.
      epsilon: added to both variances, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several axes.
      where: bool array of x's rank that broadcasts to x: the elements that count in its statistics, as in `group_norm`.
      style_where: likewise of the style.
      axis_name: name or names of mapped axes over which the positions, of both, are divided: the statistics are pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if style has another rank than x, or other examples or channels; if where or style_where does not fit; else as
        `instance_norm`.
      TypeError: if x or style holds integers or bools, or the style complex numbers for a real x; else as `instance_norm`.

    References:
      Huang, Belongie, "Arbitrary style transfer in real-time with adaptive instance normalization", ICCV 2017,
      https://arxiv.org/abs/1703.06868.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x, style = jnp.array([[[1.0], [3.0]]]), jnp.array([[[10.0], [30.0], [10.0], [30.0]]])
      >>> print(jaxnorm.adaptive_instance_norm(x, style).round(2))
      [[[10.]
        [30.]]]
    """
    call = checked_channel_call(
        AffineParams(None, None),
        x,
        epsilon=epsilon,
        channel_axis=channel_axis,
        reduction_axes=None,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
        takes_complex=True,
    )
    style = check_float("style", style, allow_complex=jnp.iscomplexobj(call.x))
    if style.ndim != call.x.ndim or any(style.shape[a] != call.x.shape[a] for a in call.kept):
        raise ValueError(f"style must have the examples and channels of x, {list(call.x.shape)}, got shape {list(style.shape)}")
    style_where = None if style_where is None else check_where(style_where, style, "style_where", "style")
    return _adaptive_instance_norm(call, style, style_where)


def _given(name: str, part: jax.Array | None, x: jax.Array, channel: int) -> tuple[jax.Array | None, tuple[int, ...]]:
    """Returns what modulates x, without axes along which it is shared, and the axes of x that it has."""
    if part is None:
        return None, ()
    part = check_float(name, part, allow_complex=jnp.iscomplexobj(x))
    if part.ndim == x.ndim:
        own = tuple(a for a in range(x.ndim) if part.shape[a] == x.shape[a])
        others = tuple(a for a in range(x.ndim) if a not in own)
        if all(part.shape[a] == 1 for a in others):
            return jnp.squeeze(part, others), own
    own = {1: (channel,), 2: (0, channel)}.get(part.ndim, ())
    if not own or own == (0, 0) or part.shape != tuple(x.shape[a] for a in own):
        raise ValueError(
            f"{name} must have the shape of the channels of x, of its examples and channels, or one that broadcasts to "
            f"{list(x.shape)}, got {list(part.shape)}"
        )
    return part, own


@functools.partial(jax.jit, static_argnames=("channels", "dtype"))
def _dynamic_tanh(params: DynamicTanhParams, x: jax.Array, *, channels: tuple[int, ...], dtype: Any) -> jax.Array:
    with jax.named_scope("jaxnorm.dynamic_tanh"):
        numbers = (params.alpha, ()), (params.scale, channels), (params.bias, channels)
        return elementwise(_squashed, x, numbers, dtype=dtype)


def _squashed(x: jax.Array, alpha: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    return scaled_and_shifted(jnp.tanh(alpha * x), scale, bias)


@functools.partial(jax.jit, static_argnames=("axes", "dtype", "name"))
def _modulate(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, scale_offset: Scalar, *, axes: Any, dtype: Any, name: str
) -> jax.Array:
    with jax.named_scope(f"jaxnorm.{name}"):
        of_scale, of_bias = axes
        if scale is not None:
            scale = widened(scale) + lax.stop_gradient(jnp.asarray(scale_offset, widened(scale).dtype))
        return elementwise(scaled_and_shifted, x, ((scale, of_scale), (bias, of_bias)), dtype=dtype)


@jax.jit
def _adaptive_instance_norm(call: SampleCall, style: jax.Array, style_where: jax.Array | None) -> jax.Array:
    with jax.named_scope("jaxnorm.adaptive_instance_norm"):
        pooled = {"axis_name": call.axis_name, "axis_index_groups": call.axis_index_groups}
        wide, of_style = widened(call.x), moments(style, call.reduced, where=style_where, **pooled)
        mean, var, n = call.moments(wide)
        deviation = root(of_style.var + jnp.asarray(call.epsilon, of_style.var.dtype))
        factor = call.factor(var, n) * deviation.astype(var.dtype)
        bias = of_style.mean.astype(mean.dtype)
        styled = dataclasses.replace(call, params=AffineParams(None, bias), features=call.kept)
        return styled.rescale(wide, mean, factor)
