"""Max-pooling dropout and its mean: methods_supplement.md S2.15."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from numpy.testing import assert_allclose, assert_array_equal
from randomness import ALPHA

from jaxnorm import dropout, max_pool_dropout, max_pool_dropout_mean
from jaxnorm.benchmarks._costs import residuals

CALLS = [  # shape, window, strides
    ((3, 5, 7, 2), (2, 3), (2, 1)),  # which leave a row over, and overlap
    ((2, 9, 3), (4,), (4,)),
    ((2, 4, 3, 4, 1), (2, 1, 2), (1, 2, 2)),
]
each_call = pytest.mark.parametrize("shape, window, strides", CALLS, ids=str)


def new_key(seed: int = 5) -> jax.Array:
    return jax.random.key(seed)


def numbers(shape: tuple[int, ...]) -> jax.Array:
    """Of which some are negative, and windows without any other."""
    return jnp.asarray(np.random.default_rng(0).normal(-0.5, 1, shape), jnp.float32)


@each_call
def test_training_is_the_largest_of_what_dropout_keeps(
    shape: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    x = numbers(shape)
    run = lambda x: max_pool_dropout(new_key(), x, 0.3, window=window, strides=strides)  # noqa: E731
    y, pullback = jax.vjp(run, x)
    mask = np.asarray(dropout(new_key(), jnp.ones(shape), 0.3) != 0)
    assert_array_equal(y, oracles.windows(np.where(mask, x, np.float32(0)), window, strides).max(-1))
    (gradient,) = pullback(jnp.ones_like(y))
    assert_array_equal(np.asarray(gradient)[~mask], 0)
    assert np.asarray(gradient).sum() == (np.asarray(y) != 0).sum()  # 0 is of a dropped element
    kept = residuals(lambda _, x: (run(x), None), (), x)
    assert kept.nbytes <= x.nbytes + 32  # x, which the branch for the platform gives back


@each_call
def test_the_mean_is_that_over_all_masks(shape: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """For negative numbers too."""
    x = numbers(shape)
    for rate in (0.0, 0.3, 0.9, 1.0):
        y = jax.jit(max_pool_dropout_mean, static_argnames=("window", "strides"))(x, rate, window=window, strides=strides)
        assert_allclose(y, oracles.max_pool_dropout_mean(x, rate, window, strides), rtol=1e-5, atol=1e-6)


def test_the_mean_keeps_x_alone() -> None:
    x = numbers((2, 6, 3))
    kept = residuals(lambda _, x: (max_pool_dropout_mean(x, 0.3, window=3), None), (), x)
    assert kept.keeps_input
    assert kept.nbytes <= 32


def test_probability_of_each_element_of_a_window() -> None:
    """P(the i-th largest) = (1 - rate) rate^(i - 1), P(0) = rate^n; of windows of 4."""
    x = jnp.tile(jnp.asarray([3, 1, 4, 2], jnp.float32)[None, :, None], (200_000, 1, 1))
    rate = float(1 - oracles.realised(0.3))
    counts = np.bincount(np.asarray(max_pool_dropout(new_key(), x, 0.3, window=4)).astype(int).ravel(), minlength=5)
    probability = np.array([rate**4, *((1 - rate) * rate ** np.arange(3, -1, -1))])
    assert randomness.chi_squared(counts, probability) > ALPHA
    assert randomness.chi_squared(counts, np.array([rate**4, *np.full(4, (1 - rate**4) / 4)])) < ALPHA
    y = np.asarray(max_pool_dropout(new_key(1), x, 0.3, window=4))
    mean = float(max_pool_dropout_mean(x[:1], 0.3, window=4)[0, 0, 0])
    error = y.std() / np.sqrt(y.size)
    assert abs(y.mean() - mean) < 4 * error
    assert abs(y.mean() - 0.7 * 4) > 4 * error  # the scaled maximum, which is cheaper, is another number


def test_rates_0_and_1() -> None:
    """Pitfall 78, with infinity and NaN."""
    x = jnp.asarray([1, jnp.inf, -jnp.inf, -2, jnp.nan, 5, -1, -3], jnp.float32).reshape(1, 8, 1)
    largest = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 1), (1, 2, 1), "VALID")
    for pool in (
        lambda x, rate: max_pool_dropout(new_key(), x, rate, window=2),
        lambda x, r: max_pool_dropout_mean(x, r, window=2),
    ):
        run = jax.jit(lambda x, rate, pool=pool: jax.vjp(lambda x: pool(x, rate), x)[0])
        gradient = jax.jit(jax.grad(lambda x, rate, pool=pool: pool(x, rate).sum()))
        assert_array_equal(run(x, 0.0), largest)
        assert_array_equal(run(x, 1.0), jnp.zeros_like(largest))
        assert_array_equal(gradient(x, 1.0), jnp.zeros_like(x))
        assert np.isfinite(gradient(x, 0.0)).all()
        for bad in (-0.1, 1.5, np.nan):
            assert np.isnan(run(x, bad)).all()


def test_of_equal_elements_the_first_takes_the_gradient() -> None:
    x = jnp.ones((1, 4, 2))
    gradient = jax.grad(lambda x: max_pool_dropout(new_key(), x, 0, window=2).sum())(x)
    assert_array_equal(gradient[0, :, 0], [1, 0, 1, 0])
    gradient = jax.grad(lambda x: max_pool_dropout_mean(x, 0.25, window=2).sum())(x)
    assert_allclose(gradient[0, :, 0], [0.75, 0.1875, 0.75, 0.1875])


def test_a_rate_for_each_channel() -> None:
    x = jnp.tile(jnp.asarray([2.0, 1.0])[None, :, None], (100_000, 1, 2))
    rates = np.float32([0.2, 0.7]).reshape(1, 1, 2)
    y = np.asarray(max_pool_dropout(new_key(), x, rates, window=2))
    mean = np.asarray(max_pool_dropout_mean(x[:1], rates, window=2))[0, 0]
    assert_allclose(mean, (1 - rates.ravel()) * (2 + rates.ravel()), rtol=1e-6)
    assert (np.abs(y.mean((0, 1)) - mean) < 4 * y.std((0, 1)) / np.sqrt(100_000)).all()


BAD = {
    "larger than the map": (ValueError, {"window": (2, 5)}, "window must be at most the size of the map, [6, 4], got (2, 5)"),
    "0": (ValueError, {"strides": 0}, "strides must be at least 1, got 0"),
    "None": (TypeError, {"window": None}, "window must be an int of at least 1, got None"),
    "three": (ValueError, {"strides": (1, 2, 3)}, "strides must be an int, or one for each of the 2"),
    "rate": (ValueError, {"rate": -0.1}, "rate must be in [0, 1], got -0.1"),
    "rate None": (TypeError, {"rate": None}, "rate must be a number in [0, 1], got None"),
    "rates of positions": (ValueError, {"rate": np.full((1, 6, 1, 1), 0.1)}, "rate must be a scalar or have a shape like"),
    "no space": (ValueError, {"x": jnp.ones((3, 2))}, "x must have 1 to 3 spatial dimensions"),
    "integers": (TypeError, {"x": jnp.ones((3, 6, 4, 2), int)}, "x must be an array of floating point numbers, got int32"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    error, given, message = BAD[name]
    arguments: dict[str, Any] = {"x": numbers((3, 6, 4, 2)), "rate": 0.1, "window": 2, **given}
    for call in (lambda: max_pool_dropout(new_key(), **arguments), lambda: max_pool_dropout_mean(**arguments)):
        with pytest.raises(error) as raised:
            call()
        assert message in str(raised.value)


def test_bad_bits_and_keys_are_named() -> None:
    with pytest.raises(ValueError, match="bits must be 16 or 32 for a rate of"):
        max_pool_dropout(new_key(), numbers((1, 4, 1)), 0.01, window=2, bits=8)
    with pytest.raises(TypeError, match="key must be one key"):
        max_pool_dropout(None, numbers((1, 4, 1)), 0.1, window=2)
