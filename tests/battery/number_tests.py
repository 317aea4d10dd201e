"""Tests of uniform whole numbers of 8 or 16 bits, in the order in which the elements of an array draw them.

Each is a function `(numbers, bits) -> p` of a flat array of `uint8` or `uint16`: the probability of numbers as odd as these, if
all were independent and uniform. A test that needs finer numbers joins neighbors to words of 32 bits.

Knuth, "The art of computer programming", volume 2, section 3.3.2 (frequency, serial, gap, poker, permutation, run, maximum of t,
collision, birthday spacings); Marsaglia, Tsay, "Matrices and the structure of random number sequences", Linear Algebra and its
Applications 67, 1985 (ranks); L'Ecuyer, Simard, "TestU01", ACM Transactions on Mathematical Software 33, 2007 (weights, bits).
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from randomness import autocorrelation, chi_squared, even, poisson, runs, smallest, spread
from scipy import special, stats

Numbers = NDArray[np.unsignedinteger]
NumberTest = Callable[[Numbers, int], float]

BLOCK = 64  # the bits of one call of the cipher
DISTANCES = (1, 2, 3, 4, 5, 7, 8, 16, 64)


def frequency(numbers: Numbers, bits: int) -> float:
    """Whether all numbers are drawn alike, and all upper bytes."""
    return smallest(even(np.bincount(_upper(numbers, bits, wanted), minlength=2**wanted)) for wanted in {8, bits})


def serial_pairs(numbers: Numbers, bits: int) -> float:
    """Whether all pairs of upper bytes are drawn alike, of neighbors and of numbers further apart."""
    bytes_ = _upper(numbers, bits, 8)
    return smallest(even(_pair_counts(*_apart(bytes_, distance), 256)) for distance in DISTANCES)


def serial_correlation(numbers: Numbers, bits: int) -> float:
    """Whether numbers up to 64 apart are uncorrelated."""
    return autocorrelation((numbers - (2**bits - 1) / 2) * np.sqrt(12 / (4.0**bits - 1)), longest=64)


def gaps(numbers: Numbers, bits: int) -> float:
    """Whether the distances from one number in the lowest eighth to the next are geometric."""
    return _geometric(np.diff(np.flatnonzero(numbers < 2 ** (bits - 3))), 1 / 8, longest=40)


def bit_runs(numbers: Numbers, bits: int) -> float:
    """Whether the highest bits change as often as they should, and stay as long as they should."""
    bit = _upper(numbers, bits, 1)
    return smallest([runs(bit == 1, 0.5), _geometric(np.diff(np.flatnonzero(np.diff(bit))), 1 / 2, longest=12)])


def poker(numbers: Numbers, bits: int) -> float:
    """Whether five numbers of 3 bits are all different, hold one pair, and so on, as often as they should."""
    hands = np.sort(_groups(_upper(numbers, bits, 3), 5), axis=1)
    different = np.sum(np.diff(hands, axis=1) != 0, axis=1)
    partitions = (1, 15, 25, 10, 1)  # of five cards into one, two, ... parts: Stirling numbers of the second kind
    return chi_squared(np.bincount(different, minlength=5), [math.perm(8, n + 1) * partitions[n] / 8**5 for n in range(5)])


def permutations(numbers: Numbers, bits: int) -> float:
    """Whether five words come in every order alike."""
    place = 5 ** np.arange(5)
    counts = np.bincount(np.argsort(_groups(_words(numbers), 5), axis=1) @ place, minlength=5**5)
    return even(counts[[place @ order for order in itertools.permutations(range(5))]])


def ascents(numbers: Numbers, bits: int) -> float:
    """Whether ascending runs are as long as they should be, one run at the beginning of every eight words."""
    words = _groups(_words(numbers), 8)
    steps = np.cumprod(words[:, 1:] > words[:, :-1], axis=1).sum(axis=1)
    longer = np.array([1 / math.factorial(n + 1) for n in range(6)])  # the probability of at least n steps
    return chi_squared(np.bincount(np.minimum(steps, 5), minlength=6), np.append(longer[:-1] - longer[1:], longer[-1]))


def maximum_of_eight(numbers: Numbers, bits: int) -> float:
    """Whether the greatest of eight words, to the power of 8, is uniform."""
    greatest = (_groups(_words(numbers), 8).max(axis=1) / 2.0**32) ** 8
    return even(np.bincount((greatest * 128).astype(int), minlength=128))


def collisions(numbers: Numbers, bits: int) -> float:
    """Whether 2^14 words of 24 bits hold as many repetitions as they should."""
    urns, balls = 2**24, 2**14
    words = np.sort(_groups(_words(numbers) >> 8, balls), axis=1)
    occupied = -urns * math.expm1(balls * math.log1p(-1 / urns))
    return poisson(np.sum(np.diff(words, axis=1) == 0), len(words) * (balls - occupied))


def birthday_spacings(numbers: Numbers, bits: int) -> float:
    """Whether the distances between 2^11 sorted words of 30 bits repeat as often as they should."""
    days, people = 2**30, 2**11
    birthdays = np.sort(_groups(_words(numbers) >> 2, people), axis=1)
    spacings = np.sort(np.diff(birthdays, axis=1), axis=1)
    return poisson(np.sum(np.diff(spacings, axis=1) == 0), len(birthdays) * people**3 / (4 * days))


def matrix_ranks(numbers: Numbers, bits: int) -> float:
    """Whether matrices of 32 words have the ranks of random ones over the field of two elements."""
    deficit = 32 - _ranks(_groups(_words(numbers), 32))
    powers = 0.5 ** np.arange(1, 33)
    probability = [np.prod(1 - powers[d:]) ** 2 / np.prod(1 - powers[: 32 - d]) * 2.0 ** -(d**2) for d in range(3)]
    return chi_squared(np.bincount(np.minimum(deficit, 3), minlength=4), np.append(probability, 1 - sum(probability)))


def spectrum(numbers: Numbers, bits: int) -> float:
    """Whether the power of normal numbers is exponential at every frequency, and nowhere too great."""
    normal = special.ndtri((np.arange(2**bits) + 0.5) / 2**bits)
    power = np.abs(np.fft.rfft((normal / normal.std())[numbers])[1:-1]) ** 2 / numbers.size
    greatest = -math.expm1(power.size * math.log1p(-math.exp(-power.max())))
    return smallest([greatest, float(stats.kstest(power, stats.expon.cdf).pvalue)])


def weights(numbers: Numbers, bits: int) -> float:
    """Whether the count of ones in a word tells nothing about the next word, nor about the one after it."""
    size = np.digitize(np.bitwise_count(_words(numbers)), [14, 16, 17, 19])
    probability = np.diff(stats.binom.cdf([-1, 13, 15, 16, 18, 32], 32, 0.5))
    joint = np.outer(probability, probability).ravel()
    return smallest(chi_squared(_pair_counts(*_apart(size, distance), 5), joint) for distance in (1, 2))


def lane_counts(numbers: Numbers, bits: int) -> float:
    """Whether every lane of a block draws every upper byte alike."""
    lanes = _groups(_upper(numbers, bits, 8), BLOCK // bits).T
    return smallest(even(np.bincount(lane, minlength=256)) for lane in lanes)


def lane_pairs(numbers: Numbers, bits: int) -> float:
    """Whether any two lanes of a block, and any two of a block and the next one, are independent in their upper 4 bits."""
    lanes = _groups(_upper(numbers, bits, 4), BLOCK // bits).T
    across = ((first[:-1:2], second[1::2]) for first, second in itertools.product(lanes, repeat=2))
    pairs = itertools.chain(itertools.combinations(lanes, 2), across)
    return smallest(even(_pair_counts(first, second, 16)) for first, second in pairs)


def bit_correlations(numbers: Numbers, bits: int) -> float:
    """Whether any two of the 64 bits of a block, and any two of a block and the next one, are uncorrelated."""
    blocks = _groups(numbers, BLOCK // bits)
    one, next_one = _bit_planes(blocks), _bit_planes(np.roll(blocks, -1, axis=0))

    def correlations(planes: Numbers, others: Numbers) -> NDArray[np.float64]:
        differing = np.array([np.bitwise_count(plane ^ others).sum(axis=1, dtype=int) for plane in planes])
        return (len(blocks) - 2 * differing) / np.sqrt(len(blocks))

    inside = correlations(one, one)[np.triu_indices(BLOCK, 1)]
    return smallest([spread(inside), spread(correlations(one, next_one).ravel())])


TESTS: tuple[NumberTest, ...] = (
    frequency,
    serial_pairs,
    serial_correlation,
    gaps,
    bit_runs,
    poker,
    permutations,
    ascents,
    maximum_of_eight,
    collisions,
    birthday_spacings,
    matrix_ranks,
    spectrum,
    weights,
    lane_counts,
    lane_pairs,
    bit_correlations,
)


def _upper(numbers: Numbers, bits: int, wanted: int) -> NDArray[np.int64]:
    """Returns the highest bits of every number."""
    return (numbers >> (bits - wanted)).astype(np.int64)


def _words(numbers: Numbers) -> Numbers:
    """Joins neighbors to words of 32 bits, the first in the lowest bits."""
    return numbers.view(np.uint32)


def _groups(values: NDArray, size: int) -> NDArray:
    """Returns the values in rows of this size, without the rest that fills none."""
    return values[: values.size // size * size].reshape(-1, size)


def _apart(values: NDArray, distance: int) -> tuple[NDArray, NDArray]:
    """Returns pairs of values that lie so far apart, every value in one pair only."""
    pairs = _groups(values, 2 * distance).reshape(-1, 2, distance)
    return pairs[:, 0].ravel(), pairs[:, 1].ravel()


def _pair_counts(first: NDArray[np.integer], second: NDArray[np.integer], values: int) -> NDArray[np.integer]:
    return np.bincount(first * values + second, minlength=values**2)


def _bit_planes(blocks: Numbers) -> Numbers:
    """Returns, of each of a block's 64 bits, a row of that bit in all blocks; the number of blocks is a multiple of 64."""
    bits = np.ascontiguousarray(np.unpackbits(blocks.view(np.uint8), axis=1).T)
    return np.packbits(bits, axis=1).view(np.uint64)


def _geometric(lengths: NDArray[np.integer], probability: float, longest: int) -> float:
    """Whether lengths are geometric; those from the longest on are counted together."""
    at_least = (1 - probability) ** np.arange(longest)
    counts = np.bincount(np.minimum(lengths, longest), minlength=longest + 1)[1:]
    return chi_squared(counts, np.append(at_least[:-1] - at_least[1:], at_least[-1]))


def _ranks(matrices: Numbers) -> NDArray[np.integer]:
    """Returns the rank of every matrix, a row of 32 words each: column by column, a row that has a one clears it in all rows."""
    rows, rank = matrices.copy(), np.zeros(len(matrices), int)
    for column in range(32):
        ones = rows >> np.uint32(column) & np.uint32(1)
        pivot = np.take_along_axis(rows, ones.argmax(axis=1)[:, None], axis=1)
        rank += ones.any(axis=1)
        rows ^= ones * pivot
    return rank
