"""Generators that are wrong, each in a way that packed bits could be, or that generators in use have been.

Each is a function `(count, bits) -> numbers`; but for its defect it is as good as NumPy's.
"""

from collections.abc import Callable

import numpy as np
from battery.number_tests import BLOCK, Numbers

BadGenerator = Callable[[int, int], Numbers]


def good(count: int, bits: int) -> Numbers:
    """NumPy's own generator."""
    return np.random.default_rng(21).integers(2**bits, size=count, dtype=f"uint{bits}")


def counter(count: int, bits: int) -> Numbers:
    """0, 1, 2, ..."""
    return np.arange(count).astype(f"uint{bits}")


def biased(count: int, bits: int) -> Numbers:
    """The highest bit is set in 53 % of the numbers."""
    numbers = good(count, bits)
    numbers[_chosen(count, 0.06)] |= 2 ** (bits - 1)
    return numbers


def biased_lane(count: int, bits: int) -> Numbers:
    """The highest bit is set in 53 % of the numbers in the last lane."""
    lanes = good(count, bits).reshape(-1, BLOCK // bits)
    lanes[_chosen(len(lanes), 0.06), -1] |= 2 ** (bits - 1)
    return lanes.ravel()


def repeated_number(count: int, bits: int) -> Numbers:
    """One number in 16 is the one before it."""
    numbers = good(count, bits)
    repeated = 1 + np.flatnonzero(_chosen(count - 1, 1 / 16))
    numbers[repeated] = numbers[repeated - 1]
    return numbers


def reused_word(count: int, bits: int) -> Numbers:
    """The lanes of a block's second word are those of its first."""
    return np.repeat(_good_words(count // 2, bits), 2).view(f"uint{bits}")


def copied_bit(count: int, bits: int) -> Numbers:
    """In one block of eight the highest bit of the last lane is that of the first."""
    lanes = good(count, bits).reshape(-1, BLOCK // bits)
    differs = (lanes[:, 0] ^ lanes[:, -1]) & 2 ** (bits - 1)
    lanes[:, -1] ^= differs * _chosen(len(lanes), 1 / 8)
    return lanes.ravel()


def rising_words(count: int, bits: int) -> Numbers:
    """Of two words the smaller comes first in 60 % of the pairs."""
    pairs = _good_words(count, bits).reshape(-1, 2)
    ordered = _chosen(len(pairs), 0.2)
    pairs[ordered] = np.sort(pairs[ordered], axis=1)
    return pairs.ravel().view(f"uint{bits}")


def turned_word(count: int, bits: int) -> Numbers:
    """One word in eight is the word before it, its bits turned by a random number of places."""
    words, rng = _good_words(count, bits), np.random.default_rng(3)
    turned = 1 + np.flatnonzero(_chosen(words.size - 1, 1 / 8))
    places = rng.integers(1, 32, turned.size, np.uint32)
    before = words[turned - 1]
    words[turned] = before << places | before >> (np.uint32(32) - places)
    return words.view(f"uint{bits}")


def wave(count: int, bits: int) -> Numbers:
    """One number in 16 gets its highest bit from a square wave of 90 numbers."""
    numbers, highest = good(count, bits), 2 ** (bits - 1)
    chosen = np.flatnonzero(_chosen(count, 1 / 16))
    numbers[chosen] = numbers[chosen] & (highest - 1) | (chosen % 90 < 45) * np.asarray(highest, numbers.dtype)
    return numbers


def low_bits(count: int, bits: int) -> Numbers:
    """The lowest bits of a linear congruential generator, which have short periods."""
    return _congruential(count).astype(f"uint{bits}")


def lattice(count: int, bits: int) -> Numbers:
    """All bits of a linear congruential generator: words that lie on few planes and of which none comes twice."""
    return _congruential(count * bits // 32).view(f"uint{bits}")


def distinct_words(count: int, bits: int) -> Numbers:
    """Words of which no two share their upper 24 bits."""
    upper = np.random.default_rng(3).permutation(2**18)[: count * bits // 32] << 14
    return (upper.astype(np.uint32) | _good_words(count, bits) & np.uint32(2**14 - 1)).view(f"uint{bits}")


def shift_register(count: int, bits: int) -> Numbers:
    """Words that are a linear function of the word before them, over the field of two elements (Marsaglia's xorshift)."""
    words, word = [], 2463534242
    for _ in range(count * bits // 32):
        word ^= word << 13 & 0xFFFFFFFF
        word ^= word >> 17
        word ^= word << 5 & 0xFFFFFFFF
        words.append(word)
    return np.array(words, np.uint32).view(f"uint{bits}")


def few_rounds(count: int, bits: int) -> Numbers:
    """Threefry-2x32 of the counters 0, 1, 2, ..., with 4 rounds instead of 20."""
    second = np.arange(count * bits // BLOCK, dtype=np.uint32) + np.uint32(21)
    first = np.zeros_like(second)
    for rotation in (13, 15, 26, 6):
        first = first + second
        second = first ^ (second << np.uint32(rotation) | second >> np.uint32(32 - rotation))
    return np.stack([first, second], axis=1).ravel().view(f"uint{bits}")


BAD_GENERATORS: tuple[BadGenerator, ...] = (
    counter,
    biased,
    biased_lane,
    repeated_number,
    reused_word,
    copied_bit,
    rising_words,
    turned_word,
    wave,
    low_bits,
    lattice,
    distinct_words,
    shift_register,
    few_rounds,
)


def _good_words(count: int, bits: int) -> Numbers:
    return good(count, bits).view(np.uint32)


def _chosen(count: int, probability: float) -> np.ndarray:
    return np.random.default_rng(5).random(count) < probability


def _congruential(count: int) -> Numbers:
    """Returns x -> 1664525 x + 1013904223 modulo 2^32, from 1 on (Knuth, Lewis)."""
    powers = np.cumprod(np.full(count, 1664525, np.uint32), dtype=np.uint32)
    return powers + np.uint32(1013904223) * np.cumsum(np.append(np.uint32(1), powers[:-1]), dtype=np.uint32)
