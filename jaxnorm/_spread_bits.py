"""Random decisions in the form for TPUs: a hash serves several neighbors, to which the matrix unit spreads what they ask of it.

The decisions are those of `jaxnorm._bits.random_integers`. A TPU computes on 128 neighbors along the last axis at once: an axis
of the few that share a hash would leave most of it idle. And it moves nothing between neighbors cheaply but through its matrix
unit: the answers for a group, as the bits of one small number, are multiplied by a matrix of ones and zeros, which gives that
number to each element of the group, and this takes its bit.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from jaxnorm._bits import Part, is_known, random_integers
from jaxnorm._packed_bits import answers_of_groups

_MOST = 8  # elements that share a number: up to 256, all are exact in bfloat16
_NARROW = 1024  # elements of the last axis up to which groups of more would leave lanes idle
_WIDEST = 6144  # elements of the last axis up to which the matrix, that has as many columns, costs less than it saves


def spread_below(
    key: jax.Array,
    threshold: jax.Array,
    shape: Sequence[int],
    bits: int,
    sharding: NamedSharding | None = None,
    part: Part | None = None,
) -> jax.Array:
    """Returns `random_integers(key, shape, bits) < threshold`, for a scalar threshold or one that broadcasts to the shape."""
    size = _group_size(shape, bits)
    if size is None or (sharding is not None and sharding.spec[-1] is not None):
        return random_integers(key, shape, bits, sharding, show_blocks=False, part=part) < threshold
    last, groups = len(shape) - 1, shape[-1] // size
    answers = answers_of_groups(key, threshold, (*shape[:-1], groups), size, bits, sharding, part)
    group, element = (lax.broadcasted_iota(jnp.int32, (groups, shape[-1]), axis) for axis in (0, 1))
    spread = lax.dot_general(
        answers.astype(jnp.bfloat16),
        (group == element // size).astype(jnp.bfloat16),
        (((last,), (0,)), ((), ())),
        preferred_element_type=jnp.bfloat16,
        out_sharding=sharding,
    )
    lane = lax.broadcasted_iota(jnp.int32, (*[1] * last, shape[-1]), last) % size
    return (spread.astype(jnp.int32) >> lane & 1) != 0


def _group_size(shape: Sequence[int], bits: int) -> int | None:
    """Returns how many elements share a number, which are whole blocks; None where every element had better hash for itself."""
    if bits == 32 or not shape or not is_known(shape[-1:]) or shape[-1] > _WIDEST:
        return None
    small = 64 // bits if shape[-1] <= _NARROW else _MOST
    return next((size for size in (small, 64 // bits) if shape[-1] % size == 0), None)
