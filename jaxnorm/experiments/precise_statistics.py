"""Running statistics that do not fit the weights cost accuracy, and estimating them anew gives it back (Wu and Johnson, 2021).

First, networks of eight hidden layers with batch norm are trained on scikit-learn's digits without noise, and then, with the
weights as they are, their statistics are taken with dropout on, as a network stores them that is trained with it: before each
batch norm, or before each dense layer. Compared is what helps: the correction in closed form, which needs no data; one pass in
which layers still normalize by the old statistics, which does not help; and estimating anew, by batches and layer by layer.

Second, networks are trained for 160 steps with averages of several momenta, which are then as stale, or as full of what they
began with, as the momentum is near 1.

References:
  Wu, Johnson, "Rethinking 'batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576.
  Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
  https://arxiv.org/abs/1801.05134.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm import RunningStats, dropout, reference_moments
from jaxnorm._progress import progress_bar
from jaxnorm.experiments import _precise_statistics_report as report
from jaxnorm.experiments._closed_forms import dropout_noise
from jaxnorm.experiments._digits import NUM_CLASSES, load_digits
from jaxnorm.experiments._networks import init_networks, make_epoch
from jaxnorm.experiments._noisy_mlp import Arm, Noise, Params, Place, Stats, forward, init_mlp
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._precise_statistics_report import Measured
from jaxnorm.experiments._report import make_folder
from jaxnorm.statistics import correct_variance_shift, debias_stats, precise_stats
from jaxnorm.training import TrainState, make_eval_step
from jaxnorm.training.data import Batch

OPTIONS = (
    Option("depth", count, 8, 8, "number of hidden layers"),
    Option("width", count, 100, 64, "units of a hidden layer"),
    Option("epochs", count, 75, 20, "passes over the 1,297 training images, of 20 steps each, before the statistics are spoilt"),
    Option("seeds", count, 5, 2, "number of initial keys, trained together"),
)

RATES = (0.3, 0.5, 0.7)
PLACES: dict[str, Place] = {"before batch norm": "before norm", "before the dense layer": "before dense"}
MOMENTA = (0.9, 0.99, 0.999)

_BATCH_SIZE = 64
_LEARNING_RATE = 4e-3  # at first; it ends at 0
_MOMENTUM = 0.95
_SHORT = 8  # epochs of the second part: 160 steps
_CLEAN = Arm("batch norm", True)


def run(*, out: str | Path, depth: int = 8, width: int = 100, epochs: int = 75, seeds: int = 5) -> dict[str, Measured]:
    """Trains all networks, prints the tables, and writes `results.csv`, `results.md` and `precise_statistics.png`.

    Args:
      out: the folder to write to.
      depth: number of hidden layers.
      width: units of a hidden layer.
      epochs: passes over the training set.
      seeds: number of initial keys.

    Returns:
      What was measured, by the name of the row and the statistics.

    Raises:
      ValueError: if the folder cannot be written to.
      WriteError: if a file cannot be written, as on a full disk; the tables are printed and the other files written.
    """
    folder = make_folder(Path(out))
    train, test = load_digits()

    @jax.jit
    @jax.vmap
    def start(seed: jax.Array) -> tuple[jax.Array, jax.Array, Params, Stats]:
        init_key, train_key, noise_key = jax.random.split(jax.random.key(seed), 3)
        initial = init_mlp(init_key, features=train[0].shape[1], width=width, depth=depth, classes=NUM_CLASSES)
        return train_key, noise_key, *initial

    train_keys, noise_keys, params, stats = start(jnp.arange(seeds))
    measured: dict[str, Measured] = {}
    with progress_bar(total=epochs + len(MOMENTA) * _SHORT, unit="epoch") as bar:

        def trained(momentum: float, epochs: int) -> TrainState:
            steps = epochs * (len(train[0]) // _BATCH_SIZE)
            optimizer = optax.flatten(optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps)))
            networks = init_networks(train_keys, params, stats, optimizer)
            run_epoch = make_epoch(_apply(momentum), optimizer, train, batch_size=_BATCH_SIZE)
            for number in range(epochs):
                networks, _ = run_epoch(networks, number)
                bar.update()
            return networks

        networks = trained(_MOMENTUM, epochs)
        for number, (place, rate) in enumerate(itertools.product(PLACES, RATES)):
            keys = jax.vmap(jax.random.fold_in, (0, None))(noise_keys, number)
            measured |= _measured(f"{place}, rate {rate}", _remedies(place, rate, train, test), keys, networks)
        for momentum in MOMENTA:
            networks = trained(momentum, _SHORT)
            steps = _SHORT * (len(train[0]) // _BATCH_SIZE)
            measured |= _measured(f"momentum {momentum}", _after_training(momentum, steps, train, test), train_keys, networks)
    report.write(folder, measured, {"depth": depth, "width": width, "epochs": epochs, "seeds": seeds})
    return measured


Assess = Callable[[jax.Array, TrainState], dict[str, Measured]]


def _measured(name: str, assess: Assess, keys: jax.Array, networks: TrainState) -> dict[str, Measured]:
    found = jax.device_get(jax.jit(lambda *given: jax.lax.map(lambda one: assess(*one), given))(keys, networks))
    return {f"{name}: {statistics}": value for statistics, value in found.items()}


def _apply(momentum: float) -> Callable[..., Any]:
    def apply(key: jax.Array, params: Params, stats: Stats, x: jax.Array, *, train: bool) -> tuple[jax.Array, Stats]:
        logits, new, _ = forward(_CLEAN, None, params, stats, x, train=train, momentum=momentum)
        return logits, new

    return apply


def _update(arm: Arm, params: Params, *, by_stats: bool) -> Callable[[Stats, dict[str, jax.Array]], Any]:
    """Returns an update, with noise where a batch has a key, which normalizes by the batch, or by the statistics it is given."""

    def update(stats: Stats, batch: dict[str, jax.Array]) -> Any:
        _, _, seen = forward(arm, batch.get("key"), params, stats, batch["x"], train=not by_stats, momentum=0.0)
        first, others = (part.preactivation for part in seen)
        return {"first": reference_moments(first), "others": jax.vmap(reference_moments)(others)}

    return update


def _batches(train: Batch, size: int = _BATCH_SIZE) -> dict[str, jax.Array]:
    x = np.random.default_rng(0).permutation(train[0])
    return {"x": jnp.asarray(x[: len(x) // size * size].reshape(-1, size, x.shape[1]))}


def _evaluation(test: Batch) -> Callable[[TrainState, Stats], Measured]:
    evaluate = make_eval_step(_apply(_MOMENTUM))

    def evaluated(state: TrainState, stats: Stats) -> Measured:
        metrics = evaluate(state._replace(stats=stats), test)
        return Measured(metrics["accuracy"], metrics["loss"])

    return evaluated


def _remedies(place: str, rate: float, train: Batch, test: Batch) -> Assess:
    arm = Arm("noise", True, Noise(lambda key, x: dropout(key, x, rate), dropout_noise(rate), PLACES[place]))
    evaluated, batches = _evaluation(test), _batches(train)

    def assess(key: jax.Array, state: TrainState) -> dict[str, Measured]:
        noisy = {**batches, "key": jax.random.split(key, len(batches["x"]))}
        spoilt = precise_stats(_update(arm, state.params, by_stats=False), state.stats, noisy)
        by_batch, by_stats = (_update(_CLEAN, state.params, by_stats=given) for given in (False, True))
        stale = by_stats(spoilt, jax.tree.map(lambda part: part[0], _batches(train, len(train[0]))))
        found = {"as trained": state.stats, "spoilt": spoilt}
        if PLACES[place] == "before norm":
            found["corrected"] = correct_variance_shift(spoilt, rate)
        found["stale pass"] = Stats(**{name: RunningStats(part.mean, part.var) for name, part in stale.items()})
        found["by batches"] = precise_stats(by_batch, spoilt, batches)
        found["layer by layer"] = precise_stats(by_stats, spoilt, batches, layer_by_layer=True)
        return {name: evaluated(state, stats) for name, stats in found.items()}

    return assess


def _after_training(momentum: float, steps: int, train: Batch, test: Batch) -> Assess:
    evaluated, batches = _evaluation(test), _batches(train)

    def assess(_: jax.Array, state: TrainState) -> dict[str, Measured]:
        found = {
            "as trained": state.stats,
            "debiased": debias_stats(state.stats, momentum, steps),
            "by batches": precise_stats(_update(_CLEAN, state.params, by_stats=False), state.stats, batches),
            "layer by layer": precise_stats(
                _update(_CLEAN, state.params, by_stats=True), state.stats, batches, layer_by_layer=True
            ),
        }
        return {name: evaluated(state, stats) for name, stats in found.items()}

    return assess
