"""Batch normalization with statistics of the example: norms between those of the batch and those of the instance.

The moments of every channel of every example are taken first, and those of the batch, or of the example, pooled from them: x is
read once for all of them.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._axes import canonical_axes, check_one_axis, match_sharding, other_axes
from jaxnorm._batch_layer import BatchCall, check_batch_axis, checked_call, for_each_example, init_affine, init_batch_layer
from jaxnorm._checks import (
    Scalar,
    check_affine,
    check_dtype,
    check_float,
    check_output_dtype,
    check_scalar,
    check_shape,
    check_sizes,
    check_stats_dtype,
    check_type,
    check_where,
)
from jaxnorm._compiler import recomputed
from jaxnorm._moments import AxisName, Mean, combine_mean, combine_moments, moments, to_average
from jaxnorm._normalize import inverse_deviation, rescale
from jaxnorm._types import (
    AffineParams,
    GatedParams,
    Moments,
    RunningStats,
    SwitchableParams,
    real_dtype,
    wide_dtype,
    widened,
)


def init_batch_instance_norm(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[GatedParams, RunningStats]:
    """Returns the parameters and the running statistics of a new batch-instance norm, which is a batch norm.

    `scale = 1`, `bias = 0`, `gate = 1`, `mean = 0`, `var = 1`.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.
      dtype: type of the running statistics: float32 or float64.

    Returns:
      `GatedParams(scale, bias, gate)` and `RunningStats(mean, var)`, all of shape `[C]`; a scale or bias that is not used is
      None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Nam, Kim, "Batch-instance normalization for adaptively style-invariant neural networks", NeurIPS 2018,
      https://arxiv.org/abs/1805.07925.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_batch_instance_norm(2)
      >>> params.gate
      Array([1., 1.], dtype=float32)
    """
    affine, mean, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return GatedParams(*affine, gate=jnp.ones(mean.shape, check_dtype("param_dtype", param_dtype))), RunningStats(mean, ones)


def batch_instance_norm(
    params: GatedParams,
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
    dtype: Any = None,
) -> tuple[jax.Array, RunningStats]:
    """Normalizes every channel between batch norm and instance norm, as a learned gate of the channel says.

    Training: `y = scale (gate a + (1 - gate) b) + bias`, where a is x normalized by the mean and variance of the channel in the
    batch, b by those of the channel in its example, each as `(x - mean) / sqrt(var + epsilon)`; and
    `state <- momentum state + (1 - momentum) (mean, var)` of the batch. Inference: the same y with the state in the batch's
    place; the state stays as it is.

    The gate is meant to be from 0 to 1, and is used as it is: after every step of the optimizer clip it,
    `params._replace(gate=jnp.clip(params.gate, 0, 1))`, as the paper does. The authors learn it ten times as fast as the rest.

    The statistics are exact, pooled over devices, and in float32 or wider, as those of `batch_norm`, and x is read once for both.
    What nothing is counted for in its example has the mean and variance of the batch. x and numbers of the size of the example's
    statistics are kept for the gradient.

    Args:
      params: `GatedParams(scale, bias, gate)`, each of shape `[C]`; scale and bias may be None.
      state: `RunningStats(mean, var)`, each of shape `[C]`, in float32 or wider.
      x: array of real numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the statistics of the batch; a bool or a traced bool.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar.
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
      TypeError: if params are no GatedParams; if x does not hold real floating point numbers; else as `batch_norm`.

    References:
      Nam, Kim, "Batch-instance normalization for adaptively style-invariant neural networks", NeurIPS 2018,
      https://arxiv.org/abs/1805.07925.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_batch_instance_norm(1)
      >>> x = jnp.array([[[1.0], [3.0]], [[11.0], [13.0]]])
      >>> y, _ = jaxnorm.batch_instance_norm(params._replace(gate=jnp.zeros(1)), state, x, train=True)
      >>> print(y[..., 0].round(3))
      [[-1.  1.]
       [-1.  1.]]
    """
    call = checked_call(
        params,
        state,
        x,
        kind=RunningStats,
        params_kind=GatedParams,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    check_batch_axis(call, channel_axis)
    return _batch_instance_norm(call, unbiased=bool(unbiased))


def init_switchable_norm(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[SwitchableParams, RunningStats]:
    """Returns the parameters and the running statistics of a new switchable norm: all three norms weigh alike.

    `scale = 1`, `bias = 0`, `mean_logits = var_logits = 1`, `mean = 0`, `var = 1`.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of the parameters.
      dtype: type of the running statistics: float32 or float64.

    Returns:
      `SwitchableParams(scale, bias, mean_logits, var_logits)`, of shapes `[C]`, `[C]`, `[3]` and `[3]`, and
      `RunningStats(mean, var)`, of shape `[C]`; a scale or bias that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Luo, Ren, Peng, Zhang, Li, "Differentiable learning-to-normalize via switchable normalization", ICLR 2019,
      https://arxiv.org/abs/1806.10779.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_switchable_norm(2)
      >>> params.mean_logits
      Array([1., 1., 1.], dtype=float32)
    """
    affine, mean, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    logits = jnp.ones((3,), check_dtype("param_dtype", param_dtype))
    return SwitchableParams(*affine, mean_logits=logits, var_logits=logits), RunningStats(mean, ones)


def switchable_norm(
    params: SwitchableParams,
    state: RunningStats,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    dtype: Any = None,
) -> tuple[jax.Array, RunningStats]:
    """Normalizes by weighted means of the statistics of instance, layer and batch norm, whose weights are learned.

    Training: `y = scale (x - sum_k w_k mean_k) / sqrt(sum_k v_k var_k + epsilon) + bias`, where mean and variance are those of
    the channel in its example (k = 0), of the whole example (1) and of the channel in the batch (2), and
    `w = softmax(mean_logits)`, `v = softmax(var_logits)`; and `state <- momentum state + (1 - momentum) (mean_2, var_2)`.
    Inference: the same y with the state in the batch's place; the state stays as it is.

    The statistics are exact, pooled over devices, and in float32 or wider, as those of `batch_norm`, and x is read once for all.
    All variances are biased; the authors' are `n / (n - 1)` times as large within an example. What nothing is counted for in its
    example has the statistics of the batch there. x and numbers of the size of the example's statistics are kept for the
    gradient. Let no weight decay act on the logits.

    Args:
      params: `SwitchableParams(scale, bias, mean_logits, var_logits)`, of shapes `[C]`, `[C]`, `[3]` and `[3]`; scale and bias
        may be None.
      state: `RunningStats(mean, var)`, each of shape `[C]`, in float32 or wider.
      x: array of real numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the statistics of the batch; a bool or a traced bool.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar. The authors' is 0.9.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, and not the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the batch is divided, and its statistics pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running variance averages `var n / (n - 1)`, rather than var.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if channel_axis names several axes, or the first; else as `batch_norm`.
      TypeError: if params are no SwitchableParams; if x does not hold real floating point numbers; else as `batch_norm`.

    References:
      Luo, Ren, Peng, Zhang, Li, "Differentiable learning-to-normalize via switchable normalization", ICLR 2019,
      https://arxiv.org/abs/1806.10779.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_switchable_norm(1)
      >>> layer = jnp.array([-100.0, 100.0, -100.0])
      >>> params = params._replace(mean_logits=layer, var_logits=layer)
      >>> y, _ = jaxnorm.switchable_norm(params, state, jnp.array([[[1.0], [3.0]], [[11.0], [13.0]]]), train=True)
      >>> print(y[..., 0].round(3))
      [[-1.  1.]
       [-1.  1.]]
    """
    call = checked_call(
        params,
        state,
        x,
        kind=RunningStats,
        params_kind=SwitchableParams,
        others={"mean_logits": (3,), "var_logits": (3,)},
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    check_batch_axis(call, channel_axis)
    check_one_axis("channel_axis", call.channels, channel_axis)
    return _switchable_norm(call, unbiased=bool(unbiased))


def init_tracked_instance_norm(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[AffineParams, RunningStats]:
    """Returns the parameters and the running statistics of a new tracked instance norm.

    `scale = 1`, `bias = 0`, `mean = 0`, `var = 1`: before the first update, inference is the identity but for epsilon.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.
      dtype: type of the running mean, complex for complex x; the variance's is real.

    Returns:
      `AffineParams(scale, bias)` and `RunningStats(mean, var)`, all of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Ulyanov, Vedaldi, Lempitsky, "Instance normalization: the missing ingredient for fast stylization", 2016,
      https://arxiv.org/abs/1607.08022.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_tracked_instance_norm(2)
      >>> state.var
      Array([1., 1.], dtype=float32)
    """
    params, mean, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return params, RunningStats(mean=mean, var=ones)


def tracked_instance_norm(
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
    dtype: Any = None,
) -> tuple[jax.Array, RunningStats]:
    """Normalizes every channel of every example by its own statistics in training, and by averages of these in inference.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where mean and variance are those of the channel in its
    example; and `state <- momentum state + (1 - momentum) (mean, var)` with the means of both over the examples of the batch.
    Inference: the same y with the state's mean and variance, as batch norm; the state stays as it is.

    It is PyTorch's instance norm with `track_running_stats`, whose momentum is one minus this, and whose variance is `unbiased`.
    The running variance is that within examples; what the examples' means differ by is not in it.

    The statistics are exact for means far from zero and for masks, and in float32 or wider; those that are averaged are pooled
    over devices. An example of which nothing counts takes no part in the averages and gives the bias. A batch that is not finite
    in a channel changes nothing of that channel's state.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RunningStats(mean, var)`, each of shape `[C]`, in float32 or wider.
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the statistics of the examples; a bool or a traced bool.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`, and not the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the batch is divided: the averages are of all its examples.
      axis_index_groups: groups of indices along `axis_name`, whose averages are separate.
      unbiased: whether the running variance averages `var n / (n - 1)`, rather than var.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if channel_axis names the first axis, or x has no axis of positions; else as `batch_norm`.
      TypeError: as `batch_norm`.

    References:
      Ulyanov, Vedaldi, Lempitsky, "Instance normalization: the missing ingredient for fast stylization", 2016,
      https://arxiv.org/abs/1607.08022. The paper has no running statistics.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_tracked_instance_norm(1)
      >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [20.0]]])
      >>> y, state = jaxnorm.tracked_instance_norm(params, state, x, train=True, momentum=0.0)
      >>> print(y[..., 0].round(3))
      [[-1.  1.]
       [-1.  1.]]
      >>> print(state.mean, state.var)
      [8.5] [13.]
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
    check_batch_axis(call, channel_axis)
    if call.axes == (0,):
        raise ValueError(f"x must have an axis of positions, besides batch and channels, got shape {list(call.x.shape)}")
    return _tracked_instance_norm(call, unbiased=bool(unbiased))


def reference_moments(
    x: jax.Array,
    *,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Moments:
    """Returns the moments of every channel in a reference batch, for `virtual_batch_norm`.

    `mean = sum(x) / n`, `var = sum(|x - mean|^2) / n`, exact for means far from zero, in float32 or wider. Gradients flow
    through.

    Args:
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      channel_axis: the axis of the channels, or several, as in `batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count.
      axis_name: name or names of mapped axes over which the moments are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.

    Returns:
      `Moments(mean, var, n)`, each of shape `[C]`.

    Raises:
      ValueError: if channel_axis is out of range or names an axis twice; if where does not fit x.
      TypeError: if x holds integers or bools; if where does not hold bools.

    References:
      Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen, "Improved techniques for training GANs", NIPS 2016,
      https://arxiv.org/abs/1606.03498.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.reference_moments(jnp.array([[1.0], [3.0]]))
      Moments(mean=Array([2.], dtype=float32), var=Array([1.], dtype=float32), n=Array([2.], dtype=float32))
    """
    x = check_float("x", x, allow_complex=True)
    axes = other_axes(canonical_axes("channel_axis", channel_axis, x.ndim), x.ndim)
    where = None if where is None else check_where(where, x)
    return moments(x, axes, where=where, axis_name=axis_name, axis_index_groups=axis_index_groups)


def init_virtual_batch_norm(
    num_features: int | Sequence[int], *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32
) -> AffineParams:
    """Returns the parameters of a new virtual batch norm: `scale = 1`, `bias = 0`.

    Args:
      num_features: number of channels, C, or sizes of several channel axes in ascending order of the axes.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.

    Returns:
      `AffineParams(scale, bias)`, each of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if a size is below 1.
      TypeError: if a size is no int, or if param_dtype is none of floating point numbers.

    References:
      Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen, "Improved techniques for training GANs", NIPS 2016,
      https://arxiv.org/abs/1606.03498.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_virtual_batch_norm(2, use_bias=False)
      AffineParams(scale=Array([1., 1.], dtype=float32), bias=None)
    """
    return init_affine(check_sizes("num_features", num_features), use_scale, use_bias, param_dtype)


def virtual_batch_norm(
    params: AffineParams,
    x: jax.Array,
    reference: Moments,
    *,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Normalizes every channel of every example by the moments of a fixed reference batch to which the example is added.

    Training and inference: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where mean and variance are those of the channel
    in the reference batch and the example together, each element of either counting as one.

    No example depends on another but through the reference batch, which is given to every layer as that layer meets it: run the
    network on it first, with batch norm and the current weights, and keep `reference_moments` of what each layer is given.
    Gradients flow through the reference too. With a large reference batch y is that of batch norm in inference, with none
    instance norm. An example that is in the reference batch too counts twice.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      reference: `reference_moments` of the reference batch, each part of shape `[C]`.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`, and not the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the example's part, as in `batch_norm`.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if a part of params or reference has another shape than the channels of x; if channel_axis is out of range,
        names an axis twice or the first; if epsilon is out of range; if where does not fit x.
      TypeError: if reference is no Moments, or narrower than float32; if x holds integers or bools; if where does not hold bools;
        if dtype is none of floating point numbers, or real for a complex x.

    References:
      Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen, "Improved techniques for training GANs", NIPS 2016,
      https://arxiv.org/abs/1606.03498.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> reference = jaxnorm.reference_moments(jnp.array([[1.0], [-1.0], [1.0], [-1.0]]))
      >>> params = jaxnorm.init_virtual_batch_norm(1)
      >>> print(jaxnorm.virtual_batch_norm(params, jnp.array([[0.0], [5.0]]), reference).round().T)
      [[0. 2.]]
    """
    x = check_float("x", x, allow_complex=True)
    channels = canonical_axes("channel_axis", channel_axis, x.ndim)
    if 0 in channels:
        raise ValueError(f"channel_axis must leave the first axis to the batch, got {channel_axis!r} for x of rank {x.ndim}")
    shape = tuple(x.shape[a] for a in channels)
    check_affine(params, shape, like=x)
    check_scalar("epsilon", epsilon, low=0)
    check_type("reference", reference, Moments)
    for name, part in reference._asdict().items():
        like = x.dtype if name == "mean" else real_dtype(wide_dtype(x.dtype))
        check_stats_dtype(f"reference.{name}", check_float(f"reference.{name}", part, allow_complex=True).dtype, like=like)
        check_shape(f"reference.{name}", part, shape, "the channels of x")
    where = None if where is None else check_where(where, x)
    dtype = check_output_dtype(dtype, x)
    return _virtual_batch_norm(params, x, reference, where, epsilon, channels=channels, dtype=dtype)


def _batch_of(call: BatchCall, own: Moments | None, unbiased: bool) -> tuple[RunningStats, RunningStats]:
    """Returns the statistics of the batch that are used, and the new state; own moments are given in training alone."""
    if own is None:
        return call.running, call.state
    batch = call.pooled(combine_moments(own))
    seen = call.counted(batch.n, RunningStats(batch.mean, batch.var), call.running)
    return seen, call.averaged(batch.n, RunningStats(batch.mean, to_average(batch.var, batch.n, unbiased)))


def _in_both_modes(call: BatchCall, output: Any, unbiased: bool) -> tuple[jax.Array, RunningStats]:
    """Returns what `output(call, wide, own, batch)` gives with the statistics of each mode, and the new state."""

    def with_batch(train: bool) -> tuple[jax.Array, RunningStats]:
        def run(call: BatchCall) -> tuple[jax.Array, RunningStats]:
            wide = widened(call.x)
            own = call.moments_of_examples(wide)
            batch, new = _batch_of(call, own if train else None, unbiased)
            seen = RunningStats(*(for_each_example(part, own.mean) for part in batch))
            if call.where is not None:  # of which nothing counts: as the batch
                own = own._replace(mean=jnp.where(own.n > 0, own.mean, seen.mean), var=jnp.where(own.n > 0, own.var, seen.var))
            return output(call, wide, own, seen), new

        # Without positions the statistics of examples are as large as x, and not to be kept.
        return (run if call.positions else recomputed(run))(call)

    return call.run(lambda: with_batch(True), lambda: with_batch(False))


@functools.partial(jax.jit, static_argnames=("unbiased",))
def _batch_instance_norm(call: BatchCall, *, unbiased: bool) -> tuple[jax.Array, RunningStats]:
    def output(call: BatchCall, wide: jax.Array, own: Moments, batch: RunningStats) -> jax.Array:
        """`gate a + (1 - gate) b` as one scale of `x - mean` and a bias, with the example's mean: it loses no digits."""
        gate = for_each_example(call.params.gate, own.mean)
        of_batch, of_example = (inverse_deviation(var, call.epsilon) for var in (batch.var, own.var))
        factor = gate * of_batch + (1 - gate) * of_example
        shift = gate * of_batch * (own.mean - batch.mean)
        scale, bias = (None if part is None else for_each_example(part, own.mean) for part in call.params[:2])
        shift = shift if scale is None else shift * scale
        affine = AffineParams(scale, shift if bias is None else shift + bias)
        return call.rescale(own.mean, factor, affine=affine, axes=call.positions, wide=wide)

    with jax.named_scope("jaxnorm.batch_instance_norm"):
        return _in_both_modes(call, output, unbiased)


@functools.partial(jax.jit, static_argnames=("unbiased",))
def _switchable_norm(call: BatchCall, *, unbiased: bool) -> tuple[jax.Array, RunningStats]:
    def output(call: BatchCall, wide: jax.Array, own: Moments, batch: RunningStats) -> jax.Array:
        layer = combine_moments(jax.tree.map(lambda part: jnp.moveaxis(part, 1, 0), own))
        of_means, of_vars = (jax.nn.softmax(logits.astype(own.var.dtype)) for logits in call.params[2:])

        def mixed(weights: jax.Array, instance: jax.Array, of_layer: jax.Array, batch: jax.Array) -> jax.Array:
            of_layer = match_sharding(jnp.broadcast_to(of_layer[:, None], instance.shape), instance)
            if call.where is not None:
                of_layer = jnp.where(layer.n[:, None] > 0, of_layer, batch)
            return weights[0] * instance + weights[1] * of_layer + weights[2] * batch

        mean, var = mixed(of_means, own.mean, layer.mean, batch.mean), mixed(of_vars, own.var, layer.var, batch.var)
        return call.normalize(mean, var, axes=call.positions, feature_axes=call.channels, wide=wide)

    with jax.named_scope("jaxnorm.switchable_norm"):
        return _in_both_modes(call, output, unbiased)


@functools.partial(jax.jit, static_argnames=("unbiased",))
def _tracked_instance_norm(call: BatchCall, *, unbiased: bool) -> tuple[jax.Array, RunningStats]:
    def training() -> tuple[jax.Array, RunningStats]:
        if not call.x.size:
            return inference()
        wide = widened(call.x)
        own = call.moments_of_examples(wide)
        var = own.var if call.where is None else jnp.where(own.n > 0, own.var, jnp.inf)
        y = call.normalize(own.mean, var, axes=call.positions, feature_axes=call.channels, wide=wide)
        counts = (own.n > 0).astype(own.n.dtype)
        mean, variance = (combine_mean(Mean(part, counts)) for part in (own.mean, to_average(own.var, own.n, unbiased)))
        batch = call.pooled(Moments(mean.value, variance.value, mean.n), _combine_alike)
        return y, call.averaged(batch.n, RunningStats(batch.mean, batch.var))

    def inference() -> tuple[jax.Array, RunningStats]:
        return call.normalize(*call.running), call.state

    with jax.named_scope("jaxnorm.tracked_instance_norm"):
        return call.run(training, inference)


def _combine_alike(parts: Moments) -> Moments:
    """Returns the mean of the means and that of the variances of examples, of parts that are stacked along the first axis."""
    mean, variance = (combine_mean(Mean(part, parts.n)) for part in (parts.mean, parts.var))
    return Moments(mean.value, variance.value, mean.n)


@functools.partial(jax.jit, static_argnames=("channels", "dtype"))
def _virtual_batch_norm(
    params: AffineParams,
    x: jax.Array,
    reference: Moments,
    where: jax.Array | None,
    epsilon: Scalar,
    *,
    channels: tuple[int, ...],
    dtype: Any,
) -> jax.Array:
    positions = tuple(axis for axis in range(1, x.ndim) if axis not in channels)

    def output(x: jax.Array, params: AffineParams, reference: Moments, where: jax.Array | None) -> jax.Array:
        wide = widened(x)
        own = moments(x, positions, wide=wide, where=where)
        parts = jax.tree.map(lambda a, b: jnp.stack([a, for_each_example(b, a)]), own, reference)
        joined = combine_moments(parts)
        mean, var = (match_sharding(part, own.mean) for part in joined[:2])
        factor = inverse_deviation(var, epsilon)
        options: dict[str, Any] = {"wide": wide, "feature_axes": channels, "where": where, "dtype": dtype}
        return rescale(x, mean, factor, params.scale, params.bias, axes=positions, **options)

    with jax.named_scope("jaxnorm.virtual_batch_norm"):
        return (output if positions else recomputed(output))(x, params, reference, where)
