"""Statistics between those of training and those at hand: of a shifted domain, of a small batch, of an example."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._axes import match_sharding
from jaxnorm._batch_layer import BatchCall, check_batch_axis, checked_call, for_each_example
from jaxnorm._checks import Scalar, check_choice, check_float, check_known_flag, check_scalar, check_shape
from jaxnorm._moments import AxisName
from jaxnorm._types import AffineParams, RunningStats, widened
from jaxnorm.statistics._layers import MEAN, Layer, PyTree, between_means, check_layers, check_like, map_layers

_BATCH, _EXAMPLE = "batch", "example"


def blend_stats(stats: PyTree, batch: PyTree, weight: Scalar, *, mixture: bool = False) -> PyTree:
    """Returns statistics between those of training and those of the data at hand.

    `(1 - weight) stats + weight batch`, of means and of variances. With n examples at hand and those of training worth N of them,
    `weight = n / (N + n)`. Weight 0 is inference as ever, 1 prediction-time batch norm. `blended_batch_norm` does so within a
    layer, whose inputs the layers before it have blended too.

    Args:
      stats: running statistics, as in `precise_stats`.
      batch: those of the data at hand, of the same tree: as `adapt_stats` gives them, or an update of `linen_update`.
      weight: of the latter, in [0, 1]; a number or a traced scalar.
      mixture: whether the variance is that of examples of which such a part is from the data at hand, with what is between the
        means: `+ weight (1 - weight) |mean - mean_batch|^2`.

    Returns:
      Statistics like those given. Standard deviations are blended by their squares.

    Raises:
      ValueError: if the trees differ, or a concrete weight is outside [0, 1].
      TypeError: if they hold no arrays in float32 or wider, weight is no number, or mixture no bool.

    References:
      Schneider, Rusak, Eck, Bringmann, Brendel, Bethge, "Improving robustness against common corruptions by covariate shift
      adaptation", NeurIPS 2020, https://arxiv.org/abs/2006.16971. Nado, Padhy, Sculley, D'Amour, Lakshminarayanan, Snoek,
      "Evaluating prediction-time batch normalization for robustness under covariate shift", 2020,
      https://arxiv.org/abs/2006.10963.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm import RunningStats
      >>> from jaxnorm.statistics import blend_stats
      >>> source, target = (RunningStats(jnp.array([mean]), jnp.array([var])) for mean, var in ((0.0, 1.0), (4.0, 3.0)))
      >>> print(*blend_stats(source, target, 0.25))
      [1.] [1.5]
    """
    check_layers("stats", stats)
    check_layers("batch", batch)
    check_like("batch", batch, stats, "stats")
    check_scalar("weight", weight, low=0, high=1)
    mixture = check_known_flag("mixture", mixture)

    def blended(old: Layer, new: Layer) -> Layer:
        return {name: blended_part(name, old, new) for name in old}

    def blended_part(name: str, old: Layer, new: Layer) -> jax.Array:
        one, other = (jnp.square(layer[name]) if name == "std" else layer[name] for layer in (old, new))
        other = other.astype(one.dtype)
        part = _between(one, other, weight)
        if mixture and MEAN in old and name in ("var", "std", "cov"):
            step = new[MEAN].astype(old[MEAN].dtype) - old[MEAN]
            part += between_means(jnp.asarray(weight).astype(part.real.dtype), step, part)
        return jnp.sqrt(part) if name == "std" else part

    return map_layers(blended, stats, batch)


def blended_batch_norm(
    params: AffineParams,
    state: RunningStats,
    x: jax.Array,
    weight: Scalar,
    *,
    per: str = _BATCH,
    mixture: bool = False,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Normalizes every channel by statistics between the running ones and those of the batch, or of each example, in inference.

    Inference: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where `mean = (1 - weight) state.mean + weight mean(x)`, and
    var likewise; with `mixture`, `+ weight (1 - weight) (mean(x) - state.mean)^2`.

    Weight 0 is inference with the running statistics, 1 prediction-time batch norm, or with `per="example"` instance norm; and
    `n / (N + n)` covariate shift adaptation by n examples, where those of training are worth N. Inference example weighing is
    `per="example", mixture=True`. The state stays as it is.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RunningStats(mean, var)`, each of shape `[C]`, in float32 or wider.
      x: array of floating point numbers, `[..., C]` or with the channels on `channel_axis`.
      weight: of the statistics of x, in [0, 1]; a number or a traced scalar.
      per: `"batch"`, for statistics of all of x, or `"example"`, for those of each example along the first axis.
      mixture: whether the variance has what is between the means.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `jaxnorm.batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count. Where none does, the running statistics are
        used.
      axis_name: name or names of mapped axes over which statistics of the batch are pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: as `jaxnorm.batch_norm`; if a concrete weight is outside [0, 1], or per is another word.
      TypeError: as `jaxnorm.batch_norm`; if weight is no number, or mixture no bool.

    References:
      Schneider, Rusak, Eck, Bringmann, Brendel, Bethge, "Improving robustness against common corruptions by covariate shift
      adaptation", NeurIPS 2020, https://arxiv.org/abs/2006.16971. Summers, Dinneen, "Four things everyone should know to improve
      batch normalization", ICLR 2020, https://arxiv.org/abs/1906.03548. Nado, Padhy, Sculley, D'Amour, Lakshminarayanan, Snoek,
      "Evaluating prediction-time batch normalization for robustness under covariate shift", 2020,
      https://arxiv.org/abs/2006.10963.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.statistics import blended_batch_norm
      >>> params, state = jaxnorm.init_batch_norm(1)
      >>> x = jnp.array([[3.0], [5.0]])
      >>> for weight in (0.0, 0.5, 1.0):
      ...     print(blended_batch_norm(params, state, x, weight).round(2).T)
      [[3. 5.]]
      [[1. 3.]]
      [[-1.  1.]]
    """
    call = _checked(params, state, x, epsilon, channel_axis, where, axis_name, axis_index_groups, dtype)
    check_scalar("weight", weight, low=0, high=1)
    check_choice("per", per, (_BATCH, _EXAMPLE))
    if per == _EXAMPLE:
        check_batch_axis(call, channel_axis)
    return _blended(call, weight, per=per, mixture=check_known_flag("mixture", mixture))


def eval_batch_norm(
    params: AffineParams,
    state: RunningStats,
    x: jax.Array,
    batch_size: Scalar,
    *,
    var_of_means: jax.Array | None = None,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Normalizes each example by the statistics that a batch of training would have if the example were in it.

    Inference: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where `mean = m / B + (1 - 1 / B) state.mean` and
    `var = v / B + (1 - 1 / B) state.var + (1 - 1 / B) (m - state.mean)^2 / B`, with m and v those of the example over its
    positions.

    That is what is expected of the statistics of a batch of B independent examples of which one is x. A network that was trained
    in small batches has met each example under statistics that the example had a part in, and in inference misses it. A large B
    gives inference with the running statistics, 1 instance norm. The state stays as it is.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RunningStats(mean, var)`, each of shape `[C]`, in float32 or wider.
      x: array of floating point numbers, `[B, ..., C]`, or with the channels on `channel_axis`, which is not the first axis.
      batch_size: the number of examples in a batch of training, of one device if statistics were not pooled, at least 1; a number
        or a traced scalar.
      var_of_means: the variance, among all examples, of their means over their positions, `[C]`, where the state's variance is
        that of the population, as of `precise_stats`: less by `var_of_means / B` it is that of batches. For vectors it is the
        state's variance itself. None where the variance is already an average of the biased ones of batches.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `jaxnorm.batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count. An example of which none does is normalized by
        the running statistics.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: as `jaxnorm.batch_norm`; if a concrete batch_size is below 1, var_of_means has another shape than the channels,
        or channel_axis leaves no axis to the examples.
      TypeError: as `jaxnorm.batch_norm`; if batch_size is no number.

    References:
      Singh, Shrivastava, "EvalNorm: estimating batch normalization statistics for evaluation", ICCV 2019,
      https://arxiv.org/abs/1904.06031. The rule is derived here: the expectation given the example, with the term between the
      means. The paper's own is learned.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.statistics import eval_batch_norm
      >>> params, state = jaxnorm.init_batch_norm(1)
      >>> x = jnp.array([[[3.0], [5.0]]])
      >>> for batch_size in (1, 4, 10**6):
      ...     print(eval_batch_norm(params, state, x, batch_size).round(2).T)
      [[[-1.]
        [ 1.]]]
      [[[1.]
        [2.]]]
      [[[3.]
        [5.]]]
    """
    call = _checked(params, state, x, epsilon, channel_axis, where, None, None, dtype)
    check_scalar("batch_size", batch_size, low=1, infinite=True)
    check_batch_axis(call, channel_axis)
    if var_of_means is not None:
        var_of_means = check_float("var_of_means", var_of_means)
        check_shape("var_of_means", var_of_means, state.var.shape, "the channels of x")
    return _eval_batch_norm(call, batch_size, var_of_means)


def _checked(
    params: AffineParams,
    state: RunningStats,
    x: jax.Array,
    epsilon: Scalar,
    channel_axis: int | Sequence[int],
    where: jax.Array | None,
    axis_name: AxisName,
    axis_index_groups: Sequence[Sequence[int]] | None,
    dtype: Any,
) -> BatchCall:
    return checked_call(
        params,
        state,
        x,
        kind=RunningStats,
        train=False,
        momentum=1.0,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )


@functools.partial(jax.jit, static_argnames=("per", "mixture"))
def _blended(call: BatchCall, weight: Scalar, *, per: str, mixture: bool) -> jax.Array:
    with jax.named_scope("jaxnorm.blended_batch_norm"):
        wide = widened(call.x)
        if per == _BATCH:
            batch, running, axes = call.moments(wide), call.running, call.axes
        else:
            batch, axes = call.moments_of_examples(wide), call.positions
            running = _for_examples(call, batch.mean)
        own = call.counted(batch.n, RunningStats(batch.mean, batch.var), running)
        mean, var = (_between(old, new, weight) for old, new in zip(running, own, strict=True))
        if mixture:
            part = jnp.asarray(weight).astype(var.dtype)
            var += part * (1 - part) * lax.square(own.mean - running.mean)
        return call.normalize(mean, var, axes=axes, feature_axes=call.channels, wide=wide)


@jax.jit
def _eval_batch_norm(call: BatchCall, batch_size: Scalar, var_of_means: jax.Array | None) -> jax.Array:
    with jax.named_scope("jaxnorm.eval_batch_norm"):
        wide = widened(call.x)
        batch = call.moments_of_examples(wide)
        running = _for_examples(call, batch.mean)
        mean, var = call.counted(batch.n, RunningStats(batch.mean, batch.var), running)
        part = 1 / jnp.asarray(batch_size).astype(var.dtype)
        of_batches = running.var
        if var_of_means is not None:
            of_batches = jnp.maximum(of_batches - part * for_each_example(var_of_means, mean), jnp.zeros((), var.dtype))
        new = part * var + (1 - part) * (of_batches + part * lax.square(mean - running.mean))
        if call.where is not None:
            new = jnp.where(batch.n > 0, new, running.var)
        return call.normalize(_between(running.mean, mean, part), new, axes=call.positions, feature_axes=call.channels, wide=wide)


def _for_examples(call: BatchCall, like: jax.Array) -> RunningStats:
    """Returns the running statistics for every example."""
    return RunningStats(*(for_each_example(part, like) for part in call.running))


def _between(old: jax.Array, new: jax.Array, weight: Scalar) -> jax.Array:
    """Returns `(1 - weight) old + weight new`, either of which is exact where it has all the weight."""
    part = jnp.asarray(weight).astype(new.real.dtype)
    return match_sharding(old, new) * (1 - part).astype(new.dtype) + part.astype(new.dtype) * new
