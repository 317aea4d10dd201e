"""A small convolutional network of digits, with a norm or noise at any place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.experiments._mlp import NO_NORM, Dense, Norm
from jaxnorm.initializers import he

PLACES = ("conv 1", "conv 2", "dense")
"""Its layers before the classifier, in their order: each is followed by a norm, ReLU and noise, the first two by pooling."""

Draw = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class ConvNet:
    """Two convolutions of 3 x 3 with pooling of 2 x 2, a dense layer and a classifier, of images of 8 x 8.

    Attributes:
      norms: of the layers that have one, by `PLACES`.
      maps: of the two convolutions.
      units: of the dense layer.
      before_pooling: noise after the activation of a convolution, `draw(key, x)`; None for none.
      after_pooling: noise after pooling.
      dense: noise before the classifier.
    """

    norms: tuple[tuple[str, Norm], ...] = ()
    maps: tuple[int, int] = (8, 16)
    units: int = 64
    before_pooling: Draw | None = None
    after_pooling: Draw | None = None
    dense: Draw | None = None

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Returns initial parameters and statistics."""
        first, second = self.maps
        sizes = {"conv 1": (9, first), "conv 2": (9 * first, second), "dense": (4 * second, self.units), "last": (self.units, 10)}
        keys = jax.random.split(key, len(sizes))
        layers = {
            name: Dense(he(0.0)(key, sizes[name]), jnp.zeros(sizes[name][1])) for key, name in zip(keys, sizes, strict=True)
        }
        made = {name: norm.init(sizes[name][1]) for name, norm in self.norms}
        return (layers, {name: params for name, (params, _) in made.items()}), {name: stats for name, (_, stats) in made.items()}

    def apply(self, key: jax.Array, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        """Runs the network as `jaxnorm.training` takes it."""
        layers, own = params
        keys, norms, stats = iter(jax.random.split(key, 5) if train else ()), dict(self.norms), dict(stats)

        def layer(x: jax.Array, name: str) -> jax.Array:
            y = x @ layers[name].kernel + layers[name].bias
            y, new = norms.get(name, NO_NORM).apply(own.get(name, ()), stats.get(name, ()), y, train=train)
            if name in stats:
                stats[name] = new
            return jax.nn.relu(y)

        def noisy(draw: Draw | None, x: jax.Array) -> jax.Array:
            if not train:
                return x
            own = next(keys)
            return x if draw is None else draw(own, x)

        x = x.reshape(-1, 8, 8, 1)
        for name in PLACES[:2]:
            x = noisy(self.before_pooling, layer(patches(x), name))
            x = noisy(self.after_pooling, max_pool(x))
        x = noisy(self.dense, layer(x.reshape(x.shape[0], -1), "dense"))
        return x @ layers["last"].kernel + layers["last"].bias, stats


def patches(x: jax.Array) -> jax.Array:
    """Returns the 3 x 3 neighbors of every place, `[B, H, W, C]` as `[B, H, W, 9 C]`, with zeros around the image.

    A dense layer of them is a convolution; over an axis of networks it is one product of matrices, and a convolution is not.
    """
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], -1)


def max_pool(x: jax.Array) -> jax.Array:
    """Returns the largest of every 2 x 2 places, `[B, H, W, C]` as `[B, H / 2, W / 2, C]`."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
