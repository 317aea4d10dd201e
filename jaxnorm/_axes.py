"""Axes: which one holds the channels, which are reduced, and the shape and sharding of a noise that some of them share."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def canonical_axes(name: str, axes: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Returns `axes` sorted and counted from the front, or raises if one is out of range or named twice."""
    named = (axes,) if isinstance(axes, int | np.integer) else tuple(axes)
    if any(isinstance(a, bool) or not isinstance(a, int | np.integer) for a in named):
        raise TypeError(f"{name} must be an int or a sequence of ints, got {axes!r}")
    if any(not -ndim <= a < ndim for a in named):
        raise ValueError(f"{name} is out of range for an array of rank {ndim}, got {axes!r}")
    counted = sorted(int(a) % ndim for a in named)
    if len(set(counted)) != len(counted):
        raise ValueError(f"{name} names an axis twice, got {axes!r} for an array of rank {ndim}")
    return tuple(counted)


def other_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Returns the axes of an array of rank `ndim` that are not in `axes`."""
    return tuple(a for a in range(ndim) if a not in axes)


def noise_shape(shape: Sequence[int], shared: Sequence[int]) -> tuple[int, ...]:
    """Returns `shape` with size 1 on the axes that share one draw."""
    return tuple(1 if a in shared else n for a, n in enumerate(shape))


def noise_sharding(x: jax.Array, shared: Sequence[int]) -> NamedSharding | None:
    """Returns the sharding of noise for x on a mesh with explicit axes (None elsewhere): x's own, whole on the shared axes."""
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.are_all_axes_explicit and not any("Explicit" in str(t) for t in sharding.mesh.axis_types):
        return None
    spec = [None if a in shared else part for a, part in enumerate(sharding.spec)]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))
