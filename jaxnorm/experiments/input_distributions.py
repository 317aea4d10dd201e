"""The distribution of a sigmoid layer's input through training, with batch norm and without (Ioffe and Szegedy, 2015)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm.diagnostics import activation_percentiles, gradient_norms, model_loss, saturated_share
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Drawing, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, NO_NORM, Norm, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY
from jaxnorm.experiments._training import over_seeds, recorded, train
from jaxnorm.training import TrainState

_RATE, _POINTS = 0.3, 20
_NONE, _BATCH = "no norm", "batch norm"
_PERCENTILES = (15, 50, 85)


def measure(norm: Norm, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains an arm, and measures what the last sigmoid layer is given, as it is in training."""
    model = MLP(norm, activation=jax.nn.sigmoid, std=0.1)
    data, _ = load_digits()

    def record(state: TrainState) -> dict[str, jax.Array]:
        _, _, (_, seen) = model.forward(None, state.params, state.stats, jnp.asarray(data[0]), train=True)
        x = seen.normalized[-1]
        percentiles = activation_percentiles(x, percentiles=_PERCENTILES)
        loss = model_loss(model.apply, state.key, state.stats, train=True)
        ratio = gradient_norms(loss, state.params, data, stacked="others").norms
        return {
            "percentiles": percentiles,
            "saturated": jnp.mean(saturated_share(x)),
            "gradients": ratio[0] / ratio[-2],
        }

    init_keys, train_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    _, history = train(
        model.apply, optax.sgd(_RATE), train_keys, over_seeds(model.init)(init_keys), data,
        steps=options.steps, batch_size=60, record=record, every=options.steps // _POINTS, progress=progress,
    )  # fmt: skip
    of_units = history["percentiles"]  # [seeds, points, percentiles, units]
    moved = jnp.abs(jnp.diff(of_units, axis=1)).sum(1).mean((1, 2))
    found = {f"percentile {q}": of_units[:, :, place, 0] for place, q in enumerate(_PERCENTILES)}
    width = (of_units[:, :, 2] - of_units[:, :, 0]).mean(-1)
    return found | {
        "drift": moved,
        "width": width[:, width.shape[1] // 10],
        "saturated": history["saturated"],
        "most saturated": history["saturated"].max(1),
        "gradients": history["gradients"],
        "least gradients": history["gradients"].min(1),
    }


def _draw(axes: Any, found: Found, colors: Mapping[str, str], options: Options) -> None:
    """Draws the percentiles of one unit's input, of the first seed."""
    x = _STEPS.values(options)
    for (arm, parts), style in zip(found.items(), ("--", "-"), strict=True):
        for q in _PERCENTILES:
            width = 2.2 if q == 50 else 1.2
            axes.plot(x, parts[f"percentile {q}"][0], style, color=colors[arm], linewidth=width)
    axes.set(xlabel=_STEPS.label, title=f"Input of one sigmoid unit: {', '.join(map(str, _PERCENTILES))} %")


def _of(arm: str, quantity: str) -> Callable[[Found], np.ndarray]:
    return lambda found: found[arm][quantity]


def _ratio(quantity: str, over: str, under: str) -> Callable[[Found], np.ndarray]:
    return lambda found: found[over][quantity] / found[under][quantity]


_STEPS = Axis("step", lambda options: recorded(options.steps, _POINTS))
EXPERIMENT = Experiment(
    claim="Batch norm keeps inputs of sigmoid layers spread, steady and unsaturated",
    sources=(IOFFE_SZEGEDY,),
    options=(Option("steps", count, 2000, 400, "steps of gradient descent"),),
    arms={_NONE: NO_NORM, _BATCH: batch_norms()},
    measure=measure,
    quantities=(
        Quantity("width", "early width of the input, 15 to 85 %", 2),
        Quantity("drift", "way of the percentiles in training", 2),
        Quantity("most saturated", "largest saturated share, %", 1, 100),
        Quantity("least gradients", "smallest ratio of gradients", 3),
        *(Quantity(f"percentile {q}", f"percentile {q} of one unit's input", 2, axis=_STEPS) for q in _PERCENTILES),
        Quantity("saturated", "saturated share, further than 4 from 0, %", 1, 100, axis=_STEPS),
        Quantity("gradients", "gradient norm of the first layer over the third's", 3, axis=_STEPS, log=True),
    ),
    parts=(
        Part(
            "1.1 4.6 4.9 0.8",
            "way of the percentiles in training, without over batch norm",
            _ratio("drift", _NONE, _BATCH),
            at_least(1.5),
        ),
        Part(
            "1.1 4.6 4.9 0.8", "early width of the input, batch norm over without", _ratio("width", _BATCH, _NONE), at_least(3), 1
        ),
        Part(
            "4.6 0.8",
            "largest share of saturated inputs with batch norm, %",
            lambda found: 100 * found[_BATCH]["most saturated"],
            at_most(1),
            1,
        ),
        Part(
            "4.6 0.8",
            "largest share of saturated inputs without, %",
            lambda found: 100 * found[_NONE]["most saturated"],
            at_least(5),
            1,
        ),
        Part(
            "4.6",
            "smallest ratio of gradients, first layer over third, batch norm",
            _of(_BATCH, "least gradients"),
            at_least(0.1),
        ),
        Part("4.6", "that ratio, batch norm over without", _ratio("least gradients", _BATCH, _NONE), at_least(2), 1),
    ),
    panels=(Drawing(_draw), Lines("saturated"), Lines("gradients")),
    protocol=(
        "Perceptrons of 3 layers of 100 sigmoid units on digits, initial weights of deviation 0.1, gradient descent at a rate "
        f"of {_RATE} in batches of 60. At {_POINTS} times in training: percentiles 15, 50 and 85 of what the units of the last "
        "sigmoid layer are given for all training images, as it is in training, the share beyond 4, and norms of the loss's "
        "gradient. The way is the sum of all steps of a percentile, mean of units and percentiles; early is a tenth of the "
        "training."
    ),
    note=(
        "A steadier input is what batch norm gives the layer; that this is why it helps is contested (internal_covariate_shift)."
    ),
    control={_NONE: _BATCH},
)
