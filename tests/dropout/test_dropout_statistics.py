"""Rate, independence and distribution of the noise, and of each test a sampler that is wrong and must fail it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from randomness import ALPHA
from scipy import stats

from jaxnorm import dropout, gaussian_dropout, uniform_dropout

LAGS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 64)
RATE = 0.3

all_bits = pytest.mark.parametrize("bits", [8, 16, 32])
noise_bits = pytest.mark.parametrize("bits", [16, 32])


def new_key(seed: int = 21) -> jax.Array:
    return jax.random.key(seed)


def dropped(key: jax.Array, shape: tuple[int, ...], rate: float = RATE, bits: int = 16) -> np.ndarray:
    return np.asarray(jax.jit(lambda key: dropout(key, jnp.ones(shape, jnp.bfloat16), rate, bits=bits) == 0)(key))


def drop_rate(rate: float = RATE, bits: int = 16) -> float:
    """The probability of dropping that so many bits realise."""
    return float(1 - oracles.realised(rate, bits))


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return dropped(new_key(), (130, 70, 66))


@pytest.mark.parametrize(
    "rate, bits", [(0.01, 16), (0.1, 16), (0.3, 16), (0.9, 16), (0.1, 8), (0.3, 8), (0.9, 8), (0.1, 32), (0.9, 32)]
)
def test_rate(rate: float, bits: int) -> None:
    large = dropped(new_key(), (2000, 2000), rate, bits)
    assert randomness.rate(large, drop_rate(rate, bits)) > ALPHA
    assert abs(drop_rate(rate, bits) - rate) <= (2.0**-24 if bits == 32 else 2.0 ** -(bits + 1))


@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_control_a_rate_that_is_off_by_one_percent(factor: float) -> None:
    assert randomness.rate(dropped(new_key(), (2000, 2000), 0.3 * factor), 0.3) < ALPHA


@all_bits
def test_neighbors_at_every_distance_are_independent(bits: int) -> None:
    mask = dropped(new_key(), (130, 70, 66), RATE, bits)
    for axis, distance in itertools.product(range(3), LAGS):
        assert randomness.lag(mask, distance, axis, drop_rate(RATE, bits)) > ALPHA, (axis, distance)


def test_control_a_copied_row(mask: np.ndarray) -> None:
    copied = mask.copy()
    copied[1::8] = copied[::8][: len(copied[1::8])]
    assert randomness.lag(copied, 1, 0, RATE) < ALPHA


def test_control_a_draw_repeated_every_four_elements(mask: np.ndarray) -> None:
    repeated = np.repeat(mask.ravel()[: mask.size // 4], 4).reshape(-1)
    assert randomness.lag(repeated, 1, 0, RATE) < ALPHA
    strided = np.tile(mask.ravel()[:4], mask.size // 4)
    assert randomness.lag(strided, 4, 0, RATE) < ALPHA
    assert randomness.runs(repeated, RATE) < ALPHA


@all_bits
def test_runs(bits: int) -> None:
    mask = dropped(new_key(), (130, 70, 66), RATE, bits)
    assert randomness.runs(mask, drop_rate(RATE, bits)) > ALPHA
    assert randomness.runs(np.moveaxis(mask, 0, -1), drop_rate(RATE, bits)) > ALPHA


def test_control_runs_of_a_sorted_mask(mask: np.ndarray) -> None:
    assert randomness.runs(np.sort(mask, axis=-1), RATE) < ALPHA


def masks_of(name: str, bits: int) -> np.ndarray:
    """Sixteen masks that a user draws from one key: by folding, splitting, lanes, steps of a scan."""
    shape = (100, 40)
    keys = jax.random.split(new_key(), 16)
    mask = lambda key: dropout(key, jnp.ones(shape), RATE, bits=bits) == 0  # noqa: E731
    if name == "fold_in":
        return np.stack([jax.jit(mask)(jax.random.fold_in(new_key(), i)) for i in range(16)])
    if name == "split":
        return np.stack([jax.jit(mask)(key) for key in keys])
    if name == "vmap":
        return np.asarray(jax.vmap(mask)(keys))
    return np.asarray(jax.lax.scan(lambda _, key: (None, mask(key)), None, keys)[1])


@all_bits
@pytest.mark.parametrize("name", ["fold_in", "split", "vmap", "scan"])
def test_masks_of_related_keys_are_independent(name: str, bits: int) -> None:
    """Pitfall 96: of the steps of a scan too."""
    masks = masks_of(name, bits)
    pairs = itertools.combinations(range(16), 2)
    worst = min(randomness.independence(masks[a], masks[b], drop_rate(RATE, bits)) for a, b in pairs)
    assert worst > ALPHA


def test_control_two_layers_with_the_same_mask() -> None:
    mask = dropped(new_key(), (100, 40))
    assert randomness.independence(mask, mask, RATE) < ALPHA
    partly = np.where(np.arange(100)[:, None] < 12, mask, dropped(new_key(5), (100, 40)))
    assert randomness.independence(mask, partly, RATE) < ALPHA


def masks_of_many_keys(bits: int) -> np.ndarray:
    keys = jax.random.split(new_key(), 4096)
    return np.asarray(jax.jit(jax.vmap(lambda key: dropout(key, jnp.ones((5, 6, 3)), RATE, bits=bits) == 0))(keys))


@all_bits
def test_every_position_is_dropped_alike(bits: int) -> None:
    assert randomness.positions(masks_of_many_keys(bits), drop_rate(RATE, bits)) > ALPHA


def test_control_a_position_that_is_never_dropped() -> None:
    masks = masks_of_many_keys(16).copy()
    masks[:, 2, 3, 1] &= np.arange(4096) % 2 == 0
    assert randomness.positions(masks, RATE) < ALPHA


@noise_bits
def test_gaussian_noise_is_normal_with_the_variance_of_dropout(bits: int) -> None:
    noise = np.asarray(gaussian_dropout(new_key(), jnp.ones(400_000), RATE, bits=bits), np.float64)
    std = np.sqrt(RATE / (1 - RATE))
    assert randomness.distribution(noise, stats.norm(1, std).cdf) > ALPHA
    assert abs(noise.mean() - 1) < 6 * std / np.sqrt(noise.size)
    assert abs(noise.var() - std**2) < 6 * std**2 * np.sqrt(2 / noise.size)
    for distance in LAGS:
        correlation = np.mean((noise[distance:] - 1) * (noise[:-distance] - 1)) / std**2
        assert abs(correlation) < 6 / np.sqrt(noise.size)


def test_control_gaussian_noise_of_another_rate() -> None:
    noise = gaussian_dropout(new_key(), jnp.ones(400_000), RATE * 1.03)
    std = np.sqrt(RATE / (1 - RATE))
    assert randomness.distribution(noise, stats.norm(1, std).cdf) < ALPHA


@noise_bits
def test_uniform_noise_is_uniform_with_its_variance(bits: int) -> None:
    beta = 0.6
    noise = np.asarray(uniform_dropout(new_key(), jnp.ones(400_000), beta, bits=bits), np.float64)
    assert noise.min() >= 1 - beta - 1e-6
    assert noise.max() <= 1 + beta + 1e-6
    assert randomness.distribution(noise, stats.uniform(1 - beta, 2 * beta).cdf) > ALPHA
    assert abs(noise.mean() - 1) < 6 * beta / np.sqrt(3 * noise.size)
    equivalent_rate = beta**2 / (3 + beta**2)
    assert abs(noise.var() - equivalent_rate / (1 - equivalent_rate)) < 6 * beta**2 / 3 * np.sqrt(0.8 / noise.size)


def test_control_uniform_noise_of_another_width() -> None:
    noise = uniform_dropout(new_key(), jnp.ones(400_000), 0.6 * 1.03)
    assert randomness.distribution(noise, stats.uniform(0.4, 1.2).cdf) < ALPHA


@all_bits
def test_expectation_and_variance_of_dropout_in_half_precision(bits: int) -> None:
    """Kept values are rounded once; their mean is x's within that rounding."""
    x = jnp.full(4_000_000, 1.7, jnp.bfloat16)
    y = np.asarray(jax.jit(lambda key: dropout(key, x, 0.1, bits=bits))(new_key()), np.float64)
    value, rate = float(x[0]), drop_rate(0.1, bits)
    sigma = value * np.sqrt(rate / (1 - rate) / x.size)
    assert set(np.unique(y)) == {0.0, float(jnp.bfloat16(value / (1 - rate)))}
    assert abs(y.mean() - value) < 6 * sigma + 2.0**-9 * value


@pytest.mark.slow
@all_bits
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_rate_of_half_a_billion_elements(rate: float, bits: int) -> None:
    count = jax.jit(lambda key: jnp.sum(dropout(key, jnp.ones((4096, 4096), jnp.bfloat16), rate, bits=bits) == 0))
    total = sum(int(count(jax.random.fold_in(new_key(), i))) for i in range(32))
    n, probability = 32 * 4096**2, drop_rate(rate, bits)
    assert abs(total - n * probability) < 6 * np.sqrt(n * probability * (1 - probability))
