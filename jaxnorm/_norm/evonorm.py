"""EvoNorm: layers that were searched for, and are normalization and activation in one.

None subtracts a mean. The B series divides by the deviation of the batch, or by a size of the example's own that exceeds it; the
S series applies an activation of the kind of swish, and divides by the deviation of groups of channels of the example. No
activation is to follow. Where a layer is to be without its nonlinearity, as at the end of a residual branch, `modulate` is what
is left.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._axes import check_one_axis
from jaxnorm._batch_layer import BatchCall, check_batch_axis, checked_call, init_affine, init_batch_layer
from jaxnorm._checks import Scalar, check_dtype, check_groups, check_size
from jaxnorm._compiler import recomputed
from jaxnorm._moments import AxisName, combine_moments, pool_groups, to_average
from jaxnorm._normalize import elementwise, scaled_and_shifted
from jaxnorm._sample_layer import SampleCall, checked_channel_call
from jaxnorm._types import AffineParams, EvoNormParams, Moments, RunningVar, widened


def init_evonorm_b0(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[EvoNormParams, RunningVar]:
    """Returns the parameters and the running variance of a new EvoNorm-B0.

    `scale = 1`, `bias = 0`, `v = 1`, and `var = 1` for the state.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.
      dtype: type of the running variance: float32 or float64.

    Returns:
      `EvoNormParams(scale, bias, v)` and `RunningVar(var)`, all of shape `[C]`; a scale or bias that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_evonorm_b0(2)
      >>> state
      RunningVar(var=Array([1., 1.], dtype=float32))
    """
    affine, _, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return EvoNormParams(*affine, v=jnp.ones(ones.shape, check_dtype("param_dtype", param_dtype))), RunningVar(ones)


def evonorm_b0(
    params: EvoNormParams,
    state: RunningVar,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    dtype: Any = None,
) -> tuple[jax.Array, RunningVar]:
    """Normalizes and activates in one: x is divided by the larger of the batch's deviation and `v x` plus the example's.

    Training: `y = scale x / max(sqrt(var + epsilon), v x + sqrt(own_var + epsilon)) + bias`, where var is the variance of the
    channel in the batch, and own_var that of the channel in its example; and `state <- momentum state + (1 - momentum) var`.
    Inference: the same y with the state in the place of var; the state stays as it is.

    It is made for maps: without positions an example has no variance of its own. The statistics are exact, pooled over devices,
    and in float32 or wider, as those of `batch_norm`; x and numbers of the size of the example's statistics are kept for the
    gradient. A batch that is not finite in a channel changes nothing of that channel's state.

    Args:
      params: `EvoNormParams(scale, bias, v)`, each of shape `[C]`; scale and bias may be None.
      state: `RunningVar(var)`, of shape `[C]`, in float32 or wider.
      x: array of real numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the variance of the batch; a bool or a traced bool.
      momentum: weight of the old variance in the running average, in [0, 1]; a number or a traced scalar. The authors' is 0.9.
      epsilon: added to the variances, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`, and not the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the batch is divided, and its statistics pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running variance averages `var n / (n - 1)`, rather than var.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if channel_axis names the first axis; else as `batch_norm`.
      TypeError: if params are no EvoNormParams; if x does not hold real floating point numbers; else as `batch_norm`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_evonorm_b0(1)
      >>> y, state = jaxnorm.evonorm_b0(params, state, jnp.array([[[-4.0], [4.0]]]), train=True, momentum=0.0)
      >>> print(y.round(2).ravel())
      [-1.   0.5]
      >>> print(state.var)
      [16.]
    """
    call = _checked(
        params,
        state,
        x,
        EvoNormParams,
        channel_axis,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _evonorm_b(call, kind="b0", unbiased=bool(unbiased))


def init_evonorm_b1(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[AffineParams, RunningVar]:
    """Returns the parameters and the running variance of a new EvoNorm-B1.

    `scale = 1`, `bias = 0`, and `var = 1` for the state.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.
      dtype: type of the running variance: float32 or float64.

    Returns:
      `AffineParams(scale, bias)` and `RunningVar(var)`, all of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_evonorm_b1(2)
      >>> state
      RunningVar(var=Array([1., 1.], dtype=float32))
    """
    affine, _, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return affine, RunningVar(ones)


def evonorm_b1(
    params: AffineParams,
    state: RunningVar,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    dtype: Any = None,
) -> tuple[jax.Array, RunningVar]:
    """Normalizes and activates in one: x is divided by the larger of the batch's deviation and x + 1 times its example's size.

    Training: `y = scale x / max(sqrt(var + epsilon), (x + 1) sqrt(own_square + epsilon)) + bias`, where var is the variance of
    the channel in the batch, and own_square the mean of `x^2` in its example; and `state <- momentum state + (1 - momentum) var`.
    Inference: the same y with the state in the place of var; the state stays as it is.

    It is made for maps: without positions an example has no variance of its own. The statistics are exact, pooled over devices,
    and in float32 or wider, as those of `batch_norm`; x and numbers of the size of the example's statistics are kept for the
    gradient. A batch that is not finite in a channel changes nothing of that channel's state.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RunningVar(var)`, of shape `[C]`, in float32 or wider.
      x: array of real numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the variance of the batch; a bool or a traced bool.
      momentum: weight of the old variance in the running average, in [0, 1]; a number or a traced scalar. The authors' is 0.9.
      epsilon: added to the variances, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`, and not the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the batch is divided, and its statistics pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running variance averages `var n / (n - 1)`, rather than var.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if channel_axis names the first axis; else as `batch_norm`.
      TypeError: if params are no AffineParams; if x does not hold real floating point numbers; else as `batch_norm`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_evonorm_b1(1)
      >>> y, state = jaxnorm.evonorm_b1(params, state, jnp.array([[[-7.0], [7.0]]]), train=True, momentum=0.0)
      >>> print(y.round(3).ravel())
      [-1.     0.125]
      >>> print(state.var)
      [49.]
    """
    call = _checked(
        params,
        state,
        x,
        AffineParams,
        channel_axis,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _evonorm_b(call, kind="b1", unbiased=bool(unbiased))


def init_evonorm_b2(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[AffineParams, RunningVar]:
    """Returns the parameters and the running variance of a new EvoNorm-B2.

    `scale = 1`, `bias = 0`, and `var = 1` for the state.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.
      dtype: type of the running variance: float32 or float64.

    Returns:
      `AffineParams(scale, bias)` and `RunningVar(var)`, all of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_evonorm_b2(2)
      >>> state
      RunningVar(var=Array([1., 1.], dtype=float32))
    """
    affine, _, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return affine, RunningVar(ones)


def evonorm_b2(
    params: AffineParams,
    state: RunningVar,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    dtype: Any = None,
) -> tuple[jax.Array, RunningVar]:
    """Normalizes and activates in one: x is divided by the larger of the batch's deviation and its example's size minus x.

    Training: `y = scale x / max(sqrt(var + epsilon), sqrt(own_square + epsilon) - x) + bias`, where var is the variance of the
    channel in the batch, and own_square the mean of `x^2` in its example; and `state <- momentum state + (1 - momentum) var`.
    Inference: the same y with the state in the place of var; the state stays as it is.

    It is made for maps: without positions an example has no variance of its own. The statistics are exact, pooled over devices,
    and in float32 or wider, as those of `batch_norm`; x and numbers of the size of the example's statistics are kept for the
    gradient. A batch that is not finite in a channel changes nothing of that channel's state.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RunningVar(var)`, of shape `[C]`, in float32 or wider.
      x: array of real numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the variance of the batch; a bool or a traced bool.
      momentum: weight of the old variance in the running average, in [0, 1]; a number or a traced scalar. The authors' is 0.9.
      epsilon: added to the variances, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`, and not the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the batch is divided, and its statistics pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running variance averages `var n / (n - 1)`, rather than var.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if channel_axis names the first axis; else as `batch_norm`.
      TypeError: if params are no AffineParams; if x does not hold real floating point numbers; else as `batch_norm`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_evonorm_b2(1)
      >>> y, state = jaxnorm.evonorm_b2(params, state, jnp.array([[[-4.0], [4.0]]]), train=True, momentum=0.0)
      >>> print(y.round(2).ravel())
      [-0.5  1. ]
      >>> print(state.var)
      [16.]
    """
    call = _checked(
        params,
        state,
        x,
        AffineParams,
        channel_axis,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _evonorm_b(call, kind="b2", unbiased=bool(unbiased))


def init_evonorm_s0(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32
) -> EvoNormParams:
    """Returns the parameters of a new EvoNorm-S0: `scale = 1`, `bias = 0`, `v = 1`.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.

    Returns:
      `EvoNormParams(scale, bias, v)`, each of shape `[C]`; a scale or bias that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if param_dtype is none of floating point numbers.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_evonorm_s0(2, use_bias=False).scale
      Array([1., 1.], dtype=float32)
    """
    shape, param_dtype = (check_size("num_features", num_features),), check_dtype("param_dtype", param_dtype)
    return EvoNormParams(*init_affine(shape, use_scale, use_bias, param_dtype), v=jnp.ones(shape, param_dtype))


def evonorm_s0(
    params: EvoNormParams,
    x: jax.Array,
    num_groups: int | None,
    *,
    group_size: int | None = None,
    epsilon: Scalar = 1e-5,
    channel_axis: int = -1,
    reduction_axes: int | Sequence[int] | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Normalizes and activates in one: x times the sigmoid of `v x`, divided by the deviation of groups of channels.

    Training and inference: `y = scale x sigmoid(v x) / sqrt(var + epsilon) + bias`, where var is the variance over the example's
    positions and consecutive channels, C / num_groups of them.

    It is exact for means far from zero and for masks, and computed in float32 or wider. No example depends on another. For the
    gradient nothing is kept but x and numbers of the statistics' size.

    Args:
      params: `EvoNormParams(scale, bias, v)`, each of shape `[C]`; scale and bias may be None.
      x: array of real numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      num_groups: number of groups; the paper's is 32.
      group_size: channels of a group, for a num_groups of None.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels.
      reduction_axes: the axes over which statistics are taken, besides the channels of a group; None for all but the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `group_norm`.
      axis_name: name or names of mapped axes over which the positions are divided: the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if num_groups or group_size does not divide C, or not exactly one of them is given; else as `instance_norm`.
      TypeError: if params are no EvoNormParams; if x does not hold real floating point numbers; else as `instance_norm`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_evonorm_s0(2)
      >>> print(jaxnorm.evonorm_s0(params, jnp.array([[[-40.0, 40.0]]]), 1).round(2))
      [[[-0.  1.]]]
    """
    call, groups = _checked_groups(
        params,
        x,
        EvoNormParams,
        channel_axis,
        num_groups,
        group_size,
        epsilon=epsilon,
        reduction_axes=reduction_axes,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _evonorm_s(call, kind="s0", groups=groups)


def init_evonorm_s1(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32
) -> AffineParams:
    """Returns the parameters of a new EvoNorm-S1: `scale = 1`, `bias = 0`.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.

    Returns:
      `AffineParams(scale, bias)`, each of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if param_dtype is none of floating point numbers.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_evonorm_s1(2, use_bias=False).scale
      Array([1., 1.], dtype=float32)
    """
    return init_affine((check_size("num_features", num_features),), use_scale, use_bias, param_dtype)


def evonorm_s1(
    params: AffineParams,
    x: jax.Array,
    num_groups: int | None,
    *,
    group_size: int | None = None,
    epsilon: Scalar = 1e-5,
    channel_axis: int = -1,
    reduction_axes: int | Sequence[int] | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Normalizes and activates in one: the silu of x, divided by the deviation of groups of channels.

    Training and inference: `y = scale x sigmoid(x) / sqrt(var + epsilon) + bias`, where var is the variance over the example's
    positions and consecutive channels, C / num_groups of them.

    It is exact for means far from zero and for masks, and computed in float32 or wider. No example depends on another. For the
    gradient nothing is kept but x and numbers of the statistics' size.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      x: array of real numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      num_groups: number of groups; the paper's is 32.
      group_size: channels of a group, for a num_groups of None.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels.
      reduction_axes: the axes over which statistics are taken, besides the channels of a group; None for all but the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `group_norm`.
      axis_name: name or names of mapped axes over which the positions are divided: the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if num_groups or group_size does not divide C, or not exactly one of them is given; else as `instance_norm`.
      TypeError: if params are no AffineParams; if x does not hold real floating point numbers; else as `instance_norm`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_evonorm_s1(2)
      >>> print(jaxnorm.evonorm_s1(params, jnp.array([[[-40.0, 40.0]]]), 1).round(2))
      [[[-0.  1.]]]
    """
    call, groups = _checked_groups(
        params,
        x,
        AffineParams,
        channel_axis,
        num_groups,
        group_size,
        epsilon=epsilon,
        reduction_axes=reduction_axes,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _evonorm_s(call, kind="s1", groups=groups)


def init_evonorm_s2(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32
) -> AffineParams:
    """Returns the parameters of a new EvoNorm-S2: `scale = 1`, `bias = 0`.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.

    Returns:
      `AffineParams(scale, bias)`, each of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if param_dtype is none of floating point numbers.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_evonorm_s2(2, use_bias=False).scale
      Array([1., 1.], dtype=float32)
    """
    return init_affine((check_size("num_features", num_features),), use_scale, use_bias, param_dtype)


def evonorm_s2(
    params: AffineParams,
    x: jax.Array,
    num_groups: int | None,
    *,
    group_size: int | None = None,
    epsilon: Scalar = 1e-5,
    channel_axis: int = -1,
    reduction_axes: int | Sequence[int] | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Normalizes and activates in one: the silu of x, divided by the root mean square of groups of channels.

    Training and inference: `y = scale x sigmoid(x) / sqrt(square + epsilon) + bias`, where square is the mean of `x^2` over the
    example's positions and consecutive channels, C / num_groups of them.

    It is exact for means far from zero and for masks, and computed in float32 or wider. No example depends on another. For the
    gradient nothing is kept but x and numbers of the statistics' size.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      x: array of real numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      num_groups: number of groups; the paper's is 32.
      group_size: channels of a group, for a num_groups of None.
      epsilon: added to the mean of `x^2`, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels.
      reduction_axes: the axes over which statistics are taken, besides the channels of a group; None for all but the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `group_norm`.
      axis_name: name or names of mapped axes over which the positions are divided: the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if num_groups or group_size does not divide C, or not exactly one of them is given; else as `instance_norm`.
      TypeError: if params are no AffineParams; if x does not hold real floating point numbers; else as `instance_norm`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_evonorm_s2(2)
      >>> print(jaxnorm.evonorm_s2(params, jnp.array([[[-40.0, 40.0]]]), 1).round(2))
      [[[-0.  1.]]]
    """
    call, groups = _checked_groups(
        params,
        x,
        AffineParams,
        channel_axis,
        num_groups,
        group_size,
        epsilon=epsilon,
        reduction_axes=reduction_axes,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _evonorm_s(call, kind="s2", groups=groups)


def _checked(params: Any, state: Any, x: jax.Array, kind: Any, channel_axis: int | Sequence[int], **options: Any) -> BatchCall:
    call = checked_call(params, state, x, kind=RunningVar, params_kind=kind, channel_axis=channel_axis, **options)
    check_batch_axis(call, channel_axis)
    return call


def _checked_groups(
    params: Any, x: jax.Array, kind: Any, channel_axis: int, num_groups: int | None, group_size: int | None, **options: Any
) -> tuple[SampleCall, int]:
    call = checked_channel_call(params, x, kind=kind, channel_axis=channel_axis, **options)
    check_one_axis("channel_axis", call.features, channel_axis)
    groups, _ = check_groups(call.x.shape[call.features[0]], num_groups=num_groups, group_size=group_size)
    return call, groups


def _b0(x: jax.Array, of_batch: jax.Array, own: jax.Array, scale: Any, bias: Any, v: jax.Array) -> jax.Array:
    return scaled_and_shifted(x / jnp.maximum(of_batch, v * x + own), scale, bias)


def _b1(x: jax.Array, of_batch: jax.Array, own: jax.Array, scale: Any, bias: Any) -> jax.Array:
    return scaled_and_shifted(x / jnp.maximum(of_batch, (x + 1) * own), scale, bias)


def _b2(x: jax.Array, of_batch: jax.Array, own: jax.Array, scale: Any, bias: Any) -> jax.Array:
    return scaled_and_shifted(x / jnp.maximum(of_batch, own - x), scale, bias)


def _s0(x: jax.Array, factor: jax.Array, scale: Any, bias: Any, v: jax.Array) -> jax.Array:
    return scaled_and_shifted(x * jax.nn.sigmoid(v * x) * factor, scale, bias)


def _s1(x: jax.Array, factor: jax.Array, scale: Any, bias: Any) -> jax.Array:
    return scaled_and_shifted(x * jax.nn.sigmoid(x) * factor, scale, bias)


_FORMULAS: dict[str, Callable[..., jax.Array]] = {"b0": _b0, "b1": _b1, "b2": _b2, "s0": _s0, "s1": _s1, "s2": _s1}


@functools.partial(jax.jit, static_argnames=("kind", "unbiased"))
def _evonorm_b(call: BatchCall, *, kind: str, unbiased: bool) -> tuple[jax.Array, RunningVar]:
    def deviation(var: jax.Array) -> jax.Array:
        return jnp.sqrt(var + jnp.asarray(call.epsilon, var.dtype))

    def with_batch(train: bool) -> tuple[jax.Array, RunningVar]:
        def run(call: BatchCall) -> tuple[jax.Array, RunningVar]:
            wide = widened(call.x)
            found = call.moments_of_examples(wide)
            (var,), new = _of_batch(call, found, unbiased) if train else (call.running, call.state)
            own = found.var if kind == "b0" else found.var + jnp.square(found.mean)
            others = ((part, call.channels) for part in call.params)
            numbers = (deviation(var), call.channels), (deviation(own), (0, *call.channels)), *others
            return elementwise(_FORMULAS[kind], call.x, numbers, wide=wide, where=call.where, dtype=call.dtype), new

        # Without positions the statistics of examples are as large as x, and not to be kept.
        return (run if call.positions else recomputed(run))(call)

    with jax.named_scope(f"jaxnorm.evonorm_{kind}"):
        return call.run(lambda: with_batch(True), lambda: with_batch(False))


def _of_batch(call: BatchCall, own: Moments, unbiased: bool) -> tuple[RunningVar, RunningVar]:
    """Returns the variance of the batch, from the moments of its examples, and the new state."""
    batch = call.pooled(combine_moments(own))
    seen = call.counted(batch.n, RunningVar(batch.var), call.running)
    return seen, call.averaged(batch.n, RunningVar(to_average(batch.var, batch.n, unbiased)))


@functools.partial(jax.jit, static_argnames=("kind", "groups"))
def _evonorm_s(call: SampleCall, *, kind: str, groups: int) -> jax.Array:
    def run(call: SampleCall) -> jax.Array:
        wide = widened(call.x)
        (channel,) = call.features
        place = call.kept.index(channel)
        _, var, n = found = pool_groups(call.moments(wide), place, groups)
        if kind == "s2":
            var = var + jnp.square(found.mean)
        numbers = (call.factor(var, n), call.kept), *((part, call.features) for part in call.params)
        return elementwise(_FORMULAS[kind], call.x, numbers, wide=wide, where=call.where, dtype=call.dtype)

    with jax.named_scope(f"jaxnorm.evonorm_{kind}"):
        return (run if call.reduced else recomputed(run))(call)
