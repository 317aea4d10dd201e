"""Internal covariate shift with batch norm and without, and whether training follows it (Santurkar et al., 2018)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm import batch_norm, init_noisy_batch_norm, noisy_batch_norm
from jaxnorm.diagnostics import internal_covariate_shift, model_loss
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Experiment, Found, Lines, Options, Part, Quantity, at_least
from jaxnorm.experiments._mlp import MLP, NO_NORM, Norm, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, SANTURKAR
from jaxnorm.experiments._sweep import sweep
from jaxnorm.training import TrainState

_NONE, _BATCH, _NOISY = "no norm", "batch norm", "noisy batch norm"
_RATES, _LINEAR_RATES = (0.03, 0.1, 0.3), (0.003, 0.01, 0.03)
_IMAGES = 256  # of the linear networks, whose batch they are
_RECORDS = 4  # each takes a gradient for every layer


class _Noisy(NamedTuple):
    """Parameters of a noisy batch norm, and whether its noise is that of the next step: 0 or 1, of no gradient."""

    affine: Any
    is_next: jax.Array


def _noisy_batch_norms() -> Norm:
    """Returns noisy batch norm whose noise is a part of its layer: of the layers that are updated it is another."""

    def init(size: int) -> tuple[_Noisy, Any]:
        affine, stats = init_noisy_batch_norm(size)
        return _Noisy(affine, jnp.zeros(())), stats

    def apply(params: _Noisy, stats: Any, x: jax.Array, *, train: bool, key: jax.Array | None) -> tuple[jax.Array, Any]:
        if key is None:
            return batch_norm(params.affine, stats, x, train=train)
        key = jax.random.fold_in(key, params.is_next > 0)
        return noisy_batch_norm(key, params.affine, stats, x, train=train)

    return Norm(init, apply, is_noisy=True)


def measure(norm: Norm, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains ReLU networks in small batches, and deep linear networks on all data at once, at several learning rates."""
    x, labels = load_digits()[0]
    keys, linear_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    relu = MLP(norm, depth=6, width=64)
    linear = MLP(norm, depth=options.depth, width=32, activation=lambda x: x, std=32**-0.5)
    found = _measure(relu, keys, (x, labels), 60, _RATES, options.steps, lambda share: progress(share / 2))
    images = x[:_IMAGES], labels[:_IMAGES]
    deep = _measure(linear, linear_keys, images, _IMAGES, _LINEAR_RATES, options.steps, lambda share: progress(share / 2))
    return found | {f"linear {name}": value for name, value in deep.items()}


def _measure(
    model: MLP, keys: jax.Array, data: Any, batch_size: int, rates: Any, steps: int, progress: Callable[[float], None]
) -> dict[str, jax.Array]:
    x, labels = jnp.asarray(data[0]), jnp.asarray(data[1])

    def record(state: TrainState) -> dict[str, jax.Array]:
        """Measures the shift of the next step."""
        key, batch_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        rows = jax.random.choice(batch_key, len(x), (batch_size,), replace=False)
        batch, loss = (x[rows], labels[rows]), model_loss(model.apply, key, state.stats, train=True)
        rate = state.opt_state.hyperparams["learning_rate"]
        updated = jax.tree.map(lambda w, g: w - rate * g, state.params, jax.grad(loss)(state.params, batch))
        updated = jax.tree.map_with_path(lambda path, a: a + ("is_next" in jax.tree_util.keystr(path)), updated)
        shift = internal_covariate_shift(loss, state.params, updated, batch, stacked="others")
        return {"shift": jnp.mean(shift.relative[1:]), "l2": jnp.mean(shift.difference[1:]), "cosine": jnp.mean(shift.cosine[1:])}

    _, history = sweep(
        keys, rates, lambda _: model, lambda rate: optax.inject_hyperparams(optax.sgd)(learning_rate=rate), data,
        steps=steps, batch_size=batch_size, record=record, every=-(-steps // _RECORDS), progress=progress,
    )  # fmt: skip
    means = {name: jnp.mean(values, 2) for name, values in history.items()}
    return means | {"early shift": history["shift"][:, :, 0]}


def _at(arm: str, quantity: str, rate: int) -> Callable[[Found], np.ndarray]:
    return lambda found: found[arm][quantity][:, rate]


def _ratio(quantity: str, over: str, under: str, rate: int) -> Callable[[Found], np.ndarray]:
    return lambda found: _at(over, quantity, rate)(found) / _at(under, quantity, rate)(found)


def _smallest_ratio(quantity: str) -> Callable[[Found], np.ndarray]:
    return lambda found: np.min([_ratio(quantity, _NONE, _BATCH, rate)(found) for rate in range(3)], axis=0)


def _agreement(found: Found) -> np.ndarray:
    """Returns in how many pairs of networks, alike but for the norm, the one with less shift is the one with less loss."""
    agree = [
        (found[one][f"{kind}shift"] - found[other][f"{kind}shift"]) * (found[one][f"{kind}loss"] - found[other][f"{kind}loss"])
        > 0
        for one, other in ((_NONE, _BATCH), (_NONE, _NOISY), (_BATCH, _NOISY))
        for kind in ("", "linear ")
    ]
    return 100 * np.mean(agree, axis=(0, 2))


_OF_RELU = Axis("learning rate, ReLU networks", lambda options: _RATES, log=True)
_OF_LINEAR = Axis("learning rate, linear networks", lambda options: _LINEAR_RATES, log=True)
EXPERIMENT = Experiment(
    claim="Batch norm works by reducing internal covariate shift",
    sources=(
        IOFFE_SZEGEDY,
        SANTURKAR,
    ),
    options=(
        Option("steps", count, 200, 40, "steps of gradient descent"),
        Option("depth", count, 25, 25, "hidden layers of the linear networks"),
    ),
    arms={_NONE: NO_NORM, _BATCH: batch_norms(), _NOISY: _noisy_batch_norms()},
    measure=measure,
    quantities=(
        Quantity("shift", "ReLU: relative shift of a layer's gradient", 2, axis=_OF_RELU),
        Quantity("linear shift", "deep linear: relative shift of a layer's gradient", 2, axis=_OF_LINEAR),
        Quantity("early shift", "ReLU: relative shift after a quarter of the steps", 2, axis=_OF_RELU),
        Quantity("linear early shift", "deep linear: relative shift after a quarter of the steps", 2, axis=_OF_LINEAR),
        Quantity("loss", "ReLU: training loss, mean over the steps", 2, axis=_OF_RELU),
        Quantity("linear loss", "deep linear: training loss, mean over the steps", 2, axis=_OF_LINEAR),
        Quantity("cosine", "ReLU: cosine of the gradients", 2, axis=_OF_RELU),
        Quantity("linear cosine", "deep linear: cosine of the gradients", 2, axis=_OF_LINEAR),
        Quantity("l2", "ReLU: shift of a layer's gradient", 2, axis=_OF_RELU),
        Quantity("linear l2", "deep linear: shift of a layer's gradient", 2, axis=_OF_LINEAR),
    ),
    parts=(
        Part(
            "0.8 1.1 2.6 4.1 4.6 3.8",
            "ReLU, learning rate 0.1: shift without norm over that with batch norm",
            _ratio("shift", _NONE, _BATCH, 1),
            at_least(1.1),
        ),
        Part("1.1 3.8", "the same after a quarter of the steps", _ratio("early shift", _NONE, _BATCH, 1), at_least(1.1)),
        Part(
            "1.1 3.8",
            "ReLU, learning rate 0.1: cosine of the gradients that batch norm gains",
            lambda found: _at(_BATCH, "cosine", 1)(found) - _at(_NONE, "cosine", 1)(found),
            at_least(0.05),
        ),
        Part("1.1 3.8", "ReLU: that ratio of shifts, least of all learning rates", _smallest_ratio("shift"), at_least(1.1)),
        Part("1.1 3.8", "deep linear: that ratio, least of all learning rates", _smallest_ratio("linear shift"), at_least(1.1)),
        Part(
            "0.8 2.6 4.1 3.8",
            "pairs at one learning rate where the network of less shift trains faster, %",
            _agreement,
            at_least(90),
            0,
        ),
        Part(
            "3.8",
            "ReLU, learning rate 0.3: loss of noisy batch norm, of more shift, over that without norm",
            _ratio("loss", _NOISY, _NONE, 2),
            at_least(1),
        ),
    ),
    panels=(Lines("shift"), Lines("linear shift"), Lines("loss")),
    protocol=(
        "The shift is Santurkar's: how far the gradient of a layer moves, on the same batch, when the layers before it take "
        "their step of gradient descent, over its own length; the mean of all layers but the first, at four times in training. "
        "The noise of noisy batch norm, a random mean and deviation of each unit, is a part of the layers that take a step, "
        f"and so drawn anew. ReLU: 6 layers of 64 units, batches of 60 digits. Linear: 32 units, all of {_IMAGES} digits at "
        "once."
    ),
    note=(
        "Contested. Early in training batch norm lowers the shift of these ReLU networks, later it does not, and in deep "
        "linear ones it raises it. Training does not follow the shift: with noise that makes it larger than without any norm, "
        "batch norm still trains better than none at a high learning rate. Take it for what it does to the loss and the "
        "learning rate (loss_landscape, learning_rates)."
    ),
    control={_NONE: _BATCH},
)
