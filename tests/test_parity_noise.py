"""Noise beside that of PyTorch, Keras and Flax: the same distribution, and with Flax's draw the same values."""

import importlib
import os
from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import randomness
from numpy.testing import assert_allclose
from randomness import ALPHA
from scipy import stats

import jaxnorm

pytestmark = [pytest.mark.slow, pytest.mark.jax_defaults]
os.environ["KERAS_BACKEND"] = "jax"  # keras reads it when it is imported
X = np.random.default_rng(0).normal(size=(500, 4, 3, 40)).astype(np.float32)

Peer = Callable[[], np.ndarray]


def in_torch(name: str, rate: float) -> np.ndarray:
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    x = torch.tensor(np.moveaxis(X, -1, 1).copy(), requires_grad=True)
    return np.moveaxis(getattr(torch.nn, name)(rate).train()(x).detach().numpy(), 1, -1)


def in_keras(name: str, amount: float) -> np.ndarray:
    layers = importlib.import_module("keras").layers
    return np.asarray(getattr(layers, name)(amount, seed=0)(X, training=True))


CASES: dict[str, tuple[str, Callable[..., Any], float]] = {
    "torch AlphaDropout": ("torch", jaxnorm.alpha_dropout, 0.3),
    "torch FeatureAlphaDropout": ("torch", lambda *given: jaxnorm.alpha_dropout(*given, broadcast_dims=(1, 2)), 0.3),
    "torch Dropout2d": ("torch", jaxnorm.spatial_dropout, 0.3),
    "keras AlphaDropout": ("keras", jaxnorm.alpha_dropout, 0.3),
    "keras SpatialDropout2D": ("keras", jaxnorm.spatial_dropout, 0.3),
    "keras GaussianNoise": ("keras", jaxnorm.gaussian_noise, 0.5),
}


def both(name: str) -> tuple[np.ndarray, np.ndarray]:
    package, function, amount = CASES[name]
    pytest.importorskip(package)
    theirs = (in_torch if package == "torch" else in_keras)(name.split()[1], amount)
    return np.asarray(function(jax.random.key(0), jnp.asarray(X), amount)), theirs


def numbers(y: np.ndarray) -> np.ndarray:
    """One number of every example and channel; rounded, so that what is dropped to one value is it in both."""
    return np.round(y[:, 0, 0].ravel(), 2)


@pytest.mark.parametrize("name", CASES)
def test_values_are_distributed_as_those_of_others(name: str) -> None:
    """And a control: not as those of another amount."""
    mine, theirs = (numbers(y) for y in both(name))
    assert stats.ks_2samp(mine, theirs).pvalue > ALPHA
    _, function, amount = CASES[name]
    other = np.asarray(function(jax.random.key(0), jnp.asarray(X), amount + 0.3))
    assert stats.ks_2samp(numbers(other), theirs).pvalue < ALPHA


@pytest.mark.parametrize("name", [name for name in CASES if "Noise" not in name])
def test_the_same_elements_share_a_decision(name: str) -> None:
    """Whole channels of one example, or none; of dropped ones the value is the same in both."""
    shares = "Dropout2" in name or "Feature" in name
    fallen = [0.0] * 2 if "2" in name.split()[1] else [stats.mode(y, axis=None).mode for y in both(name)]
    assert_allclose(*fallen, rtol=1e-3)
    for y, value in zip(both(name), fallen, strict=True):
        dropped = y == value
        assert (dropped == dropped[:, :1, :1]).all() == shares
        assert randomness.rate(dropped[:, 0, 0], 0.3) > ALPHA


@pytest.mark.parametrize(
    ("function", "dims"),
    [
        (lambda *given: jaxnorm.spatial_dropout(*given, bits=32), (1, 2)),
        (lambda *given: jaxnorm.locked_dropout(*given, bits=32), (1,)),
        (lambda *given: jaxnorm.head_dropout(*given, head_axis=-2, bits=32), (1, 3)),
        (lambda *given: jaxnorm.drop_path(*given, bits=32), (1, 2, 3)),
        (lambda *given: jaxnorm.drop_path(*given, mode="batch", bits=32), (0, 1, 2, 3)),
    ],
    ids=["spatial", "locked", "head", "row", "batch"],
)
def test_values_are_those_of_flax_for_its_draw(function: Callable[..., Any], dims: tuple[int, ...]) -> None:
    theirs = flax.linen.Dropout(0.3, broadcast_dims=dims, deterministic=False)
    with jax.debug_key_reuse(False):
        y = theirs.apply({}, jnp.asarray(X), rng=jax.random.key(7))
        assert_allclose(function(jax.random.key(7), jnp.asarray(X), 0.3), y, rtol=2.4e-7)
