"""Tests of random numbers: each returns the probability of data as odd as these, if the numbers were what they should be.

Keys are fixed, so that nothing flakes: a test that passes once passes always. `ALPHA` is the bound of every test: the chance
that a right sampler fails any of 200 of them is 1e-6.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

ALPHA = 5e-9


def rate(dropped: ArrayLike, probability: float) -> float:
    """Whether the fraction of True is the probability."""
    dropped = np.asarray(dropped)
    return _two_sided((dropped.sum() - dropped.size * probability) / np.sqrt(dropped.size * probability * (1 - probability)))


def independence(a: ArrayLike, b: ArrayLike, probability: float) -> float:
    """Whether two masks of the same shape are independent of each other (their correlation is 0)."""
    a, b = np.asarray(a) - probability, np.asarray(b) - probability
    return _two_sided(np.sum(a * b) / (np.sqrt(a.size) * probability * (1 - probability)))


def lag(dropped: ArrayLike, distance: int, axis: int, probability: float) -> float:
    """Whether elements this far apart along the axis are independent."""
    moved = np.moveaxis(np.asarray(dropped), axis, 0)
    return independence(moved[distance:], moved[:-distance], probability)


def runs(dropped: ArrayLike, probability: float) -> float:
    """Whether the number of changes from one element to the next is right (Wald and Wolfowitz, for a known probability)."""
    flat = np.asarray(dropped).ravel()
    p, n = probability * (1 - probability), flat.size - 1
    variance = 2 * n * p * (1 - 2 * p) + 2 * (n - 1) * p * (1 - 4 * p)  # changes at neighboring places are correlated
    return _two_sided((np.sum(flat[1:] != flat[:-1]) - 2 * n * p) / np.sqrt(variance))


def positions(dropped: ArrayLike, probability: float) -> float:
    """Whether every position of a mask is dropped alike; masks of different keys along the first axis."""
    dropped = np.asarray(dropped)
    count = dropped.sum(0)
    excess = (count - len(dropped) * probability) ** 2 / (len(dropped) * probability * (1 - probability))
    return float(stats.chi2.sf(excess.sum(), count.size))


def distribution(values: ArrayLike, cdf: stats.rv_continuous) -> float:
    """Whether the numbers have this distribution (Kolmogorov and Smirnov)."""
    return float(stats.kstest(np.asarray(values, np.float64).ravel(), cdf).pvalue)


def _two_sided(z: float) -> float:
    return float(2 * stats.norm.sf(abs(z)))
