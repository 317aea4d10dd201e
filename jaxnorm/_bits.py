"""Counter-based random bits: the only place that draws bits.

The word of element i (its row-major index, 64 bits) is a pure function of the key and i, so that a draw does not change with
the devices that share it, with `vmap`, or with what else is drawn. For `threefry2x32` keys the words are those of
`jax.random.bits`. They are computed here, from the definition of the cipher, because jax runs its rounds in a loop over
memory on CPU, where they cost many times what the layer itself does; written out they fuse into whatever uses them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_LOW_16 = 0xFFFF


def random_words(key: jax.Array, shape: Sequence[int], sharding: NamedSharding | None = None) -> jax.Array:
    """Returns one uniform `uint32` for each element of `shape`, equal to `jax.random.bits(key, shape, uint32)`.

    Keys of other generators than `threefry2x32` are drawn from by `jax.random.bits` itself.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(key, shape, jnp.uint32, out_sharding=sharding)
    first, second = _threefry2x32(jax.random.key_data(key), *element_index(shape, sharding))
    return first ^ second


def element_index(shape: Sequence[int], sharding: NamedSharding | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the upper and the lower 32 bits of every element's row-major index."""
    upper = lower = jnp.zeros(shape, jnp.uint32, device=sharding)
    stride = 1
    for axis in reversed(range(len(shape))):
        index = lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding)
        high, low = _multiply(index, stride)
        lower = lower + low
        if stride * shape[axis] > 2**32:
            upper = upper + high + (lower < low).astype(jnp.uint32)
        stride *= shape[axis]
    return upper, lower


def _multiply(index: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
    """Returns the upper and the lower 32 bits of `index * stride`, for a stride below 2^64 and a product below 2^64."""
    low_stride = jnp.uint32(stride % 2**32)
    a, b = index >> 16, index & _LOW_16
    c, d = jnp.uint32(stride % 2**32 >> 16), jnp.uint32(stride & _LOW_16)
    middle = (b * d >> 16) + (a * d & _LOW_16) + (b * c & _LOW_16)
    high = a * c + (a * d >> 16) + (b * c >> 16) + (middle >> 16) + index * jnp.uint32(stride >> 32)
    return high, index * low_stride


def _threefry2x32(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Enciphers the counters (x, y) with the key's two words: 20 rounds of Threefry-2x32.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = x + schedule[0], y + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ (y << rotation | y >> (32 - rotation))
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y
