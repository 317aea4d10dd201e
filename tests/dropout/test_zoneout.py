"""Zoneout: which elements stay as they were, of any state, and what inference makes of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import SHAPE, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import zoneout, zoneout_mean

H_PREV, H = data(seed=1), data()


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
def test_an_element_is_old_or_new(rate: float, bits: int) -> None:
    """methods.md 5.7, and pitfall 85: what flows back is not scaled, and of every element goes one way."""
    y, pullback = jax.vjp(lambda a, b: zoneout(new_key(), a, b, rate, bits=bits), H_PREV, H)
    new = oracles.keep_mask((0, 11), SHAPE, rate, bits)
    assert_array_equal(y, np.where(new, H, H_PREV))
    to_prev, to_new = pullback(H)
    assert_array_equal(to_prev, np.where(new, 0, H))
    assert_array_equal(to_new, np.where(new, H, 0))


@pytest.mark.parametrize("traced", [False, True], ids=["static", "traced"])
def test_limits(traced: bool) -> None:
    """0 is a plain cell and 1 the identity, whatever the other state is, inference too; pitfall 78: finite gradients at both."""
    bad = jnp.full(SHAPE, jnp.nan)

    def run(function: Any, a: jax.Array, b: jax.Array, rate: float) -> Any:
        call = lambda a, b, rate: jax.vjp(lambda a, b: function(a, b, rate), a, b)[0::1]  # noqa: E731
        value = lambda a, b, rate: (call(a, b, rate)[0], call(a, b, rate)[1](jnp.ones(SHAPE)))  # noqa: E731
        return jax.jit(value)(a, b, rate) if traced else value(a, b, rate)

    for function in (lambda a, b, rate: zoneout(new_key(), a, b, rate), zoneout_mean):
        for rate, (a, b) in ((0.0, (bad, H)), (1.0, (H, bad))):
            y, gradients = run(function, a, b, rate)
            assert_array_equal(y, H)
            assert_array_equal(gradients[0], jnp.full(SHAPE, rate))
            assert_array_equal(gradients[1], jnp.full(SHAPE, 1 - rate))


def test_inference_is_the_expectation() -> None:
    expected = np.float64(0.3) * np.float64(H_PREV) + 0.7 * np.float64(H)
    assert_allclose(zoneout_mean(H_PREV, H, 0.3), expected, rtol=1e-6, atol=1e-6)
    keys = jax.random.split(new_key(), 4000)
    mean = jax.jit(jax.vmap(lambda key: zoneout(key, H_PREV, H, 0.3)))(keys).mean(0)
    sigma = np.abs(H - H_PREV) * np.sqrt(0.3 * 0.7 / len(keys))
    assert (np.abs(mean - expected) < 5 * sigma + 1e-5).all()
    assert not (np.abs(mean - zoneout_mean(H_PREV, H, 0.33)) < 5 * sigma + 1e-5).all()


def test_how_much_stays() -> None:
    n = 10**6
    stays = jax.jit(lambda key: zoneout(key, jnp.ones(n), jnp.zeros(n), 0.05))(new_key())
    probability = float(1 - oracles.realised(0.05))
    sigma = np.sqrt(probability * (1 - probability) / n)
    assert abs(float(stays.mean()) - probability) < 4 * sigma
    assert abs(float(stays.mean()) - 0.051) > 4 * sigma  # a control


def test_a_cell_in_a_scan() -> None:
    """With a key for every step; at rate 1 the state never changes."""
    keys, xs = jax.random.split(new_key(), 6), data((6, 5, 3))

    def last(rate: float) -> jax.Array:
        def step(h: jax.Array, given: Any) -> Any:
            new = jnp.tanh(h + given[1])
            return zoneout(given[0], h, new, rate), None

        return jax.lax.scan(step, jnp.zeros((5, 3)), (jax.random.clone(keys), xs))[0]

    h = np.zeros((5, 3))
    for key, x in zip(np.asarray(jax.random.key_data(keys)), np.asarray(xs, np.float64), strict=True):
        h = np.where(oracles.keep_mask(key, (5, 3), 0.3), np.tanh(h + x), h)
    assert_allclose(last(0.3), h, rtol=1e-5, atol=1e-6)
    assert_array_equal(last(1.0), jnp.zeros((5, 3)))


@pytest.mark.parametrize("function", [lambda *states: zoneout(new_key(), *states), zoneout_mean], ids=["zoneout", "mean"])
def test_bad_states_and_rates_are_named(function: Any) -> None:
    for states, error, message in (
        ((H_PREV[:2], H), ValueError, r"h_prev must have shape \[8, 2, 4, 3\] \(that of h\), got \[2, 2, 4, 3\]"),
        ((H_PREV.astype(jnp.float16), H), TypeError, "h_prev must have the dtype of h, float32, got float16"),
        ((H_PREV.astype(int), H), TypeError, "h_prev must be .*int32"),
        ((H_PREV, None), TypeError, "h must be .*None"),
    ):
        with pytest.raises(error, match=message):
            function(*states, 0.3)
    for rate, error, shown in (
        (1.5, ValueError, "1.5"),
        (-0.1, ValueError, "-0.1"),
        (None, TypeError, "None"),
        (np.full(3, 0.5), ValueError, "3"),
    ):
        with pytest.raises(error, match=f"rate must .*got .*{shown}"):
            function(H_PREV, H, rate)
    assert jnp.isnan(jax.jit(lambda rate: function(H_PREV, H, rate))(1.5)).all()


def test_bad_keys_and_bits_are_named() -> None:
    """Pitfall 103: legacy keys are keys too, and nothing else is."""
    assert_array_equal(zoneout(jax.random.PRNGKey(11), H_PREV, H, 0.3), zoneout(new_key(), H_PREV, H, 0.3))
    with pytest.raises(TypeError, match=r"key must be one key, .*None"):
        zoneout(None, H_PREV, H, 0.3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bits must be 8, 16 or 32, got 7"):
        zoneout(new_key(), H_PREV, H, 0.3, bits=7)
