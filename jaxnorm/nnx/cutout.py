"""Cutout as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax

from jaxnorm._noise_modules import CUTOUT
from jaxnorm.nnx._noise_layer import NoiseLayer, StreamOptions


class Cutout(NoiseLayer):
    """Cutout: `jaxnorm.cutout` with the rng stream and call of `Dropout`.

    Training: `y = fill` in a square at a random place of every example, and `y = x` elsewhere. Inference (`deterministic`): the
    identity.

    Args:
      size: the size of a hole in pixels, or one for each spatial dimension.
      holes: how many holes are cut out of an example.
      fill: what stands in the holes, a number or a traced scalar, or an array that broadcasts to the inputs.
      channel_axis: the axis of the channels.
      **options: `deterministic=False, rng_collection="dropout", rngs=None`, as in `Dropout`.

    References:
      DeVries, Taylor, "Improved regularization of convolutional neural networks with Cutout", 2017,
      https://arxiv.org/abs/1708.04552.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.Cutout(3, rngs=nnx.Rngs(0))
      >>> y = layer(jnp.ones((1, 5, 6, 1)))
      >>> print(y[0, :, :, 0].astype(int))
      [[1 1 1 0 0 0]
       [1 1 1 0 0 0]
       [1 1 1 0 0 0]
       [1 1 1 1 1 1]
       [1 1 1 1 1 1]]
    """

    noise: ClassVar = CUTOUT

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        holes: int = 1,
        fill: float | jax.Array = 0.0,
        channel_axis: int = -1,
        **options: Unpack[StreamOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(bits=32, **options)
        self.size = size
        self.holes = holes
        self.fill = fill
        self.channel_axis = channel_axis
