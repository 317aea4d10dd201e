"""Batch normalization."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import canonical_axes, match_sharding, other_axes
from jaxnorm._checks import (
    Scalar,
    check_axis_name,
    check_dtype,
    check_elementwise,
    check_flag,
    check_float,
    check_number,
    check_shape,
    check_size,
    check_stats_dtype,
    check_type,
    check_where,
    is_concrete,
)
from jaxnorm._moments import AxisName, moments
from jaxnorm._normalize import Activation, normalize
from jaxnorm._running import update_running
from jaxnorm._types import AffineParams, RunningStats, real_dtype, wide_dtype


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
    num_features = check_size("num_features", num_features)
    param_dtype, dtype = check_dtype("param_dtype", param_dtype), check_stats_dtype("dtype", dtype)
    params = AffineParams(
        scale=jnp.ones(num_features, param_dtype) if use_scale else None,
        bias=jnp.zeros(num_features, param_dtype) if use_bias else None,
    )
    return params, RunningStats(mean=jnp.zeros(num_features, dtype), var=jnp.ones(num_features, real_dtype(dtype)))


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

    Returns:
      y of x's shape and dtype, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if a part of params or state has another shape than the channels of x; if momentum or epsilon is out of
        range; if channel_axis is out of range or names an axis twice; if where has another rank than x or does not broadcast
        to it; if axis_name is not bound where the function is called, or axis_index_groups does not fit it; if residual has
        another shape than x, or activation gives one.
      TypeError: if train is left out; if x or residual holds integers or bools; if where does not hold bools; if the state is
        narrower than float32; if activation is no function, or gives another dtype than it gets.

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
    return batch_norm_as(
        None,
        params,
        state,
        x,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        unbiased=unbiased,
        residual=residual,
        activation=activation,
    )


def batch_norm_as(
    dtype: Any,
    params: AffineParams,
    state: RunningStats,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    momentum: Scalar,
    epsilon: Scalar,
    channel_axis: int | Sequence[int],
    where: jax.Array | None,
    axis_name: AxisName,
    axis_index_groups: Sequence[Sequence[int]] | None,
    unbiased: bool,
    residual: jax.Array | None,
    activation: Activation | None,
) -> tuple[jax.Array, RunningStats]:
    """Is `batch_norm` with a y of this dtype (None: x's), which a narrower x need not be converted to and kept as."""
    x = check_float("x", x, allow_complex=True)
    dtype = jnp.dtype(dtype or x.dtype)
    train = check_flag("train", train)
    for name, number, high in (("momentum", momentum, 1.0), ("epsilon", epsilon, np.inf)):
        check_number(name, number, low=0, high=high)
        check_shape(name, number, (), "a scalar")
    channels = canonical_axes("channel_axis", channel_axis, x.ndim)
    _check_params_and_state(params, state, x, channels)
    if where is not None:
        where = check_where(where, x)
    if residual is not None:
        residual = check_float("residual", residual, allow_complex=jnp.iscomplexobj(x))
        check_shape("residual", residual, x.shape, "that of x")
    if activation is not None:
        check_elementwise("activation", activation, x.shape, wide_dtype(x.dtype))
    axis_name, axis_index_groups = check_axis_name(axis_name, axis_index_groups)
    static = is_concrete(train)
    return _batch_norm(
        params,
        state,
        x,
        where,
        residual,
        _weights(momentum),
        epsilon,
        None if static else train,
        train=train if static else None,
        channels=channels,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        unbiased=bool(unbiased),
        activation=activation,
        dtype=dtype,
    )


_STATIC = ("train", "channels", "axis_name", "axis_index_groups", "unbiased", "activation", "dtype")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _batch_norm(
    params,
    state,
    x,
    where,
    residual,
    weights,
    epsilon,
    traced_train,
    *,
    train,
    channels,
    axis_name,
    axis_index_groups,
    unbiased,
    activation,
    dtype,
):
    axes = other_axes(channels, x.ndim)
    wide = wide_dtype(x.dtype)
    running_mean, running_var = state.mean.astype(wide), state.var.astype(real_dtype(wide))

    def output(mean: jax.Array, var: jax.Array) -> jax.Array:
        return normalize(
            x,
            mean,
            var,
            params.scale,
            params.bias,
            epsilon=epsilon,
            axes=axes,
            where=where,
            residual=residual,
            activation=activation,
            dtype=dtype,
        )

    def training(_: None) -> tuple[jax.Array, RunningStats]:
        batch = moments(x, axes, where=where, axis_name=axis_name, axis_index_groups=axis_index_groups)
        counted = batch.n > 0

        def known(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(counted, new, lax.stop_gradient(match_sharding(old, new)))

        return output(known(batch.mean, running_mean), known(batch.var, running_var)), update_running(
            state, batch, weights, unbiased=unbiased
        )

    def inference(_: None) -> tuple[jax.Array, RunningStats]:
        return output(running_mean, running_var), state

    with jax.named_scope("jaxnorm.batch_norm"):
        if train is None:
            return _cond(traced_train, training, inference)
        return training(None) if train else inference(None)


def _cond(predicate: jax.Array, if_true: Callable[[Any], Any], if_false: Callable[[Any], Any]) -> Any:
    """Runs one of two functions, both of whose results vary over the mapped axes over which either's does (jax.shard_map)."""

    def varying(a: jax.Array) -> frozenset[Any]:
        return jax.typeof(a).manual_axis_type.varying

    over = []
    for fn in (if_true, if_false):
        jax.eval_shape(lambda fn=fn: over.append(jax.tree.map(varying, fn(None))))
    axes = jax.tree.map(frozenset.union, *over)

    def vary(a: jax.Array, wanted: frozenset[Any]) -> jax.Array:
        missing = tuple(wanted - varying(a))
        return lax.pcast(a, missing, to="varying") if missing else a

    branches = (lambda _, fn=fn: jax.tree.map(vary, fn(None), axes) for fn in (if_true, if_false))
    return lax.cond(predicate, *branches, None)


def _weights(momentum: Scalar) -> tuple[Any, Any]:
    """Returns the weights of the old statistics and of the batch's; those of a concrete momentum are not rounded yet."""
    momentum = np.float64(momentum) if is_concrete(momentum) else momentum.astype(wide_dtype(momentum.dtype))
    return momentum, 1 - momentum


def _check_params_and_state(params: AffineParams, state: RunningStats, x: jax.Array, channels: tuple[int, ...]) -> None:
    check_type("params", params, AffineParams)
    check_type("state", state, RunningStats)
    shape = tuple(x.shape[a] for a in channels)
    for name, part in (("params.scale", params.scale), ("params.bias", params.bias)):
        if part is not None:
            check_float(name, part, allow_complex=jnp.iscomplexobj(x))
            check_shape(name, part, shape, "the channels of x")
    for name, part, dtype in (("state.mean", state.mean, x.dtype), ("state.var", state.var, real_dtype(x.dtype))):
        check_stats_dtype(name, check_float(name, part, allow_complex=True).dtype, like=dtype)
        check_shape(name, part, shape, "the channels of x")
