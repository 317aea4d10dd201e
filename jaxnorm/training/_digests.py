"""Digests of arrays, of 64 bits, that do not depend on which devices and processes share an array.

An array is a row of 32-bit words `w_i`, in row-major order. With a hash of the place `p_i = mix(i)` and of the word there
`m_i = mix(w_i ^ p_i)`, the digest is `sum_i m_i` and `sum_i m_i (p_i | 1)`, both mod 2^32. Since `mix` is one to one and the
factor is odd, a word that changes alone changes both for certain. Sums of parts add up to the sums of the whole in any order, so
each device sums where its part is.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Sums = dict[str, np.ndarray]
_ODD = (np.uint32(0x9E3779B9), np.uint32(0x6A09E667))  # the fractions of the golden ratio and of the root of 2


def start_sums(arrays: Mapping[str, jax.Array]) -> dict[str, list[jax.Array]]:
    """Starts the sums over the parts of arrays that are of this process, and returns them as soon as they are started.

    Of parts that several devices hold, one is summed, by one process. The arrays may then be donated.
    """
    return {name: [_sum(a, part) for part in a.addressable_shards if part.replica_id == 0] for name, a in arrays.items()}


def finish_sums(started: Mapping[str, list[jax.Array]]) -> Sums:
    """Returns the sums over this process's parts, `uint32[2]` for each array."""
    fetched = jax.device_get(dict(started))
    return {name: np.array(parts, np.uint32).reshape(-1, 2).sum(0, dtype=np.uint32) for name, parts in fetched.items()}


def digests(sums: list[Sums]) -> dict[str, str]:
    """Returns the digest of each whole array from the sums of all processes."""
    return {name: np.sum([part[name] for part in sums], axis=0, dtype=np.uint32).tobytes().hex() for name in sums[0]}


def _sum(array: jax.Array, part: jax.Shard) -> jax.Array:
    strides = np.array([math.prod(array.shape[axis + 1 :]) % 2**32 for axis in range(array.ndim)], np.uint32)
    starts = np.array([place.start or 0 for place in part.index], np.uint64)
    return _sum_words(part.data, np.sum(starts * strides, dtype=np.uint64).astype(np.uint32), strides)


@jax.jit
def _sum_words(x: jax.Array, start: jax.Array, strides: jax.Array) -> jax.Array:
    """Returns the two sums over a part of an array whose first element has the index `start`, and its axes these strides."""
    index = jnp.broadcast_to(start, x.shape)
    for axis in range(x.ndim):
        index += lax.broadcasted_iota(jnp.uint32, x.shape, axis) * strides[axis]
    words = _words(x)
    sums = jnp.zeros(2, jnp.uint32)
    for number, word in enumerate(words):
        place = _mix(index * np.uint32(len(words)) + np.uint32(number))
        mixed = _mix(word ^ place)
        sums += jnp.stack([jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(mixed * (place | np.uint32(1)), dtype=jnp.uint32)])
    return sums


def _words(x: jax.Array) -> list[jax.Array]:
    """Returns the bits of every element as one to four words, each an array of the shape of x."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(x.real) + _words(x.imag)
    if x.dtype.itemsize == 8:
        pairs = lax.bitcast_convert_type(x, jnp.uint32)
        return [pairs[..., 0], pairs[..., 1]]
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = lax.bitcast_convert_type(x, f"uint{jnp.finfo(x.dtype).bits}")
    return [x.astype(jnp.uint32)]


def _mix(x: jax.Array) -> jax.Array:
    """Returns one-to-one hashes of words: multiplications by odd numbers carry upwards, shifts bring it down again."""
    for odd in _ODD:
        x = (x ^ (x >> 16)) * odd
    return x ^ (x >> 15)
