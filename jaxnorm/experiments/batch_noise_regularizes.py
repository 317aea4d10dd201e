"""Whether the noise of a batch's statistics regularizes, against statistics of the whole training set."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxnorm import batch_norm, init_batch_norm
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bars, Experiment, Found, Options, Part, Quantity, at_least
from jaxnorm.experiments._mlp import MLP, NO_NORM, Norm, batch_norms
from jaxnorm.experiments._norms import ghost_batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY
from jaxnorm.experiments._training import adam, over_seeds, recorded, train
from jaxnorm.training import TrainState, make_eval_step

_IMAGES, _POINTS = 256, 10
_NONE, _G4, _G16, _G64, _FULL, _CONSTANT = (
    "no norm", "ghosts of 4", "ghosts of 16", "ghosts of 64", "full set", "full set, as constants",
)  # fmt: skip


def _constant_batch_norms() -> Norm:
    """Returns batch norm whose statistics are no part of the gradient."""

    def apply(params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        if train:
            _, stats = batch_norm(params, stats, x, train=True, momentum=0.0)
        return batch_norm(params, stats, x, train=False)

    return Norm(init_batch_norm, apply)


def measure(norm: Norm, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains an arm on all of a small training set at once, so that only the statistics are of fewer examples."""
    model = MLP(norm, width=64)
    (x, labels), test = load_digits()
    data = x[:_IMAGES], labels[:_IMAGES]

    def record(state: TrainState) -> dict[str, jax.Array]:
        on_train, on_test = (make_eval_step(model.apply)(state, part) for part in (data, test))
        return {
            "gap": on_test["loss"] - on_train["loss"],
            "train loss": on_train["loss"],
            "test loss": on_test["loss"],
            "accuracy": on_test["accuracy"],
        }

    init_keys, train_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    _, history = train(
        model.apply, adam(4e-3, options.steps), train_keys, over_seeds(model.init)(init_keys), data,
        steps=options.steps, batch_size=_IMAGES, record=record, every=options.steps // _POINTS, progress=progress,
    )  # fmt: skip
    del history["loss"]
    last = {f"last {name}": values[:, -1] for name, values in history.items()}
    return {"gap": history["gap"]} | last


def _less(quantity: str, arm: str, other: str, factor: float = 1.0) -> Callable[[Found], np.ndarray]:
    return lambda found: factor * (found[arm][f"last {quantity}"] - found[other][f"last {quantity}"])


EXPERIMENT = Experiment(
    claim="The noise of batch statistics regularizes; those of the full set overfit",
    sources=(
        IOFFE_SZEGEDY,
        'Hoffer, Hubara, Soudry, "Train longer, generalize better", NIPS 2017, https://arxiv.org/abs/1705.08741',
    ),
    options=(Option("steps", count, 300, 100, "training steps"),),
    arms={
        _NONE: NO_NORM,
        _G4: ghost_batch_norms(4),
        _G16: ghost_batch_norms(16),
        _G64: ghost_batch_norms(64),
        _FULL: batch_norms(),
        _CONSTANT: _constant_batch_norms(),
    },
    measure=measure,
    quantities=(
        Quantity("last gap", "gap: test NLL less training NLL", 3),
        Quantity("last train loss", "training NLL", 3),
        Quantity("last test loss", "test NLL", 3),
        Quantity("last accuracy", "test accuracy, %", 1, 100),
        Quantity(
            "gap",
            "gap: test NLL less training NLL",
            3,
            axis=Axis("step", lambda options: recorded(options.steps, _POINTS)),
        ),
    ),
    parts=(
        Part("1.4", "gap with statistics of the full set less that of ghosts of 16", _less("gap", _FULL, _G16), at_least(0), 3),
        Part("1.4", "gap with statistics of the full set less that of ghosts of 64", _less("gap", _FULL, _G64), at_least(0), 3),
        Part(
            "1.4",
            "test NLL with statistics of the full set less that of ghosts of 16",
            _less("test loss", _FULL, _G16),
            at_least(0),
            3,
        ),
        Part(
            "1.4",
            "test accuracy of ghosts of 16 less that with statistics of the full set, points",
            _less("accuracy", _G16, _FULL, 100),
            at_least(0),
            1,
        ),
        Part(
            "1.4",
            "gap with the full set's statistics as constants less that with their gradient",
            _less("gap", _CONSTANT, _FULL),
            at_least(0),
            3,
        ),
    ),
    panels=(Bars("last gap"), Bars("last accuracy")),
    protocol=(
        f"ReLU perceptrons of 3 layers of 64 units on {_IMAGES} digits, all of them a step, with Adam: gradients have no noise "
        "but that of the statistics, of ghosts that are drawn anew every step. Training and test NLL are those of inference. "
        "As constants: the full set's statistics of every step, with no gradient through them."
    ),
    note=(
        "An argument for noise, not against exact statistics: a full batch is better normalized and less regularized. Statistics "
        "without their gradient are another matter: the optimizer does not know of the normalization."
    ),
    control={_FULL: _G16},
)
