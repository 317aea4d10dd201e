"""What every layer with statistics of the batch does alike, so that a variant is its statistic, its correction and its state.

A layer checks its arguments into a `BatchCall`, and says by it what it does in each mode:

    def training():
        wide = widened(call.x)
        batch = call.moments(wide)
        mean, var = call.counted(batch.n, RunningStats(batch.mean, batch.var), call.running)
        return call.normalize(mean, var, wide=wide), call.averaged(batch.n, RunningStats(batch.mean, batch.var))

    def inference():
        return call.normalize(*call.running), call.state

    return call.run(training, inference)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import canonical_axes, match_sharding, other_axes, vary, varying
from jaxnorm._checks import (
    Scalar,
    check_affine,
    check_axis_name,
    check_dtype,
    check_flag,
    check_float,
    check_output_dtype,
    check_scalar,
    check_shape,
    check_size,
    check_stats_dtype,
    check_type,
    check_where,
    is_concrete,
)
from jaxnorm._moments import AxisName, before, combine_moments, moments
from jaxnorm._normalize import inverse_deviation, rescale
from jaxnorm._parts import Statistic, pooled
from jaxnorm._running import update_running
from jaxnorm._types import AffineParams, Moments, real_dtype, wide_dtype

_STATIC = {"static": True}


def init_batch_layer(
    num_features: int, use_scale: bool, use_bias: bool, param_dtype: Any, dtype: Any
) -> tuple[AffineParams, jax.Array, jax.Array]:
    """Returns new parameters, a mean of 0 in `dtype`, and a real variance of 1."""
    shape = (check_size("num_features", num_features),)
    dtype = check_stats_dtype("dtype", dtype)
    return init_affine(shape, use_scale, use_bias, param_dtype), jnp.zeros(shape, dtype), jnp.ones(shape, real_dtype(dtype))


def init_affine(shape: tuple[int, ...], use_scale: bool, use_bias: bool, param_dtype: Any) -> AffineParams:
    """Returns a scale of 1 and a bias of 0, of those that are used."""
    param_dtype = check_dtype("param_dtype", param_dtype)
    return AffineParams(
        scale=jnp.ones(shape, param_dtype) if use_scale else None, bias=jnp.zeros(shape, param_dtype) if use_bias else None
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchCall:
    """A call of a layer with statistics of the batch, whose arguments are checked.

    Attributes:
      params: scale and bias, and what else there is.
      state: running statistics.
      x: the input.
      where: which elements count, or None.
      weights: of the old statistics and of the batch's in the new ones.
      epsilon: added to the variance.
      train: which mode; None where it is known.
      known_train: which mode; None where it is traced.
      channels: the axes of the channels.
      axis_name: mapped axes over which statistics are pooled.
      axis_index_groups: groups along them that are pooled separately.
      dtype: type of the output.
    """

    params: Any
    state: Any
    x: jax.Array
    where: jax.Array | None
    weights: tuple[Any, Any]
    epsilon: Scalar
    train: jax.Array | None
    known_train: bool | None = dataclasses.field(metadata=_STATIC)
    channels: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    axis_name: AxisName = dataclasses.field(metadata=_STATIC)
    axis_index_groups: tuple[tuple[int, ...], ...] | None = dataclasses.field(metadata=_STATIC)
    dtype: np.dtype = dataclasses.field(metadata=_STATIC)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes over which statistics are taken."""
        return other_axes(self.channels, self.x.ndim)

    @property
    def positions(self) -> tuple[int, ...]:
        """The axes over which statistics of an example are taken, of a layer whose first axis is the batch."""
        return tuple(axis for axis in self.axes if axis)

    @property
    def running(self) -> Any:
        """The running statistics in the type that is computed in."""
        wide = wide_dtype(self.x.dtype)
        return jax.tree.map(lambda part: part.astype(wide if jnp.iscomplexobj(part) else real_dtype(wide)), self.state)

    def moments(self, wide: jax.Array) -> Moments:
        """Returns the moments of the batch, through whose `widened` x gradients flow."""
        near = getattr(self.state, "mean", None)
        return self.pooled(moments(self.x, self.axes, near=near, wide=wide, where=self.where))

    def moments_of_examples(self, wide: jax.Array) -> Moments:
        """Returns the moments of every example, likewise, with the axis of the batch first; they are not pooled over devices."""
        return moments(self.x, self.positions, wide=wide, where=self.where)

    def pooled(self, own: Statistic, combine: Callable[[Statistic], Statistic] = combine_moments) -> Statistic:
        """Returns a statistic of all devices' batches, from that of this one's; `combine` is as in `_parts.pooled`."""
        return pooled(own, combine, self.axis_name, self.axis_index_groups)

    def counted(self, n: jax.Array, batch: Any, running: Any) -> Any:
        """Returns statistics of the batch, but running ones where nothing is counted; n has their leading axes."""
        if self.where is None and self.x.size:
            return batch

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(before(n > 0, new), new, lax.stop_gradient(match_sharding(old, new)))

        return jax.tree.map(choose, batch, running)

    def averaged(self, n: jax.Array, batch: Any) -> Any:
        """Returns the new running statistics, averages with those of the batch where something is counted and all is finite.

        What is counted together, as channels in a group, is trusted together: n has the leading axes of the statistics.
        """
        trusted = n > 0
        for part in batch:
            trusted &= jnp.all(jnp.isfinite(part), tuple(range(n.ndim, part.ndim)))
        return update_running(self.state, batch, jax.tree.map(lambda part: before(trusted, part), batch), self.weights)

    def normalize(
        self,
        mean: jax.Array | None,
        var: jax.Array,
        *,
        epsilon: Scalar | None = None,
        **then: Any,
    ) -> jax.Array:
        """Returns x normalized by these statistics, with the layer's own scale, bias, epsilon and axes if no others are given."""
        epsilon = self.epsilon if epsilon is None else epsilon
        return self.rescale(mean, inverse_deviation(var, epsilon), **then)

    def rescale(
        self,
        mean: jax.Array | None,
        factor: jax.Array,
        *,
        affine: AffineParams | None = None,
        axes: tuple[int, ...] | None = None,
        **then: Any,
    ) -> jax.Array:
        """Returns `(x - mean) factor`, likewise."""
        own: Any = self.params if affine is None else affine
        axes = self.axes if axes is None else axes
        then = {"where": self.where, "dtype": self.dtype} | then
        return rescale(self.x, mean, factor, own.scale, own.bias, axes=axes, **then)

    def run(self, training: Callable[[], Any], inference: Callable[[], Any]) -> tuple[jax.Array, Any]:
        """Returns what the mode gives: the output and the new state."""
        if self.train is None:
            return training() if self.known_train else inference()
        return _cond(self.train, training, inference)


def checked_call(
    params: Any,
    state: Any,
    x: jax.Array,
    *,
    kind: Any,
    params_kind: Any = AffineParams,
    others: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    train: bool | jax.Array,
    momentum: Scalar,
    epsilon: Scalar,
    channel_axis: int | Sequence[int],
    where: jax.Array | None,
    axis_name: AxisName,
    axis_index_groups: Sequence[Sequence[int]] | None,
    dtype: Any,
    takes_complex: bool = False,
    shapes: Callable[[tuple[int, ...]], Any] | None = None,
) -> BatchCall:
    """Checks the arguments that all layers have in common.

    Args:
      params: as given to the layer, like all that are not named here.
      state: its statistics.
      x: its input.
      kind: the NamedTuple that the state must be.
      params_kind: the one that the parameters must be.
      others: shapes of parameters besides scale and bias, where these are not those of the channels.
      train: which mode.
      momentum: weight of the old statistics.
      epsilon: added to the variance.
      channel_axis: the axis of the channels, or several.
      where: which elements count.
      axis_name: mapped axes.
      axis_index_groups: groups along them.
      dtype: type of the output; None for x's.
      takes_complex: whether x may be complex.
      shapes: from the sizes of the channels to the shapes of the state's parts, where those are others; it may raise.
    """
    x = check_float("x", x, allow_complex=takes_complex)
    dtype = check_output_dtype(dtype, x)
    train = check_flag("train", train)
    check_scalar("momentum", momentum, low=0, high=1)
    check_scalar("epsilon", epsilon, low=0)
    channels = canonical_axes("channel_axis", channel_axis, x.ndim)
    shape = tuple(x.shape[a] for a in channels)
    wanted = kind(*[shape] * len(kind._fields)) if shapes is None else shapes(shape)
    check_affine(params, shape, like=x, kind=params_kind, others=others)
    check_type("state", state, kind)
    for name, part in state._asdict().items():
        like = x.dtype if name == "mean" else real_dtype(wide_dtype(x.dtype))
        check_stats_dtype(f"state.{name}", check_float(f"state.{name}", part, allow_complex=True).dtype, like=like)
        check_shape(f"state.{name}", part, getattr(wanted, name), "the channels of x")
    axis_name, axis_index_groups = check_axis_name(axis_name, axis_index_groups)
    return BatchCall(
        params=params,
        state=state,
        x=x,
        where=None if where is None else check_where(where, x),
        weights=_weights(momentum),
        epsilon=epsilon,
        train=None if isinstance(train, bool) else train,
        known_train=train if isinstance(train, bool) else None,
        channels=channels,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )


def check_batch_axis(call: BatchCall, channel_axis: Any) -> None:
    """Raises unless the first axis is that of the batch."""
    if 0 in call.channels or not call.axes:
        raise ValueError(f"channel_axis must leave the first axis to the batch, got {channel_axis!r} for x of rank {call.x.ndim}")


def for_each_example(part: jax.Array, like: jax.Array) -> jax.Array:
    """Returns numbers of the channels for every example, in the type, shape and sharding of an array `[B, C]`."""
    return match_sharding(jnp.broadcast_to(part[None].astype(like.dtype), like.shape), like)


def _weights(momentum: Scalar) -> tuple[Any, Any]:
    """Returns the weights of the old statistics and of the batch's; those of a concrete momentum are not rounded yet."""
    momentum = np.float64(momentum) if is_concrete(momentum) else momentum.astype(wide_dtype(momentum.dtype))
    return momentum, 1 - momentum


def _cond(predicate: jax.Array, if_true: Callable[[], Any], if_false: Callable[[], Any]) -> Any:
    """Runs one of two functions, both of whose results vary over the mapped axes over which either's does (jax.shard_map)."""
    over = []
    for fn in (if_true, if_false):
        jax.eval_shape(lambda fn=fn: over.append(jax.tree.map(varying, fn())))
    axes = jax.tree.map(frozenset.union, *over)

    return lax.cond(predicate, *(lambda fn=fn: jax.tree.map(vary, fn(), axes) for fn in (if_true, if_false)))
