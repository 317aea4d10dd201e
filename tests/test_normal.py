"""The normal numbers against the inverse of the normal distribution function in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from numpy.testing import assert_array_equal
from randomness import ALPHA
from scipy import stats

from jaxnorm._normal import standard_normal

SIGN = np.uint32(2**31)
MANY = 2_000_000


def edges() -> np.ndarray:
    """Words whose lower 31 bits lie around both ends and around every power of two, where exponents and roundings change."""
    powers = 2 ** np.arange(32, dtype=np.int64)
    near = (powers[:, None] + np.arange(-70, 71)).ravel()
    return np.unique(near[(near >= 0) & (near < 2**31)]).astype(np.uint32)


def uniform_words() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**32, MANY, dtype=np.uint32)


def tail_words() -> np.ndarray:
    """As many words of every power of two, so that the tails are as well tried as the middle."""
    return (2 ** np.random.default_rng(1).uniform(0, 31, MANY // 4)).astype(np.uint32)


WORDS = {"edges": edges, "uniform": uniform_words, "tails": tail_words}


@pytest.mark.parametrize("name", WORDS)
def test_inverse_of_the_distribution_function(name: str) -> None:
    """To float32's precision: relative to z, but for the steps near 0, which are those of a float32 probability near 1."""
    words = WORDS[name]()
    z = np.asarray(jax.jit(standard_normal)(words), np.float64)
    expected = oracles.normal_numbers(words)
    assert (np.abs(z - expected) <= 5e-7 * np.abs(expected) + 8e-8).all()


def test_one_operation_after_the_other_gives_the_same_to_a_few_roundings() -> None:
    words = np.concatenate([edges(), uniform_words()[:1000]])
    assert standard_normal(jnp.asarray(words)).dtype == jnp.float32
    assert (np.abs(np.asarray(standard_normal(words)) - oracles.normal_numbers(words)) <= 2e-6).all()


def test_float64_differs_by_the_roundings_of_float32() -> None:
    words = np.concatenate([edges(), tail_words()])
    with jax.enable_x64(True):
        wide = jax.jit(lambda words: standard_normal(words, jnp.float64))(words)
        assert wide.dtype == jnp.float64
        narrow = jax.jit(standard_normal)(words)
        assert narrow.dtype == jnp.float32
    wide, narrow = (np.asarray(z, np.float64) for z in (wide, narrow))
    assert (np.abs(wide - narrow) <= 8e-7 * np.abs(narrow)).all()
    assert (np.abs(wide - oracles.normal_numbers(words)) <= 3e-7 * np.abs(wide) + 8e-8).all()


def test_oracle_is_the_quantile_of_both_tails() -> None:
    words = np.array([0, 1, 2**20, 2**30, 2**31 - 1], np.uint32)
    p = (words + 0.5) / 2**31
    np.testing.assert_allclose(oracles.normal_numbers(words), stats.norm.isf(p / 2), rtol=1e-12)
    np.testing.assert_allclose(oracles.normal_numbers(words | SIGN), stats.norm.ppf(p / 2), rtol=1e-12)


def test_numbers_fall_as_the_words_rise() -> None:
    """But for the last bits of the polynomials."""
    words = np.unique(np.concatenate([edges(), tail_words(), uniform_words() & (SIGN - 1)]))
    z = np.asarray(jax.jit(standard_normal)(words))
    assert (np.diff(z.astype(np.float64)) <= 4 * np.spacing(z[:-1])).all()


def test_the_highest_bit_is_the_sign_and_nothing_else() -> None:
    words = np.concatenate([edges(), uniform_words() & (SIGN - 1)])
    upper, lower = (np.asarray(jax.jit(standard_normal)(w)) for w in (words, words | SIGN))
    assert_array_equal(lower, -upper)
    assert (upper >= 0).all()
    assert np.isfinite(upper).all()
    assert 6.3 < upper.max() < 6.4


def test_moments_and_distribution() -> None:
    z = np.asarray(jax.jit(standard_normal)(uniform_words()), np.float64)
    for power, (mean, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96), (0, 945), (15, 10170)], start=1):
        assert randomness.two_sided((np.mean(z**power) - mean) / np.sqrt(variance / z.size)) > ALPHA
    assert randomness.distribution(z, stats.norm.cdf) > ALPHA


def test_control_moments_of_a_wider_distribution() -> None:
    z = 1.004 * oracles.normal_numbers(uniform_words())
    assert randomness.two_sided((np.mean(z**2) - 1) / np.sqrt(2 / z.size)) < ALPHA
