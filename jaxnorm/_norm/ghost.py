"""Ghost batch normalization: every small part of the batch by its own statistics.

Where an example has positions, as an image has, its moments are taken first and pooled in its ghost: x is read with its own axes,
as it lies in memory, and ghosts of any size, on any number of devices, are sums of few numbers.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, reshard

from jaxnorm._axes import explicit_sharding, is_known, match_sharding, merge_axes, split_axis
from jaxnorm._batch_layer import BatchCall, check_batch_axis, checked_call, init_batch_layer
from jaxnorm._checks import Scalar, check_size
from jaxnorm._compiler import recomputed
from jaxnorm._moments import AxisName, combine_moments, from_devices, membership, moments, place_among, to_average
from jaxnorm._running import update_running
from jaxnorm._types import AffineParams, Moments, RunningStats, real_dtype, wide_dtype, widened


def init_ghost_batch_norm(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[AffineParams, RunningStats]:
    """Returns the parameters and the running statistics of a new ghost batch norm, which are those of a batch norm.

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
      TypeError: if num_features is no int, or if dtype is narrower than float32.

    References:
      Hoffer, Hubara, Soudry, "Train longer, generalize better: closing the generalization gap in large batch training of neural
      networks", NIPS 2017, https://arxiv.org/abs/1705.08741.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_ghost_batch_norm(2)
      >>> state
      RunningStats(mean=Array([0., 0.], dtype=float32), var=Array([1., 1.], dtype=float32))
    """
    params, mean, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return params, RunningStats(mean=mean, var=ones)


def ghost_batch_norm(
    params: AffineParams,
    state: RunningStats,
    x: jax.Array,
    ghost_size: int,
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
    """Normalizes every channel of every ghost, `ghost_size` consecutive examples, by the ghost's mean and variance.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where mean and variance are those of the channel in the ghost,
    and for one ghost after another `state <- momentum state + (1 - momentum) (mean, var)`. Inference: the same y with the state's
    mean and variance; the state stays as it is.

    A large batch so trains with the noise of small ones. The last ghost has what remains. The ghosts are those of the whole
    batch, however it is divided over devices. A ghost of all of it is batch norm.

    The statistics are exact for means far from zero, uneven devices and masks, and are computed in float32 or wider. A ghost that
    is not finite in a channel changes nothing of that channel's state. One in which nothing is counted is normalized with the
    running statistics and takes no part in them. Gradients flow through the statistics, and not into the new state.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RunningStats(mean, var)`, each of shape `[C]`, in float32 or wider.
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      ghost_size: examples of a ghost, at least 1; Keras's `virtual_batch_size`.
      train: whether to use and average the statistics of the ghosts; a bool or a traced bool.
      momentum: weight of the old statistics in the running averages, for each ghost, in [0, 1]; a number or a traced scalar.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`, and not the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes (of `jax.shard_map` or `jax.vmap`) over which the batch is divided, in the order of
        the indices: the ghosts are those of the whole batch. Every device must have as many examples. A jit over sharded arrays
        needs none.
      axis_index_groups: groups of indices along `axis_name`, each of which has a batch of its own.
      unbiased: whether the running variance averages `var n / (n - 1)`, rather than var.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if ghost_size is below 1; if channel_axis names the first axis; if x has no axis besides the channels; else as
        `batch_norm`.
      TypeError: if ghost_size is no int; else as `batch_norm`.

    References:
      Hoffer, Hubara, Soudry, "Train longer, generalize better: closing the generalization gap in large batch training of neural
      networks", NIPS 2017, https://arxiv.org/abs/1705.08741.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_ghost_batch_norm(1)
      >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
      >>> y, state = jaxnorm.ghost_batch_norm(params, state, x, 2, train=True, momentum=0.5)
      >>> print(y.round(3).T)
      [[-1.  1. -1.  1.]]
      >>> print(state.mean)
      [10.5]
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
    size = check_size("ghost_size", ghost_size)
    check_batch_axis(call, channel_axis)
    return _ghost_batch_norm(call, size=size, unbiased=bool(unbiased))


@functools.partial(jax.jit, static_argnames=("size", "unbiased"))
def _ghost_batch_norm(call: BatchCall, *, size: int, unbiased: bool) -> tuple[jax.Array, RunningStats]:
    def training() -> tuple[jax.Array, RunningStats]:
        if not call.x.size:
            return inference()
        examples = call.x.shape[0]
        if call.axes != (0,):
            y, ghosts = _of_examples(call, size)
        elif is_known(examples) and examples % size == 0:
            y, ghosts = _of_vectors(call, size)
            ghosts = ghosts if call.axis_name is None else _in_order(call, ghosts)[0]
        else:  # what is pooled is as large as x, and not to be kept
            y, ghosts = recomputed(functools.partial(_of_examples, size=size))(call)
        return y, _averaged(call, ghosts, unbiased)

    def inference() -> tuple[jax.Array, RunningStats]:
        return call.normalize(*call.running), call.state

    with jax.named_scope("jaxnorm.ghost_batch_norm"):
        return call.run(training, inference)


def _of_vectors(call: BatchCall, size: int) -> tuple[jax.Array, Moments]:
    """Returns y and the moments of the ghosts of a batch that has whole ones, and no positions: x gets an axis for them."""
    count = call.x.shape[0] // size

    def split(a: jax.Array) -> jax.Array:
        return jnp.expand_dims(a, 0) if a.shape[0] == 1 != call.x.shape[0] else split_axis(a, 0, count)

    x, where = split(call.x), None if call.where is None else split(call.where)
    wide = widened(x)
    near = jnp.broadcast_to(call.state.mean[None], (count, *call.state.mean.shape))
    ghosts = moments(x, (1,), wide=wide, where=where, near=near)
    cut = dataclasses.replace(call, x=x, where=where, channels=tuple(axis + 1 for axis in call.channels))
    y = cut.normalize(*_counted(call, ghosts), axes=(1,), wide=wide, feature_axes=cut.channels)
    return merge_axes(y, 0, call.x), ghosts


def _of_examples(call: BatchCall, size: int) -> tuple[jax.Array, Moments]:
    """Returns y and the moments of the ghosts, pooled from those of the examples."""
    wide = widened(call.x)
    own = call.moments_of_examples(wide)
    examples, first = (own, 0) if call.axis_name is None else _in_order(call, own)
    examples = jax.tree.map(_undivided, examples)
    count = (examples.n.shape[0] + size - 1) // size

    def stacked(part: jax.Array) -> jax.Array:
        """The last ghost lacks some, which count nothing."""
        missing = count * size - part.shape[0]
        padded = jnp.pad(part, [(0, missing), *[(0, 0)] * (part.ndim - 1)])
        return jnp.moveaxis(padded.reshape(count, size, *part.shape[1:]), 1, 0)

    def of_each(ghost: jax.Array, like: jax.Array) -> jax.Array:
        repeated = jnp.broadcast_to(ghost[:, None], (count, size, *ghost.shape[1:])).reshape(count * size, *ghost.shape[1:])
        return match_sharding(lax.dynamic_slice_in_dim(repeated, first, like.shape[0]), like)

    ghosts = combine_moments(jax.tree.map(stacked, examples))
    mean, var = _counted(call, jax.tree.map(of_each, ghosts, own))
    return call.normalize(mean, var, axes=call.positions, wide=wide, feature_axes=call.channels), ghosts


def _undivided(part: jax.Array) -> jax.Array:
    """Returns the same numbers, of which every device has those of all examples."""
    sharding = explicit_sharding(part)
    return part if sharding is None else reshard(part, NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[1:])))


def _in_order(call: BatchCall, own: Moments) -> tuple[Moments, jax.Array]:
    """Returns the moments of all devices, one after the other, and where this one's begin."""
    stacked = from_devices(own, call.axis_name, call.axis_index_groups)
    if call.axis_index_groups is not None:
        # Those of other groups have counts of 0, and come last.
        group = jnp.asarray(membership(call.axis_index_groups, lax.axis_size(call.axis_name)))[lax.axis_index(call.axis_name)]
        stacked = jax.tree.map(lambda part: part[jnp.argsort(~group, stable=True)], stacked)
    place, _ = place_among(call.axis_name, call.axis_index_groups)
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), stacked), place * own.n.shape[0]


def _counted(call: BatchCall, seen: Moments) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance, but running ones where nothing is counted."""
    running = jax.tree.map(lambda part: jnp.broadcast_to(part[None], seen.mean.shape), call.running)
    return call.counted(seen.n, RunningStats(seen.mean, seen.var), running)


def _averaged(call: BatchCall, ghosts: Moments, unbiased: bool) -> RunningStats:
    """Returns the new running statistics: those of every trusted ghost averaged into the old ones, in their order.

    `state <- momentum^k state + (1 - momentum) sum_i momentum^(k - i) s_i` for k of them.
    """
    ghosts = jax.tree.map(_undivided, ghosts)
    batch = RunningStats(ghosts.mean, to_average(ghosts.var, ghosts.n, unbiased))
    trusted = (ghosts.n > 0) & jnp.isfinite(ghosts.mean) & jnp.isfinite(ghosts.var)
    old, new = (jnp.asarray(weight, real_dtype(wide_dtype(call.x.dtype))) for weight in call.weights)
    trusted_so_far = jnp.cumsum(trusted, 0, dtype=old.dtype)
    total = trusted_so_far[-1]
    weight = jnp.where(trusted, new * old ** (total[None] - trusted_so_far), 0)

    def summed(part: jax.Array) -> jax.Array:
        return jnp.sum(weight.astype(part.dtype) * jnp.where(trusted, part, jnp.zeros((), part.dtype)), 0)

    some = jax.tree.map(lambda part: total > 0, batch)
    return update_running(call.state, jax.tree.map(summed, batch), some, (old**total, jnp.ones_like(total)))
