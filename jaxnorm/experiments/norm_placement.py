"""Batch norm between convolutions, between a convolution and a dense layer, and between dense layers."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm import batch_norm
from jaxnorm.experiments._convnet import PLACES, ConvNet, patches
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bars, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most, once
from jaxnorm.experiments._mlp import Norm, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, part_of
from jaxnorm.experiments._training import grid, over_seeds, train, ungrid
from jaxnorm.training import make_eval_step

_NONE, _ALL = "no norm", "everywhere"
_BETWEEN = ("between convolutions", "convolution to dense", "between dense layers")
_ARMS = {_NONE: (0, 0, 0), _BETWEEN[0]: (1, 0, 0), _BETWEEN[1]: (0, 1, 0), _BETWEEN[2]: (0, 0, 1), _ALL: (1, 1, 1)}
_RATES = (0.03, 0.1, 0.3, 1.0)
_BATCH = 64


def _network(used: Any) -> ConvNet:
    """Returns the network with the norms that are used, which may be traced: its arms differ in numbers alone."""

    def switched(use: Any) -> Norm:
        norm = batch_norms(momentum=0.9)

        def apply(params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
            y, stats = norm.apply(params, stats, x, train=train)
            return jnp.where(use, y, x), stats

        return norm._replace(apply=apply)

    return ConvNet(tuple((place, switched(use)) for place, use in zip(PLACES, used, strict=True)), maps=(4, 8), units=32)


@functools.cache
def _trained(seeds: int, steps: int) -> tuple[Mapping[tuple[int, ...], Mapping[str, np.ndarray]], Any]:
    """Trains all arms with all learning rates as one axis of networks; returns what they reach, and the last arm's states."""
    data, test = load_digits()
    kinds = [(used, rate) for used in _ARMS.values() for rate in _RATES]
    keys, which = grid(jax.vmap(jax.random.key)(jnp.arange(seeds)), jnp.arange(len(kinds)))
    init_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    used, rates = jnp.array([used for used, _ in kinds], bool)[which], jnp.array([rate for _, rate in kinds])[which]
    rows = functools.cache(lambda seed: np.random.default_rng(seed).integers(0, len(data[0]), (steps, _BATCH)))
    state, _ = train(
        lambda own: _network(own[0]).apply,
        lambda own: optax.sgd(own[1]),
        keys,
        over_seeds(_network((1, 1, 1)).init)(init_keys),
        data,
        steps=steps,
        batch_size=_BATCH,
        each=(used, rates),
        order=lambda number: rows(number // len(kinds)),
    )

    @over_seeds
    def accuracy(state: Any, used: Any) -> jax.Array:
        return make_eval_step(_network(used).apply)(state, test)["accuracy"]

    reached = np.asarray(accuracy(state, used)).reshape(seeds, len(_ARMS), len(_RATES))
    found = {
        used: {"accuracies": reached[:, place], "accuracy": reached[:, place].max(1)} for place, used in enumerate(_ARMS.values())
    }
    return found, jax.tree.map(lambda part: part[:, -2], ungrid((state.params, state.stats), len(kinds)))


def _statistics_of_maps(trained: Any) -> Mapping[str, np.ndarray]:
    """Returns how far the statistics of the first convolution's norm are from means over examples and places."""
    (layers, norms), stats = trained
    images = jnp.asarray(load_digits()[0][0][:256]).reshape(-1, 8, 8, 1)

    @over_seeds
    def seen(layer: Any, norm: Any, stats: Any) -> tuple[jax.Array, Any]:
        maps = patches(images) @ layer.kernel + layer.bias
        return maps, batch_norm(norm, stats, maps, train=True, momentum=0.0)[1]

    maps, own = jax.device_get(seen(layers["conv 1"], norms["conv 1"], stats["conv 1"]))
    maps = maps.astype(np.float64)
    of_mean, of_var = np.abs(own.mean - maps.mean((1, 2, 3))), np.abs(own.var / maps.var((1, 2, 3)) - 1)
    one_each = [norms[place].scale.shape[-1] == layers[place].kernel.shape[-1] for place in PLACES]
    return {"error": np.maximum(of_mean, of_var).max(1), "scales": np.full(len(maps), all(one_each), np.float64)}


def measure(used: tuple[int, ...], keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Looks up what an arm reaches."""
    found, trained = _trained(len(keys), options.steps)
    return {**found[used], **(_statistics_of_maps(trained) if all(used) else {})}


def _at_places(found: Found, name: str) -> np.ndarray:
    return 100 * np.array([found[arm][name] for arm in _BETWEEN])


def _least_gain(found: Found) -> np.ndarray:
    return (_at_places(found, "accuracies") - 100 * found[_NONE]["accuracies"])[:, :, -1].min(0)


def _gain(found: Found) -> np.ndarray:
    return 100 * (found[_ALL]["accuracies"] - found[_NONE]["accuracies"])[:, -1]


EXPERIMENT = Experiment(
    claim="Batch norm helps after convolutions and dense layers, not everywhere alike",
    sources=(part_of(IOFFE_SZEGEDY, "section 3.2"),),
    options=(Option("steps", count, 150, 60, "training steps, of 64 images"),),
    arms=_ARMS,
    measure=measure,
    quantities=(
        Quantity("accuracy", "test accuracy at the best learning rate, %", 1, 100),
        Quantity("error", "largest error of a map's statistics", 7),
        Quantity("scales", "one scale for every map", 0),
        Quantity("accuracies", "test accuracy, %", 1, 100, axis=Axis("learning rate", lambda options: _RATES, log=True)),
    ),
    parts=(
        Part("2.1", "test accuracy at a learning rate of 1, gain by norms everywhere, points", _gain, at_least(5), 1),
        Part("2.1", "the same, least gain by the norm at one place, points", _least_gain, at_least(5), 1),
        Part(
            "2.1",
            "lowest test accuracy of the three places at its best learning rate, %",
            lambda found: _at_places(found, "accuracy").min(0),
            at_least(90),
            1,
        ),
        Part(
            "2.1",
            "difference between the places at a learning rate of 1, points",
            lambda found: np.ptp(_at_places(found, "accuracies")[:, :, -1], axis=0),
            at_least(1),
            1,
        ),
        Part("2.1", "error of a map's statistics against examples and places", once("error"), at_most(1e-4), 6),
        Part("2.1", "one scale for every map", once("scales"), at_least(1), 0),
    ),
    panels=(Bars("accuracy"), Lines("accuracies")),
    protocol=(
        "Two convolutions of 3 x 3, 4 and 8 maps, with ReLU and pooling of 2 x 2, a dense layer of 32 units and a classifier, "
        "on scikit-learn's digits, with gradient descent at several learning rates."
    ),
    note=(
        "In convolutions a map has one scale and one mean, over all examples and places. How much batch norm helps, and where, "
        "depends on the network and on the learning rate: at a small one that suits the network without it, it does not."
    ),
    control={_NONE: _ALL},
)
