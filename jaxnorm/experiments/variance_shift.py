"""Dropout before batch norm shifts the variances that it meets in inference, and what helps (Li et al., 2019).

Networks of one shape are trained on scikit-learn's digits, without batch norm and with it, with noise at different places. Then,
with the weights as they are and without noise, the variance of what enters each batch norm is compared with the variance that
it stored in training, and with the closed form; and the statistics are estimated anew.

References:
  Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
  https://arxiv.org/abs/1801.05134.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from jaxnorm import dropout, uniform_dropout
from jaxnorm._progress import progress_bar
from jaxnorm.experiments import _variance_shift_report as report
from jaxnorm.experiments._assessment import Assessment, NormAssessment
from jaxnorm.experiments._closed_forms import dropout_noise, uniform_noise
from jaxnorm.experiments._digits import NUM_CLASSES, load_digits
from jaxnorm.experiments._networks import init_networks, make_epoch
from jaxnorm.experiments._noisy_mlp import Arm, Noise, Params, Place, Stats, forward, init_mlp
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._report import make_folder
from jaxnorm.experiments._shift import measure_shift
from jaxnorm.statistics import precise_stats
from jaxnorm.training import TrainState, make_eval_step
from jaxnorm.training.data import Batch

OPTIONS = (
    Option("rate", rate_below_one, 0.5, 0.5, "probability of dropping"),
    Option("depth", count, 8, 6, "number of hidden layers"),
    Option("width", count, 100, 100, "units of a hidden layer"),
    Option("epochs", count, 75, 30, "passes over the 1,297 training images, of 20 steps each"),
    Option("seeds", count, 5, 2, "number of initial keys, trained together"),
)

_BETA = 0.5
_BATCH_SIZE = 64
_LEARNING_RATE = 4e-3  # at first; it ends at 0
# Averages about the last 20 batches, an epoch, in which the learning rate is next to 0: what was stored then differs from what is
# real for the noise, and not for being that of older weights.
_MOMENTUM = 0.95


def arms(rate: float) -> tuple[Arm, ...]:
    """Returns the arms."""

    def dropped(place: Place) -> Noise:
        return Noise(lambda key, x: dropout(key, x, rate), dropout_noise(rate), place)

    uout = Noise(lambda key, x: uniform_dropout(key, x, _BETA), uniform_noise(_BETA), "before norm")
    return (
        Arm("no norm", False),
        Arm("batch norm", True),
        Arm("dropout", False, dropped("before norm")),
        Arm("dropout before batch norm", True, dropped("before norm")),
        Arm("dropout, layer, batch norm", True, dropped("before dense")),
        Arm(f"Uout (beta {_BETA}) before batch norm", True, uout),
        Arm("dropout after the last batch norm", True, dropped("before classifier")),
    )


def run(
    *, out: str | Path, rate: float = 0.5, depth: int = 8, width: int = 100, epochs: int = 75, seeds: int = 5
) -> dict[str, Assessment]:
    """Trains all arms, prints the tables, and writes `results.csv`, `layers.csv`, `results.md` and `variance_shift.png`.

    Args:
      out: the folder to write to.
      rate: probability of dropping, in [0, 1).
      depth: number of hidden layers.
      width: units of a hidden layer.
      epochs: passes over the training set.
      seeds: number of initial keys.

    Returns:
      What was measured, by the name of the arm.

    Raises:
      ValueError: if the folder cannot be written to.
      WriteError: if a file cannot be written, as on a full disk; the tables are printed and the other files written.
    """
    folder = make_folder(Path(out))
    train, test = load_digits()

    @jax.jit
    @jax.vmap
    def start(seed: jax.Array) -> tuple[jax.Array, jax.Array, Params, Stats]:
        init_key, train_key, measure_key = jax.random.split(jax.random.key(seed), 3)
        initial = init_mlp(init_key, features=train[0].shape[1], width=width, depth=depth, classes=NUM_CLASSES)
        return train_key, measure_key, *initial

    train_keys, measure_keys, params, stats = start(jnp.arange(seeds))  # the same for all arms
    steps = epochs * (len(train[0]) // _BATCH_SIZE)
    # Flattened, as one array for Adam compiles faster than twelve.
    optimizer = optax.flatten(optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps)))
    measured = {}
    with progress_bar(total=len(arms(rate)) * epochs, unit="epoch") as bar:
        for arm in arms(rate):
            bar.set_description(arm.name)
            apply, networks = functools.partial(_apply, arm), init_networks(train_keys, params, stats, optimizer)
            run_epoch = make_epoch(apply, optimizer, train, batch_size=_BATCH_SIZE)
            for number in range(epochs):
                networks, loss = run_epoch(networks, number)
                bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
                bar.update()
            measured[arm.name] = jax.device_get(_assess(arm, measure_keys, networks, train, test))
    settings = {"rate": rate, "depth": depth, "width": width, "epochs": epochs, "seeds": seeds}
    report.write(folder, measured, settings)
    return measured


def _apply(arm: Arm, key: jax.Array, params: Params, stats: Stats, x: jax.Array, *, train: bool) -> tuple[jax.Array, Stats]:
    """The network as `jaxnorm.training` takes it: with noise in training, without in inference."""
    logits, stats, _ = forward(arm, key if train else None, params, stats, x, train=train, momentum=_MOMENTUM)
    return logits, stats


def _assess(arm: Arm, keys: jax.Array, networks: TrainState, train: Batch, test: Batch) -> Assessment:
    evaluate = make_eval_step(functools.partial(_apply, arm))

    def reestimated(state: TrainState) -> TrainState:
        def update(stats: Stats, x: jax.Array) -> Stats:
            return forward(arm, None, state.params, stats, x, train=True, momentum=0.0)[1]

        return state._replace(stats=precise_stats(update, state.stats, jnp.asarray(train[0])[None]))

    @jax.jit
    @jax.vmap
    def assess(key: jax.Array, state: TrainState) -> Assessment:
        on_train, on_test = evaluate(state, train), evaluate(state, test)
        norms = None
        if arm.norm:
            accuracy = evaluate(reestimated(state), test)["accuracy"]
            norms = NormAssessment(accuracy, *measure_shift(arm, key, state.params, state.stats, jnp.asarray(train[0])))
        return Assessment(on_train["accuracy"], on_test["accuracy"], on_test["loss"], norms)

    return assess(keys, networks)
