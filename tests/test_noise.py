"""The kinds of noise on draws made by hand: bounds, limits and selection, one operation at a time, which nothing rewrites."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm._bits import resolution
from jaxnorm._noise import Draw, NoiseKind, gaussian, keep_or_drop, keep_unscaled, uniform

WORDS = np.array([0, 1, 511, 512, 2**31 - 1, 2**31, 2**32 - 513, 2**32 - 512, 2**32 - 1], np.uint32)
DECIDING = (keep_or_drop, keep_unscaled)

all_bits = pytest.mark.parametrize("bits", [8, 16, 32])
packed_bits = pytest.mark.parametrize("bits", [8, 16])


@dataclass(frozen=True)
class Given:
    """A draw of numbers that are given."""

    drawn: np.ndarray
    bits: int = 32
    form: str = "any"

    def numbers(self, of_word: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return of_word(jnp.asarray(self.drawn))

    def below(self, threshold: jax.Array) -> jax.Array:
        return jnp.asarray(self.drawn) < threshold


def all_numbers(bits: int) -> np.ndarray:
    """Every number of 8 or 16 bits; of 32 bits those that stand at the ends and around the middle."""
    return WORDS >> 9 if bits == 32 else np.arange(2**bits, dtype=np.uint32)


def noisy(kind: NoiseKind, numbers: np.ndarray, amount: float, x: Any = 1.0, bits: int = 32) -> jax.Array:
    x = jnp.full(numbers.shape, x, jnp.float32)
    return kind.apply(Given(numbers), x, kind.prepare(jnp.float32(amount), bits))


@all_bits
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_dropped_is_selected_away(bad: float, bits: int) -> None:
    numbers = all_numbers(bits)
    kept = numbers < resolution(bits) // 2
    for kind in DECIDING:
        assert_array_equal(noisy(kind, numbers, 0.5, bad, bits), np.where(kept, bad, 0))


@pytest.mark.parametrize("steps", [0, 1, 2, 2**22, 2**23 - 1, 2**23])
def test_32_bits_keep_what_lies_below_the_probability(steps: int) -> None:
    """A probability of k steps of 2^-23 keeps k of 2^23 numbers, one between two steps as many as the higher."""
    numbers = all_numbers(32)
    probability = np.float32(steps * 2.0**-23)
    assert_array_equal(noisy(keep_unscaled, numbers, probability) != 0, numbers < steps)
    if 1 < steps < 2**23:
        below = np.nextafter(probability, np.float32(0))
        between = below * 2.0**23 > steps - 1
        assert_array_equal(noisy(keep_or_drop, numbers, below) != 0, numbers < steps - (not between))


@packed_bits
def test_few_bits_keep_the_nearest_number_of_numbers(bits: int) -> None:
    """And one at least of a probability that is not 0."""
    most, numbers = 2**bits, all_numbers(bits)
    for wanted, kept in (
        (0, 0),
        (1e-30 * most, 1),
        (0.4, 1),
        (1, 1),
        (1.4, 1),
        (1.6, 2),
        (most / 3, round(most / 3)),
        (most - 1.4, most - 1),
        (most - 0.4, most),
        (most, most),
    ):
        for kind in DECIDING:
            assert_array_equal(noisy(kind, numbers, wanted / most, 1, bits) != 0, numbers < kept)


@packed_bits
@pytest.mark.parametrize("keep", [1e-9, 0.01, 0.1, 1 / 3, 0.5, 0.7, 0.9, 0.999, 1])
def test_expectation_over_all_numbers_is_exact(keep: float, bits: int) -> None:
    """To a rounding or two (XLA may take a reciprocal): what is kept is divided by the share of numbers that keep it."""
    y = np.asarray(noisy(keep_or_drop, all_numbers(bits), keep, 1.7, bits), np.float64)
    assert_allclose(y.mean(), np.float32(1.7), rtol=2.0**-23)
    unscaled = np.asarray(noisy(keep_unscaled, all_numbers(bits), keep, 1.7, bits))
    assert_array_equal(unscaled, np.where(y != 0, np.float32(1.7), 0))


@all_bits
def test_a_probability_that_is_no_number_gives_none(bits: int) -> None:
    for kind in DECIDING:
        assert jnp.isnan(noisy(kind, all_numbers(bits), np.nan, 1, bits)).all()


@all_bits
def test_without_anything_kept_the_derivatives_are_zero(bits: int) -> None:
    numbers = all_numbers(bits)
    for kind in DECIDING:
        run = lambda x, kind=kind: noisy(kind, numbers, 0, x, bits)  # noqa: E731
        value, slope = jax.jvp(run, (3.0,), (1.0,))
        assert_array_equal(value, jnp.zeros(numbers.shape))
        assert_array_equal(slope, jnp.zeros(numbers.shape))
        assert jax.grad(lambda x, run=run: run(x).sum())(3.0) == 0


@all_bits
@pytest.mark.parametrize("kind", DECIDING, ids=["keep_or_drop", "keep_unscaled"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 64)], ids=str)
def test_both_forms_of_a_draw_decide_alike(kind: NoiseKind, bits: int, shape: tuple[int, ...]) -> None:
    """For one probability, and for one of every column, which the packed form leaves to the other."""
    x = jnp.linspace(-3, 5, shape[0] * shape[1]).reshape(shape)
    for keep in (jnp.float32(0.3), jnp.linspace(0, 1, shape[1])[None]):

        @jax.jit
        def run(x: jax.Array, keep: jax.Array = keep) -> list[jax.Array]:
            draws = [Draw(jax.random.key(5), shape, None, bits, packed) for packed in (True, False)]
            return [kind.apply(draw, x, kind.prepare(keep, bits)) for draw in draws]

        packed, plain = run(x)
        assert_array_equal(packed, plain)
        assert 0 < (plain == 0).sum() < plain.size


def test_gaussian_noise_has_the_sign_of_the_word_and_is_symmetric() -> None:
    noise = noisy(gaussian, WORDS, 1)
    assert jnp.isfinite(noise).all()
    assert_array_equal(noise[:5] >= 1, [True] * 5)
    assert_array_equal(noise[5:] <= 1, [True] * 4)
    assert_allclose(noise[0] + noise[5], 2, rtol=1e-6)
    assert 6 < noise[0] - 1 < 7
    assert_array_equal(noisy(gaussian, WORDS, 0), np.ones(WORDS.shape))


@pytest.mark.parametrize("kind", [gaussian, uniform], ids=["gaussian", "uniform"])
def test_mean_and_variance_over_all_numbers_of_16_bits_are_exact(kind: NoiseKind) -> None:
    words = np.arange(2**16, dtype=np.uint32) << 16 | np.uint32(2**15)
    noise = np.asarray(noisy(kind, words, 0.5, bits=16), np.float64)
    assert abs(noise.mean() - 1) < 1e-9
    assert_allclose(noise.var(), 0.25 if kind is gaussian else 0.25 / 3, rtol=1e-7)


@pytest.mark.parametrize("shape", [(5, 7), (3, 64), (6, 6)], ids=str)
def test_both_forms_of_a_draw_have_the_words_of_16_bits(shape: tuple[int, ...]) -> None:
    """The middle of those that begin with the 16 bits."""
    draws = [Draw(jax.random.key(5), shape, None, 16, packed) for packed in (True, False)]
    packed, plain = (np.asarray(draw.numbers(lambda words: words)) for draw in draws)
    assert_array_equal(packed, plain)
    assert_array_equal(plain & 0xFFFF, np.full(shape, 2**15))
    assert_array_equal(plain >> 16, oracles.random_integers((0, 5), shape, 16))


def test_uniform_noise_reaches_its_lower_bound_and_stays_below_the_upper() -> None:
    noise = noisy(uniform, WORDS, 0.5)
    assert_allclose(noise[0], 0.5)
    assert_allclose(noise[5], 1.0)
    assert (jnp.diff(noise) >= 0).all()
    assert 1.49 < noise[-1] <= 1.5
    assert_array_equal(noisy(uniform, WORDS, 0), np.ones(WORDS.shape))
