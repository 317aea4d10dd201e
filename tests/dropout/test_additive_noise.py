"""Additive Gaussian noise: its numbers, and that x and gradients pass."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from cases import SHAPE, data
from numpy.testing import assert_allclose, assert_array_equal
from randomness import ALPHA
from scipy import stats

from jaxnorm import gaussian_dropout, gaussian_noise

noise_bits = pytest.mark.parametrize("bits", [16, 32])


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


@noise_bits
@pytest.mark.parametrize("dims", [(), (1, 2)], ids=str)
def test_noise_is_that_of_the_oracle(bits: int, dims: tuple[int, ...]) -> None:
    shape = tuple(1 if axis in dims else n for axis, n in enumerate(SHAPE))
    y, pullback = jax.vjp(lambda x: gaussian_noise(new_key(), x, 0.7, broadcast_dims=dims, bits=bits), data())
    assert_allclose(y, np.asarray(data()) + 0.7 * oracles.standard_normal((0, 11), shape, bits), rtol=1e-6, atol=1e-5)
    assert_array_equal(pullback(data())[0], data())


@noise_bits
def test_noise_is_normal_whatever_x_is(bits: int) -> None:
    """methods_supplement.md 2.9: with the variance of the noise, and x's mean; not with a variance that grows with x."""
    n, std = 400_000, 0.5
    y = np.asarray(jax.jit(lambda key: gaussian_noise(key, jnp.full(n, 3.0), std, bits=bits))(new_key()), np.float64)
    assert randomness.distribution(y, stats.norm(3, std).cdf) > ALPHA
    assert abs(y.mean() - 3) < 4 * std / np.sqrt(n)
    assert abs(y.var() - std**2) < 4 * std**2 * np.sqrt(2 / n)
    assert abs(np.mean((y[1:] - 3) * (y[:-1] - 3)) / std**2) < 4 / np.sqrt(n)
    assert randomness.distribution(y, stats.norm(3, std * 1.03).cdf) < ALPHA  # controls
    multiplied = gaussian_dropout(new_key(), jnp.full(n, 3.0), 0.2, bits=bits)
    assert abs(float(multiplied.var()) - std**2) > 1


def test_ridge_regression_is_its_expectation() -> None:
    """Bishop (1995), exactly: the expected error of a linear model is the error and `n std^2 |w|^2`."""
    x, w, target = data((20, 3)), np.array([0.5, -2.0, 1.0]), np.arange(20.0)
    keys = jax.random.split(new_key(), 20_000)
    noisy = np.asarray(jax.jit(jax.vmap(lambda key: gaussian_noise(key, x, 0.3)))(keys), np.float64)
    errors = ((noisy @ w - target) ** 2).sum(1)
    expected = ((np.asarray(x, np.float64) @ w - target) ** 2).sum() + 20 * 0.3**2 * (w**2).sum()
    assert abs(errors.mean() - expected) < 4 * errors.std() / np.sqrt(len(keys))


def test_without_noise_nothing_changes() -> None:
    x = data().at[0, 0, 0, 0].set(jnp.inf)
    for std in (0, 0.0, np.float32(0)):
        assert_array_equal(gaussian_noise(new_key(), x, std), x)
    assert_array_equal(jax.jit(lambda std: gaussian_noise(new_key(), x, std))(0.0), x)


def test_a_deviation_for_each_channel() -> None:
    std = jnp.array([0.0, 1.0, 10.0]).reshape(1, 3)
    y = gaussian_noise(new_key(), jnp.zeros((4000, 3)), std)
    assert_allclose(np.std(y, 0), std[0], rtol=0.05)


def test_a_traced_bad_deviation_gives_nan() -> None:
    run = jax.jit(lambda std: gaussian_noise(new_key(), data(), std))
    for std in (-0.1, np.nan, np.inf, -np.inf):
        assert jnp.isnan(run(std)).all()
    assert jnp.isfinite(run(0.3)).all()
