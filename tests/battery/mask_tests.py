"""Tests of a mask of dropout, a matrix of True where an element is dropped.

Each is a function `(dropped, probability, lanes) -> p`, as in `randomness.py`. The rows are those of one array, or the masks of
as many keys; `lanes` is the number of consecutive elements that share a block of bits.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from randomness import autocorrelation, chi_squared, independence, positions, rate, runs, smallest, spread
from scipy import stats

Mask = NDArray[np.bool_]
MaskTest = Callable[[Mask, float, int], float]


def share(dropped: Mask, probability: float, lanes: int) -> float:
    """Whether as many elements are dropped as should be."""
    return rate(dropped, probability)


def rows_and_columns(dropped: Mask, probability: float, lanes: int) -> float:
    """Whether every row is dropped as often as the others, and every column."""
    return smallest([positions(dropped.T, probability), positions(dropped, probability)])


def lane_shares(dropped: Mask, probability: float, lanes: int) -> float:
    """Whether every lane is dropped as often as the others."""
    return positions(_blocks(dropped, lanes), probability)


def lane_pairs(dropped: Mask, probability: float, lanes: int) -> float:
    """Whether any two lanes of a block are uncorrelated."""
    noise = _standard(_blocks(dropped, lanes), probability)
    return spread((noise.T @ noise)[np.triu_indices(lanes, 1)] / np.sqrt(len(noise)))


def block_boundaries(dropped: Mask, probability: float, lanes: int) -> float:
    """Whether the last element of a block is independent of the first of the next one."""
    blocks = _blocks(dropped, lanes)
    return independence(blocks[:-1, -1], blocks[1:, 0], probability)


def distances(dropped: Mask, probability: float, lanes: int) -> float:
    """Whether elements up to 64 apart are uncorrelated, along the rows and along the columns."""
    return smallest(autocorrelation(_standard(order.ravel(), probability), longest=64) for order in (dropped, dropped.T))


def changes(dropped: Mask, probability: float, lanes: int) -> float:
    """Whether the mask changes as often as it should, along the rows and along the columns."""
    return smallest(runs(order, probability) for order in (dropped, dropped.T))


def row_pairs(dropped: Mask, probability: float, lanes: int) -> float:
    """Whether any two rows agree in as many elements as they should, or any two columns, whichever are fewer."""
    lines = dropped if len(dropped) <= dropped.shape[1] else dropped.T
    count, length = lines.shape
    signs = 1 - 2 * lines.astype(np.float32)
    agreeing = (length + (signs @ signs.T)[np.triu_indices(count, 1)]) / 2
    expected = stats.binom(length, probability**2 + (1 - probability) ** 2)
    tails = expected.cdf(agreeing.min()), expected.sf(agreeing.max() - 1)
    return min(1.0, 2 * agreeing.size * float(min(tails)))


def windows(dropped: Mask, probability: float, lanes: int) -> float:
    """Whether 2 by 2 elements show every pattern as often as they should; patterns of three or four dropped count together."""
    rows, columns = (size // 2 * 2 for size in dropped.shape)
    corners = [dropped[i:rows:2, j:columns:2].ravel() for i in (0, 1) for j in (0, 1)]
    counts = np.bincount(np.asarray(corners).T @ (1 << np.arange(4)), minlength=16)
    size = np.bitwise_count(np.arange(16)).astype(int)
    expected = probability**size * (1 - probability) ** (4 - size)
    many = size > 2
    return chi_squared(np.append(counts[~many], counts[many].sum()), np.append(expected[~many], expected[many].sum()))


TESTS: tuple[MaskTest, ...] = (
    share,
    rows_and_columns,
    lane_shares,
    lane_pairs,
    block_boundaries,
    distances,
    changes,
    row_pairs,
    windows,
)


def _blocks(dropped: Mask, lanes: int) -> Mask:
    return dropped.ravel()[: dropped.size // lanes * lanes].reshape(-1, lanes)


def _standard(dropped: Mask, probability: float) -> NDArray[np.float64]:
    """Scales to mean 0 and variance 1."""
    return (dropped - probability) / np.sqrt(probability * (1 - probability))
