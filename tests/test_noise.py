"""The kinds of noise on words made by hand: bounds, limits and selection, one operation at a time (no compiler rewrites them)."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm._noise import gaussian, keep_or_drop, keep_unscaled, uniform

WORDS = jnp.asarray([0, 1, 511, 512, 2**31 - 1, 2**31, 2**32 - 513, 2**32 - 512, 2**32 - 1], jnp.uint32)
ONES = jnp.ones(WORDS.shape)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_dropped_is_selected_away(bad: float) -> None:
    kept = np.asarray(WORDS) < 2**31
    for kind in (keep_or_drop, keep_unscaled):
        assert_array_equal(kind(WORDS, jnp.full(WORDS.shape, bad), jnp.float32(0.5)), np.where(kept, bad, 0))


@pytest.mark.parametrize("steps", [0, 1, 2, 2**22, 2**23 - 1, 2**23])
def test_kept_is_what_lies_below_the_probability(steps: int) -> None:
    """A probability of k steps of 2^-23 keeps k of 2^23 words, one between two steps as many as the higher."""
    kept = (np.asarray(WORDS) >> 9) < steps
    probability = np.float32(steps * 2.0**-23)
    assert_array_equal(keep_unscaled(WORDS, ONES, jnp.asarray(probability)) != 0, kept)
    if 1 < steps < 2**23:
        below = np.nextafter(probability, np.float32(0))
        between = below * 2.0**23 > steps - 1
        expected = kept if between else (np.asarray(WORDS) >> 9) < steps - 1
        assert_array_equal(keep_or_drop(WORDS, ONES, jnp.asarray(below)) != 0, expected)


def test_a_probability_that_is_no_number_gives_none() -> None:
    for kind in (keep_or_drop, keep_unscaled):
        assert jnp.isnan(kind(WORDS, ONES, jnp.float32(np.nan))).all()


def test_gaussian_noise_is_finite_and_grows_with_the_word() -> None:
    noise = gaussian(WORDS, ONES, jnp.float32(1))
    assert jnp.isfinite(noise).all()
    assert (jnp.diff(noise) >= 0).all()
    assert 4 < noise[-1] - 1 < 6
    assert_array_equal(gaussian(WORDS, ONES, jnp.float32(0)), ONES)


def test_uniform_noise_reaches_its_lower_bound_and_stays_below_the_upper() -> None:
    noise = uniform(WORDS, ONES, jnp.float32(0.5))
    assert_allclose(noise[0], 0.5)
    assert_allclose(noise[5], 1.0)
    assert 1.49 < noise[-1] <= 1.5
    assert_array_equal(uniform(WORDS, ONES, jnp.float32(0)), ONES)
