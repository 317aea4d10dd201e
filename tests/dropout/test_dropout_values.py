"""What the dropouts of single elements do with a draw: values, limits, gradients and shared draws."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import SHAPE, data
from numpy.testing import assert_allclose, assert_array_equal
from tiers import then_slow

from jaxnorm import classic_dropout, dropout, gaussian_dropout, uniform_dropout, weight_scaled

BERNOULLI = (dropout, classic_dropout)
WITH_BITS = tuple(partial(function, bits=bits) for function in BERNOULLI for bits in (8, 16, 32))
all_bits = pytest.mark.parametrize("bits", [8, 16, 32])
noise_bits = pytest.mark.parametrize("bits", [16, 32])
rates = pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
dims = pytest.mark.parametrize("dims", [(), (0,), (1, 2), (0, -1), (-3, 3), (0, 1, 2, 3)], ids=str)


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


def key_words(seed: int = 11) -> np.ndarray:
    return np.asarray(jax.random.key_data(new_key(seed)))


def noise_shape(dims: tuple[int, ...]) -> tuple[int, ...]:
    shared = {d % 4 for d in dims}
    return tuple(1 if a in shared else n for a, n in enumerate(SHAPE))


@all_bits
@rates
@dims
def test_dropout_equals_the_oracle(rate: float, dims: tuple[int, ...], bits: int) -> None:
    x = data()
    mask = oracles.keep_mask(key_words(), noise_shape(dims), rate, bits)
    y = dropout(new_key(), x, rate, broadcast_dims=dims, bits=bits)
    assert_array_equal(y != 0, mask & np.ones(SHAPE, bool))
    expected = np.where(mask, np.asarray(x) / oracles.realised(rate, bits), 0)
    assert_allclose(y, expected, rtol=2.4e-7)  # XLA may take a reciprocal
    classic = classic_dropout(new_key(), x, rate, broadcast_dims=dims, bits=bits)
    assert_array_equal(classic, np.where(mask, x, np.float32(0)))


@noise_bits
@rates
@dims
def test_gaussian_dropout_equals_the_oracle(rate: float, dims: tuple[int, ...], bits: int) -> None:
    y = gaussian_dropout(new_key(), data(), rate, broadcast_dims=dims, bits=bits)
    noise = oracles.gaussian_noise(key_words(), noise_shape(dims), rate, bits)
    assert_allclose(y, np.asarray(data()) * noise, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
@noise_bits
@dims
def test_uniform_dropout_equals_the_oracle(beta: float, dims: tuple[int, ...], bits: int) -> None:
    y = uniform_dropout(new_key(), data(), beta, broadcast_dims=dims, bits=bits)
    noise = oracles.uniform_noise(key_words(), noise_shape(dims), beta, bits)
    assert_allclose(y, np.asarray(data()) * noise, rtol=1e-6, atol=1e-6)


@rates
def test_weight_scaling_is_the_expectation_of_classic_dropout(rate: float) -> None:
    x = data()
    assert_array_equal(weight_scaled(x, rate), np.asarray(x) * np.float32(1 - rate))
    keys = jax.random.split(new_key(), 4000)
    mean = jax.jit(lambda keys: jax.vmap(lambda key: classic_dropout(key, x, rate))(keys).mean(0))(keys)
    sigma = np.abs(x) * np.sqrt(rate * (1 - rate) / len(keys))
    assert (np.abs(mean - weight_scaled(x, rate)) <= 6 * sigma).all()


@pytest.mark.parametrize("function", WITH_BITS, ids=lambda function: f"{function.func.__name__}-{function.keywords['bits']}")
@pytest.mark.parametrize("one", [1.0, "traced"], ids=str)
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


@pytest.mark.parametrize("one", [1, np.float32(1), np.float64(1), jnp.float32(1)], ids=repr)
def test_spellings_of_rate_one(one: Any) -> None:
    for function in BERNOULLI:
        assert_array_equal(function(new_key(), jnp.full((5, 3), jnp.inf), one), jnp.zeros((5, 3)))


@pytest.mark.parametrize("function", [*WITH_BITS, gaussian_dropout, uniform_dropout, lambda key, x, rate: weight_scaled(x, rate)])
@pytest.mark.parametrize("zero", [0, np.float32(0), jnp.float32(0), "traced"], ids=str)
def test_amount_zero_changes_no_bit(function: Any, zero: Any) -> None:
    x = data().at[0, 0, 0].set(jnp.array([jnp.inf, -jnp.inf, 1e-40])).at[0, 1, 0, 0].set(-0.0)
    y = jax.jit(function)(new_key(), x, 0.0) if isinstance(zero, str) else function(new_key(), x, zero)
    finite = np.isfinite(np.asarray(x)) & (np.abs(x) > 1e-38)  # CPUs flush what is subnormal
    assert_array_equal(np.asarray(y)[finite], np.asarray(x)[finite])
    assert_array_equal(np.asarray(y)[0, 0, 0, :2], [np.inf, -np.inf])


@all_bits
@pytest.mark.parametrize("function", BERNOULLI)
def test_dropped_infinities_and_nans_are_zero_and_kept_ones_stay(function: Any, bits: int) -> None:
    for bad in (np.inf, -np.inf, np.nan):
        y = function(new_key(), jnp.full((40, 3), bad), 0.3, bits=bits)
        mask = oracles.keep_mask(key_words(), (40, 3), 0.3, bits)
        assert_array_equal(y, np.where(mask, np.float32(bad), np.float32(0)))


@pytest.mark.parametrize("function, inverted", [(dropout, True), (classic_dropout, False)])
@rates
@all_bits
@pytest.mark.parametrize("shape", [(300, 5), (30, 64)], ids=str)
def test_gradient_is_the_mask_and_its_scale(
    function: Any, inverted: bool, rate: float, bits: int, shape: tuple[int, ...]
) -> None:
    """At a rate of one half, `rate` and `1 - rate` are the same; here they are not."""
    x = jnp.ones(shape)
    y, pullback = jax.vjp(lambda x: function(new_key(), x, rate, bits=bits), x)
    (gradient,) = pullback(jnp.ones_like(x))
    mask = oracles.keep_mask(key_words(), shape, rate, bits)
    assert_allclose(gradient, np.where(mask, 1 / oracles.realised(rate, bits) if inverted else 1, 0), rtol=2.4e-7)
    assert_array_equal(gradient, y)
    _, tangent = jax.jvp(lambda x: function(new_key(), x, rate, bits=bits), (x,), (jnp.ones_like(x),))
    assert_array_equal(tangent, y)


def test_gradient_of_noise_is_the_noise() -> None:
    for function in (gaussian_dropout, uniform_dropout):
        y, pullback = jax.vjp(lambda x, function=function: function(new_key(), x, 0.3), jnp.ones((30, 5)))
        assert_array_equal(pullback(jnp.ones((30, 5)))[0], y)


@rates
def test_traced_rates_differ_from_static_ones_by_an_ulp_at_most(rate: float) -> None:
    x = data()
    for function in (*WITH_BITS, gaussian_dropout, uniform_dropout):
        traced = jax.jit(function)(new_key(), x, rate)
        static = function(new_key(), x, rate)
        assert_allclose(traced, static, rtol=4e-7, atol=1e-6)  # 1 - 0.9 of four bits less, its root, and three more roundings
        assert_array_equal(traced == 0, static == 0)


@all_bits
def test_a_rate_for_each_channel(bits: int) -> None:
    each = np.float32([0.1, 0.5, 0.9]).reshape(1, 1, 3)
    y = dropout(new_key(), jnp.ones((4000, 2, 3)), jnp.asarray(each), bits=bits)
    mask = oracles.keep_mask(key_words(), (4000, 2, 3), each, bits)
    assert_allclose(y, np.where(mask, 1 / oracles.realised(each, bits), 0), rtol=2.4e-7)
    traced = jax.jit(lambda rate: dropout(new_key(), jnp.ones((4000, 2, 3)), rate, bits=bits))(each)
    assert_allclose(traced, y, rtol=2.4e-7)


@all_bits
def test_a_rate_for_each_channel_has_exact_limits(bits: int) -> None:
    y = dropout(new_key(), jnp.ones((50, 3)), jnp.float32([[0, 0.5, 1]]), bits=bits)
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


@pytest.mark.parametrize("shape", then_slow([(), (7, 0, 2), (1,), (0,), (0, 3), (1, 1, 1), (2,) * 6], 2), ids=str)
def test_unusual_shapes(shape: tuple[int, ...]) -> None:
    x = jnp.full(shape, 3.0)
    for bits in (8, 16, 32):
        mask = oracles.keep_mask(key_words(), shape, 0.3, bits)
        y = dropout(new_key(), x, 0.3, bits=bits)
        assert_allclose(y, np.where(mask, 3 / oracles.realised(0.3, bits), 0), rtol=2.4e-7)
    assert gaussian_dropout(new_key(), x, 0.3).shape == shape
    assert jax.grad(lambda x: jnp.sum(uniform_dropout(new_key(), x, 0.3)))(x).shape == shape


def test_tiny_probabilities_of_32_bits() -> None:
    """Pitfall 90: uniform numbers are multiples of 2^-23, as those of `jax.random.bernoulli`, whose choice this is.

    A smaller probability to keep is 2^-23; a smaller rate drops nothing, and not 2^-23 of all.
    """
    words = oracles.random_words(key_words(), (2000,)) >> 9
    tiny = dropout(new_key(), jnp.ones(2000), 1 - 1e-9, bits=32)
    assert_array_equal(tiny != 0, words == 0)
    assert (dropout(new_key(), jnp.ones(2000), 1e-9, bits=32) == 1).all()
    assert (dropout(new_key(), jnp.ones(2000), 2.0**-25, bits=32) == 1).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_tiny_traced_probabilities_of_few_bits(bits: int) -> None:
    """One to keep is 2^-bits at least, and what is kept is divided by that; a rate below half a step drops nothing."""
    n = 100 * 2**bits
    run = jax.jit(lambda rate: dropout(new_key(), jnp.ones(n), rate, bits=bits))
    numbers = oracles.random_integers(key_words(), (n,), bits)
    assert_array_equal(run(1 - 1e-7), np.where(numbers == 0, 2.0**bits, 0))
    assert (numbers == 0).any()
    assert (run(2.0 ** -(bits + 1.01)) == 1).all()


@all_bits
def test_large_numbers_do_not_overflow_where_they_are_dropped(bits: int) -> None:
    x = jnp.full((40,), 3e38)
    y, pullback = jax.vjp(lambda x: dropout(new_key(), x, 0.9, bits=bits), x)
    mask = oracles.keep_mask(key_words(), (40,), 0.9, bits)
    assert_array_equal(y, np.where(mask, np.inf, 0))
    assert_allclose(pullback(jnp.ones(40))[0], np.where(mask, 1 / oracles.realised(0.9, bits), 0), rtol=1e-6)
