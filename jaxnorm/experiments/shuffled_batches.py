"""Accuracy where the examples of a batch are alike, of few classes, for batch norm and others."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxnorm.experiments._digits import NUM_CLASSES, load_digits
from jaxnorm.experiments._experiment import Axis, Bars, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, NO_NORM, Norm, batch_norms
from jaxnorm.experiments._norms import batch_renorms, layer_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE
from jaxnorm.experiments._sweep import sweep
from jaxnorm.experiments._training import adam
from jaxnorm.training import TrainState, make_eval_step

_CLASSES = np.array([1, 2, 5, 10])
_BATCH_SIZE = 40
_NONE, _BATCH, _RENORM, _LAYER = "no norm", "batch norm", "batch renorm", "layer norm"


def measure(norm: Norm, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains a network for every seed and number of classes in a batch."""
    model = MLP(norm, width=64)
    data, test = load_digits()
    of_class = [np.flatnonzero(data[1] == label) for label in range(NUM_CLASSES)]

    def order(number: int) -> np.ndarray:
        random = np.random.default_rng(number)
        classes = int(_CLASSES[number % len(_CLASSES)])

        def batch() -> np.ndarray:
            chosen = random.permutation(NUM_CLASSES)[:classes]
            return np.concatenate([random.choice(of_class[label], _BATCH_SIZE // classes) for label in chosen])

        return np.stack([batch() for _ in range(options.steps)])

    def record(state: TrainState) -> dict[str, jax.Array]:
        return {"accuracy": make_eval_step(model.apply)(state, test)["accuracy"]}

    _, history = sweep(
        keys, _CLASSES, lambda _: model, lambda _: adam(4e-3, options.steps), data,
        steps=options.steps, batch_size=_BATCH_SIZE, order=order, record=record, every=options.steps // 2, progress=progress,
    )  # fmt: skip
    accuracy = history["accuracy"][:, :, -1]
    return {"accuracy": accuracy, "one class": accuracy[:, 0], "two classes": accuracy[:, 1]}


def _one_class(arm: str, other: str | None = None) -> Callable[[Found], np.ndarray]:
    """Returns the accuracy with one class a batch in percent, less another arm's."""
    return lambda found: 100 * (found[arm]["one class"] - (0 if other is None else found[other]["one class"]))


EXPERIMENT = Experiment(
    claim="Batch norm needs shuffled batches: those of one class break it",
    sources=(IOFFE,),
    options=(Option("steps", count, 600, 200, "training steps"),),
    arms={_NONE: NO_NORM, _BATCH: batch_norms(), _RENORM: batch_renorms(), _LAYER: layer_norms()},
    measure=measure,
    quantities=(
        Quantity("one class", "test accuracy, batches of one class, %", 1, 100),
        Quantity("two classes", "test accuracy, batches of two classes, %", 1, 100),
        Quantity("accuracy", "test accuracy, %", 1, 100, axis=Axis("classes in a batch", lambda options: _CLASSES, log=True)),
    ),
    parts=(
        Part(
            "1.5",
            "test accuracy with one class a batch, no norm less batch norm, points",
            _one_class(_NONE, _BATCH),
            at_least(50),
            1,
        ),
        Part("1.5", "test accuracy of batch norm with one class a batch, %", _one_class(_BATCH), at_most(25), 1),
        Part(
            "1.5",
            "test accuracy of batch norm with all classes in a batch, %",
            lambda found: 100 * found[_BATCH]["accuracy"][:, -1],
            at_least(94),
            1,
        ),
        Part("1.5", "test accuracy of layer norm with one class a batch, %", _one_class(_LAYER), at_least(85), 1),
        Part(
            "1.5",
            "test accuracy with one class a batch, renorm less batch norm, points",
            _one_class(_RENORM, _BATCH),
            at_least(30),
            1,
        ),
    ),
    panels=(Lines("accuracy"), Bars("one class")),
    protocol=(
        f"ReLU perceptrons of 3 layers of 64 units on digits, batches of {_BATCH_SIZE} of so many classes, which are drawn anew "
        "for every batch, Adam. The test images come with the running statistics, as always."
    ),
    note="Shuffle across classes and sources; where you cannot, take layer or group norm; batch renorm helps halfway.",
    control={_BATCH: _NONE},
)
