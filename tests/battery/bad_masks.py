"""Masks that are wrong, each in a way that masks of packed bits could be.

Each is a function `(dropped, lanes) -> dropped` of a good mask, a matrix; what it changes is chosen at random.
"""

from collections.abc import Callable

import numpy as np
from battery.mask_tests import Mask

BadMask = Callable[[Mask, int], Mask]


def good(probability: float) -> Mask:
    """NumPy's own."""
    return np.random.default_rng(21).random((512, 512)) < probability


def wrong_share(dropped: Mask, lanes: int) -> Mask:
    """One element in ten of those that should be dropped is not."""
    return dropped & ~_one_in(10, dropped.shape)


def uneven_row(dropped: Mask, lanes: int) -> Mask:
    """One row is dropped as a whole."""
    return dropped | (np.arange(len(dropped)) == 5)[:, None]


def uneven_column(dropped: Mask, lanes: int) -> Mask:
    """One column is dropped as a whole."""
    return uneven_row(dropped.T, lanes).T


def uneven_lane(dropped: Mask, lanes: int) -> Mask:
    """One lane has an element in 20 dropped besides."""
    lane = np.arange(dropped.shape[1]) % lanes == lanes - 1
    return dropped | lane & _one_in(20, dropped.shape)


def copied_lane(dropped: Mask, lanes: int) -> Mask:
    """In one block of eight the last lane is the first."""
    return _copied(dropped, dropped[:, 0::lanes], slice(lanes - 1, None, lanes))


def continued_block(dropped: Mask, lanes: int) -> Mask:
    """One block in eight begins as the block before it ended."""
    return _copied(dropped, np.roll(dropped, 1, axis=1)[:, 0::lanes], slice(0, None, lanes))


def copied_neighbor(dropped: Mask, lanes: int) -> Mask:
    """One element in eight is the one before it in its row."""
    return _copied(dropped, np.roll(dropped, 1, axis=1), slice(None))


def copied_row(dropped: Mask, lanes: int) -> Mask:
    """One element in eight is the one 16 rows above it."""
    return _copied(dropped, np.roll(dropped, 16, axis=0), slice(None))


def same_row(dropped: Mask, lanes: int) -> Mask:
    """Two rows far apart are the same."""
    copied = dropped.copy()
    copied[-1] = dropped[5]
    return copied


def copied_corner(dropped: Mask, lanes: int) -> Mask:
    """One element in eight is the one before it in the row above."""
    return _copied(dropped, np.roll(dropped, (1, 1), axis=(0, 1)), slice(None))


BAD_MASKS: tuple[BadMask, ...] = (
    wrong_share,
    uneven_row,
    uneven_column,
    uneven_lane,
    copied_lane,
    continued_block,
    copied_neighbor,
    copied_row,
    same_row,
    copied_corner,
)


def _one_in(count: int, shape: tuple[int, ...]) -> Mask:
    return np.random.default_rng(5).random(shape) < 1 / count


def _copied(dropped: Mask, source: Mask, columns: slice) -> Mask:
    """Puts one element in eight of the source into these columns."""
    copied = dropped.copy()
    copied[:, columns] = np.where(_one_in(8, source.shape), source, dropped[:, columns])
    return copied
