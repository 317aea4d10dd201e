"""Learning rates that networks bear with batch norm and without (Ioffe and Szegedy, 2015; Bjorck et al., 2018)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bars, Experiment, Found, Lines, Options, Part, Quantity, at_least
from jaxnorm.experiments._mlp import MLP, NO_NORM, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY
from jaxnorm.experiments._sweep import sweep
from jaxnorm.training import TrainState, make_eval_step

_RATES = 0.05 * 2.0 ** np.arange(12)
_USABLE = 0.9
_RELU, _RELU_NORM, _SIGMOID, _SIGMOID_NORM = "ReLU", "ReLU, batch norm", "sigmoid", "sigmoid, batch norm"


def measure(model: MLP, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains a network for every seed and learning rate, and finds the largest rate after which it is accurate."""
    data, test = load_digits()

    def record(state: TrainState) -> dict[str, jax.Array]:
        return {"accuracy": make_eval_step(model.apply)(state, test)["accuracy"]}

    _, history = sweep(
        keys, _RATES, lambda _: model, optax.sgd, data, steps=options.steps, batch_size=60, record=record, progress=progress
    )
    accuracy = history["accuracy"][:, :, -1]
    return {"accuracy": accuracy, "largest": jnp.max(jnp.where(accuracy >= _USABLE, _RATES, _RATES[0]), 1)}


def _ratio(over: str, under: str) -> Callable[[Found], np.ndarray]:
    return lambda found: found[over]["largest"] / found[under]["largest"]


def _usable(found: Found, arm: str) -> np.ndarray:
    return np.sum(found[arm]["accuracy"] >= _USABLE, axis=1)


EXPERIMENT = Experiment(
    claim="Batch norm lets networks train at learning rates at least ten times higher",
    sources=(
        IOFFE_SZEGEDY,
        'Bjorck, Gomes, Selman, Weinberger, "Understanding batch normalization", NeurIPS 2018, https://arxiv.org/abs/1806.02375',
    ),
    options=(Option("steps", count, 300, 100, "steps of gradient descent"),),
    arms={
        _RELU: MLP(NO_NORM, width=64),
        _RELU_NORM: MLP(batch_norms(), width=64),
        _SIGMOID: MLP(NO_NORM, width=64, activation=jax.nn.sigmoid, std=0.1),
        _SIGMOID_NORM: MLP(batch_norms(), width=64, activation=jax.nn.sigmoid, std=0.1),
    },
    measure=measure,
    quantities=(
        Quantity("largest", "largest usable learning rate", 2, log=True),
        Quantity("accuracy", "test accuracy, %", 1, 100, axis=Axis("learning rate", lambda options: _RATES, log=True)),
    ),
    parts=(
        Part("0.8 4.2 2.11", "ReLU: largest usable learning rate, with over without", _ratio(_RELU_NORM, _RELU), at_least(10), 1),
        Part(
            "0.8 4.2 2.11",
            "sigmoid: largest usable learning rate, with over without",
            _ratio(_SIGMOID_NORM, _SIGMOID),
            at_least(10),
            1,
        ),
        Part(
            "0.8 4.2",
            "sigmoid: decades of usable learning rates, with less without",
            lambda found: np.log10(2.0) * (_usable(found, _SIGMOID_NORM) - _usable(found, _SIGMOID)),
            at_least(1),
        ),
        Part(
            "2.11",
            "sigmoid: best test accuracy at any rate, with less without, points",
            lambda found: 100 * (found[_SIGMOID_NORM]["accuracy"].max(1) - found[_SIGMOID]["accuracy"].max(1)),
            at_least(20),
            1,
        ),
    ),
    panels=(Lines("accuracy"), Bars("largest")),
    protocol=(
        "Perceptrons of 3 layers of 64 units on digits, gradient descent in batches of 60 at a constant learning rate; initial "
        "weights are He's for ReLU and of deviation 0.1 for sigmoid. A rate is usable where the test accuracy at the end is at "
        f"least {_USABLE:.0%}; where none is, the least of the grid stands for the largest."
    ),
    note="A higher rate is open to you, not free: look for it anew when you add batch norm.",
    control={_RELU: _RELU_NORM, _SIGMOID: _SIGMOID_NORM},
)
