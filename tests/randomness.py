"""Tests of random numbers: each returns the probability of data as odd as these, if the numbers were what they should be.

Keys are fixed, so that nothing flakes: a test that passes once passes always. `ALPHA` is the bound of every test: the chance
that a right sampler fails any of 200 of them is 1e-6, and of 2,000 of them 1e-5.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike
from scipy import fft, stats

ALPHA = 5e-9


def rate(dropped: ArrayLike, probability: float) -> float:
    """Whether the fraction of True is the probability."""
    dropped = np.asarray(dropped)
    return two_sided((dropped.sum() - dropped.size * probability) / np.sqrt(dropped.size * probability * (1 - probability)))


def independence(a: ArrayLike, b: ArrayLike, probability: float) -> float:
    """Whether two masks of the same shape are independent of each other (their correlation is 0)."""
    a, b = np.asarray(a) - probability, np.asarray(b) - probability
    return two_sided(np.sum(a * b) / (np.sqrt(a.size) * probability * (1 - probability)))


def lag(dropped: ArrayLike, distance: int, axis: int, probability: float) -> float:
    """Whether elements this far apart along the axis are independent."""
    moved = np.moveaxis(np.asarray(dropped), axis, 0)
    return independence(moved[distance:], moved[:-distance], probability)


def runs(dropped: ArrayLike, probability: float) -> float:
    """Whether the number of changes from one element to the next is right (Wald and Wolfowitz, for a known probability)."""
    flat = np.asarray(dropped).ravel()
    p, n = probability * (1 - probability), flat.size - 1
    variance = 2 * n * p * (1 - 2 * p) + 2 * (n - 1) * p * (1 - 4 * p)  # changes at neighboring places are correlated
    return two_sided((np.sum(flat[1:] != flat[:-1]) - 2 * n * p) / np.sqrt(variance))


def positions(dropped: ArrayLike, probability: float) -> float:
    """Whether every position of a mask is dropped alike; masks of different keys, or rows of one mask, along the first axis."""
    dropped = np.asarray(dropped)
    count = dropped.sum(0)
    excess = (count - len(dropped) * probability) ** 2 / (len(dropped) * probability * (1 - probability))
    return float(stats.chi2.sf(excess.sum(), count.size))


def distribution(values: ArrayLike, cdf: stats.rv_continuous) -> float:
    """Whether the numbers have this distribution (Kolmogorov and Smirnov)."""
    return float(stats.kstest(np.asarray(values, np.float64).ravel(), cdf).pvalue)


def chi_squared(counts: ArrayLike, probability: ArrayLike) -> float:
    """Whether the counts are those of cells of these probabilities (Pearson)."""
    counts = np.asarray(counts)
    expected = counts.sum() * np.asarray(probability)
    return float(stats.chi2.sf(np.sum((counts - expected) ** 2 / expected), counts.size - 1))


def even(counts: ArrayLike) -> float:
    """Whether the counts are those of many cells of equal probability, and not more even than chance makes them."""
    counts = np.asarray(counts)
    statistic = np.sum((counts - counts.mean()) ** 2) / counts.mean()
    return _chi2_two_sided(statistic, counts.size - 1)


def spread(deviations: ArrayLike) -> float:
    """Whether many independent normal deviations have variance 1, neither more nor less."""
    deviations = np.asarray(deviations)
    return _chi2_two_sided(np.sum(deviations**2), deviations.size)


def poisson(count: int, mean: float) -> float:
    """Whether this is a count of independent rare events, so many of which are expected."""
    return min(1.0, 2 * float(min(stats.poisson.cdf(count, mean), stats.poisson.sf(count - 1, mean))))


def autocorrelation(noise: ArrayLike, longest: int) -> float:
    """Whether numbers of mean 0 and variance 1 are uncorrelated at every distance up to the longest."""
    noise = np.asarray(noise)
    padded = fft.next_fast_len(noise.size + longest, real=True)
    products = np.fft.irfft(np.abs(np.fft.rfft(noise, padded)) ** 2, padded)
    distances = np.arange(1, longest + 1)
    return spread(products[distances] / np.sqrt(noise.size - distances))


def smallest(probabilities: Iterable[float]) -> float:
    """Returns the smallest of the probabilities, times their number: what several tests say together (Bonferroni)."""
    probabilities = list(probabilities)
    return min(1.0, len(probabilities) * min(probabilities))


def together(probabilities: ArrayLike) -> float:
    """Whether small probabilities of one test on independent samples are no more frequent than they should be."""
    return float(stats.kstest(probabilities, "uniform", alternative="greater").pvalue)


def two_sided(z: float) -> float:
    """Whether a normal deviation is no greater than it should be."""
    return float(2 * stats.norm.sf(abs(z)))


def _chi2_two_sided(statistic: float, freedom: int) -> float:
    return 2 * float(min(stats.chi2.cdf(statistic, freedom), stats.chi2.sf(statistic, freedom)))
