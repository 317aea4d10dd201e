"""Batch normalization: mean and variance of each channel in the batch."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._axes import canonical_axes
from jaxnorm._batch_layer import BatchCall, checked_call, init_affine, init_batch_layer
from jaxnorm._checks import Scalar, check_activation, check_residual, check_scalar, check_sizes, check_stats_dtype
from jaxnorm._moments import AxisName, to_average
from jaxnorm._normalize import Activation
from jaxnorm._types import AffineParams, RunningStats, real_dtype, widened


def init_batch_norm(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[AffineParams, RunningStats]:
    """Returns the parameters and the running statistics of a new batch norm.

    `scale = 1`, `bias = 0`, `mean = 0`, `var = 1`: before the first update, inference is the identity but for epsilon.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.
      dtype: type of the running mean: float32, float64, or complex for a complex x; the running variance is real.

    Returns:
      `AffineParams(scale, bias)` and `RunningStats(mean, var)`, all of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, https://arxiv.org/abs/1502.03167.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_batch_norm(3, use_bias=False)
      >>> params
      AffineParams(scale=Array([1., 1., 1.], dtype=float32), bias=None)
    """
    params, mean, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return params, RunningStats(mean=mean, var=ones)


def batch_norm(
    params: AffineParams,
    state: RunningStats,
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
    residual: jax.Array | None = None,
    activation: Activation | None = None,
    dtype: Any = None,
) -> tuple[jax.Array, RunningStats]:
    """Normalizes every channel by the mean and variance of the batch, or by running averages of them.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where `mean = sum(x) / n` and `var = sum(|x - mean|^2) / n`
    are those of the channel in the batch, and `state <- momentum state + (1 - momentum) (mean, var)`. Inference: the same y with
    the state's mean and variance; the state stays as it is.

    The statistics are exact for means far from zero, uneven devices and masks, and are computed in float32 or wider. A batch
    whose mean or variance is not finite in a channel changes nothing of that channel's state, so one bad batch does no lasting
    harm. A channel with no counted element is normalized with the running statistics and keeps them. Gradients flow through
    the statistics of the batch, and not into the new state.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RunningStats(mean, var)`, each of shape `[C]`, in float32 or wider.
      x: array of real or complex numbers, `[..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the statistics of the batch; a bool or a traced bool.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar (PyTorch's is one
        minus it). `step / (step + 1)` averages all batches alike.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels; or several axes, or none as `()`, whose sizes in ascending order of the axes are
        then the shape of parameters and state.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics. The others are normalized
        with them; a NaN or an infinity there gives the bias, has gradient 0 and reaches nothing else.
      axis_name: name or names of mapped axes (of `jax.shard_map` or `jax.vmap`) over which the statistics are pooled, by counts.
        A jit over sharded arrays needs none: its statistics are those of the whole array.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running variance averages `var n / (n - 1)`, as in the paper and PyTorch, rather than var.
      residual: array of x's shape that is added before the activation, as the shortcut of a residual block; real for a real x.
      activation: function of single elements that follows, as `jax.nn.relu`; it gets and gives float32 or wider, and y alone is
        rounded. For the gradient only x (and the residual) is kept, and not what the activation gets or gives.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if a part of params or state has another shape than the channels of x; if momentum or epsilon is out of
        range; if channel_axis is out of range or names an axis twice; if where has another rank than x or does not broadcast
        to it; if axis_name is not bound where the function is called, or axis_index_groups does not fit it; if residual has
        another shape than x, or activation gives one.
      TypeError: if train is left out; if x or residual holds integers or bools; if where does not hold bools; if the state is
        narrower than float32; if activation is no function, or gives another dtype than it gets; if dtype is none of floating
        point numbers, or real for a complex x.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, https://arxiv.org/abs/1502.03167. The running variance averages the biased variance unless `unbiased`, as in Flax and
      Keras.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_batch_norm(2)
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> y, state = jaxnorm.batch_norm(params, state, x, train=True, momentum=0.9)
      >>> print(y.round(3))
      [[-1. -1.]
       [ 1.  1.]]
      >>> print(state.mean)
      [0.2 2. ]
    """
    call = checked_call(
        params,
        state,
        x,
        kind=RunningStats,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
        takes_complex=True,
    )
    residual = check_residual(residual, call.x)
    check_activation(activation, call.x)
    return _batch_norm(call, residual, unbiased=bool(unbiased), activation=activation)


def padding_mask(sizes: jax.Array, shape: Sequence[int], *, axes: int | Sequence[int] | None = None) -> jax.Array:
    """Returns the `where` of `batch_norm`, and of the other norms, for examples of different sizes in one padded batch.

    `where[b, i, j] = (i < sizes[b, 0]) & (j < sizes[b, 1])`, for as many axes as there are sizes.

    Args:
      sizes: sizes of the examples, `[B]` ints along one axis, or `[B, k]` along k axes. One that is larger than the axis counts
        all of it, one below 1 nothing; they may be traced.
      shape: that of x, whose first axis is the batch's.
      axes: the axes of x that the sizes are of, in their order; None for the first ones behind the batch's.

    Returns:
      Bool array of x's rank, with size 1 along the axes that the sizes are not of.

    Raises:
      ValueError: if sizes are not one, or k, for each example; if an axis is out of range, named twice, or the batch's; if there
        are not as many axes as sizes.
      TypeError: if sizes does not hold ints, or shape is no sequence of sizes.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, https://arxiv.org/abs/1502.03167. That knows no masks.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_batch_norm(1)
      >>> x = jnp.array([[[1.0], [3.0], [0.0]], [[5.0], [0.0], [0.0]]])
      >>> where = jaxnorm.padding_mask(jnp.array([2, 1]), x.shape)
      >>> _, state = jaxnorm.batch_norm(params, state, x, train=True, momentum=0.0, where=where)
      >>> print(state.mean)
      [3.]
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"shape must be the shape of x, got {shape!r}")
    shape = tuple(shape)
    if not jnp.issubdtype(getattr(sizes, "dtype", bool), jnp.integer):
        raise TypeError(f"sizes must be an array of ints, got {sizes!r}")
    sizes = jnp.asarray(sizes)
    sizes = sizes[:, None] if sizes.ndim == 1 else sizes
    if not shape or sizes.ndim != 2 or sizes.shape[0] != shape[0]:
        raise ValueError(f"sizes must be [B] or [B, k] for an x of shape {list(shape)}, got shape {list(sizes.shape)}")
    named = range(1, sizes.shape[1] + 1) if axes is None else ((axes,) if isinstance(axes, int) else axes)
    canonical = canonical_axes("axes", tuple(named), len(shape))
    order = tuple(int(axis) % len(shape) for axis in named)
    if 0 in canonical or len(order) != sizes.shape[1]:
        raise ValueError(f"axes must be {sizes.shape[1]} axes behind the batch's, got {axes!r}")
    where = jnp.ones((1,) * len(shape), bool)
    for place, axis in enumerate(order):
        others = tuple(a for a in range(len(shape)) if a != axis)
        own = jnp.expand_dims(sizes[:, place], tuple(range(1, len(shape))))
        where = where & (jnp.expand_dims(jnp.arange(shape[axis], dtype=sizes.dtype), others) < own)
    return where


def init_frozen_batch_norm(
    num_features: int | Sequence[int],
    *,
    use_scale: bool = True,
    use_bias: bool = True,
    epsilon: Scalar = 1e-5,
    param_dtype: Any = jnp.float32,
    dtype: Any = jnp.float32,
) -> tuple[AffineParams, RunningStats]:
    """Returns the constants of a frozen batch norm that is the identity.

    `scale = 1`, `bias = 0`, `mean = 0`, `var = 1 - epsilon`.

    Args:
      num_features: number of channels, C, or sizes of several channel axes in ascending order of the axes.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      epsilon: what `frozen_batch_norm` is told to add to the variance, from 0 to 1.
      param_dtype: type of scale and bias.
      dtype: type of the mean, complex for complex x; the variance's is real.

    Returns:
      `AffineParams(scale, bias)` and `RunningStats(mean, var)`, all of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1, or epsilon is not from 0 to 1.
      TypeError: if num_features is no int, or if dtype is narrower than float32.

    References:
      Wu, Johnson, "Rethinking 'batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_frozen_batch_norm(2)
      >>> print(jaxnorm.frozen_batch_norm(params, state, jnp.array([[5.0, -3.0]])))
      [[ 5. -3.]]
    """
    check_scalar("epsilon", epsilon, low=0, high=1)
    shape, dtype = check_sizes("num_features", num_features), check_stats_dtype("dtype", dtype)
    var = 1 - jnp.asarray(epsilon, real_dtype(dtype))
    state = RunningStats(mean=jnp.zeros(shape, dtype), var=jnp.broadcast_to(var, shape))
    return init_affine(shape, use_scale, use_bias, param_dtype), state


def frozen_batch_norm(
    params: AffineParams,
    state: RunningStats,
    x: jax.Array,
    *,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    dtype: Any = None,
) -> jax.Array:
    """Normalizes every channel by statistics, scale and bias that are constants, as in detectors with pretrained batch norm.

    Training and inference: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, with the state's mean and variance.

    No gradient flows but to x; no example depends on another. Where scale and bias are to be learned, use
    `batch_norm(..., train=False)`. The epsilon is that of the network that the constants are from.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RunningStats(mean, var)`, each of shape `[C]`, in float32 or wider.
      x: array of real or complex numbers, `[..., C]` or with the channels on `channel_axis`.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: as `batch_norm`.
      TypeError: as `batch_norm`.

    References:
      Wu, Johnson, "Rethinking 'batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_batch_norm(1)
      >>> state = state._replace(mean=jnp.array([10.0]), var=jnp.array([4.0]))
      >>> print(jaxnorm.frozen_batch_norm(params, state, jnp.array([[12.0], [6.0]]), epsilon=0.0).T)
      [[ 1. -2.]]
    """
    params, state = lax.stop_gradient((params, state))
    y, _ = batch_norm(params, state, x, train=False, epsilon=epsilon, channel_axis=channel_axis, dtype=dtype)
    return y


@functools.partial(jax.jit, static_argnames=("unbiased", "activation"))
def _batch_norm(
    call: BatchCall, residual: jax.Array | None, *, unbiased: bool, activation: Activation | None
) -> tuple[jax.Array, RunningStats]:
    output = functools.partial(call.normalize, residual=residual, activation=activation)

    def training() -> tuple[jax.Array, RunningStats]:
        wide = widened(call.x)
        batch = call.moments(wide)
        seen = call.counted(batch.n, RunningStats(batch.mean, batch.var), call.running)
        new = RunningStats(batch.mean, to_average(batch.var, batch.n, unbiased))
        return output(*seen, wide=wide), call.averaged(batch.n, new)

    def inference() -> tuple[jax.Array, RunningStats]:
        return output(*call.running), call.state

    with jax.named_scope("jaxnorm.batch_norm"):
        return call.run(training, inference)
