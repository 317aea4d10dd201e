"""The random bits: the cipher's published vectors, jax's own bits, and 64-bit positions without 64-bit arrays."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from numpy.testing import assert_array_equal

from jaxnorm._bits import _multiply, _threefry2x32, element_index, random_words

# Random123's known answers (threefry2x32, 20 rounds): counter, key, result.
VECTORS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize("counter, key, result", VECTORS)
def test_published_vectors(counter: tuple[int, int], key: tuple[int, int], result: tuple[int, int]) -> None:
    assert tuple(int(word) for word in oracles.threefry2x32(key, counter)) == result
    ours = _threefry2x32(jnp.asarray(key, jnp.uint32), *(jnp.asarray(word, jnp.uint32) for word in counter))
    assert tuple(int(word) for word in ours) == result


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 4, 4, 3), (1, 300, 1), (0, 3)], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5])
def test_words_are_those_of_jax(shape: tuple[int, ...], seed: int) -> None:
    words = random_words(jax.random.key(seed), shape)
    assert (words.shape, words.dtype) == (shape, jnp.uint32)
    assert_array_equal(words, jax.random.bits(jax.random.key(seed), shape))
    assert_array_equal(words, oracles.random_words(jax.random.key_data(jax.random.key(seed)), shape))


def positions(shape: tuple[int, ...], chosen: list[tuple[int, ...]]) -> list[int]:
    """The row-major positions of chosen elements, of arrays that no machine could hold: each element is a program of its own."""

    def element(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tuple(jax.lax.dynamic_slice(part, index, (1,) * len(shape)).ravel()[0] for part in element_index(shape))

    program = jax.jit(lambda index: element(tuple(index)))
    memory = program.lower(jnp.zeros(len(shape), jnp.int32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 10_000
    results = (program(jnp.asarray(index, jnp.int32)) for index in chosen)
    return [(int(upper) << 32) + int(lower) for upper, lower in results]


LARGE = [(2**20, 2**13), (3, 2**31 - 1), (2**16 + 1, 2**16 + 1), (5, 7, 2**15 + 3, 2**17 - 1), (2**31 - 1, 2**29 - 1)]


@pytest.mark.parametrize("shape", [*LARGE, (9, 2**30 + 7, 3)], ids=str)
def test_positions_beyond_32_bits(shape: tuple[int, ...]) -> None:
    corners = list(itertools.product(*[(0, n // 2 + 1, n - 1) for n in shape]))
    expected = [sum(i * int(np.prod([int(m) for m in shape[a + 1 :]], dtype=object)) for a, i in enumerate(c)) for c in corners]
    assert positions(shape, corners) == expected


def test_words_beyond_32_bits_are_those_of_their_position() -> None:
    shape, index = (2**20, 2**13), (2**20 - 1, 5)

    @jax.jit
    def word(key: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(random_words(key, shape), tuple(index), (1, 1))[0, 0]

    position = index[0] * shape[1] + index[1]
    high, low = oracles.threefry2x32((0, 9), (position >> 32, position & 0xFFFFFFFF))
    assert int(word(jax.random.key(9), jnp.asarray(index))) == int(high ^ low)


def test_products_of_a_word_and_a_stride() -> None:
    words = (0, 1, 2**16 - 1, 2**16, 2**16 + 1, 2**31, 2**32 - 1)
    strides = (0, 1, 2**15, 2**16 + 3, 2**31 + 7, 2**32 - 1, 2**32, 2**33 + 5, 2**48 + 2**20 + 1)
    for word, stride in itertools.product(words, strides):
        if word * stride < 2**64:
            high, low = _multiply(jnp.asarray(word, jnp.uint32), stride)
            assert (int(high) << 32) + int(low) == word * stride


def test_an_element_does_not_depend_on_the_axes_after_the_first() -> None:
    """Only on its position: reshaping what is drawn changes no word."""
    flat = random_words(jax.random.key(4), (120,))
    assert_array_equal(random_words(jax.random.key(4), (4, 5, 6)).ravel(), flat)
    assert_array_equal(random_words(jax.random.key(4), (100,)), flat[:100])
