"""Counter-based random bits: the only place that draws bits.

Every element of an array gets an integer of 8, 16 or 32 bits, which is a pure function of the key and of the element's
row-major index (64 bits): it does not change with the devices that share the array, with `vmap`, or with what else is drawn.

- 32 bits: element i takes both words of Threefry block i, the first xor the second, as `jax.random.bits` does.
- 16 and 8 bits: a block of 64 bits serves 4 or 8 elements. Element i takes lane `i mod lanes` of block `i // lanes`; lane l is
  bits `[l bits, (l + 1) bits)` of `first + 2^32 second`.

The rounds are written out, because jax runs them in a loop over memory on CPU, where they cost many times what the layer itself
does; written out they fuse into whatever uses them. What is best from there on depends on the machine, so there are two ways to
the same bits: `random_integers` hashes at every element, and leaves it to the compiler to hash once for neighbors of one block
(GPUs do; the comments say what that takes); `packed_below` hashes once a block and puts what is asked into memory, one or two
bits an element, which is what CPUs are good at.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, reshard

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_GROUP_OF_32 = 32  # elements of 32 bits whose answers share one word in memory
_LEAST_GROUP_OF_32 = 16
_ROWS_FOR_ANY_DEVICES = 32  # rows of which each of 2, 4 or 8 devices has a multiple of 4, which fill blocks of 16 bits


def resolution(bits: int) -> int:
    """Returns how many different integers are drawn: 2^bits, but 2^23 for 32 bits, of which `jax.random.uniform` uses 23."""
    return 2**23 if bits == 32 else 2**bits


def has_packed_form(key: jax.Array, bits: int) -> bool:
    """Whether `packed_below` can draw from this key: it needs the words of threefry."""
    return bits != 32 or _is_threefry(key)


def random_integers(
    key: jax.Array, shape: Sequence[int], bits: int, sharding: NamedSharding | None = None, *, show_blocks: bool = True
) -> jax.Array:
    """Returns for every element of `shape` a uniform integer in `[0, resolution(bits))`, as uint32.

    `show_blocks` writes it so that a compiler can see which neighbors share a block, and hash once for them. One that would not
    is better without: it may spread the blocks over devices otherwise than the elements.
    """
    if bits == 32:
        return random_words(key, shape, sharding) >> 9
    lanes = 64 // bits
    shift = lanes.bit_length() - 1
    size = math.prod(shape)
    # An axis of lanes shows that neighbors have the same counter; the axes that shape has do not.
    flat = (size // lanes, lanes) if show_blocks and size % lanes == 0 else shape
    first, second = _threefry2x32(_threefry_data(key), *element_index(flat, shift=shift))
    _, index = element_index(flat)
    # Arithmetic instead of a selection by `lane < lanes / 2`: the compiler would store that, one byte an element.
    of_first = (index >> (shift - 1) & 1) - np.uint32(1)
    word = second ^ ((first ^ second) & of_first)
    numbers = (word >> (index & (lanes // 2 - 1)) * bits & (2**bits - 1)).reshape(shape)
    return numbers if sharding is None else reshard(numbers, sharding)


def packed_below(
    key: jax.Array, threshold: jax.Array, shape: Sequence[int], bits: int, sharding: NamedSharding | None = None
) -> jax.Array:
    """Returns `random_integers(key, shape, bits) < threshold`, for a scalar threshold.

    One hash a block, whose answers go to memory as the bits of one small integer and are read from there.
    """
    cut = _groups(shape, bits, sharding)
    if cut is None:
        return random_integers(key, shape, bits, sharding, show_blocks=False) < threshold
    groups, size, group_sharding = cut
    if bits == 32:
        numbers = random_integers(key, (*groups, size), bits, group_sharding and _with_minor(group_sharding))
        below = (numbers < threshold).astype(jnp.uint32)
        packed = lax.reduce(below << _minor_index(below), np.uint32(0), lax.bitwise_or, (below.ndim - 1,))
    else:
        words = _threefry2x32(_threefry_data(key), *element_index(groups, group_sharding))
        mask, half = np.uint32(2**bits - 1), size // 2
        answers = ((words[lane // half] >> (lane % half * bits) & mask) < threshold for lane in range(size))
        packed = functools.reduce(jnp.bitwise_or, (a.astype(jnp.uint32) << lane for lane, a in enumerate(answers)))
        packed = _in_memory(packed.astype(jnp.uint8))
    return _unpack(packed, size, shape, sharding)


def random_words(key: jax.Array, shape: Sequence[int], sharding: NamedSharding | None = None) -> jax.Array:
    """Returns one uniform `uint32` for each element of `shape`, equal to `jax.random.bits(key, shape, uint32)`.

    Keys of other generators than `threefry2x32` are drawn from by `jax.random.bits` itself.
    """
    if not _is_threefry(key):
        return jax.random.bits(key, shape, jnp.uint32, out_sharding=sharding)
    first, second = _threefry2x32(jax.random.key_data(key), *element_index(shape, sharding))
    return first ^ second


def element_index(shape: Sequence[int], sharding: NamedSharding | None = None, *, shift: int = 0) -> tuple[jax.Array, jax.Array]:
    """Returns the upper and the lower 32 bits of every element's row-major index, shifted right."""
    size = math.prod(shape)
    if size <= 2**32:
        lower = lax.iota(jnp.uint32, size).reshape(shape) >> shift
        upper = jnp.zeros_like(lower)
    else:
        with jax.enable_x64(True):  # for these lines alone; shifted before it is narrowed, so that no array is stored
            index = lax.reshape(lax.iota(jnp.uint64, size), shape)
            index = lax.shift_right_logical(index, lax.full_like(index, shift))
            upper = lax.convert_element_type(lax.shift_right_logical(index, lax.full_like(index, 32)), jnp.uint32)
            lower = lax.convert_element_type(index, jnp.uint32)
    return (upper, lower) if sharding is None else (reshard(upper, sharding), reshard(lower, sharding))


def _is_threefry(key: jax.Array) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"


def _threefry_data(key: jax.Array) -> jax.Array:
    """Returns the two words of a threefry key; those of another generator's key are enciphered into two, pair by pair."""
    data = jax.random.key_data(key)
    if _is_threefry(key):
        return data
    words = [*data, *[jnp.zeros((), jnp.uint32)] * (data.size % 2)]
    derived = jnp.zeros(2, jnp.uint32)
    for pair in zip(words[::2], words[1::2], strict=True):
        derived = jnp.stack(_threefry2x32(derived, *pair))
    return derived


def _threefry2x32(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Enciphers the counters (x, y) with the key's two words: 20 rounds of Threefry-2x32.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = x + schedule[0], y + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ (y << rotation | y >> (32 - rotation))
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _groups(
    shape: Sequence[int], bits: int, sharding: NamedSharding | None
) -> tuple[tuple[int, ...], int, NamedSharding | None] | None:
    """Returns the shape of groups of consecutive elements, the size of a group, and the groups' sharding; None for no groups.

    A group holds the elements of a block, or with 32 bits up to 32. It is cut from the last axis, so that sharded axes stay so.
    Where that does not hold whole groups devices would share them, unless blocks of 16 bits can be cut from the flat array: where
    an even number of devices cannot share the rows, or each has a multiple of 4. (Of 8 bits, whose blocks straddle the rows then,
    nothing would be gained.)
    """
    if not shape or not math.prod(shape):
        return None
    size = math.gcd(_GROUP_OF_32, shape[-1]) if bits == 32 else 64 // bits
    if shape[-1] % size == 0 and (bits != 32 or size >= _LEAST_GROUP_OF_32):
        groups = (*shape[:-1], shape[-1] // size)
        return (groups, size, sharding) if sharding is None or _divides(groups, sharding) else None
    rows_stay_whole = shape[0] % 2 == 1 or shape[0] % _ROWS_FOR_ANY_DEVICES == 0
    return ((-(-math.prod(shape) // size),), size, None) if bits == 16 and sharding is None and rows_stay_whole else None


def _divides(shape: tuple[int, ...], sharding: NamedSharding) -> bool:
    """Whether every shard of an array of this shape has as many elements."""
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True


def _unpack(packed: jax.Array, size: int, shape: Sequence[int], sharding: NamedSharding | None) -> jax.Array:
    """Returns the lower `size` bits of every integer, in order, as bools of this shape."""
    spread = packed.astype(jnp.uint32)[..., None] & np.uint32(1) << lax.iota(jnp.uint32, size).reshape(
        (1,) * packed.ndim + (size,)
    )
    bools = spread != 0
    if sharding is not None:
        return lax.reshape(bools, shape, out_sharding=sharding)
    if bools.size == math.prod(shape):
        return bools.reshape(shape)
    return bools.reshape(-1)[: math.prod(shape)].reshape(shape)


def _in_memory(packed: jax.Array) -> jax.Array:
    """Returns the same integers, which the compiler then does not compute anew for every element that reads them.

    The barrier says so; but older versions of XLA drop it before they fuse. They never pull a division into a loop that reads its
    result several times, and cannot know yet that the divisor is 1.
    """
    one = lax.optimization_barrier(jnp.ones((), packed.dtype))
    return lax.optimization_barrier(lax.div(packed, jnp.broadcast_to(one, packed.shape)))


def _minor_index(x: jax.Array) -> jax.Array:
    return lax.broadcasted_iota(x.dtype, x.shape, x.ndim - 1)


def _with_minor(sharding: NamedSharding) -> NamedSharding:
    """Returns the sharding of an array that has one axis more, the last, which is not sharded."""
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, None))
