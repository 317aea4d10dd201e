"""Multilayer perceptrons of digits, with any norm, activation and noise, at any place: most arms of most experiments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import batch_norm, init_batch_norm

Place = Literal["input", "before dense", "before norm", "after activation", "before classifier"]


class Norm(NamedTuple):
    """A norm: `init(size) -> (params, stats)`, `()` where there are none, and `apply(params, stats, x, *, train)`.

    One that draws, `is_noisy`, is also given `key`: None where there is none for noise.
    """

    init: Callable[[int], tuple[Any, Any]]
    apply: Callable[..., tuple[jax.Array, Any]]
    is_noisy: bool = False


def _no_norm(params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    return x, stats


NO_NORM = Norm(lambda size: ((), ()), _no_norm)


def batch_norms(momentum: float = 0.95, **options: Any) -> Norm:
    """Returns batch norm; by default its averages are about of an epoch of 20 batches, and of unbiased variances.

    Those are the paper's: batches and the whole training set then estimate the same number.
    """
    options = {"unbiased": True, **options}

    def apply(params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        return batch_norm(params, stats, x, train=train, momentum=momentum, **options)

    return Norm(init_batch_norm, apply)


class Noise(NamedTuple):
    """Multiplicative noise of mean 1: how it is drawn, `draw(key, x)`, its variance, and where it is."""

    draw: Callable[[jax.Array, jax.Array], jax.Array]
    variance: float
    place: Place


class Dense(NamedTuple):
    """A dense layer, `x @ kernel + bias`."""

    kernel: jax.Array
    bias: jax.Array


class Hidden(NamedTuple):
    """A hidden layer: a dense layer, and the parameters of its norm."""

    dense: Dense
    norm: Any


class Params(NamedTuple):
    """The first hidden layer; the others, stacked along the first axis, so that they compile as one; the classifier."""

    first: Hidden
    others: Hidden
    classifier: Dense


class Stats(NamedTuple):
    """The running statistics of the first hidden layer's norm, and of the others', stacked."""

    first: Any
    others: Any


class Seen(NamedTuple):
    """What passes through a hidden layer: its input, what its norm is given, and what its activation is given."""

    input: jax.Array
    preactivation: jax.Array
    normalized: jax.Array


@dataclass(frozen=True)
class MLP:
    """A perceptron: hidden layers of dense layer, norm and activation, and a classifier.

    Attributes:
      norm: of every hidden layer.
      noise: in training.
      depth: number of hidden layers.
      width: units of each.
      activation: of the hidden layers.
      std: standard deviation of the initial weights; None for He's, the root of 2 over the inputs. One of an axis of networks may
        be traced.
      norm_last: whether the norm comes after the activation.
      features: numbers an example.
      classes: outputs.
    """

    norm: Norm = NO_NORM
    noise: Noise | None = None
    depth: int = 3
    width: int = 100
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
    std: Any = None
    norm_last: bool = False
    features: int = 64
    classes: int = 10

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        """Returns initial parameters, the same for any norm, and running statistics."""
        largest = max(self.features, self.width), max(self.width, self.classes)
        # A loop over the layers, as each draw of normal numbers that stands for itself takes half a second to compile.
        drawn = lax.map(lambda i: jax.random.normal(jax.random.fold_in(key, i), largest), jnp.arange(self.depth + 1))

        def dense(values: jax.Array, fan_in: int, fan_out: int) -> Dense:
            std = jnp.sqrt(2 / fan_in) if self.std is None else self.std
            return Dense(std * values[..., :fan_in, :fan_out], jnp.zeros((*values.shape[:-2], fan_out)))

        first, others = dense(drawn[0], self.features, self.width), dense(drawn[1:-1], self.width, self.width)
        classifier = dense(drawn[-1], self.width, self.classes)
        norm, stats = self.norm.init(self.width)
        norms, others_stats = jax.vmap(lambda _: self.norm.init(self.width))(jnp.arange(self.depth - 1))
        return Params(Hidden(first, norm), Hidden(others, norms), classifier), Stats(stats, others_stats)

    def draw(self, place: Place, key: jax.Array | None, x: jax.Array) -> jax.Array:
        """Returns x with the noise if it belongs here and there is a key for it."""
        return x if key is None or self.noise is None or self.noise.place != place else self.noise.draw(key, x)

    def preactivation(self, layer: Dense, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Returns what a norm that comes before the activation is given, with the noise around the dense layer."""
        h = self.draw("before dense", key, x) @ layer.kernel + layer.bias
        return self.draw("before norm", key, h)

    def forward(
        self, key: jax.Array | None, params: Params, stats: Stats, x: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Stats, tuple[Seen, Seen]]:
        """Runs the network.

        Args:
          key: for the noise; without one there is none, whatever `train` says.
          params: as from `init`.
          stats: as from `init`.
          x: `[B, features]`.
          train: whether norms use and average the statistics of the batch.

        Returns:
          Logits, new statistics, and what passed through the first hidden layer and through the others, stacked.
        """

        def own(number: Any) -> jax.Array | None:
            # By number, as a loop over keys that `vmap` is around is what looks for keys used twice takes for such a use.
            return None if key is None else jax.random.fold_in(key, number)

        def hidden(x: jax.Array, given: Any) -> tuple[jax.Array, tuple[Any, Seen]]:
            layer, running, number = given
            key = own(number)
            h = y = self.preactivation(layer.dense, x, key)
            drawn = {"key": key} if self.norm.is_noisy else {}
            if self.norm_last:
                h = self.activation(h)
                y, running = self.norm.apply(layer.norm, running, h, train=train, **drawn)
                out = y
            else:
                y, running = self.norm.apply(layer.norm, running, h, train=train, **drawn)
                out = self.activation(y)
            return self.draw("after activation", key, out), (running, Seen(x, h, y))

        x = self.draw("input", own(self.depth + 1), x)
        x, (first_stats, first_seen) = hidden(x, (params.first, stats.first, 0))
        x, (others_stats, others_seen) = lax.scan(hidden, x, (params.others, stats.others, jnp.arange(1, self.depth)))
        logits = self.draw("before classifier", own(self.depth), x) @ params.classifier.kernel + params.classifier.bias
        return logits, Stats(first_stats, others_stats), (first_seen, others_seen)

    def apply(self, key: jax.Array, params: Params, stats: Stats, x: jax.Array, *, train: bool) -> tuple[jax.Array, Stats]:
        """Runs the network as `jaxnorm.training` takes it: with noise in training, without in inference."""
        logits, stats, _ = self.forward(key if train else None, params, stats, x, train=train)
        return logits, stats
