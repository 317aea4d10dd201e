"""Batch norm before the activation or after it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bars, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, NO_NORM, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY
from jaxnorm.experiments._training import over_seeds, recorded, train
from jaxnorm.training import TrainState, make_eval_step

_POINTS = 12
_RELU, _SIGMOID = "ReLU", "sigmoid"
_NONE, _BEFORE, _AFTER = "no norm", "before", "after"


def _arms() -> dict[str, MLP]:
    kinds = {_RELU: partial(MLP, width=64), _SIGMOID: partial(MLP, width=64, activation=jax.nn.sigmoid, std=0.1)}
    places = {_NONE: (NO_NORM, False), _BEFORE: (batch_norms(), False), _AFTER: (batch_norms(), True)}
    return {
        f"{name}, {place}": kind(norm, norm_last=is_last)
        for name, kind in kinds.items()
        for place, (norm, is_last) in places.items()
    }


def measure(model: MLP, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains an arm."""
    data, test = load_digits()

    def record(state: TrainState) -> dict[str, jax.Array]:
        return {"accuracy": make_eval_step(model.apply)(state, test)["accuracy"]}

    init_keys, train_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    _, history = train(
        model.apply, optax.sgd(0.3), train_keys, over_seeds(model.init)(init_keys), data,
        steps=options.steps, batch_size=60, record=record, every=options.steps // _POINTS, progress=progress,
    )  # fmt: skip
    return {"accuracy": history["accuracy"], "last": history["accuracy"][:, -1]}


def _last(name: str, place: str) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * found[f"{name}, {place}"]["last"]


def _worse(name: str) -> Callable[[Found], np.ndarray]:
    """Returns the accuracy at the worse of batch norm's places, in percent."""
    return lambda found: np.minimum(_last(name, _BEFORE)(found), _last(name, _AFTER)(found))


def _apart(name: str) -> Callable[[Found], np.ndarray]:
    """Returns how many points its places differ by, of the means over the seeds."""
    return lambda found: np.abs(np.mean(_last(name, _AFTER)(found) - _last(name, _BEFORE)(found)))


EXPERIMENT = Experiment(
    claim="Batch norm works before the activation and after it",
    sources=(
        IOFFE_SZEGEDY,
        'Mishkin, Sergievskiy, Matas, "Systematic evaluation of convolution neural network advances on the ImageNet", CVIU 2017, '
        "https://arxiv.org/abs/1606.02228",
    ),
    options=(Option("steps", count, 600, 240, "steps of gradient descent"),),
    arms=_arms(),
    measure=measure,
    quantities=(
        Quantity("last", "test accuracy at the end, %", 1, 100),
        Quantity(
            "accuracy",
            "test accuracy, %",
            1,
            100,
            axis=Axis("step", lambda options: recorded(options.steps, _POINTS)),
        ),
    ),
    parts=(
        Part("2.9", "sigmoid: test accuracies of the two places apart, points", _apart(_SIGMOID), at_most(2), 1),
        Part("2.9", "ReLU: test accuracies of the two places apart, points", _apart(_RELU), at_most(2), 1),
        Part("2.9", "sigmoid: test accuracy at the worse place, %", _worse(_SIGMOID), at_least(95), 1),
        Part("2.9", "ReLU: test accuracy at the worse place, %", _worse(_RELU), at_least(95), 1),
    ),
    panels=(Bars("last"), Lines("accuracy")),
    protocol=(
        "Perceptrons of 3 layers of 64 units on digits, gradient descent at a learning rate of 0.3 in batches of 60; initial "
        "weights are He's for ReLU and of deviation 0.1 for sigmoid."
    ),
    note=(
        "The place is yours to choose, and no property of Keras, or of any library. The paper's is before, which can be folded "
        "into the layer; published comparisons go either way: CaffeNet 49.9 % after and 47.4 % before, GoogLeNet 59.6 % and "
        "60.3 %."
    ),
    control={f"{_SIGMOID}, {_NONE}": f"{_SIGMOID}, {_AFTER}"},
)
