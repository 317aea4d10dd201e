"""Whitening: channels in groups, which are decorrelated too, and not only brought to mean 0 and variance 1.

`y = scale W (x - mean) + bias` in each group, where W is an inverse root of `cov + epsilon I`; a group of one is batch norm.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import check_one_axis, merge_axes, other_axes, split_axis
from jaxnorm._batch_layer import BatchCall, checked_call, init_batch_layer
from jaxnorm._checks import Scalar, check_groups, check_size
from jaxnorm._compiler import recomputed
from jaxnorm._covariance import combine_covariances, covariances
from jaxnorm._inverse_root import inverse_root, newton_root
from jaxnorm._moments import AxisName, to_average
from jaxnorm._normalize import valid
from jaxnorm._types import AffineParams, CovarianceStats, widened


def init_decorrelated_batch_norm(
    num_features: int,
    *,
    group_size: int = 16,
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
    dtype: Any = jnp.float32,
) -> tuple[AffineParams, CovarianceStats]:
    """Returns the parameters and the running statistics of a new decorrelated batch norm.

    `scale = 1`, `bias = 0`, `mean = 0`, `cov = I`: before the first update, inference is the identity but for epsilon.

    Args:
      num_features: number of channels, C.
      group_size: number of channels that are decorrelated together, which divides C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.
      dtype: type of the running statistics: float32 or float64.

    Returns:
      `AffineParams(scale, bias)`, of shape `[C]`, a part that is not used None; and `CovarianceStats(mean, cov)`, of shapes `[C]`
      and `[C / group_size, group_size, group_size]`.

    Raises:
      ValueError: if num_features or group_size is below 1, or if group_size does not divide num_features.
      TypeError: if one of them is no int, or if dtype is not float32 or wider.

    References:
      Huang, Yang, Lang, Deng, "Decorrelated batch normalization", CVPR 2018, https://arxiv.org/abs/1804.08450.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_decorrelated_batch_norm(64)
      >>> state.cov.shape
      (4, 16, 16)
    """
    params, mean, _ = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return params, CovarianceStats(mean, identity_covariance(num_features, group_size, mean.dtype))


def identity_covariance(num_features: int, group_size: int, dtype: Any) -> jax.Array:
    """Returns the covariances of channels that are not correlated and have variance 1."""
    groups, _ = check_groups(num_features, group_size=group_size)
    return jnp.tile(jnp.eye(group_size, dtype=dtype), (groups, 1, 1))


def decorrelated_batch_norm(
    params: AffineParams,
    state: CovarianceStats,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    group_size: int = 16,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    dtype: Any = None,
) -> tuple[jax.Array, CovarianceStats]:
    """Whitens groups of channels (ZCA) by the mean and covariance of the batch, or by running averages of them.

    Training: `y = scale W (x - mean) + bias` in each group of channels, where `mean = sum(x) / n` and
    `cov = sum((x - mean) (x - mean)^T) / n` are the batch's and `W = (cov + epsilon I)^(-1/2)` is the symmetric root; and
    `state <- momentum state + (1 - momentum) (mean, cov)`. Inference: the same y with the state's mean and covariance; the state
    stays as it is.

    Of all matrices that whiten, the symmetric one changes x least; one that sorts by eigenvalue would swap channels from batch to
    batch. The statistics are exact, pooled over devices, and in float32 or wider, as those of `batch_norm`. A batch that is not
    finite in a channel changes nothing of the state of that channel's group; one without a counted element is whitened with the
    running statistics. Derivatives are finite for equal eigenvalues too.

    With as few as `group_size` vectors in a batch the covariance is singular, and epsilon decides what the directions without
    variance become. With `epsilon=0` they become 0: those whose variance is below what float32 resolves, which is `group_size`
    times 1.2e-7 of the largest.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `CovarianceStats(mean, cov)`, of shapes `[C]` and `[C / group_size, group_size, group_size]`, in float32 or wider.
      x: array of real numbers, `[..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the statistics of the batch; a bool or a traced bool.
      group_size: number of neighboring channels that are decorrelated together, which divides C; 1 is batch norm.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar.
      epsilon: added to the variances, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels.
      where: bool array of x's rank that broadcasts to x, with size 1 along the channels: the positions that count in the
        statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running covariance averages `cov n / (n - 1)` rather than cov.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if group_size is below 1 or does not divide C, or cannot be shown to divide a symbolic C; if channel_axis
        names several axes; if where varies along the channels; else as `batch_norm`.
      TypeError: if group_size is no int; if x does not hold real floating point numbers; else as `batch_norm`.

    References:
      Huang, Yang, Lang, Deng, "Decorrelated batch normalization", CVPR 2018, https://arxiv.org/abs/1804.08450. The covariance is
      averaged, as in the authors' second version, and not the whitening matrix.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_decorrelated_batch_norm(2, group_size=2)
      >>> x = jnp.array([[5.0, 1.0], [1.0, 5.0], [-5.0, -1.0], [-1.0, -5.0]])
      >>> y, state = jaxnorm.decorrelated_batch_norm(params, state, x, train=True, group_size=2)
      >>> print((y.T @ y / 4).round(3))
      [[1. 0.]
       [0. 1.]]
    """
    call = _checked(
        params,
        state,
        x,
        group_size,
        channel_axis,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _whitened_batch(call, group_size=group_size, unbiased=bool(unbiased), iterations=None, name="decorrelated_batch_norm")


def init_iterative_norm(
    num_features: int,
    *,
    group_size: int = 64,
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
    dtype: Any = jnp.float32,
) -> tuple[AffineParams, CovarianceStats]:
    """Returns the parameters and the running statistics of a new iterative norm.

    `scale = 1`, `bias = 0`, `mean = 0`, `cov = I`: before the first update, inference is the identity but for epsilon.

    Args:
      num_features: number of channels, C.
      group_size: number of channels that are decorrelated together, which divides C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.
      dtype: type of the running statistics: float32 or float64.

    Returns:
      `AffineParams(scale, bias)`, of shape `[C]`, a part that is not used None; and `CovarianceStats(mean, cov)`, of shapes `[C]`
      and `[C / group_size, group_size, group_size]`.

    Raises:
      ValueError: if num_features or group_size is below 1, or if group_size does not divide num_features.
      TypeError: if one of them is no int, or if dtype is not float32 or wider.

    References:
      Huang, Zhou, Zhu, Liu, Shao, "Iterative normalization: beyond standardization towards efficient whitening", CVPR 2019,
      https://arxiv.org/abs/1904.03441.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_iterative_norm(128)
      >>> state.cov.shape
      (2, 64, 64)
    """
    params, mean, _ = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return params, CovarianceStats(mean, identity_covariance(num_features, group_size, mean.dtype))


def iterative_norm(
    params: AffineParams,
    state: CovarianceStats,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    group_size: int = 64,
    iterations: int = 5,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    dtype: Any = None,
) -> tuple[jax.Array, CovarianceStats]:
    """Whitens groups of channels by a few steps of Newton's iteration towards the inverse root of their covariance.

    Training: `y = scale W (x - mean) + bias` in each group of channels, where `mean = sum(x) / n` and
    `cov = sum((x - mean) (x - mean)^T) / n` are the batch's, and W is made of `S = cov + epsilon I`: from `Y = S / tr(S)` and
    `Z = I`, in each step `M = (3 I - Z Y) / 2`, `Y <- Y M`, `Z <- M Z`; and `W = Z / sqrt(tr(S))`. And
    `state <- momentum state + (1 - momentum) (mean, cov)`. Inference: the same y with the state's mean and covariance; the state
    stays as it is.

    With many iterations W is the symmetric root of `decorrelated_batch_norm`; with few, directions of little variance are
    whitened in part, and none is blown up: what comes out has variances of 1 at most. The iteration is the coupled one, which
    stays where it has converged; that of the paper in one variable, which gives the same in exact numbers, is unstable. Products
    of matrices are all it takes, forward and backward.

    The statistics are exact, pooled over devices, and in float32 or wider, as those of `decorrelated_batch_norm`.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `CovarianceStats(mean, cov)`, of shapes `[C]` and `[C / group_size, group_size, group_size]`, in float32 or wider.
      x: array of real numbers, `[..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the statistics of the batch; a bool or a traced bool.
      group_size: number of neighboring channels that are decorrelated together, which divides C; 1 is batch norm.
      iterations: steps of Newton's iteration, at least 1.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar.
      epsilon: added to the variances, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels.
      where: bool array of x's rank that broadcasts to x, with size 1 along the channels: the positions that count in the
        statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running covariance averages `cov n / (n - 1)` rather than cov.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if iterations is below 1; else as `decorrelated_batch_norm`.
      TypeError: if group_size or iterations is no int; if x does not hold real floating point numbers; else as `batch_norm`.

    References:
      Huang, Zhou, Zhu, Liu, Shao, "Iterative normalization: beyond standardization towards efficient whitening", CVPR 2019,
      https://arxiv.org/abs/1904.03441. The covariance is averaged, and not the whitening matrix.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_iterative_norm(2, group_size=2)
      >>> x = jnp.array([[5.0, 1.0], [1.0, 5.0], [-5.0, -1.0], [-1.0, -5.0]])
      >>> y, state = jaxnorm.iterative_norm(params, state, x, train=True, group_size=2, iterations=10)
      >>> print((y.T @ y / 4).round(3))
      [[1. 0.]
       [0. 1.]]
    """
    call = _checked(
        params,
        state,
        x,
        group_size,
        channel_axis,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _whitened_batch(
        call,
        group_size=group_size,
        unbiased=bool(unbiased),
        iterations=check_size("iterations", iterations),
        name="iterative_norm",
    )


def _checked(params: AffineParams, state: Any, x: jax.Array, group_size: int, channel_axis: Any, **options: Any) -> BatchCall:
    call = checked_call(
        params,
        state,
        x,
        kind=CovarianceStats,
        channel_axis=channel_axis,
        shapes=lambda channels: _state_shapes(channels, group_size, channel_axis),
        **options,
    )
    (axis,) = call.channels
    if call.where is not None and call.where.shape[axis] != 1:
        raise ValueError(
            f"where must have size 1 along the channels, which are whitened together, got shape {list(call.where.shape)}"
        )
    return call


def _state_shapes(channels: tuple[int, ...], group_size: int, channel_axis: Any) -> CovarianceStats:
    check_one_axis("channel_axis", channels, channel_axis)
    groups, _ = check_groups(channels[0], group_size=group_size)
    return CovarianceStats(mean=channels, cov=(groups, group_size, group_size))  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnames=("group_size", "unbiased", "iterations", "name"))
def _whitened_batch(
    whole: BatchCall, *, group_size: int, unbiased: bool, iterations: int | None, name: str
) -> tuple[jax.Array, CovarianceStats]:
    call = _in_groups(whole, group_size)

    def whitened(wide: jax.Array, mean: jax.Array, cov: jax.Array) -> jax.Array:
        identity = jnp.eye(group_size, dtype=cov.dtype)[None]
        s = cov + jnp.asarray(call.epsilon, cov.dtype) * identity
        w = inverse_root(s) if iterations is None else newton_root(s, iterations)
        y = _whiten(call.x, wide, call.where, call.params, mean, w, call.channels, call.dtype)
        return merge_axes(y, whole.channels[0], whole.x)

    def training() -> tuple[jax.Array, CovarianceStats]:
        wide = widened(call.x)
        own = covariances(call.x, call.axes, near=call.state.mean, wide=wide, where=call.where)
        batch = call.pooled(own, combine_covariances)
        seen = call.counted(batch.n, CovarianceStats(batch.mean, batch.cov), call.running)
        new = call.averaged(batch.n, CovarianceStats(batch.mean, to_average(batch.cov, batch.n, unbiased)))
        return whitened(wide, *seen), new._replace(mean=merge_axes(new.mean, 0, whole.state.mean))

    def inference() -> tuple[jax.Array, CovarianceStats]:
        return whitened(widened(call.x), *call.running), whole.state

    with jax.named_scope(f"jaxnorm.{name}"):
        return call.run(training, inference)


def _in_groups(call: BatchCall, group_size: int) -> BatchCall:
    """Returns the call with every axis of channels as two: groups, and channels in a group."""
    (axis,) = call.channels
    groups = call.x.shape[axis] // group_size
    return dataclasses.replace(
        call,
        x=split_axis(call.x, axis, groups),
        where=None if call.where is None else lax.expand_dims(call.where, (axis,)),
        params=jax.tree.map(lambda part: split_axis(part, 0, groups), call.params),
        state=call.state._replace(mean=split_axis(call.state.mean, 0, groups)),
        channels=(axis, axis + 1),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(6, 7))
def _whiten(
    x: jax.Array,
    wide: jax.Array,
    where: jax.Array | None,
    params: AffineParams,
    mean: jax.Array,
    w: jax.Array,
    channels: tuple[int, int],
    dtype: np.dtype,
) -> jax.Array:
    """Returns `scale W (x - mean) + bias`, with the derivatives of that of `wide`, which is the same."""
    return _of_wide(x.astype(mean.dtype), where, params, mean, w, channels).astype(dtype)


def _of_wide(
    x: jax.Array, where: jax.Array | None, params: AffineParams, mean: jax.Array, w: jax.Array, channels: tuple[int, int]
) -> jax.Array:
    group, channel = channels
    axes = other_axes(channels, x.ndim)

    def along_x(a: jax.Array) -> jax.Array:
        return jnp.expand_dims(a.astype(mean.dtype), axes)

    centered = valid(x, where, x - along_x(mean))
    # The groups come first, then the axes of the batch, then the channels of a group.
    y = lax.dot_general(centered, w, (((channel,), (2,)), ((group,), (0,))), precision=lax.Precision.HIGHEST)
    y = jnp.moveaxis(y, (0, -1), (group, channel))
    y = y if params.scale is None else y * along_x(params.scale)
    return y if params.bias is None else y + along_x(params.bias)


@_whiten.defjvp
def _whiten_jvp(channels: tuple[int, int], dtype: np.dtype, primals: Any, tangents: Any) -> Any:
    """Keeps x, and no array of its size between."""
    x, _, where, *statistics = primals

    @recomputed
    def tangent(x: jax.Array, where: jax.Array | None, statistics: Any, dx: jax.Array, moved: Any) -> jax.Array:
        def y(x: jax.Array, params: AffineParams, mean: jax.Array, w: jax.Array) -> jax.Array:
            return _of_wide(x, where, params, mean, w, channels)

        return jax.jvp(y, (x.astype(dx.dtype), *statistics), (dx, *moved))[1].astype(dtype)

    return _whiten(*primals, channels, dtype), tangent(x, where, statistics, tangents[1], tangents[3:])
