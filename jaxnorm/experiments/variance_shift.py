"""Dropout before batch norm shifts the variances that it meets in inference, and what helps (Li et al., 2019)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import dropout, uniform_dropout
from jaxnorm.diagnostics import dropout_noise_variance, uniform_noise_variance
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bars, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, NO_NORM, Noise, Params, Place, Stats, batch_norms
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._shift import Shift, measure_shift
from jaxnorm.experiments._sources import LI
from jaxnorm.experiments._training import accuracy, adam, train
from jaxnorm.statistics import precise_stats
from jaxnorm.training import cross_entropy
from jaxnorm.training.data import Batch

_BETA = 0.5
_NORM, _FRESH = batch_norms(), batch_norms(momentum=0.0)
_SHIFTING = "before norm", "before dense"
_NONE, _BEFORE, _LAYER, _UOUT, _LAST = (
    "batch norm", "dropout before batch norm", "dropout, layer, batch norm", f"Uout (beta {_BETA}) before batch norm",
    "dropout after the last batch norm",
)  # fmt: skip


def arms(options: Options) -> Mapping[str, MLP]:
    """Returns the networks."""
    model = partial(MLP, depth=options.depth, width=options.width)

    def dropped(place: Place) -> Noise:
        return Noise(lambda key, x: dropout(key, x, options.rate), dropout_noise_variance(options.rate), place)

    uout = Noise(lambda key, x: uniform_dropout(key, x, _BETA), uniform_noise_variance(_BETA), "before norm")
    return {
        "no norm": model(NO_NORM),
        _NONE: model(_NORM),
        "dropout": model(NO_NORM, dropped("before norm")),
        _BEFORE: model(_NORM, dropped("before norm")),
        _LAYER: model(_NORM, dropped("before dense")),
        _UOUT: model(_NORM, uout),
        _LAST: model(_NORM, dropped("before classifier")),
    }


def measure(model: MLP, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains an arm, and measures accuracies and shifts with the weights as they are."""
    data, test = load_digits()
    init_keys, train_keys, measure_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    steps, quiet = options.epochs * (len(data[0]) // 64), replace(model, noise=None)
    initial = _init(quiet, init_keys)
    state, _ = train(model.apply, adam(4e-3, steps), train_keys, initial, data, steps=steps, batch_size=64, progress=progress)
    found = _assess(quiet, state.params, state.stats, data, test)
    if model.norm is NO_NORM:
        return found
    x, noisy = jnp.asarray(data[0]), model if model.noise and model.noise.place in _SHIFTING else quiet
    shift = _shift(noisy, measure_keys, state.params, state.stats, x)
    found |= {"shift": shift.compounded, "alone": shift.alone, "closed form": shift.closed_form, "li": shift.li}
    return found | {"largest shift": shift.compounded.max(-1)}


# These are compiled once for all arms that have the same network when there is no noise.


@partial(jax.jit, static_argnums=0)
def _init(model: MLP, keys: jax.Array) -> tuple[Params, Stats]:
    return jax.vmap(model.init)(keys)


@partial(jax.jit, static_argnums=0)
def _assess(model: MLP, params: Params, stats: Stats, data: Batch, test: Batch) -> dict[str, jax.Array]:
    def assess(params: Params, stats: Stats) -> dict[str, jax.Array]:
        def logits(stats: Stats, x: Any) -> jax.Array:
            return model.forward(None, params, stats, x, train=False)[0]

        def update(stats: Stats, x: jax.Array) -> Stats:
            return replace(model, norm=_FRESH).forward(None, params, stats, x, train=True)[1]

        on_train, on_test = jnp.split(logits(stats, jnp.concatenate([data[0], test[0]])), [len(data[0])])
        found = {"train accuracy": accuracy(on_train, data[1]), "accuracy": accuracy(on_test, test[1])}
        found |= {"nll": cross_entropy(on_test, jnp.asarray(test[1])).mean()}
        if model.norm is NO_NORM:
            return found
        anew = precise_stats(update, stats, jnp.asarray(data[0])[None])
        return found | {"re-estimated": accuracy(logits(anew, test[0]), test[1])}

    return jax.vmap(assess)(params, stats)


@partial(jax.jit, static_argnums=0)
def _shift(model: MLP, keys: jax.Array, params: Params, stats: Stats, x: jax.Array) -> Shift:
    return jax.vmap(lambda key, params, stats: measure_shift(model, key, params, stats, x)[1])(keys, params, stats)


def _largest(arm: str) -> Callable[[Found], np.ndarray]:
    return lambda found: found[arm]["largest shift"]


def _lost(arm: str) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * (found[_NONE]["accuracy"] - found[arm]["accuracy"])


def _order(found: Found) -> np.ndarray:
    return np.diff([found[arm]["largest shift"] for arm in (_NONE, _UOUT, _LAYER, _BEFORE)], axis=0).min(0)


def _off(found: Found) -> np.ndarray:
    return 100 * np.max([np.abs(of["alone"] / of["closed form"] - 1).max(1) for of in found.values() if "alone" in of], axis=0)


_LAYERS = Axis("batch norm, from the input", lambda options: np.arange(1, options.depth + 1))
EXPERIMENT = Experiment(
    claim="Dropout before batch norm shifts the variance between training and inference",
    sources=(LI,),
    options=(
        Option("rate", rate_below_one, 0.5, 0.5, "probability of dropping"),
        Option("depth", count, 8, 6, "number of hidden layers"),
        Option("width", count, 100, 100, "units of a hidden layer"),
        Option("epochs", count, 75, 20, "passes over the 1,297 training images, of 20 steps each"),
    ),
    arms=arms,
    measure=measure,
    quantities=(
        Quantity("train accuracy", "train accuracy, %", 1, 100),
        Quantity("accuracy", "test accuracy, %", 1, 100),
        Quantity("nll", "test NLL", 3),
        Quantity("largest shift", "largest shift ratio", 2),
        Quantity("re-estimated", "re-estimated: test accuracy, %", 1, 100),
        Quantity("shift", "shift ratio: variance stored in training to the real one", 2, axis=_LAYERS, log=True),
        Quantity("alone", "shift ratio, noise in that layer alone", 3, axis=_LAYERS),
        Quantity("closed form", "closed form of it", 3, axis=_LAYERS),
        Quantity("li", "closed form of Li et al.", 3, axis=_LAYERS),
    ),
    parts=(
        Part(
            "1.11",
            "largest shift ratio with dropout before batch norm",
            _largest(_BEFORE),
            at_least(1.5),
        ),
        Part("1.11", "largest shift ratio without dropout", _largest(_NONE), at_most(1.1)),
        Part("1.11", "test accuracy lost by dropout before batch norm, points", _lost(_BEFORE), at_least(20), 1),
        Part("1.11", "largest error of the closed form at any layer, %", _off, at_most(5), 1),
        Part("1.11 1.13", "smallest step of the order none, Uout, dropout and layer, dropout", _order, at_least(0.05)),
        Part(
            "1.12",
            "largest shift ratio with dropout after the last batch norm",
            _largest(_LAST),
            at_most(1.1),
        ),
        Part("1.12 1.10", "test accuracy lost by dropout after the last batch norm, points", _lost(_LAST), at_most(1), 1),
        Part("1.13", "test accuracy lost by Uout, points", _lost(_UOUT), at_most(1), 1),
        Part(
            "1.13b",
            "test accuracy that re-estimated statistics give back, points",
            lambda found: 100 * (found[_BEFORE]["re-estimated"] - found[_BEFORE]["accuracy"]),
            at_least(3),
            1,
        ),
    ),
    panels=(Lines("shift"), Bars("accuracy")),
    protocol=(
        "Perceptrons of scikit-learn's digits, 1,297 to train and 500 to test, with Adam in batches of 64. The shift ratio of a "
        "batch norm is the variance that it stored in training over the real one without noise, weights as they are, or its "
        "inverse, whichever is at least 1. The closed form is of noise at that layer alone; noise in the layers below compounds "
        "with it. Re-estimation replaces the stored statistics by those of the training set without noise."
    ),
    note=(
        "Uout loses nothing because its noise is small: at most that of dropout at a rate of beta^2 / (3 + beta^2), a quarter. "
        "Networks of four layers and fewer lose little, as batch norm and ReLU together hardly depend on scale."
    ),
    control={"rate": 0.0},
)
