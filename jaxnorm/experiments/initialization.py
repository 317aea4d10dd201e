"""How much the scale of the initial weights matters with batch norm and without, at two depths."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm.diagnostics import gradient_norms, model_loss
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, NO_NORM, Norm, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY
from jaxnorm.experiments._sweep import sweep
from jaxnorm.experiments._training import grid, over_seeds, ungrid
from jaxnorm.training import TrainState, make_eval_step

_STDS = np.logspace(-3, 0, 10)  # He's of a layer of 48 units is 0.2, close to one of them
_POINTS = 3.0
_ALL = 38.0  # powers of ten that float32 has: those of a gradient of 0
_NONE, _BATCH = "no norm", "batch norm"


def measure(norm: Norm, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains shallow and deep networks for every seed and deviation, and takes the gradients at the start of the deep ones."""
    keys, shallow_keys, deep_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    shallow = _accuracy(MLP(norm, width=64), shallow_keys, options.steps, lambda share: progress(share / 2))
    model = MLP(norm, width=48, depth=options.depth)
    deep = _accuracy(model, deep_keys, options.steps, lambda share: progress(share / 2))
    x, labels = load_digits()[0]

    @over_seeds
    def spread(key: jax.Array, std: jax.Array) -> jax.Array:
        params, stats = replace(model, std=std).init(key)
        loss = model_loss(model.apply, key, stats, train=True)
        norms = gradient_norms(loss, params, (x[:256], labels[:256]), stacked="others").norms
        return jnp.log10(norms[0]) - jnp.log10(norms[-2])

    orders = jnp.nan_to_num(ungrid(spread(*grid(keys, _STDS)), len(_STDS)), nan=-_ALL, posinf=_ALL, neginf=-_ALL)
    return {
        "accuracy": shallow, "deep accuracy": deep, "gradients": orders,
        "flat": _decades(shallow), "deep flat": _decades(deep),
        "worst": jnp.max(jnp.abs(orders), 1),
    }  # fmt: skip


def _accuracy(model: MLP, keys: jax.Array, steps: int, progress: Callable[[float], None]) -> jax.Array:
    data, test = load_digits()

    def record(state: TrainState) -> dict[str, jax.Array]:
        return {"accuracy": make_eval_step(model.apply)(state, test)["accuracy"]}

    _, history = sweep(
        keys, _STDS, lambda std: replace(model, std=std), lambda _: optax.sgd(0.1), data,
        steps=steps, batch_size=60, record=record, every=steps, progress=progress,
    )  # fmt: skip
    return history["accuracy"][:, :, -1]


def _decades(accuracy: jax.Array) -> jax.Array:
    """Returns how many decades of deviations in a row have an accuracy close to the best."""
    good = np.asarray(accuracy >= accuracy.max(1, keepdims=True) - _POINTS / 100)
    longest = [max(map(len, "".join("x" if one else " " for one in row).split())) for row in good]
    return jnp.array([(length - 1) * float(np.log10(_STDS[1] / _STDS[0])) for length in longest])


def _of(arm: str, quantity: str) -> Callable[[Found], np.ndarray]:
    return lambda found: found[arm][quantity]


_OF_STD = Axis("deviation of the initial weights", lambda options: _STDS, log=True)
EXPERIMENT = Experiment(
    claim="With batch norm the scale of the initial weights hardly matters",
    sources=(IOFFE_SZEGEDY,),
    options=(
        Option("steps", count, 300, 100, "steps of gradient descent"),
        Option("depth", count, 20, 20, "hidden layers of the deep networks"),
    ),
    arms={_NONE: NO_NORM, _BATCH: batch_norms()},
    measure=measure,
    quantities=(
        Quantity("flat", f"decades of deviations within {_POINTS:g} points of the best", 1),
        Quantity("deep flat", "deep: decades likewise", 1),
        Quantity("worst", "deep: powers of ten between gradients, worst", 1),
        Quantity("accuracy", "3 layers: test accuracy, %", 1, 100, axis=_OF_STD),
        Quantity("deep accuracy", "deep: test accuracy, %", 1, 100, axis=_OF_STD),
        Quantity("gradients", "deep: log10 of the gradient norm, first over last layer", 2, axis=_OF_STD),
    ),
    parts=(
        Part(
            "4.2 2.11",
            "3 layers: decades within 3 points of the best accuracy, batch norm less without",
            lambda found: found[_BATCH]["flat"] - found[_NONE]["flat"],
            at_least(1),
            1,
        ),
        Part("4.2 2.11", "3 layers: decades within 3 points of the best, batch norm", _of(_BATCH, "flat"), at_least(2), 1),
        Part("4.2 2.11", "deep: decades within 3 points of the best, batch norm", _of(_BATCH, "deep flat"), at_least(2), 1),
        Part(
            "2.11",
            "deep: best test accuracy, batch norm less without, points",
            lambda found: 100 * (found[_BATCH]["deep accuracy"].max(1) - found[_NONE]["deep accuracy"].max(1)),
            at_least(5),
            1,
        ),
        Part(
            "2.11", "deep: powers of ten between gradients of first and last layer, batch norm", _of(_BATCH, "worst"), at_most(1)
        ),
        Part("2.11", "deep: the same without norm", _of(_NONE, "worst"), at_least(3)),
    ),
    panels=(Lines("accuracy"), Lines("deep accuracy"), Lines("gradients")),
    protocol=(
        "ReLU perceptrons of 3 layers of 64 units, and deep ones of 48 units, on digits, gradient descent at a learning rate "
        "of 0.1 in batches of 60, all weights drawn with one deviation. Gradients are those at the start of 256 images, of the "
        f"first and the last hidden layer, at the worst of all deviations; one of 0 counts with {_ALL:g} powers of ten."
    ),
    note="Deep networks still want residual connections: at the start, each ReLU layer with batch norm makes gradients larger.",
    control={_NONE: _BATCH},
)
