"""Counter-based random bits: the only place that draws bits.

Every element of an array gets an integer of 8, 16 or 32 bits, which is a pure function of the key and of the element's
row-major index (64 bits): it does not change with the devices that share the array, with `vmap`, or with what else is drawn.

- 32 bits: element i takes both words of Threefry block i, the first xor the second, as `jax.random.bits` does.
- 16 and 8 bits: a block of 64 bits serves 4 or 8 elements. Element i takes lane `i mod lanes` of block `i // lanes`; lane l is
  bits `[l bits, (l + 1) bits)` of `first + 2^32 second`.

The rounds are written out, because jax runs them in a loop over memory on CPU, where they cost many times what the layer itself
does; written out they fuse into whatever uses them. Here they are drawn at every element, and it is left to the compiler to hash
once for neighbors of one block (GPUs do; the comments say what that takes). `jaxnorm._packed_bits` draws the same for CPUs.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, reshard

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


class Part(NamedTuple):
    """Which part of a larger array is drawn: consecutive elements along one axis, which is not the last.

    Attributes:
      axis: the axis.
      start: the index along it at which the part begins, which may be traced.
      whole: the size of the whole array along it.
    """

    axis: int
    start: jax.Array | int
    whole: int


def resolution(bits: int) -> int:
    """Returns how many different integers are drawn: 2^bits, but 2^23 for 32 bits, of which `jax.random.uniform` uses 23."""
    return 2**23 if bits == 32 else 2**bits


def random_integers(
    key: jax.Array,
    shape: Sequence[int],
    bits: int,
    sharding: NamedSharding | None = None,
    *,
    show_blocks: bool = True,
    read: Callable[[jax.Array], jax.Array] = lambda integers: integers,
    part: Part | None = None,
) -> jax.Array:
    """Returns for every element of `shape` a uniform integer in `[0, resolution(bits))`, as uint32.

    `show_blocks` writes it so that a compiler can see which neighbors share a block, and hash once for them. One that would not
    is better without: it may spread the blocks over devices otherwise than the elements. `read` is what is made of each integer:
    it is made beside the hash, since a compiler that sees a number used twice elsewhere would store it instead. Of a `part`,
    whose shape this then is, they are the integers of its elements in the whole array; 32 bits then take a key of threefry.
    """
    if bits == 32:
        return read(random_words(key, shape, sharding, part) >> 9)
    lanes = 64 // bits
    shift = lanes.bit_length() - 1
    size = math.prod(shape)
    # An axis of lanes shows that neighbors have the same counter; the axes that shape has do not.
    if not show_blocks:
        cut = shape
    elif is_known(shape) and part is None:
        cut = (size // lanes, lanes) if size % lanes == 0 else shape
    else:
        cut = (*shape[:-1], shape[-1] // lanes, lanes) if shape[-1] % lanes == 0 else shape
    words = threefry2x32(threefry_data(key), *element_index(cut, shift=shift, part=part))
    _, index = element_index(cut, part=part)
    word = choose_word(words, index >> (shift - 1) & 1)
    numbers = read(word >> (index & (lanes // 2 - 1)) * bits & (2**bits - 1)).reshape(shape)
    return numbers if sharding is None else reshard(numbers, sharding)


def random_words(
    key: jax.Array, shape: Sequence[int], sharding: NamedSharding | None = None, part: Part | None = None
) -> jax.Array:
    """Returns one uniform `uint32` for each element of `shape`, equal to `jax.random.bits(key, shape, uint32)`.

    Keys of other generators than `threefry2x32` are drawn from by `jax.random.bits` itself.
    """
    if not is_threefry(key):
        return jax.random.bits(key, shape, jnp.uint32, out_sharding=sharding)
    first, second = threefry2x32(jax.random.key_data(key), *element_index(shape, sharding, part=part))
    return first ^ second


def random_indices(key: jax.Array, shape: Sequence[int], sizes: jax.Array, sharding: NamedSharding | None = None) -> jax.Array:
    """Returns for each element of `shape` a uniform `int32` below its size, of 32 random bits; the sizes broadcast to it."""
    words = random_words(key, shape, sharding)
    above, _ = multiply_add(jnp.zeros_like(words), words, sizes, jnp.zeros_like(words))
    return above.astype(jnp.int32)


def choose_word(words: tuple[jax.Array, jax.Array], which: jax.Array) -> jax.Array:
    """Returns the first word where `which` is 0, and the second where it is 1.

    By arithmetic and not by a selection: the compiler would store its condition, one byte an element.
    """
    first, second = words
    return second ^ ((first ^ second) & (which - np.uint32(1)))


def element_index(
    shape: Sequence[int], sharding: NamedSharding | None = None, *, shift: int = 0, part: Part | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the upper and the lower 32 bits of every element's row-major index, shifted right; of a part, in the whole."""
    size = math.prod(shape)
    if part is not None or not is_known(shape):
        upper, lower = _index_by_axes(shape, part)
        if shift:
            upper, lower = upper >> shift, lower >> shift | upper << (32 - shift)
    elif size <= 2**32:
        lower = lax.iota(jnp.uint32, size).reshape(shape) >> shift
        upper = jnp.zeros_like(lower)
    else:
        with jax.enable_x64(True):  # for these lines alone; shifted before it is narrowed, so that no array is stored
            index = lax.reshape(lax.iota(jnp.uint64, size), shape)
            index = lax.shift_right_logical(index, lax.full_like(index, shift))
            upper = lax.convert_element_type(lax.shift_right_logical(index, lax.full_like(index, 32)), jnp.uint32)
            lower = lax.convert_element_type(index, jnp.uint32)
    return (upper, lower) if sharding is None else (reshard(upper, sharding), reshard(lower, sharding))


def is_known(shape: Sequence[int]) -> bool:
    """Whether all sizes are numbers: `jax.export` has expressions too, such as `4*b`, for sizes that a program is given later."""
    return all(isinstance(n, int) for n in shape)


def _index_by_axes(shape: Sequence[int], part: Part | None) -> tuple[jax.Array, jax.Array]:
    """Returns the upper and the lower 32 bits of every element's row-major index, of a part or where sizes are not known yet.

    Axis by axis, in words of 32 bits and not by one long axis: expressions of sizes are computed in 31 bits, which hold every
    axis but not their product. The upper words are shown to be 0 where they are, so that a compiler, which knows the sizes,
    computes none.
    """
    whole = [part.whole if part is not None and axis == part.axis else n for axis, n in enumerate(shape)]
    sizes = [jnp.asarray(n, jnp.uint32) for n in whole]
    fits = math.prod(n.astype(jnp.float32) for n in sizes) < np.float32(2**31)
    upper = lower = jnp.zeros((1,) * len(shape), jnp.uint32)
    for axis, n in enumerate(sizes):
        along = [1] * len(shape)
        along[axis] = shape[axis]
        index = lax.broadcasted_iota(jnp.uint32, along, axis)
        if part is not None and axis == part.axis:
            index = index + jnp.asarray(part.start, jnp.uint32)
        upper, lower = multiply_add(upper, lower, n, index)
    return jnp.where(fits, jnp.zeros_like(upper), upper), lower


def multiply_add(upper: jax.Array, lower: jax.Array, n: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the upper and the lower 32 bits of `(2^32 upper + lower) n + i`."""
    half = np.uint32(0xFFFF)
    middle = (lower >> 16) * (n & half) + ((lower & half) * (n & half) >> 16)
    other = (lower & half) * (n >> 16) + (middle & half)
    carried = (lower >> 16) * (n >> 16) + (middle >> 16) + (other >> 16)
    product = lower * n
    total = product + i
    return upper * n + carried + (total < product).astype(jnp.uint32), total


def is_threefry(key: jax.Array) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"


def threefry_data(key: jax.Array) -> jax.Array:
    """Returns the two words of a threefry key; those of another generator's key are enciphered into two, pair by pair."""
    data = jax.random.key_data(key)
    if is_threefry(key):
        return data
    words = [*data, *[jnp.zeros((), jnp.uint32)] * (data.size % 2)]
    derived = jnp.zeros(2, jnp.uint32)
    for pair in zip(words[::2], words[1::2], strict=True):
        derived = jnp.stack(threefry2x32(derived, *pair))
    return derived


def threefry2x32(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
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
