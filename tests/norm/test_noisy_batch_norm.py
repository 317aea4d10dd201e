"""Noisy batch norm: its distributions, its limits, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import AffineParams, RunningStats, batch_norm, init_noisy_batch_norm, noisy_batch_norm
from jaxnorm.benchmarks._costs import residuals

PARAMS = AffineParams(jnp.asarray([0.5, -1.5, 2.0]), jnp.asarray([0.3, 1.0, -2.0]))
STATE = RunningStats(jnp.asarray([0.1, 0.7, -0.4]), jnp.asarray([1.3, 0.6, 2.0]))
PLAIN = AffineParams(None, None)
X = data((400, 8, 3))


def key(seed: int = 0) -> jax.Array:
    return jax.random.key(seed)


@pytest.mark.parametrize("bits", [16, 32])
def test_without_noise_and_in_inference_it_is_batch_norm(bits: int) -> None:
    none = {"mean_bound": 0.0, "std_bound": 1.0, "spread": 0.0, "bits": bits}
    for train, options in ((True, none), (False, {"bits": bits})):
        y, new = noisy_batch_norm(key(), PARAMS, STATE, X, train=train, **options)
        wanted, state = batch_norm(PARAMS, STATE, X, train=train)
        assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
        for part, expected in zip(new, state, strict=True):
            assert_array_equal(part, expected)


@pytest.mark.parametrize("bits", [16, 32])
def test_every_channel_gets_a_mean_and_a_deviation_of_its_own(bits: int) -> None:
    """Methods 6: c ~ U(-0.5, 0.5), d ~ U(1, 1.25); of 300 channels neither mean is further off than 5 standard errors."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 300)), jnp.float32)
    state = init_noisy_batch_norm(300)[1]
    y, _ = noisy_batch_norm(key(1), PLAIN, state, x, train=True, spread=0.0, bits=bits)
    means, deviations = np.float64(y).mean(0), np.float64(y).std(0)
    assert np.abs(means).max() < 0.51
    assert np.abs(means.mean()) < 5 * 0.5 / np.sqrt(3 * 300)
    assert 0.99 < deviations.min() < 1.03
    assert 1.22 < deviations.max() < 1.26
    assert np.abs(deviations.mean() - 1.125) < 5 * 0.125 / np.sqrt(3 * 300)
    assert np.abs(np.corrcoef(means, deviations)[0, 1]) < 5 / np.sqrt(300)


def test_single_elements_spread_around_those_of_their_channel() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200_000, 1)), jnp.float32)
    state, none = init_noisy_batch_norm(1)[1], {"mean_bound": 0.0, "std_bound": 1.0}
    z, _ = batch_norm(PLAIN, state, x, train=True)
    y, _ = noisy_batch_norm(key(2), PLAIN, state, x, train=True, spread=0.1, **none)
    noise = np.float64(y - z).ravel()
    # Var[m] + Var[s] z^2 = 0.1^2 / 3 + 0.1^2 z^2
    assert_allclose(noise.var(), 0.01 / 3 + 0.01, rtol=0.02)
    assert np.abs(noise.mean()) < 5 * np.sqrt(0.0134 / 200_000)
    large = np.abs(np.float64(z).ravel()) > 2
    assert noise[large].var() > 2.5 * noise[~large].var()


def test_every_key_draws_anew_and_the_gradient_is_that_of_the_same_noise() -> None:
    call = lambda seed, x: noisy_batch_norm(key(seed), PARAMS, STATE, x, train=True)[0]  # noqa: E731
    assert_array_equal(call(0, X), call(0, X))
    assert not np.array_equal(call(0, X), call(1, X))
    weights = jnp.cos(X)
    scale = call(0, X + 1e-3 * weights) - call(0, X - 1e-3 * weights)
    got = jax.jvp(lambda x: call(0, x), (X,), (weights,))[1]
    assert_allclose(got, scale / 2e-3, rtol=0.05, atol=5e-3)


def test_x_is_kept_for_the_gradient_and_numbers_of_channels() -> None:
    x = data((64, 16, 32), dtype=jnp.bfloat16)
    state = init_noisy_batch_norm(32)[1]
    params = AffineParams(jnp.ones(32), jnp.zeros(32))
    kept = residuals(lambda params, x: noisy_batch_norm(key(), params, state, x, train=True), params, x)
    assert kept.keeps_input
    assert kept.nbytes <= 40 * 4 * 32


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"mean_bound": -0.1}, ValueError, r"mean_bound must be in \[0, inf\), got -0.1"),
        ({"std_bound": 0.9}, ValueError, r"std_bound must be in \[1, inf\), got 0.9"),
        ({"spread": float("nan")}, ValueError, r"spread must be in \[0, inf\), got nan"),
        ({"bits": 8}, ValueError, "bits must be 16 or 32, got 8"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        noisy_batch_norm(key(), PARAMS, STATE, X, **{"train": True, **options})


def test_no_key_is_named() -> None:
    with pytest.raises(TypeError, match="key must be"):
        noisy_batch_norm(0, PARAMS, STATE, X, train=True)  # type: ignore[arg-type]
