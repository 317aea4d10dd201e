"""The loss along its gradient with batch norm, its kin, and without: what makes training easy (Santurkar et al., 2018)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm.diagnostics import loss_landscape, model_loss
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bars, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, NO_NORM, Norm, batch_norms
from jaxnorm.experiments._norms import lp_batch_norms, noisy_batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import SANTURKAR
from jaxnorm.experiments._training import over_seeds, recorded, train
from jaxnorm.training import TrainState

_RATE, _BATCH_SIZE, _POINTS = 0.3, 60, 5
_NONE, _BATCH, _NOISY, _L1, _MAX = "no norm", "batch norm", "noisy batch norm", "l1 batch norm", "l-infinity batch norm"


def measure(norm: Norm, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains an arm, and measures its loss along the gradient several times."""
    model = MLP(norm, depth=6, width=64)
    data, _ = load_digits()
    x, labels = jnp.asarray(data[0]), jnp.asarray(data[1])

    def record(state: TrainState) -> dict[str, jax.Array]:
        key, batch_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        rows = jax.random.choice(batch_key, len(x), (_BATCH_SIZE,), replace=False)
        loss = model_loss(model.apply, key, state.stats, train=True)
        along = loss_landscape(loss, state.params, (x[rows], labels[rows]), _RATE * np.array([0.5, 1, 2, 4]))
        return {
            "band": along.loss_band[1] - along.loss_band[0],
            "change": along.gradient_band[1],
            "smoothness": along.smoothness,
        }

    init_keys, train_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    initial, every = over_seeds(model.init)(init_keys), options.steps // _POINTS
    _, history = train(
        model.apply, optax.sgd(_RATE), train_keys, initial, data,
        steps=options.steps, batch_size=_BATCH_SIZE, record=record, every=every, progress=progress,
    )  # fmt: skip
    losses = history.pop("loss")
    early = {f"mean {name}": jnp.mean(values[:, :2], 1) for name, values in history.items()}
    return history | early | {"loss": jnp.mean(losses, 1)}


def _smallest(quantity: str, *arms: str) -> Callable[[Found], np.ndarray]:
    """Returns the ratio of a quantity without norm over the largest of some arms."""
    return lambda found: found[_NONE][quantity] / np.max([found[arm][quantity] for arm in arms], axis=0)


def _decades(quantity: str, *arms: str) -> Callable[[Found], np.ndarray]:
    """Returns the decimal logarithm of that ratio, which varies by powers of ten."""
    return lambda found: np.log10(_smallest(quantity, *arms)(found))


_STEPS = Axis("step", lambda options: recorded(options.steps, _POINTS))
EXPERIMENT = Experiment(
    claim="Batch norm, noisy and of other norms too, smooths the loss along its gradient",
    sources=(SANTURKAR,),
    options=(Option("steps", count, 125, 100, "steps of gradient descent"),),
    arms={
        _NONE: NO_NORM,
        _BATCH: batch_norms(),
        _NOISY: noisy_batch_norms(),
        _L1: lp_batch_norms(1),
        _MAX: lp_batch_norms(np.inf),
    },
    measure=measure,
    quantities=(
        Quantity("mean band", "width of the loss's band", 2, log=True),
        Quantity("mean change", "largest change of the gradient", 2),
        Quantity("mean smoothness", "effective smoothness", 1),
        Quantity("loss", "training loss, mean over the steps", 2),
        Quantity("band", "width of the loss's band within a step", 3, axis=_STEPS, log=True),
        Quantity("change", "largest change of the gradient within a step", 2, axis=_STEPS, log=True),
        Quantity("smoothness", "effective smoothness", 1, axis=_STEPS, log=True),
    ),
    parts=(
        Part(
            "3.8",
            "width of the loss's band, without norm over with batch norm, powers of ten",
            _decades("mean band", _BATCH),
            at_least(0.5),
        ),
        Part(
            "3.8",
            "change of the gradient, without norm over with batch norm, powers of ten",
            _decades("mean change", _BATCH),
            at_least(0.5),
        ),
        Part(
            "3.8", "effective smoothness, without norm over with batch norm", _smallest("mean smoothness", _BATCH), at_least(2), 1
        ),
        Part(
            "3.8",
            "width of the band, without norm over with noisy batch norm, powers of ten",
            _decades("mean band", _NOISY),
            at_least(0.5),
        ),
        Part(
            "3.8",
            "width of the band, without norm over with l1 or l-infinity, powers of ten",
            _decades("mean band", _L1, _MAX),
            at_least(0.5),
        ),
        Part("3.8", "training loss, without norm over with batch norm", _smallest("loss", _BATCH), at_least(1.2)),
        Part("3.8", "training loss, without norm over with noisy batch norm", _smallest("loss", _NOISY), at_least(1.2)),
        Part("3.8", "training loss, without norm over with l1 batch norm", _smallest("loss", _L1), at_least(1.2)),
        Part("3.8", "training loss, without norm over with l-infinity batch norm", _smallest("loss", _MAX), at_least(1.2)),
        Part(
            "3.8",
            "training loss, noisy batch norm over batch norm",
            lambda found: found[_NOISY]["loss"] / found[_BATCH]["loss"],
            at_most(1.3),
        ),
    ),
    panels=(Lines("band"), Lines("smoothness"), Bars("loss")),
    protocol=(
        f"ReLU perceptrons of 6 layers of 64 units, gradient descent at a learning rate of {_RATE} in batches of {_BATCH_SIZE} "
        "digits. At five times in training a batch's loss and its gradient are taken after half, one, two and four times the "
        "learning rate along the gradient: the band is from the least to the largest loss, smoothness the largest change of the "
        "gradient over the length of its step. What decides is the mean of the first two times."
    ),
    note=(
        "Neither steady distributions of activations nor the variance is what matters: noise, a mean distance or a largest one "
        "do as well. Any norm of the layers that fits your batches may be used."
    ),
    control={_NONE: _BATCH},
)
