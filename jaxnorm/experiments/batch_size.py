"""Accuracy against the number of examples whose statistics normalize, for batch norm and others."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import batch_norm, init_batch_norm
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bars, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, NO_NORM, Norm
from jaxnorm.experiments._norms import batch_renorms, group_norms, layer_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE
from jaxnorm.experiments._sweep import sweep
from jaxnorm.experiments._training import adam, over_seeds, shuffled
from jaxnorm.training import TrainState, make_eval_step

_SIZES = np.array([2, 4, 8, 16, 32])
_NONE, _BATCH, _RENORM, _LAYER, _GROUP = "no norm", "batch norm", "batch renorm", "layer norm", "group norm"


def _batch_norms(size: jax.Array) -> Norm:
    """Returns batch norm that keeps the unbiased variance of so many examples: `unbiased` would count repeated ones."""

    def apply(params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        known = stats if train else stats._replace(var=stats.var * size / (size - 1))
        y, new = batch_norm(params, known, x, train=train, momentum=0.95)
        return y, new if train else stats

    return Norm(init_batch_norm, apply)


def measure(
    norm: Callable[[jax.Array], Norm], keys: jax.Array, options: Options, progress: Callable[[float], None]
) -> Mapping[str, Any]:
    """Trains a network for every seed and size, in one program: a small batch is a large one of repeated examples."""
    data, test = load_digits()

    def model(size: jax.Array) -> MLP:
        return MLP(norm(size), width=64)

    def order(number: int) -> np.ndarray:
        seed, place = divmod(number, len(_SIZES))
        rows = shuffled(seed, len(data[0]), options.steps, int(_SIZES[place]))
        return np.repeat(rows, _SIZES[-1] // _SIZES[place], axis=1)

    state, _ = sweep(
        keys, _SIZES, model, lambda _: adam(4e-3, options.steps), data,
        steps=options.steps, batch_size=int(_SIZES[-1]), order=order, progress=progress,
    )  # fmt: skip

    @over_seeds
    def accuracy(state: TrainState) -> jax.Array:
        return jax.vmap(lambda state, size: make_eval_step(model(size).apply)(state, test)["accuracy"])(
            state, jnp.asarray(_SIZES)
        )

    reached = accuracy(state)
    return {"accuracy": reached, "smallest": reached[:, 0], "lost": reached[:, -1] - reached[:, 0]}


def _behind(arm: str, other: str) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * (found[other]["smallest"] - found[arm]["smallest"])


EXPERIMENT = Experiment(
    claim="Batch norm needs batches that are large enough",
    sources=(
        'Wu, He, "Group normalization", ECCV 2018, https://arxiv.org/abs/1803.08494',
        IOFFE,
    ),
    options=(Option("steps", count, 600, 300, "training steps"),),
    arms={
        _NONE: lambda size: NO_NORM,
        _BATCH: _batch_norms,
        _RENORM: lambda size: batch_renorms(),
        _LAYER: lambda size: layer_norms(),
        _GROUP: lambda size: group_norms(8),
    },
    measure=measure,
    quantities=(
        Quantity("smallest", "test accuracy in batches of 2, %", 1, 100),
        Quantity("lost", "lost from batches of 32 to 2, points", 1, 100),
        Quantity("accuracy", "test accuracy, %", 1, 100, axis=Axis("examples in a batch", lambda options: _SIZES, log=True)),
    ),
    parts=(
        Part(
            "1.5 2.10",
            "test accuracy in batches of 2, batch norm behind layer norm, points",
            _behind(_BATCH, _LAYER),
            at_least(10),
            1,
        ),
        Part(
            "1.5 2.10",
            "test accuracy in batches of 32, batch norm behind layer norm, points",
            lambda found: 100 * (found[_LAYER]["accuracy"][:, -1] - found[_BATCH]["accuracy"][:, -1]),
            at_most(2),
            1,
        ),
        Part(
            "2.10", "test accuracy in batches of 2, group norm behind layer norm, points", _behind(_GROUP, _LAYER), at_most(5), 1
        ),
        Part("2.10", "test accuracy in batches of 2, layer norm behind no norm, points", _behind(_LAYER, _NONE), at_most(5), 1),
        Part(
            "1.5",
            "test accuracy in batches of 2, batch norm behind batch renorm, points",
            _behind(_BATCH, _RENORM),
            at_least(10),
            1,
        ),
    ),
    panels=(Lines("accuracy"), Bars("lost")),
    protocol=(
        "ReLU perceptrons of 3 layers of 64 units on digits, as many steps of Adam for any size; small batches see fewer "
        "examples, whatever the norm. Running statistics are corrected for the size, so that what is lost is not the bias of a "
        "variance."
    ),
    note="With fewer than about 8 examples a batch take layer norm or group norm, whose statistics are of one example.",
    control={_BATCH: _LAYER},
)
