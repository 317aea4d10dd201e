"""Means and variances of a batch as estimates of those of the whole set (Ioffe, Szegedy, 2015, section 3)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import RunningStats, batch_norm, init_batch_norm
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bound, Experiment, Found, Lines, Options, Part, Quantity, at_most
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, part_of
from jaxnorm.experiments._training import over_seeds
from jaxnorm.statistics import precise_stats

_RANDOM, _CLASS = "random images", "images of one class"
_SIZES = (2, 4, 8, 16, 32, 64, 128)


def measure(one_class: bool, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Takes statistics of many batches of every size, and of the whole set at once."""
    (x, labels), _ = load_digits()
    params, initial = init_batch_norm(options.units)
    of_class = np.stack([np.resize(np.flatnonzero(labels == label), 256) for label in range(10)])

    def statistics(x: jax.Array, **given: Any) -> RunningStats:
        return batch_norm(params, initial, x, train=True, momentum=0.0, **given)[1]

    @over_seeds
    def of_seed(key: jax.Array) -> dict[str, jax.Array]:
        w_key, rows_key = jax.random.split(key)
        h = jnp.asarray(x) @ jax.random.normal(w_key, (x.shape[1], options.units)) / x.shape[1] ** 0.5
        whole = statistics(h)
        pooled = precise_stats(lambda _, batch: statistics(batch), initial, h.reshape(-1, 1, options.units), progress=False)

        def of_batch(key: jax.Array, size: jax.Array) -> tuple[RunningStats, jax.Array]:
            draw, which = jax.random.split(key)
            rows = jax.random.randint(draw, (_SIZES[-1],), 0, len(x))
            if one_class:
                rows = jnp.asarray(of_class)[jax.random.randint(which, (), 0, 10), rows % of_class.shape[1]]
            counted = jnp.arange(_SIZES[-1])[:, None] < size
            return statistics(h[rows], where=counted), statistics(h[rows], where=counted, unbiased=True).var

        batches = jax.random.split(rows_key, options.batches)

        def of_size(size: jax.Array) -> tuple[RunningStats, jax.Array]:
            return jax.vmap(lambda key: of_batch(key, size))(jax.random.clone(batches))

        seen, unbiased = jax.lax.map(of_size, jnp.array(_SIZES))
        return {
            "variance": jnp.mean(seen.var.mean(1) / whole.var, 1),
            "unbiased": jnp.mean(unbiased.mean(1) / whole.var, 1),
            "deviation": jnp.sqrt(jnp.mean(seen.mean.var(1) / whole.var, 1)),
            "whole set": jnp.maximum(jnp.max(jnp.abs(pooled.mean - whole.mean)), jnp.max(jnp.abs(pooled.var - whole.var))),
        }

    return of_seed(keys)


def _off(name: str, expected: np.ndarray) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * np.abs(found[_RANDOM][name] / expected - 1).max(1)


def _slope(found: Found) -> np.ndarray:
    return np.polyfit(np.log(_SIZES), np.log(found[_RANDOM]["deviation"].T), 1)[0]


_AXIS = Axis("batch size m", lambda options: _SIZES, log=True)
_SIZE = np.array(_SIZES)
EXPERIMENT = Experiment(
    claim="Statistics of a batch estimate those of the set, the better the larger it is",
    sources=(part_of(IOFFE_SZEGEDY, "section 3"),),
    options=(
        Option("batches", count, 4000, 4000, "batches of every size"),
        Option("units", count, 20, 20, "units whose statistics are taken"),
    ),
    arms={_RANDOM: False, _CLASS: True},
    measure=measure,
    quantities=(
        Quantity("whole set", "largest error of 1,297 batches of 1, pooled", 7),
        Quantity("variance", "mean variance of a batch over that of the set", 3, axis=_AXIS),
        Quantity("unbiased", "the same, unbiased", 3, axis=_AXIS),
        Quantity("deviation", "standard deviation of a batch's mean over that of the set", 3, axis=_AXIS, log=True),
    ),
    parts=(
        Part(
            "0.1", "largest error of (m - 1) / m for the mean variance, any m, %", _off("variance", 1 - 1 / _SIZE), at_most(3), 1
        ),
        Part("0.1", "slope of log deviation of the mean over log m", _slope, Bound(-0.52, -0.48), 3),
        Part("0.1", "largest error of 1 / sqrt(m) for it, any m, %", _off("deviation", _SIZE**-0.5), at_most(5), 1),
        Part(
            "0.1", "largest error of 1 for the unbiased variance, any m, %", _off("unbiased", np.ones(len(_SIZES))), at_most(3), 1
        ),
        Part(
            "0.1",
            "largest error of pooled batches against the whole set",
            lambda found: found[_RANDOM]["whole set"],
            at_most(1e-5),
            7,
        ),
    ),
    panels=(Lines("variance"), Lines("deviation")),
    protocol=(
        "Units are random sums of the pixels of scikit-learn's digits, over 1,297 images. Batches are drawn with replacement; "
        "those of one class are of a class drawn for each."
    ),
    note=(
        "That holds for shuffled batches alone: the mean of images of one class does not come nearer to that of the set, "
        "however many they are. Store the variance with `unbiased=True` where batches are small."
    ),
    control={_RANDOM: _CLASS},
    seeds=(5, 3),
)
