"""Numbers of channels on the axes of a layer's weights: the only place that multiplies weights by what a batch norm is."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm._axes import match_sharding
from jaxnorm._types import widest_dtype


class Along(NamedTuple):
    """Where an array of weights has the channels.

    Attributes:
      axis: the axis of the channels; in a layer of groups of channels it may have those of one group, C / groups.
      other: the layer's other axis of channels, that all groups are on one after another, where `axis` has those of one.
      groups: how many groups.
    """

    axis: int
    other: int = 0
    groups: int = 1

    def fits(self, shape: Sequence[int], channels: int) -> bool:
        """Whether an array of this shape has so many channels."""
        return shape[self.axis] == channels or (shape[self.axis] * self.groups, shape[self.other] % self.groups) == (channels, 0)


def spread(channels: jax.Array, like: jax.Array, along: Along) -> jax.Array:
    """Returns numbers of channels, `[C]`, as an array that broadcasts to weights."""
    axis, other, groups = along
    if like.shape[axis] == channels.size:
        return match_sharding(jnp.expand_dims(channels, [a for a in range(like.ndim) if a != axis]), like)
    pairs = jnp.repeat(channels.reshape(groups, -1), like.shape[other] // groups, axis=0)
    pairs = pairs if other < axis else pairs.T
    return match_sharding(jnp.expand_dims(pairs, [a for a in range(like.ndim) if a not in (axis, other)]), like)


def scale_and_shift(weights: jax.Array, factor: jax.Array, along: Along, offset: jax.Array | None = None) -> jax.Array:
    """Returns `weights factor + offset`, computed in float32 or wider and rounded once to the type of the weights."""
    wide = weights.astype(widest_dtype(weights, factor)) * spread(factor, weights, along)
    wide = wide if offset is None else wide + spread(offset, weights, along)
    return wide.astype(weights.dtype)


def through(weights: jax.Array, offset: jax.Array, along: Along, kept: Sequence[int]) -> jax.Array:
    """Returns what a layer makes of an input that is everywhere the offset: `sum(weights offset)` over all axes but the kept."""
    summed = tuple(axis for axis in range(weights.ndim) if axis not in kept)
    products = weights.astype(widest_dtype(weights, offset)) * spread(offset, weights, along)
    ordered = sorted(kept)
    return products.sum(summed).transpose([ordered.index(axis) for axis in kept])
