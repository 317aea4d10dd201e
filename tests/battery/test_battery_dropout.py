"""What packed bits promise of `dropout`: its realised rate, its expectation, and the numbers that decide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import randomness
from numpy.testing import assert_array_equal
from randomness import ALPHA

from jaxnorm import dropout
from jaxnorm._bits import random_integers

RATES = (0.05, 0.1, 0.3, 0.5, 0.9)
MANY = 2_000_000


def threshold(rate: float, bits: int) -> int:
    """The numbers of `bits` bits below it keep their element."""
    return round((1 - rate) * 2**bits)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("rate", RATES)
def test_kept_is_what_draws_a_number_below_the_threshold(rate: float, bits: int) -> None:
    numbers = random_integers(jax.random.key(3), (77, 53), bits)
    for dropped_at in (rate, jnp.float32(rate)):
        y = dropout(jax.random.key(3), jnp.ones((77, 53)), dropped_at, bits=bits)
        assert_array_equal(y != 0, numbers < threshold(rate, bits))


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("rate", RATES)
def test_rate_and_expectation_are_those_of_the_threshold(rate: float, bits: int) -> None:
    """The kept value times its probability is x, to one rounding."""
    x, keep = float(np.float32(1.7)), threshold(rate, bits) / 2**bits
    y = np.asarray(jax.jit(lambda key: dropout(key, jnp.full(MANY, x), rate, bits=bits))(jax.random.key(5)))
    assert randomness.rate(y == 0, 1 - keep) > ALPHA
    np.testing.assert_allclose(np.unique(y), [0, x / keep], rtol=2**-23)
    assert _mean_is(y, x, keep) > ALPHA


@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_control_eight_bits_at_the_nominal_rate(rate: float) -> None:
    """0.1 is not a multiple of 2^-8: the nominal rate is not what is realised, and its scale would shift the mean."""
    y = np.asarray(jax.jit(lambda key: dropout(key, jnp.ones(MANY), rate, bits=8))(jax.random.key(5)))
    assert randomness.rate(y == 0, rate) < ALPHA
    assert _mean_is(np.where(y == 0, 0, 1 / (1 - rate)), 1.0, 1 - rate) < ALPHA


def _mean_is(y: np.ndarray, x: float, keep: float) -> float:
    """Whether the mean of dropout of x is x."""
    noise = (y.astype(np.float64) / x - 1) / np.sqrt(1 / keep - 1)
    return randomness.two_sided(noise.sum() / np.sqrt(noise.size))
