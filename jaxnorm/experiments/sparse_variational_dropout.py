"""Sparse variational dropout prunes nearly all weights of a network while it trains it (Molchanov et al., 2017).

Networks of one shape, 64-300-100-10, are trained on scikit-learn's digits: with dense layers, and with sparse variational ones,
whose divergence is computed by the paper's fit or exactly. Compared are the accuracies, of the variational networks with and
without the weights that they prune, and the share of the weights that is left in each layer.

References:
  Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", ICML 2017, https://arxiv.org/abs/1701.05369.
  The paper prunes LeNet-300-100 on MNIST 68-fold, at an error of 1.92 %.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm import (
    SparseVariationalDenseParams,
    init_sparse_variational_dense,
    sparse_variational_dense,
    sparse_variational_dense_mean,
)
from jaxnorm._progress import progress_bar
from jaxnorm.experiments import _sparse_variational_dropout_report as report
from jaxnorm.experiments._digits import NUM_CLASSES, load_digits
from jaxnorm.experiments._networks import init_networks, make_epoch
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._report import make_folder
from jaxnorm.experiments._sparse_variational_dropout_report import Measured
from jaxnorm.training import cross_entropy
from jaxnorm.training.data import Batch

OPTIONS = (
    Option("epochs", count, 100, 60, "passes over the 1,297 training images, of 20 steps each"),
    Option("seeds", count, 3, 1, "number of initial keys, trained together"),
)

_HIDDEN = (300, 100)
_THRESHOLD = 3.0
_BATCH_SIZE = 64
_LEARNING_RATE = 3e-3  # at first; it ends at 0
_WARM_UP = 0.8  # of the epochs, over which the KL's factor rises from 0 to 1

Params = list[SparseVariationalDenseParams]


class Arm(NamedTuple):
    """One arm: a network with dense layers, or, with a divergence, with sparse variational ones."""

    name: str
    divergence: Any = None


ARMS = (
    Arm("dense"),
    Arm("sparse, fit", "fit"),
    Arm("sparse, exact", "exact"),
)


def run(*, out: str | Path, epochs: int = 100, seeds: int = 3) -> dict[str, Measured]:
    """Trains all arms, prints the table, and writes `results.csv`, `results.md` and `sparse_variational_dropout.png`.

    Args:
      out: the folder to write to.
      epochs: passes over the training set.
      seeds: number of initial keys.

    Returns:
      What was measured, by the name of the arm.

    Raises:
      ValueError: if the folder cannot be written to.
      WriteError: if a file cannot be written, as on a full disk; the table is printed and the other files written.
    """
    folder = make_folder(Path(out))
    train, test = load_digits()
    widths = (train[0].shape[1], *_HIDDEN, NUM_CLASSES)

    @jax.jit
    @jax.vmap
    def start(seed: jax.Array) -> tuple[jax.Array, Params]:
        train_key, *keys = jax.random.split(jax.random.key(seed), len(widths))
        return train_key, [init_sparse_variational_dense(*each) for each in zip(keys, widths, widths[1:], strict=False)]

    train_keys, params = start(jnp.arange(seeds))
    steps = epochs * (len(train[0]) // _BATCH_SIZE)
    optimizer = optax.flatten(optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps)))
    kl_weight = optax.linear_schedule(0.0, 1 / len(train[0]), max(1, round(_WARM_UP * steps)))
    options = {"batch_size": _BATCH_SIZE, "loss": _loss, "schedules": {"kl_weight": kl_weight}}
    measured = {}
    with progress_bar(total=len(ARMS) * epochs, unit="epoch") as bar:
        for arm in ARMS:
            bar.set_description(arm.name)
            networks = init_networks(train_keys, params, jnp.zeros((seeds, 0)), optimizer)
            run_epoch = make_epoch(functools.partial(_apply, arm), optimizer, train, **options)
            for number in range(epochs):
                networks, loss = run_epoch(networks, number)
                bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
                bar.update()
            measured[arm.name] = jax.device_get(_measure(arm, networks.params, test))
    report.write(folder, measured, widths, {"epochs": epochs, "seeds": seeds})
    return measured


def _apply(
    arm: Arm, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool, kl_weight: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """The network in training: its logits, and what the KLs add to the loss."""
    total = jnp.zeros(())
    for i, layer in enumerate(params):
        x = jax.nn.relu(x) if i else x
        if arm.divergence is None:
            x = _mean(layer, x, np.inf)
        else:
            x, kl = sparse_variational_dense(jax.random.fold_in(key, i), layer, x, divergence=arm.divergence)
            total = total + kl_weight * kl
    return (x, total), stats


def _loss(outputs: tuple[jax.Array, jax.Array], labels: jax.Array) -> jax.Array:
    logits, added = outputs
    return cross_entropy(logits, labels) + added


def _mean(layer: SparseVariationalDenseParams, x: jax.Array, threshold: float) -> jax.Array:
    return sparse_variational_dense_mean(layer, x, threshold=threshold)


def _measure(arm: Arm, params: Params, test: Batch) -> Measured:
    images, labels = (jnp.asarray(part) for part in test)
    threshold = np.inf if arm.divergence is None else _THRESHOLD

    def evaluate(params: Params, threshold: float) -> tuple[jax.Array, jax.Array]:
        x = images
        for i, layer in enumerate(params):
            x = _mean(layer, jax.nn.relu(x) if i else x, threshold)
        return jnp.mean(jnp.argmax(x, 1) == labels), jnp.mean(cross_entropy(x, labels))

    def left(layer: SparseVariationalDenseParams) -> jax.Array:
        """The share of the weights that inference takes: its outputs for the unit vectors are the kernel's rows."""
        kernel = _mean(layer._replace(bias=None), jnp.eye(len(layer.kernel)), threshold)
        return jnp.mean(kernel != 0)

    @jax.jit
    @jax.vmap
    def measure(params: Params) -> Measured:
        accuracy, nll = evaluate(params, threshold)
        whole, _ = evaluate(params, np.inf)
        return Measured(accuracy, whole, nll, jnp.stack([left(layer) for layer in params]))

    return measure(params)
