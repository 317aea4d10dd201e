"""The numbers that decide which elements are dropped, in the orders in which networks meet them.

Each stream is a function `(key, count, bits) -> numbers`; `count` is a multiple of 1024.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from battery.number_tests import BLOCK, Numbers

from jaxnorm._bits import random_integers

Stream = Callable[[jax.Array, int, int], jax.Array]


def numbers(key: jax.Array, shape: Sequence[int], bits: int) -> jax.Array:
    """Returns the number of every element."""
    return random_integers(key, shape, bits).astype(f"uint{bits}")


def elements(key: jax.Array, count: int, bits: int) -> jax.Array:
    """One element after the other."""
    return numbers(key, (count,), bits)


def columns(key: jax.Array, count: int, bits: int) -> jax.Array:
    """The columns of a matrix, one after the other."""
    return numbers(key, (1024, count // 1024), bits).T


def narrow_columns(key: jax.Array, count: int, bits: int) -> jax.Array:
    """The columns of a matrix of three columns, so that a row begins in another lane than the row before."""
    return numbers(key, (count // 2, 3), bits).T.ravel()[:count]


def first_lane(key: jax.Array, count: int, bits: int) -> jax.Array:
    """The first element of every block."""
    return numbers(key, (count, BLOCK // bits), bits)[:, 0]


def last_lane(key: jax.Array, count: int, bits: int) -> jax.Array:
    """The last element of every block."""
    return numbers(key, (count, BLOCK // bits), bits)[:, -1]


def steps(key: jax.Array, count: int, bits: int) -> jax.Array:
    """Sixteen elements of the key of each step."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count // 16))
    return jax.vmap(lambda key: numbers(key, (16,), bits))(keys)


def layers(key: jax.Array, count: int, bits: int) -> jax.Array:
    """Eight elements of each of 16 layers in every step: a key that was folded twice."""
    fold_in = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(fold_in, (0, None))(fold_in(key, jnp.arange(count // 128)), jnp.arange(16))
    return jax.vmap(jax.vmap(lambda key: numbers(key, (8,), bits)))(keys)


def seeds(key: jax.Array, count: int, bits: int) -> jax.Array:
    """Sixteen elements of each of the keys whose seeds follow one another; the first seed is drawn from `key`."""
    seeds = jax.random.bits(key) + jnp.arange(count // 16, dtype=jnp.uint32)
    return jax.vmap(lambda seed: numbers(jax.random.key(seed), (16,), bits))(seeds)


def rbg_seeds(key: jax.Array, count: int, bits: int) -> jax.Array:
    """The same of keys of another generator, from which keys of threefry are derived."""
    seeds = jax.random.bits(key) + jnp.arange(count // 16, dtype=jnp.uint32)
    return jax.vmap(lambda seed: numbers(jax.random.key(seed, impl="rbg"), (16,), bits))(seeds)


def same_element(key: jax.Array, count: int, bits: int) -> jax.Array:
    """The same element of many keys that were split from one, and then the next element."""
    return jax.vmap(lambda key: numbers(key, (16,), bits))(jax.random.split(key, count // 16)).T


def highest_bits(key: jax.Array, count: int, bits: int) -> jax.Array:
    """The masks at a rate of 0.5, packed."""
    bit = numbers(key, (count, bits), bits) >> (bits - 1)
    return jnp.sum(bit << jnp.arange(bits, dtype=bit.dtype)[None], axis=1, dtype=bit.dtype)


STREAMS: tuple[Stream, ...] = (
    elements,
    columns,
    narrow_columns,
    first_lane,
    last_lane,
    steps,
    layers,
    seeds,
    rbg_seeds,
    same_element,
    highest_bits,
)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _draw(stream: Stream, key: jax.Array, count: int, bits: int) -> jax.Array:
    return stream(key, count, bits).ravel()


def draw(stream: Stream, seed: int, count: int, bits: int) -> Numbers:
    """Returns the first numbers of a stream."""
    return np.asarray(_draw(stream, jax.random.key(seed), count, bits))
