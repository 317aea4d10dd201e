"""Norms of groups of channels: every example by itself, over its positions and the channels of a group.

The moments are taken for each channel and then pooled in its group, which are few numbers: x is read with its own axes, as it
lies in memory, and the gradient takes two sums over it and no array besides. A group of all channels is layer norm over whole
examples, one of a single channel is instance norm.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._axes import canonical_axes, check_one_axis, merge_axes, split_axis
from jaxnorm._batch_layer import init_affine
from jaxnorm._checks import Scalar, check_activation, check_float, check_groups, check_residual, check_size, check_sizes
from jaxnorm._moments import AxisName, pool_groups
from jaxnorm._normalize import Activation
from jaxnorm._sample_layer import SampleCall, checked_channel_call, checked_sample_call, position_axes
from jaxnorm._types import AffineParams, widened


def init_group_norm(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32
) -> AffineParams:
    """Returns the parameters of a new group norm: `scale = 1`, `bias = 0`.

    Args:
      num_features: number of channels.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.

    Returns:
      `AffineParams(scale, bias)`, each of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if param_dtype is none of floating point numbers.

    References:
      Wu, He, "Group normalization", ECCV 2018, https://arxiv.org/abs/1803.08494.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_group_norm(3, use_bias=False)
      AffineParams(scale=Array([1., 1., 1.], dtype=float32), bias=None)
    """
    return init_affine((check_size("num_features", num_features),), use_scale, use_bias, param_dtype)


def init_instance_norm(
    num_features: int | Sequence[int], *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32
) -> AffineParams:
    """Returns the parameters of a new instance norm: `scale = 1`, `bias = 0`.

    Args:
      num_features: number of channels, or sizes of several channel axes in ascending order of the axes.
      use_scale: whether there is a scale; PyTorch's layer has neither scale nor bias unless asked.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.

    Returns:
      `AffineParams(scale, bias)`, each with these sizes as its shape; a part that is not used is None.

    Raises:
      ValueError: if a size is below 1.
      TypeError: if a size is no int, or if param_dtype is none of floating point numbers.

    References:
      Ulyanov, Vedaldi, Lempitsky, "Instance normalization: the missing ingredient for fast stylization", 2016,
      https://arxiv.org/abs/1607.08022.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_instance_norm(2, use_bias=False)
      AffineParams(scale=Array([1., 1.], dtype=float32), bias=None)
    """
    return init_affine(check_sizes("num_features", num_features), use_scale, use_bias, param_dtype)


def group_norm(
    params: AffineParams,
    x: jax.Array,
    num_groups: int | None,
    *,
    group_size: int | None = None,
    epsilon: Scalar = 1e-6,
    channel_axis: int = -1,
    reduction_axes: int | Sequence[int] | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    residual: jax.Array | None = None,
    activation: Activation | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Normalizes every group of channels of every example by its mean and variance over all positions.

    Training and inference: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where `mean = sum(x) / n` and
    `var = sum(|x - mean|^2) / n` are those of the example's positions and of consecutive channels, C / num_groups of them.

    They are exact for means far from zero and for masks, and are computed in float32 or wider. No example depends on another.
    For the gradient nothing is kept but x (and the residual) and numbers of the statistics' size.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      num_groups: number of groups; the paper's is 32. One is layer norm over the whole example.
      group_size: channels of a group, for a num_groups of None.
      epsilon: added to the variance, at least 0; a number or a traced scalar. PyTorch's and the paper's is 1e-5, Keras's 1e-3.
      channel_axis: the axis of the channels.
      reduction_axes: the axes over which mean and variance are taken, besides the channels of a group; None for all but the
        first, that of the batch. For a single example, as under `jax.vmap`, all but its channels must be named.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics. The others are normalized
        with them; a NaN or an infinity there gives the bias, has gradient 0 and reaches nothing else. Where nothing counts at
        all, y is the bias and the gradient 0.
      axis_name: name or names of mapped axes (of `jax.shard_map` or `jax.vmap`) over which the positions are divided: the
        statistics are pooled over them, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      residual: array of x's shape that is added before the activation, as the shortcut of a residual block; real for a real x.
      activation: function of single elements that follows, as `jax.nn.relu`; it gets and gives float32 or wider, and y alone is
        rounded. For the gradient only x (and the residual) is kept, and not what the activation gets or gives.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if num_groups or group_size does not divide C, or not exactly one of them is given; if a part of params has
        another shape than the channels of x; if epsilon is out of range; if an axis is out of range or named twice; if where has
        another rank than x or does not broadcast to it; if axis_name is not bound where the function is called, or
        axis_index_groups does not fit it; if residual has another shape than x, or activation gives one.
      TypeError: if x or residual holds integers or bools; if num_groups or group_size is no int; if where does not hold bools; if
        activation is no function, or gives another dtype than it gets; if dtype is none of floating point numbers, or real for
        a complex x.

    References:
      Wu, He, "Group normalization", ECCV 2018, https://arxiv.org/abs/1803.08494.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_group_norm(4)
      >>> x = jnp.array([[[1.0, 3.0, 10.0, 20.0], [3.0, 1.0, 20.0, 10.0]]])
      >>> print(jaxnorm.group_norm(params, x, 2).round(3))
      [[[-1.  1. -1.  1.]
        [ 1. -1.  1. -1.]]]
    """
    x = check_float("x", x, allow_complex=True)
    channels = canonical_axes("channel_axis", channel_axis, x.ndim)
    check_one_axis("channel_axis", channels, channel_axis)
    reduced = position_axes(reduction_axes, channels, x.ndim)
    call = checked_sample_call(
        params,
        x,
        epsilon=epsilon,
        reduced=reduced,
        features=channels,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
        of="channels",
    )
    groups, _ = check_groups(x.shape[channels[0]], num_groups=num_groups, group_size=group_size)
    residual = check_residual(residual, x)
    check_activation(activation, x)
    return _group_norm(call, residual, groups=groups, activation=activation)


def instance_norm(
    params: AffineParams,
    x: jax.Array,
    *,
    epsilon: Scalar = 1e-6,
    channel_axis: int | Sequence[int] = -1,
    reduction_axes: int | Sequence[int] | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    residual: jax.Array | None = None,
    activation: Activation | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Normalizes every channel of every example by its mean and variance over all positions.

    Training and inference: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where `mean = sum(x) / n` and
    `var = sum(|x - mean|^2) / n` are those of the example's positions.

    They are exact for means far from zero and for masks, and are computed in float32 or wider. No example depends on another.
    For the gradient nothing is kept but x (and the residual) and numbers of the statistics' size. Without positions, as in
    `[B, C]`, every element is its own mean, and y the bias.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      epsilon: added to the variance, at least 0; a number or a traced scalar. PyTorch's is 1e-5.
      channel_axis: the axis of the channels; or several axes, whose sizes in ascending order are the shape of the parameters.
      reduction_axes: the axes over which mean and variance are taken; None for all but the first, that of the batch, and the
        channels.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `group_norm`.
      axis_name: name or names of mapped axes over which the positions are divided: the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      residual: array of x's shape that is added before the activation; real for a real x.
      activation: function of single elements that follows, as in `group_norm`.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if reduction_axes names an axis of the channels; else as `group_norm`.
      TypeError: as `group_norm`.

    References:
      Ulyanov, Vedaldi, Lempitsky, "Instance normalization: the missing ingredient for fast stylization", 2016,
      https://arxiv.org/abs/1607.08022.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_instance_norm(2)
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]], [[5.0, 0.0], [4.0, 8.0]]])
      >>> print(jaxnorm.instance_norm(params, x).round(3))
      [[[-1. -1.]
        [ 1.  1.]]
      <BLANKLINE>
       [[ 1. -1.]
        [-1.  1.]]]
    """
    call = checked_channel_call(
        params,
        x,
        epsilon=epsilon,
        channel_axis=channel_axis,
        reduction_axes=reduction_axes,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
        takes_complex=True,
    )
    residual = check_residual(residual, call.x)
    check_activation(activation, call.x)
    return _instance_norm(call, residual, activation=activation)


@functools.partial(jax.jit, static_argnames=("groups", "activation"))
def _group_norm(call: SampleCall, residual: jax.Array | None, *, groups: int, activation: Activation | None) -> jax.Array:
    with jax.named_scope("jaxnorm.group_norm"):
        if not call.reduced:
            return _without_positions(call, residual, groups, activation)
        (channel,) = call.features
        wide = widened(call.x)
        place = call.kept.index(channel)
        batch = pool_groups(call.moments(wide), place, groups)
        return call.normalize(wide, *batch, residual=residual, activation=activation)


@functools.partial(jax.jit, static_argnames=("activation",))
def _instance_norm(call: SampleCall, residual: jax.Array | None, *, activation: Activation | None) -> jax.Array:
    with jax.named_scope("jaxnorm.instance_norm"):
        wide = widened(call.x)
        return call.normalize(wide, *call.moments(wide), residual=residual, activation=activation)


def _without_positions(call: SampleCall, residual: jax.Array | None, groups: int, activation: Activation | None) -> jax.Array:
    """Returns the norm of groups that are all there is to the statistics: x itself has an axis for them."""
    (channel,) = call.features

    def split(a: jax.Array | None) -> jax.Array | None:
        if a is None:
            return None
        return jnp.expand_dims(a, channel) if a.shape[channel] == 1 != call.x.shape[channel] else split_axis(a, channel, groups)

    x = split_axis(call.x, channel, groups)
    grouped = dataclasses.replace(
        call,
        params=jax.tree.map(lambda part: split_axis(part, 0, groups), call.params),
        x=x,
        where=split(call.where),
        reduced=(channel + 1,),
        features=(channel, channel + 1),
    )
    wide = widened(x)
    y = grouped.normalize(wide, *grouped.moments(wide), residual=split(residual), activation=activation)
    return merge_axes(y, channel, call.x)
