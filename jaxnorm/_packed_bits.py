"""Random bits in the form for CPUs: a hash serves several neighbors, for which what is asked of it goes through memory.

The integers are those of `jaxnorm._bits.random_integers`. Of decisions memory gets a bit or two an element; of integers, two to
a word.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnorm._axes import count_of, explicit_sharding, split_axis
from jaxnorm._bits import Part, choose_word, element_index, is_known, is_threefry, random_integers, threefry2x32, threefry_data
from jaxnorm._compiler import in_memory, stored

# Elements whose decisions share an integer in memory, by their bits: the most that the last axis holds whole groups of.
_GROUP_SIZES = {8: (8,), 16: (8, 4), 32: (32, 16)}
_BLOCK_OF_16 = 4  # elements of 16 bits that share a hash
_VECTOR = 8  # loops over a multiple of it become vector instructions
_MOST_DEVICES = 8  # of an automatic sharding of the rows that is provided for


class _Groups(NamedTuple):
    """Groups of consecutive elements: their shape as an array of groups, how many elements each has, and their sharding."""

    shape: tuple[int, ...]
    size: int
    sharding: NamedSharding | None


def has_packed_form(key: jax.Array, bits: int) -> bool:
    """Whether this key can be drawn from here: that needs the words of threefry."""
    return bits != 32 or is_threefry(key)


class Decisions(NamedTuple):
    """Answers of yes or no, of which `size` neighbors along the last axis are the lowest bits of a word.

    What is done to the bits of all words alike, as between words of other axes, is done to the answers.
    """

    words: jax.Array
    size: int

    def answers(self) -> jax.Array:
        """Returns them as bools."""
        *others, groups = self.words.shape
        return _shaped(_bits_of(self.words, self.size), (*others, groups * self.size), explicit_sharding(self.words))

    def share_of_yes(self, axes: Sequence[int], dtype: Any) -> jax.Array:
        """Returns which share of them along these axes is yes; the axes stay, at size 1."""
        yes = jnp.sum(lax.population_count(self.words).astype(jnp.int32), axes, keepdims=True, dtype=jnp.int32)
        return yes.astype(dtype) / count_of((self.size, *(self.words.shape[axis] for axis in axes)), dtype)


def packed_below(
    key: jax.Array,
    threshold: jax.Array,
    shape: Sequence[int],
    bits: int,
    sharding: NamedSharding | None = None,
    part: Part | None = None,
) -> jax.Array:
    """Returns `random_integers(key, shape, bits) < threshold`, for a scalar threshold or one that broadcasts to the shape."""
    groups = _groups_of_answers(threshold, shape, bits, sharding, part)
    if groups is None:
        return random_integers(key, shape, bits, sharding, show_blocks=False, part=part) < threshold
    return _shaped(_bits_of(_packed(key, threshold, groups, bits, part), groups.size), shape, sharding)


def packed_decisions(
    key: jax.Array, threshold: jax.Array, shape: Sequence[int], bits: int, sharding: NamedSharding | None = None
) -> Decisions | None:
    """Returns the same in words; None where the last axis does not hold whole ones."""
    groups = _groups_of_answers(threshold, shape, bits, sharding)
    if groups is None or shape[-1] % groups.size:
        return None
    return Decisions(_packed(key, threshold, groups, bits), groups.size)


def packed_integers(key: jax.Array, shape: Sequence[int], sharding: NamedSharding | None = None) -> jax.Array:
    """Returns `random_integers(key, shape, 16)`."""
    groups = _groups(shape, _BLOCK_OF_16, sharding)
    if groups is None:
        # The barrier is for compilation alone, as that of Gaussian noise is (jaxnorm._noise).
        return lax.optimization_barrier(random_integers(key, shape, 16, sharding, show_blocks=False))
    data = threefry_data(key)
    pairs = (*groups.shape, 2)
    pairs_sharding = groups.sharding and _with_minor(groups.sharding)

    def words() -> jax.Array:
        _, index = element_index(pairs, pairs_sharding)
        return choose_word(threefry2x32(data, *element_index(pairs, pairs_sharding, shift=1)), index & 1)

    stored_words = stored(words, lambda: element_index(pairs, pairs_sharding)[1] ^ data[0])
    halves = stored_words[..., None] >> _lanes(2, stored_words.ndim) * np.uint32(16)
    return _shaped(halves & np.uint32(0xFFFF), shape, sharding)


def answers_of_groups(
    key: jax.Array,
    threshold: jax.Array,
    groups: Sequence[int],
    size: int,
    bits: int,
    sharding: NamedSharding | None = None,
    part: Part | None = None,
) -> jax.Array:
    """Returns whether the integers of 8 or 16 bits are below the threshold, for groups of so many neighbors, as bits of a word.

    Args:
      key: a typed key.
      threshold: a scalar; or an array that broadcasts to that of the elements, whose last axis holds the groups.
      groups: the shape of an array of groups.
      size: elements of a group, at most 32, which are whole blocks.
      bits: of an integer.
      sharding: the explicit sharding of the groups, or None.
      part: which part of an array of groups they are, if they are one.
    """
    data, mask = threefry_data(key), np.uint32(2**bits - 1)
    blocks = size * bits // 64
    upper, lower = element_index(groups, sharding, part=part)
    shift = blocks.bit_length() - 1
    if shift:
        upper, lower = upper << shift | lower >> (32 - shift), lower << shift
    words = [word for block in range(blocks) for word in threefry2x32(data, upper, lower | np.uint32(block))]
    numbers = (word >> place & mask for word in words for place in range(0, 32, bits))
    limits = _in_groups(threshold, size)
    answers = ((number < limits(lane)).astype(jnp.uint32) << lane for lane, number in enumerate(numbers))
    return functools.reduce(jnp.bitwise_or, answers)


def _packed(key: jax.Array, threshold: jax.Array, groups: _Groups, bits: int, part: Part | None = None) -> jax.Array:
    """Returns the answers for each group as the bits of a word, in memory."""
    if bits == 32:
        return _packed_32(key, threshold, groups, part)
    return in_memory(answers_of_groups(key, threshold, *groups[:2], bits, groups.sharding, part).astype(jnp.uint8))


def _bits_of(words: jax.Array, size: int) -> jax.Array:
    """Returns the lowest bits of each word, so many, along a new last axis."""
    return (words.astype(jnp.uint32)[..., None] & np.uint32(1) << _lanes(size, words.ndim)) != 0


def _in_groups(threshold: jax.Array, size: int) -> Callable[[int], jax.Array]:
    """Returns what gives the thresholds of all groups' elements in one place, which broadcast to the groups."""
    if not threshold.ndim or threshold.shape[-1] == 1:
        return lambda lane: threshold
    split = split_axis(threshold, threshold.ndim - 1, threshold.shape[-1] // size)
    return lambda lane: lax.index_in_dim(split, lane, split.ndim - 1, keepdims=False)


def _packed_32(key: jax.Array, threshold: jax.Array, groups: _Groups, part: Part | None) -> jax.Array:
    """Returns the answers for a group, each of which is a block, as the bits of a word, which a reduction leaves in memory."""
    numbers = random_integers(key, (*groups.shape, groups.size), 32, groups.sharding and _with_minor(groups.sharding), part=part)
    last = numbers.ndim - 1
    if threshold.ndim:
        parts = threshold.shape[-1] // groups.size
        threshold = split_axis(threshold, last - 1, parts) if threshold.shape[-1] > 1 else threshold[..., None]
    below = (numbers < threshold).astype(jnp.uint32)
    return lax.reduce(below << _lanes(groups.size, last), np.uint32(0), lax.bitwise_or, (last,))


def _groups_of_answers(
    threshold: jax.Array, shape: Sequence[int], bits: int, sharding: NamedSharding | None, part: Part | None = None
) -> _Groups | None:
    """Returns the groups whose answers share a word; several thresholds, or a part, can only be cut as the last axis is."""
    sizes = _GROUP_SIZES[bits]
    size = next((size for size in sizes if shape and shape[-1] % size == 0), None)
    only_last = threshold.ndim > 0 or part is not None
    return None if size is None and only_last else _groups(shape, size or sizes[-1], sharding)


def _groups(shape: Sequence[int], size: int, sharding: NamedSharding | None) -> _Groups | None:
    """Returns groups of this size, which fill the array or exceed it; None for none.

    They are cut from the last axis, so that sharded axes stay so. Where that does not hold whole groups, or is not known to, they
    are cut from the flat array, if its size is known, unless devices that share the rows would then share groups: where an even
    number of devices can share the rows, each of up to 8 must get a multiple of the group's size.
    """
    if not shape or 0 in shape:
        return None
    if shape[-1] % size == 0:
        cut = (*shape[:-1], shape[-1] // size)
        return _Groups(cut, size, sharding) if sharding is None or _divides(cut, sharding) else None
    if sharding is not None or not is_known(shape) or (shape[0] % 2 == 0 and shape[0] % (_MOST_DEVICES * size)):
        return None
    return _Groups((-(-math.prod(shape) // (size * _VECTOR)) * _VECTOR,), size, None)


def _divides(shape: tuple[int, ...], sharding: NamedSharding) -> bool:
    """Whether every shard of an array of this shape has as many elements."""
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True


def _lanes(count: int, leading: int) -> jax.Array:
    """Returns 0, 1, ... along the last axis, after so many axes of size 1."""
    return lax.iota(jnp.uint32, count).reshape((1,) * leading + (count,))


def _shaped(x: jax.Array, shape: Sequence[int], sharding: NamedSharding | None) -> jax.Array:
    """Returns the first elements of x in row-major order, as many as this shape has."""
    if sharding is not None:
        return lax.reshape(x, shape, out_sharding=sharding)
    if x.size == math.prod(shape):
        return x.reshape(shape)
    return x.reshape(-1)[: math.prod(shape)].reshape(shape)


def _with_minor(sharding: NamedSharding) -> NamedSharding:
    """Returns the sharding of an array that has one axis more, the last, which is not sharded."""
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, None))
