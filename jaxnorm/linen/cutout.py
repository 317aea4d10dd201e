"""Cutout as a `flax.linen` module."""

from collections.abc import Sequence
from typing import ClassVar

import jax

from jaxnorm._noise_modules import CUTOUT
from jaxnorm.linen._noise_layer import NoiseLayer


class Cutout(NoiseLayer):
    """Cutout: `jaxnorm.cutout` with the rng stream and call of `Dropout`.

    Training: `y = fill` in a square at a random place of every example, and `y = x` elsewhere. Inference (`deterministic`): the
    identity.

    Attributes:
      size: the size of a hole in pixels, or one for each spatial dimension.
      holes: how many holes are cut out of an example.
      fill: what stands in the holes, a number or a traced scalar, or an array that broadcasts to the inputs.
      channel_axis: the axis of the channels.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.

    References:
      DeVries, Taylor, "Improved regularization of convolutional neural networks with Cutout", 2017,
      https://arxiv.org/abs/1708.04552.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.Cutout(3, deterministic=False)
      >>> y = layer.apply({}, jnp.ones((1, 5, 6, 1)), rngs={"dropout": jax.random.key(0)})
      >>> print(y[0, :, :, 0].astype(int))
      [[1 1 1 1 1 1]
       [0 0 1 1 1 1]
       [0 0 1 1 1 1]
       [0 0 1 1 1 1]
       [1 1 1 1 1 1]]
    """

    noise: ClassVar = CUTOUT

    size: int | Sequence[int]
    holes: int = 1
    fill: float | jax.Array = 0.0
    channel_axis: int = -1
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
