"""Whitening needs the joint covariance, which small batches do not give (Ioffe, Szegedy, 2015; Huang et al., 2018)."""

import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import batch_norm, decorrelated_batch_norm, init_batch_norm, init_decorrelated_batch_norm, iterative_norm
from jaxnorm.experiments._experiment import Axis, Bars, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most, once
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, part_of
from jaxnorm.experiments._training import over_seeds

_NORM, _ZCA, _TEXTBOOK = "batch norm", "ZCA", "ZCA without epsilon"
_FEW, _MANY = "Newton, 5 steps", "Newton, 20 steps"
_EPSILON = 1e-5
_CHANNELS = 32
_SIZES = (8, 16, 32, 64, 256)

Whiten = Callable[[jax.Array], jax.Array]


def _batch_norm(x: jax.Array) -> jax.Array:
    params, stats = init_batch_norm(_CHANNELS)
    return batch_norm(params, stats, x, train=True, epsilon=_EPSILON)[0]


def _grouped(norm: Callable[..., Any], x: jax.Array, group_size: int = _CHANNELS, **options: Any) -> jax.Array:
    params, stats = init_decorrelated_batch_norm(_CHANNELS, group_size=group_size)
    return norm(params, stats, x, train=True, group_size=group_size, epsilon=_EPSILON, **options)[0]


_zca = partial(_grouped, decorrelated_batch_norm)


def _textbook(x: jax.Array) -> jax.Array:
    """Whitens by the inverse roots of the covariance's eigenvalues as they are."""
    centered = x - x.mean(0)
    values, vectors = jnp.linalg.eigh(jnp.matmul(centered.T, centered, precision="highest") / len(x))
    return centered @ (vectors / jnp.sqrt(values)) @ vectors.T


def _covariance(x: Any) -> Any:
    x = x - x.mean(0)
    return x.T @ x / len(x)


@functools.cache
def _batches(seeds: int, count: int) -> jax.Array:
    """Returns batches of correlated channels, `[seeds, count, largest size, channels]`."""

    @over_seeds
    def draw(key: jax.Array) -> jax.Array:
        mix_key, x_key = jax.random.split(key)
        turn, back = jnp.linalg.qr(jax.random.normal(mix_key, (2, _CHANNELS, _CHANNELS)))[0]
        mix = turn * jnp.geomspace(1.0, 0.1, _CHANNELS) @ back
        return jax.random.normal(x_key, (count, _SIZES[-1], _CHANNELS)) @ mix + 1

    return draw(jax.vmap(jax.random.key)(jnp.arange(seeds)))


def _of_largest(x: np.ndarray, y: np.ndarray, zca: np.ndarray) -> dict[str, float]:
    """Returns what a largest batch has become, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    before, after = _covariance(x), _covariance(y)
    deviation = np.sqrt(np.diag(after))
    return {
        "covariance": np.abs(after - before @ np.linalg.inv(before + _EPSILON * np.eye(_CHANNELS))).max(),
        "correlation": np.abs(after / (deviation * deviation[:, None]) - np.eye(_CHANNELS)).max(),
        "largest": np.linalg.eigvalsh(after)[-1],
        "distance": np.abs(y - zca).max(),
    }


_zca_of, _batch_norm_of = over_seeds(_zca), over_seeds(_batch_norm)


def measure(whiten: Whiten, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Whitens batches of correlated channels."""
    batches = _batches(len(keys), options.batches)
    x = batches[:, 0]

    @over_seeds
    def finite(x: jax.Array) -> jax.Array:
        return jnp.stack([jnp.all(jnp.isfinite(jax.lax.map(whiten, x[:, :size])), (1, 2)).mean() for size in _SIZES])

    def rank(x: np.ndarray) -> float:
        return float(np.linalg.matrix_rank(x - x.mean(0), tol=1e-3))

    of_seeds = [_of_largest(*each) for each in zip(*map(np.asarray, (x, over_seeds(whiten)(x), _zca_of(x))), strict=True)]
    found = {name: np.array([each[name] for each in of_seeds]) for name in of_seeds[0]}
    if whiten in (_zca, _textbook, _batch_norm):
        found["finite"] = np.asarray(finite(batches))
    if whiten is _zca:
        found["rank"] = np.array([[rank(batch[:size]) for size in _SIZES] for batch in np.asarray(x)])
        single = over_seeds(partial(_grouped, decorrelated_batch_norm, group_size=1))(x) - _batch_norm_of(x)
        found["single"] = np.abs(single).max((1, 2))
    return found


def _finite(arm: str, size: int) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * found[arm]["finite"][:, _SIZES.index(size)]


_AXIS = Axis("batch size m", lambda options: _SIZES, log=True)
EXPERIMENT = Experiment(
    claim="Whitening decorrelates too, but a batch smaller than the channels is singular",
    sources=(
        part_of(IOFFE_SZEGEDY, "section 3"),
        'Huang, Yang, Lang, Deng, "Decorrelated batch normalization", CVPR 2018, https://arxiv.org/abs/1804.08450',
        'Huang, Zhou, Zhu, Liu, Shao, "Iterative normalization: beyond standardization towards efficient whitening", CVPR 2019, '
        "https://arxiv.org/abs/1904.03441",
    ),
    options=(Option("batches", count, 20, 10, "batches of every size"),),
    arms={
        _ZCA: _zca,
        _NORM: _batch_norm,
        _TEXTBOOK: _textbook,
        _FEW: partial(_grouped, iterative_norm, iterations=5),
        _MANY: partial(_grouped, iterative_norm, iterations=20),
    },
    measure=measure,
    quantities=(
        Quantity("covariance", "largest error of the covariance against S (S + eps)^-1", 5),
        Quantity("correlation", "largest correlation left", 4),
        Quantity("largest", "largest eigenvalue of the covariance", 4),
        Quantity("distance", "largest distance to ZCA", 4),
        Quantity("single", "groups of one channel: largest distance to batch norm", 6),
        Quantity("rank", "rank of the covariance", 0, axis=_AXIS),
        Quantity("finite", "batches whose outputs are finite, %", 0, 100, axis=_AXIS),
    ),
    parts=(
        Part("4.7 0.3", "largest error of the covariance after ZCA", lambda found: found[_ZCA]["covariance"], at_most(1e-3), 6),
        Part("4.7", "largest correlation left by ZCA", lambda found: found[_ZCA]["correlation"], at_most(0.01), 4),
        Part("4.7 0.3", "largest correlation left by batch norm", lambda found: found[_NORM]["correlation"], at_least(0.1), 3),
        Part(
            "0.3",
            "largest distance of the rank to min(m - 1, channels), any m",
            lambda found: np.abs(once("rank")(found) - np.minimum(np.array(_SIZES) - 1, _CHANNELS)).max(1),
            at_most(0),
            0,
        ),
        Part("0.3", "batches of 16 that are finite without epsilon, %", _finite(_TEXTBOOK, 16), at_most(10), 0),
        Part("0.3", "batches of 16 that are finite with epsilon, %", _finite(_ZCA, 16), at_least(100), 0),
        Part("0.3", "groups of one channel: largest distance to batch norm", once("single"), at_most(1e-5), 7),
        Part("0.3", "largest eigenvalue after Newton's 5 steps", lambda found: found[_FEW]["largest"], at_most(1.001), 4),
        Part("0.3", "largest distance of Newton's 20 steps to ZCA", lambda found: found[_MANY]["distance"], at_most(0.01), 5),
    ),
    panels=(Bars("correlation"), Lines("rank"), Lines("finite")),
    protocol=(
        f"Batches of {_CHANNELS} normal channels that are mixed at random, with variances from 0.01 to 1 along the axes, and "
        f"whitened with an epsilon of {_EPSILON:g} by the batch's own covariance."
    ),
    note=(
        "The source is right that joint statistics need regularisation: of m examples the covariance has rank m - 1 at most. So "
        "whiten groups of few channels, and batches of several times as many vectors."
    ),
    control={_ZCA: _NORM},
)
