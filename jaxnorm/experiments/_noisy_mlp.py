"""Multilayer perceptrons with batch norm, and with noise before the dense layers, after them, or at the end."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import AffineParams, RunningStats, batch_norm, init_batch_norm

Place = Literal["before dense", "before norm", "before classifier"]


class Noise(NamedTuple):
    """Multiplicative noise of mean 1: how it is drawn, `draw(key, x)`, its variance, and where it is."""

    draw: Callable[[jax.Array, jax.Array], jax.Array]
    variance: float
    place: Place


class Arm(NamedTuple):
    """One arm of an experiment: a network with or without batch norm, and with noise or without."""

    name: str
    norm: bool
    noise: Noise | None = None

    def draw(self, place: Place, key: jax.Array | None, x: jax.Array) -> jax.Array:
        """Returns x with the arm's noise if it belongs here and there is a key for it."""
        return x if key is None or self.noise is None or self.noise.place != place else self.noise.draw(key, x)


class Dense(NamedTuple):
    """A dense layer, `x @ kernel + bias`."""

    kernel: jax.Array
    bias: jax.Array


class Hidden(NamedTuple):
    """A hidden layer: a dense layer, and the scale and bias of its batch norm, which not every arm uses."""

    dense: Dense
    norm: AffineParams


class Params(NamedTuple):
    """The first hidden layer; the others, stacked along the first axis, so that they compile as one; the classifier."""

    first: Hidden
    others: Hidden
    classifier: Dense


class Stats(NamedTuple):
    """The running statistics of the first hidden layer's batch norm, and of the others, stacked."""

    first: RunningStats
    others: RunningStats


class Seen(NamedTuple):
    """What passed through a hidden layer: its input, and what its batch norm was given."""

    input: jax.Array
    preactivation: jax.Array


def init_mlp(key: jax.Array, *, features: int, width: int, depth: int, classes: int) -> tuple[Params, Stats]:
    """Returns parameters of `depth` hidden layers and a classifier (He's initialization), and running statistics."""
    first_key, others_key, classifier_key = jax.random.split(key, 3)

    def dense(key: jax.Array, fan_in: int, fan_out: int) -> Dense:
        return Dense(jnp.sqrt(2 / fan_in) * jax.random.normal(key, (fan_in, fan_out)), jnp.zeros(fan_out))

    def hidden(key: jax.Array, fan_in: int) -> tuple[Hidden, RunningStats]:
        norm, stats = init_batch_norm(width)
        return Hidden(dense(key, fan_in, width), norm), stats

    first, first_stats = hidden(first_key, features)
    others, others_stats = jax.vmap(lambda key: hidden(key, width))(jax.random.split(others_key, depth - 1))
    return Params(first, others, dense(classifier_key, width, classes)), Stats(first_stats, others_stats)


def preactivation(arm: Arm, layer: Dense, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns what a batch norm is given: its dense layer, with the arm's noise around it if there is a key."""
    h = arm.draw("before dense", key, x) @ layer.kernel + layer.bias
    return arm.draw("before norm", key, h)


def forward(
    arm: Arm, key: jax.Array | None, params: Params, stats: Stats, x: jax.Array, *, train: bool, momentum: Any
) -> tuple[jax.Array, Stats, tuple[Seen, Seen]]:
    """Runs the network.

    Args:
      arm: which network.
      key: for the noise; without one there is none, whatever `train` says.
      params: as from `init_mlp`.
      stats: as from `init_mlp`.
      x: `[B, features]`.
      train: whether batch norm uses and averages the statistics of the batch.
      momentum: weight of the old statistics in the running averages.

    Returns:
      Logits, new statistics, and what passed through the first hidden layer and through the others, stacked.
    """
    keys = None if key is None else jax.random.split(key, len(params.others.dense.bias) + 2)

    def hidden(x: jax.Array, given: Any) -> tuple[jax.Array, tuple[RunningStats, Seen]]:
        layer, running, key = given
        h = y = preactivation(arm, layer.dense, x, key)
        if arm.norm:
            # The unbiased variance, as in the paper, so that batches and the whole training set estimate the same number.
            # Inference then normalizes by m / (m - 1) times the variance of training, a few percent over many layers.
            y, running = batch_norm(layer.norm, running, h, train=train, momentum=momentum, unbiased=True)
        return jax.nn.relu(y), (running, Seen(x, h))

    own, others, last = (None, None, None) if keys is None else (keys[0], keys[1:-1], keys[-1])
    x, (first_stats, first_seen) = hidden(x, (params.first, stats.first, own))
    x, (others_stats, others_seen) = lax.scan(hidden, x, (params.others, stats.others, others))
    logits = arm.draw("before classifier", last, x) @ params.classifier.kernel + params.classifier.bias
    return logits, Stats(first_stats, others_stats), (first_seen, others_seen)
