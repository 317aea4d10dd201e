"""Sparse variational dropout prunes nearly all weights of a network while it trains it (Molchanov et al., 2017)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

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
from jaxnorm.experiments._digits import NUM_CLASSES, load_digits
from jaxnorm.experiments._experiment import Axis, Bars, Experiment, Found, Lines, Options, Part, Quantity, at_most
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._training import accuracy, adam, over_seeds, train
from jaxnorm.training import cross_entropy

DENSE, FIT, EXACT = "dense", "sparse, fitted divergence", "sparse, exact divergence"
_WIDTHS = (64, 300, 100, NUM_CLASSES)
_THRESHOLD = 3.0
_WARM_UP = 0.8  # of the steps, over which the KL's factor rises from 0 to 1

Params = list[SparseVariationalDenseParams]


def _init(key: jax.Array) -> Params:
    keys = jax.random.split(key, len(_WIDTHS) - 1)
    return [init_sparse_variational_dense(*of) for of in zip(keys, _WIDTHS, _WIDTHS[1:], strict=False)]


def _mean(params: Params, x: Any, threshold: float) -> jax.Array:
    """The network in inference, without the weights whose log alpha is above a threshold."""
    for i, layer in enumerate(params):
        x = sparse_variational_dense_mean(layer, jax.nn.relu(x) if i else x, threshold=threshold)
    return x


def _apply(
    divergence: Any, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool, kl_weight: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """The network in training: its logits, and what the KLs add to the loss."""
    total = jnp.zeros(())
    if divergence is None:
        return (_mean(params, x, np.inf), total), stats
    for i, layer in enumerate(params):
        of_layer = jax.random.fold_in(key, i)
        x, kl = sparse_variational_dense(of_layer, layer, jax.nn.relu(x) if i else x, divergence=divergence)
        total = total + kl_weight * kl
    return (x, total), stats


def _loss(outputs: tuple[jax.Array, jax.Array], labels: jax.Array) -> jax.Array:
    logits, added = outputs
    return cross_entropy(logits, labels) + added


def _left(layer: SparseVariationalDenseParams, threshold: float) -> jax.Array:
    """The share of the weights that inference takes: its outputs for the unit vectors are the kernel's rows."""
    return jnp.mean(_mean([layer._replace(bias=None)], jnp.eye(len(layer.kernel)), threshold) != 0)


def measure(divergence: Any, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains an arm, and measures it with and without the weights that it prunes."""
    data, (x, labels) = load_digits()
    init_keys, train_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    steps = options.epochs * (len(data[0]) // 64)
    state, _ = train(
        partial(_apply, divergence), adam(3e-3, steps), train_keys, (over_seeds(_init)(init_keys), jnp.zeros((len(keys), 0))),
        data, steps=steps, batch_size=64, progress=progress, loss=_loss,
        schedules={"kl_weight": optax.linear_schedule(0.0, 1 / len(data[0]), max(1, round(_WARM_UP * steps)))},
    )  # fmt: skip
    threshold = np.inf if divergence is None else _THRESHOLD

    @over_seeds
    def assess(params: Params) -> dict[str, jax.Array]:
        left = jnp.stack([_left(layer, threshold) for layer in params])
        sizes = np.array([layer.kernel.size for layer in params])
        logits = _mean(params, jnp.asarray(x), threshold)
        return {
            "accuracy": accuracy(logits, labels),
            "unpruned": accuracy(_mean(params, jnp.asarray(x), np.inf), labels),
            "nll": jnp.mean(cross_entropy(logits, jnp.asarray(labels))),
            "left": left @ sizes / sizes.sum(),
            "layers": left,
        }

    return assess(state.params)


def _lost(arm: str) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * (found[DENSE]["accuracy"] - found[arm]["accuracy"])


EXPERIMENT = Experiment(
    claim="Sparse variational dropout prunes nearly all weights, and costs little accuracy",
    sources=(
        'Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", ICML 2017, '
        "https://arxiv.org/abs/1701.05369",
    ),
    options=(Option("epochs", count, 60, 30, "passes over the 1,297 training images, of 20 steps each"),),
    arms=lambda _: {DENSE: None, FIT: "fit", EXACT: "exact"},
    measure=measure,
    quantities=(
        Quantity("left", "weights left, %", 1, 100, log=True),
        Quantity("accuracy", "test accuracy, pruned, %", 1, 100),
        Quantity("unpruned", "test accuracy, unpruned, %", 1, 100),
        Quantity("nll", "test NLL, pruned", 3),
        Quantity("layers", "weights left, %", 1, 100, axis=Axis("layer, from the input", lambda _: np.arange(1, 4)), log=True),
    ),
    parts=(
        Part("4.11", "weights left, %", lambda found: 100 * found[FIT]["left"], at_most(2)),
        Part("4.11", "test accuracy lost, points", _lost(FIT), at_most(2), 1),
        Part(
            "4.11",
            "change of the test accuracy by pruning what training has marked, points",
            lambda found: 100 * np.abs(found[FIT]["accuracy"] - found[FIT]["unpruned"]),
            at_most(1),
        ),
        Part("4.11", "weights left with the exact divergence, %", lambda found: 100 * found[EXACT]["left"], at_most(2)),
        Part("4.11", "test accuracy lost with the exact divergence, points", _lost(EXACT), at_most(2), 1),
    ),
    panels=(Bars("left"), Lines("layers")),
    protocol=(
        "Perceptrons 64-300-100-10 of scikit-learn's digits, 1,297 to train and 500 to test, with Adam in batches of 64; the "
        "factor of the divergence rises over the first 80 % of the steps. A weight is pruned where log alpha is above 3. The "
        "divergence is computed by the paper's fit, or exactly."
    ),
    note="The paper prunes LeNet-300-100 on MNIST 68-fold, to 1.5 % of its weights, at an error of 1.92 %.",
    control={FIT: DENSE},
)
