"""Batch normalization by other deviations than the standard one: of the l_p norms, or by none, with the mean alone."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._batch_layer import BatchCall, checked_call, init_batch_layer
from jaxnorm._checks import Scalar, check_number, is_concrete
from jaxnorm._compiler import computed_from
from jaxnorm._moments import AxisName, Mean, combine_mean, count, select, shift_along
from jaxnorm._types import AffineParams, LpStats, RunningMean, widened


def init_lp_batch_norm(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[AffineParams, LpStats]:
    """Returns the parameters and the running statistics of a new l_p batch norm.

    `scale = 1`, `bias = 0`, and for the state `mean = 0`, `scale = 1`: before the first update, inference is the identity but
    for epsilon.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.
      dtype: type of the running statistics: float32 or float64.

    Returns:
      `AffineParams(scale, bias)` and `LpStats(mean, scale)`, all of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Hoffer, Banner, Golan, Soudry, "Norm matters: efficient and accurate normalization schemes in deep networks", NeurIPS 2018,
      https://arxiv.org/abs/1803.01814.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_lp_batch_norm(2)
      >>> state
      LpStats(mean=Array([0., 0.], dtype=float32), scale=Array([1., 1.], dtype=float32))
    """
    params, zeros, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return params, LpStats(mean=zeros, scale=ones)


def lp_batch_norm(
    params: AffineParams,
    state: LpStats,
    x: jax.Array,
    p: float,
    *,
    train: bool | jax.Array,
    gaussian: bool = False,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> tuple[jax.Array, LpStats]:
    """Normalizes every channel by its mean and its l_p deviation in the batch: 1 the mean distance, infinity the largest one.

    Training: `y = scale (x - mean) / sqrt(deviation^2 + epsilon) + bias`, where `mean = sum(x) / n` and
    `deviation = (sum(|x - mean|^p) / n)^(1/p)` are those of the channel in the batch, and
    `state <- momentum state + (1 - momentum) (mean, deviation)`. Inference: the same y with the state's mean and deviation; the
    state stays as it is.

    With p = 2 it is batch norm. Distances are taken from the mean and in units of the running deviation, so that no power of
    usual numbers overflows, in float32 or wider; over devices the mean takes one collective and the deviation another. A batch
    that is not finite in a channel changes nothing of that channel's state; a channel with no counted element is normalized with
    the running statistics. The gradient of the largest distance reaches the elements that have it.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `LpStats(mean, scale)`, each of shape `[C]`, in float32 or wider.
      x: array of real numbers, `[..., C]` or with the channels on `channel_axis`.
      p: the power, at least 1, and possibly infinite.
      train: whether to use and average the statistics of the batch; a bool or a traced bool.
      gaussian: whether the deviation is divided by that of a standard normal variable, `(E|z|^p)^(1/p)`, so that it is the
        standard deviation of normal data; for an infinite p by the paper's `2 sqrt(2 log n) / (1 + sqrt(pi log 4))`, about 0.7 of
        the largest distance that n of them have.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar.
      epsilon: added to the square of the deviation, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if p is below 1; else as `batch_norm`.
      TypeError: if p is no number, or traced; if x does not hold real floating point numbers; else as `batch_norm`.

    References:
      Hoffer, Banner, Golan, Soudry, "Norm matters: efficient and accurate normalization schemes in deep networks", NeurIPS 2018,
      https://arxiv.org/abs/1803.01814; Santurkar, Tsipras, Ilyas, Madry, "How does batch normalization help optimization?",
      NeurIPS 2018, https://arxiv.org/abs/1805.11604. The deviation is averaged, and not its reciprocal.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_lp_batch_norm(1)
      >>> x = jnp.array([[0.0], [0.0], [3.0], [9.0]])
      >>> y, state = jaxnorm.lp_batch_norm(params, state, x, 1, train=True, momentum=0.5, epsilon=0.0)
      >>> print(y.T)
      [[-1. -1.  0.  2.]]
      >>> print(state.scale)
      [2.]
    """
    call = checked_call(
        params,
        state,
        x,
        kind=LpStats,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    if not is_concrete(p):
        raise TypeError("p must be known when the function is traced, got a traced number")
    check_number("p", p, low=1, infinite=True)
    return _lp_batch_norm(call, p=float(p), gaussian=bool(gaussian))


def init_mean_only_batch_norm(
    num_features: int, *, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[AffineParams, RunningMean]:
    """Returns the parameters and the running mean of a new mean-only batch norm: `bias = 0`, `mean = 0`.

    Args:
      num_features: number of channels, C.
      use_bias: whether there is a bias.
      param_dtype: type of the bias.
      dtype: type of the running mean: float32, float64, or complex for a complex x.

    Returns:
      `AffineParams(scale, bias)` and `RunningMean(mean)`, of shape `[C]`; there is no scale, and a bias that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Salimans, Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural networks", NIPS
      2016, section 4, https://arxiv.org/abs/1602.07868.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_mean_only_batch_norm(2)
      >>> state
      RunningMean(mean=Array([0., 0.], dtype=float32))
    """
    params, zeros, _ = init_batch_layer(num_features, False, use_bias, param_dtype, dtype)
    return params, RunningMean(mean=zeros)


def mean_only_batch_norm(
    params: AffineParams,
    state: RunningMean,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    momentum: Scalar = 0.99,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> tuple[jax.Array, RunningMean]:
    """Subtracts from every channel its mean in the batch: batch norm without a variance, as for layers with weight norm.

    Training: `y = scale (x - mean) + bias`, where `mean = sum(x) / n` is that of the channel in the batch, and
    `state <- momentum state + (1 - momentum) mean`. Inference: the same y with the state's mean; the state stays as it is.

    The mean is exact as that of `batch_norm`, and in float32 or wider. A batch whose mean is not finite in a channel changes
    nothing of that channel's state; a channel with no counted element has the running mean subtracted.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None; the paper has no scale.
      state: `RunningMean(mean)`, of shape `[C]`, in float32 or wider.
      x: array of real or complex numbers, `[..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the mean of the batch; a bool or a traced bool.
      momentum: weight of the old mean in the running average, in [0, 1]; a number or a traced scalar. The paper's is 0.9.
      channel_axis: the axis of the channels, or several, as in `batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count in the mean, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the mean is pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: as `batch_norm`.
      TypeError: as `batch_norm`.

    References:
      Salimans, Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural networks", NIPS
      2016, section 4, https://arxiv.org/abs/1602.07868.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_mean_only_batch_norm(1)
      >>> y, state = jaxnorm.mean_only_batch_norm(params, state, jnp.array([[1.0], [5.0]]), train=True, momentum=0.5)
      >>> print(y.T)
      [[-2.  2.]]
      >>> print(state.mean)
      [1.5]
    """
    call = checked_call(
        params,
        state,
        x,
        kind=RunningMean,
        train=train,
        momentum=momentum,
        epsilon=0.0,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
        takes_complex=True,
    )
    return _mean_only_batch_norm(call)


@jax.jit
def _mean_only_batch_norm(call: BatchCall) -> tuple[jax.Array, RunningMean]:
    def output(center: jax.Array, **then: Any) -> jax.Array:
        return call.rescale(center, jnp.ones(center.shape, center.real.dtype), **then)

    def training() -> tuple[jax.Array, RunningMean]:
        wide = widened(call.x)
        batch = call.moments(wide)
        (seen,) = call.counted(batch.n, RunningMean(batch.mean), call.running)
        return output(seen, wide=wide), call.averaged(batch.n, RunningMean(batch.mean))

    def inference() -> tuple[jax.Array, RunningMean]:
        return output(*call.running), call.state

    with jax.named_scope("jaxnorm.mean_only_batch_norm"):
        return call.run(training, inference)


@functools.partial(jax.jit, static_argnames=("p", "gaussian"))
def _lp_batch_norm(call: BatchCall, *, p: float, gaussian: bool) -> tuple[jax.Array, LpStats]:
    def output(center: jax.Array, deviation: jax.Array, **then: Any) -> jax.Array:
        return call.normalize(center, lax.square(deviation), **then)

    def training() -> tuple[jax.Array, LpStats]:
        wide = widened(call.x)
        batch = call.moments(wide)
        deviation = _deviation(call, wide, batch.mean, p)
        if gaussian:
            deviation = deviation / _of_normal_data(p, batch.n)
        own = LpStats(batch.mean, deviation)
        return output(*call.counted(batch.n, own, call.running), wide=wide), call.averaged(batch.n, own)

    def inference() -> tuple[jax.Array, LpStats]:
        return output(*call.running), call.state

    with jax.named_scope("jaxnorm.lp_batch_norm"):
        return call.run(training, inference)


def _deviation(call: BatchCall, wide: jax.Array, center: jax.Array, p: float) -> jax.Array:
    """Returns the l_p deviation from the mean, pooled over devices."""
    axes, is_largest = call.axes, p == np.inf
    unit = shift_along(call.x, axes, call.state.scale)
    unit = lax.stop_gradient(jnp.where((unit > 0) & jnp.isfinite(unit), unit, jnp.ones((), unit.dtype)))
    n = count(call.x, axes, call.where)

    def power(x: jax.Array, where: jax.Array | None, center: jax.Array, unit: jax.Array, n: jax.Array) -> jax.Array:
        distance = jnp.abs(select(where, x - jnp.expand_dims(center, axes))) / jnp.expand_dims(unit, axes)
        if is_largest:
            return jnp.max(distance, axes, initial=0.0)
        return jnp.sum(distance**p, axes) / n

    local = computed_from(power, call.x, wide, call.where, center, unit, jnp.maximum(n, 1))
    whole, _ = call.pooled(Mean(local, n + jnp.zeros_like(local)), _combine_largest if is_largest else combine_mean)
    root = whole if is_largest else jnp.where(whole > 0, jnp.where(whole > 0, whole, 1) ** (1 / p), 0)
    return unit * root


def _combine_largest(parts: Mean) -> Mean:
    """Returns the largest number of parts that are stacked along the first axis, and how many elements it is of."""
    return Mean(jnp.max(parts.value, 0), jnp.sum(parts.n, 0))


def _of_normal_data(p: float, n: jax.Array) -> jax.Array | float:
    """Returns the l_p deviation that n standard normal numbers have, roughly if it is the largest distance."""
    if p == np.inf:
        return 2 * jnp.sqrt(2 * jnp.log(jnp.maximum(n, 2))) / (1 + math.sqrt(math.pi * math.log(4)))
    return math.exp((p / 2 * math.log(2) + math.lgamma((p + 1) / 2) - math.log(math.pi) / 2) / p)
