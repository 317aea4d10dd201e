"""Dropout of blocks as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax

from jaxnorm._dropout.block import Rescale
from jaxnorm._noise_modules import DROP_BLOCK
from jaxnorm.nnx._noise_layer import NoiseLayer, NoiseOptions


class DropBlock(NoiseLayer):
    """DropBlock: `jaxnorm.drop_block` with the rng stream and call of `Dropout`.

    Training: `y = x m / k`, with m = 0 in blocks of neighboring positions and 1 elsewhere, k the share that is kept. Inference
    (`deterministic`): the identity.

    Args:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      block_size: the size of blocks along every spatial dimension, or one for each.
      channel_axis: the axis of the channels.
      shared: whether all channels of an example are dropped at the same places.
      rescale: of what k is the share: "example", "batch", or "expected" for its expectation.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`; the bits decide whether a
        block begins at a place.

    References:
      Ghiasi, Lin, Le, "DropBlock: a regularization method for convolutional networks", NeurIPS 2018,
      https://arxiv.org/abs/1810.12890.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.DropBlock(0.3, block_size=2, rngs=nnx.Rngs(0))
      >>> y = layer(jnp.ones((1, 5, 6, 1)))
      >>> print((y[0, :, :, 0] != 0).astype(int))
      [[1 1 1 1 1 1]
       [1 1 1 1 0 0]
       [1 1 1 1 0 0]
       [1 1 1 1 0 0]
       [1 1 1 1 0 0]]
    """

    noise: ClassVar = DROP_BLOCK

    def __init__(
        self,
        rate: float | jax.Array,
        *,
        block_size: int | Sequence[int] = 7,
        channel_axis: int = -1,
        shared: bool = False,
        rescale: Rescale = "example",
        **options: Unpack[NoiseOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.block_size = block_size
        self.channel_axis = channel_axis
        self.shared = shared
        self.rescale = rescale
