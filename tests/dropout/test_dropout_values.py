"""What the dropouts of single elements do with a draw: values, limits, gradients and shared draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import SHAPE, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import classic_dropout, dropout, gaussian_dropout, uniform_dropout, weight_scaled

BERNOULLI = (dropout, classic_dropout)
rates = pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
dims = pytest.mark.parametrize("dims", [(), (0,), (1, 2), (0, -1), (-3, 3), (0, 1, 2, 3)], ids=str)


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


def key_words(seed: int = 11) -> np.ndarray:
    return np.asarray(jax.random.key_data(new_key(seed)))


def noise_shape(dims: tuple[int, ...]) -> tuple[int, ...]:
    shared = {d % 4 for d in dims}
    return tuple(1 if a in shared else n for a, n in enumerate(SHAPE))


@rates
@dims
def test_dropout_equals_the_oracle(rate: float, dims: tuple[int, ...]) -> None:
    x = data()
    mask = oracles.keep_mask(key_words(), noise_shape(dims), rate)
    y = dropout(new_key(), x, rate, broadcast_dims=dims)
    assert_array_equal(y != 0, mask & np.ones(SHAPE, bool))
    assert_allclose(y, np.where(mask, np.asarray(x) / np.float32(1 - rate), 0), rtol=2.4e-7)  # XLA may take a reciprocal
    classic = classic_dropout(new_key(), x, rate, broadcast_dims=dims)
    assert_array_equal(classic, np.where(mask, x, np.float32(0)))


@rates
@dims
def test_gaussian_dropout_equals_the_oracle(rate: float, dims: tuple[int, ...]) -> None:
    y = gaussian_dropout(new_key(), data(), rate, broadcast_dims=dims)
    noise = oracles.gaussian_noise(key_words(), noise_shape(dims), rate)
    assert_allclose(y, np.asarray(data()) * noise, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
@dims
def test_uniform_dropout_equals_the_oracle(beta: float, dims: tuple[int, ...]) -> None:
    y = uniform_dropout(new_key(), data(), beta, broadcast_dims=dims)
    noise = oracles.uniform_noise(key_words(), noise_shape(dims), beta)
    assert_allclose(y, np.asarray(data()) * noise, rtol=1e-6, atol=1e-6)


@rates
def test_weight_scaling_is_the_expectation_of_classic_dropout(rate: float) -> None:
    x = data()
    assert_array_equal(weight_scaled(x, rate), np.asarray(x) * np.float32(1 - rate))
    keys = jax.random.split(new_key(), 4000)
    mean = jax.jit(lambda keys: jax.vmap(lambda key: classic_dropout(key, x, rate))(keys).mean(0))(keys)
    sigma = np.abs(x) * np.sqrt(rate * (1 - rate) / len(keys))
    assert (np.abs(mean - weight_scaled(x, rate)) <= 6 * sigma).all()


@pytest.mark.parametrize("function", BERNOULLI)
@pytest.mark.parametrize("one", [1, 1.0, np.float32(1), np.float64(1), jnp.float32(1), "traced"], ids=str)
def test_rate_one_gives_exact_zeros_and_zero_gradients(function: Any, one: Any) -> None:
    """Of infinity and NaN too: a selection, not a product with 0."""
    x = data().at[0, 0, 0].set(jnp.array([jnp.inf, -jnp.inf, jnp.nan]))

    def run(x: jax.Array, rate: Any) -> Any:
        y, pullback = jax.vjp(lambda x: function(new_key(), x, rate), x)
        _, tangent = jax.jvp(lambda x: function(new_key(), x, rate), (x,), (jnp.ones_like(x),))
        return y, pullback(jnp.ones_like(x))[0], tangent

    results = jax.jit(run)(x, 1.0) if isinstance(one, str) else jax.jit(lambda x: run(x, one))(x)
    for result in results:
        assert_array_equal(result, jnp.zeros_like(x))


@pytest.mark.parametrize("function", [*BERNOULLI, gaussian_dropout, uniform_dropout, lambda key, x, rate: weight_scaled(x, rate)])
@pytest.mark.parametrize("zero", [0, 0.0, np.float32(0), jnp.float32(0), "traced"], ids=str)
def test_amount_zero_changes_no_bit(function: Any, zero: Any) -> None:
    x = data().at[0, 0, 0].set(jnp.array([jnp.inf, -jnp.inf, 1e-40])).at[0, 1, 0, 0].set(-0.0)
    y = jax.jit(function)(new_key(), x, 0.0) if isinstance(zero, str) else function(new_key(), x, zero)
    finite = np.isfinite(np.asarray(x)) & (np.abs(x) > 1e-38)  # CPUs flush what is subnormal
    assert_array_equal(np.asarray(y)[finite], np.asarray(x)[finite])
    assert_array_equal(np.asarray(y)[0, 0, 0, :2], [np.inf, -np.inf])


@pytest.mark.parametrize("function", BERNOULLI)
def test_dropped_infinities_and_nans_are_zero_and_kept_ones_stay(function: Any) -> None:
    for bad in (np.inf, -np.inf, np.nan):
        y = function(new_key(), jnp.full((40, 3), bad), 0.3)
        mask = oracles.keep_mask(key_words(), (40, 3), 0.3)
        assert_array_equal(y, np.where(mask, np.float32(bad), np.float32(0)))


@pytest.mark.parametrize("function, inverted", [(dropout, True), (classic_dropout, False)])
@rates
def test_gradient_is_the_mask_and_its_scale(function: Any, inverted: bool, rate: float) -> None:
    """At a rate of one half, `rate` and `1 - rate` are the same; here they are not."""
    x = jnp.ones((300, 5))
    y, pullback = jax.vjp(lambda x: function(new_key(), x, rate), x)
    (gradient,) = pullback(jnp.ones_like(x))
    assert_allclose(gradient, np.where(np.asarray(y) != 0, 1 / (1 - rate) if inverted else 1, 0), rtol=1e-6)
    assert_array_equal(gradient, y)


def test_gradient_of_noise_is_the_noise() -> None:
    for function in (gaussian_dropout, uniform_dropout):
        y, pullback = jax.vjp(lambda x, function=function: function(new_key(), x, 0.3), jnp.ones((30, 5)))
        assert_array_equal(pullback(jnp.ones((30, 5)))[0], y)


@rates
def test_traced_rates_differ_from_static_ones_by_an_ulp_at_most(rate: float) -> None:
    x = data()
    for function in (dropout, classic_dropout, gaussian_dropout, uniform_dropout):
        traced = jax.jit(function)(new_key(), x, rate)
        static = function(new_key(), x, rate)
        assert_allclose(traced, static, rtol=3e-7, atol=1e-6)
        assert_array_equal(traced == 0, static == 0)


def test_a_rate_for_each_channel() -> None:
    x = jnp.ones((4000, 2, 3))
    each = jnp.float32([0.1, 0.5, 0.9]).reshape(1, 1, 3)
    y = dropout(new_key(), x, each)
    for channel, rate in enumerate((0.1, 0.5, 0.9)):
        column = y[..., channel]
        assert abs(float((column == 0).mean()) - rate) < 6 * np.sqrt(rate * (1 - rate) / column.size)
        assert_allclose(column[column != 0], 1 / (1 - rate), rtol=1e-6)


def test_a_rate_for_each_channel_has_exact_limits() -> None:
    y = dropout(new_key(), jnp.ones((50, 3)), jnp.float32([[0, 0.5, 1]]))
    assert (y[:, 0] == 1).all()
    assert (y[:, 2] == 0).all()
    assert 0 < (y[:, 1] == 0).sum() < 50


@dims
def test_shared_axes_share_and_others_do_not(dims: tuple[int, ...]) -> None:
    x = jnp.ones(SHAPE)
    for function in (dropout, gaussian_dropout, uniform_dropout):
        y = np.asarray(function(new_key(), x, 0.5, broadcast_dims=dims))
        shared = {d % 4 for d in dims}
        for axis, size in enumerate(SHAPE):
            constant = (y == np.take(y, [0], axis)).all()
            assert constant == (axis in shared), (axis, size)


def test_spellings_of_the_same_axes() -> None:
    x = data()
    expected = dropout(new_key(), x, 0.3, broadcast_dims=(1, 2))
    for dims in ((2, 1), [1, 2], (-3, -2), (-2, 1)):
        assert_array_equal(dropout(new_key(), x, 0.3, broadcast_dims=dims), expected)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (7, 0, 2), (1, 1, 1), (2,) * 6], ids=str)
def test_unusual_shapes(shape: tuple[int, ...]) -> None:
    x = jnp.full(shape, 3.0)
    mask = oracles.keep_mask(key_words(), shape, 0.3)
    assert_allclose(dropout(new_key(), x, 0.3), np.where(mask, 3 / 0.7, 0), rtol=2.4e-7)
    assert gaussian_dropout(new_key(), x, 0.3).shape == shape
    assert jax.grad(lambda x: jnp.sum(uniform_dropout(new_key(), x, 0.3)))(x).shape == shape


def test_tiny_probabilities() -> None:
    """Uniform numbers are multiples of 2^-23: a smaller probability to keep is 2^-23, a smaller rate drops nothing but 0."""
    words = oracles.random_words(key_words(), (2000,)) >> 9
    tiny = dropout(new_key(), jnp.ones(2000), 1 - 1e-9)
    assert_array_equal(tiny != 0, words == 0)
    assert (dropout(new_key(), jnp.ones(2000), 1e-9) == 1).all()
    assert (dropout(new_key(), jnp.ones(2000), 2.0**-25) == 1).all()


def test_large_numbers_do_not_overflow_where_they_are_dropped() -> None:
    x = jnp.full((40,), 3e38)
    y, pullback = jax.vjp(lambda x: dropout(new_key(), x, 0.9), x)
    mask = oracles.keep_mask(key_words(), (40,), 0.9)
    assert_array_equal(y, np.where(mask, np.inf, 0))
    assert_allclose(pullback(jnp.ones(40))[0], np.where(mask, 10, 0), rtol=1e-6)
