"""Axes: which hold channels, which are reduced, and the shape and sharding of what is made for them."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard


def canonical_axes(name: str, axes: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Returns `axes` sorted and counted from the front, or raises if one is out of range or named twice."""
    named = axes if isinstance(axes, Iterable) else (axes,)
    if any(isinstance(a, bool) or not isinstance(a, int | np.integer) for a in named):
        raise TypeError(f"{name} must be an int or a sequence of ints, got {axes!r}")
    if any(not -ndim <= a < ndim for a in named):
        raise ValueError(f"{name} is out of range for an array of rank {ndim}, got {axes!r}")
    counted = sorted(int(a) % ndim for a in named)
    if len(set(counted)) != len(counted):
        raise ValueError(f"{name} names an axis twice, got {axes!r} for an array of rank {ndim}")
    return tuple(counted)


def check_one_axis(name: str, axes: Sequence[int], given: Any) -> None:
    """Raises unless the canonical axes of what was given are one."""
    if len(axes) != 1:
        raise ValueError(f"{name} must be one axis, got {given!r}")


def other_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Returns the axes of an array of rank `ndim` that are not in `axes`."""
    return tuple(a for a in range(ndim) if a not in axes)


def spatial_axes(x: jax.Array, channel_axis: int) -> tuple[int, tuple[int, ...]]:
    """Returns the axis of the channels and those of space, of an x `[B, ..., C]`; raises unless these are 1 to 3."""
    channels = canonical_axes("channel_axis", channel_axis, x.ndim)
    check_one_axis("channel_axis", channels, channel_axis)
    spatial = other_axes((0, *channels), x.ndim)
    if channels == (0,):
        raise ValueError(f"channel_axis must not be the batch's axis, 0, got {channel_axis!r}")
    if not 1 <= len(spatial) <= 3:
        raise ValueError(f"x must have 1 to 3 spatial dimensions beside batch and channels, got shape {list(x.shape)}")
    return channels[0], spatial


def noise_shape(shape: Sequence[int], shared: Sequence[int]) -> tuple[int, ...]:
    """Returns `shape` with size 1 on the axes that share one draw."""
    return tuple(1 if a in shared else n for a, n in enumerate(shape))


def shared_axes(per: str, x: jax.Array, name: str = "x") -> tuple[int, ...]:
    """Returns the axes along which one draw serves all: for a draw per "element", per "example", or per "batch"."""
    if per == "example" and not x.ndim:
        raise ValueError(f"{name} must have an axis of examples, got shape []")
    return {"element": (), "example": tuple(range(1, x.ndim)), "batch": tuple(range(x.ndim))}[per]


def explicit_sharding(x: jax.Array) -> NamedSharding | None:
    """Returns the sharding that x's type tells, which is one over mesh axes of type `Explicit`; None where there are none."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def match_sharding(x: jax.Array, like: jax.Array) -> jax.Array:
    """Returns x with the explicit sharding of `like`, to whose shape it broadcasts."""
    sharding = shared_sharding(like, [axis for axis in range(x.ndim) if x.shape[axis] != like.shape[axis]])
    return x if sharding is None else reshard(x, sharding)


def varying(x: jax.Array) -> frozenset[Any]:
    """Returns the mapped axes (of `jax.shard_map`) over which x varies, as its type tells."""
    return jax.typeof(x).manual_axis_type.varying


def vary(x: jax.Array, over: frozenset[Any]) -> jax.Array:
    """Returns x as one that varies over these mapped axes too, as both results of a branch must, and what a loop carries."""
    missing = tuple(over - varying(x))
    return lax.pcast(x, missing, to="varying") if missing else x


def shared_sharding(x: jax.Array, shared: Sequence[int]) -> NamedSharding | None:
    """Returns the explicit sharding of an array that broadcasts to x with size 1 on the shared axes: x's own on the others."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return None
    spec = [None if a in shared else part for a, part in enumerate(sharding.spec)]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def whole_along(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Returns x with an explicit sharding that does not divide these axes."""
    sharding = shared_sharding(x, axes)
    return x if sharding is None else reshard(x, sharding)


def sharding_along(x: jax.Array, axes: Sequence[int]) -> NamedSharding | None:
    """Returns the explicit sharding of an array that has these axes of x alone: x's own."""
    sharding = explicit_sharding(x)
    return None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec(*(sharding.spec[axis] for axis in axes)))


def outer_sharding(x: jax.Array, weights: jax.Array, axes: Sequence[int]) -> NamedSharding | None:
    """Returns the explicit sharding of an array that has all axes of x but the last, and then these axes of the weights."""
    leading, own = sharding_along(x, range(x.ndim - 1)), sharding_along(weights, axes)
    if leading is None or own is None:
        return None
    return NamedSharding(leading.mesh, PartitionSpec(*leading.spec, *own.spec))


def is_known(size: Any) -> bool:
    """Whether a size of an array is a number, and no symbol of `jax.export`."""
    return isinstance(size, int | np.integer)


def count_of(sizes: Iterable[Any], dtype: Any) -> jax.Array:
    """Returns the product of sizes, of which some may be symbols, as a number of this type."""
    sizes = tuple(sizes)
    known = np.prod([size for size in sizes if is_known(size)], dtype=np.int64)
    factors = (jnp.asarray(size, dtype) for size in sizes if not is_known(size))  # one by one: a product may exceed an integer
    return functools.reduce(jnp.multiply, factors, jnp.asarray(known, dtype))


def in_parts(x: jax.Array, axis: int, most: int) -> jax.Array:
    """Returns x with this axis split in two, `[parts, size / parts]`, such that devices that share the axis hold whole parts.

    An explicit sharding says how many those are. An automatic one can't be seen: then up to so many parts, a power of 2.
    """
    size, sharding = x.shape[axis], explicit_sharding(x)
    if sharding is not None:
        return split_axis(x, axis, _devices_along(sharding, axis))
    return split_axis(x, axis, math.gcd(size, most) if is_known(size) else 1)


def split_axis(x: jax.Array, axis: int, parts: int) -> jax.Array:
    """Returns x with this axis split in two, `[parts, size / parts]`; the first is sharded as the axis is, if that is even."""
    shape = (*x.shape[:axis], parts, x.shape[axis] // parts, *x.shape[axis + 1 :])
    sharding = explicit_sharding(x)
    if sharding is None:
        return x.reshape(shape)
    before, own, after = sharding.spec[:axis], sharding.spec[axis], sharding.spec[axis + 1 :]
    if parts % _devices_along(sharding, axis):
        own = None
        x = reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*before, None, *after)))
    return lax.reshape(x, shape, out_sharding=NamedSharding(sharding.mesh, PartitionSpec(*before, own, None, *after)))


def merge_axes(x: jax.Array, axis: int, like: jax.Array) -> jax.Array:
    """Returns x with this axis and the next one merged into one: of the shape, and explicit sharding, of `like`."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return x.reshape(like.shape)
    spec = PartitionSpec(*sharding.spec[: axis + 1], *sharding.spec[axis + 2 :])
    return match_sharding(lax.reshape(x, like.shape, out_sharding=NamedSharding(sharding.mesh, spec)), like)


def _devices_along(sharding: NamedSharding, axis: int) -> int:
    names = sharding.spec[axis]
    return math.prod(sharding.mesh.shape[name] for name in ((names,) if isinstance(names, str) else names or ()))
