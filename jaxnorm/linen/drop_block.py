"""Dropout of blocks as a `flax.linen` module."""

from collections.abc import Sequence
from typing import ClassVar

import jax

from jaxnorm._dropout.block import Rescale
from jaxnorm._noise_modules import DROP_BLOCK
from jaxnorm.linen._noise_layer import NoiseLayer


class DropBlock(NoiseLayer):
    """DropBlock: `jaxnorm.drop_block` with the rng stream and call of `Dropout`.

    Training: `y = x m / k`, with m = 0 in blocks of neighboring positions and 1 elsewhere, k the share that is kept. Inference
    (`deterministic`): the identity.

    Attributes:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      block_size: the size of blocks along every spatial dimension, or one for each.
      channel_axis: the axis of the channels.
      shared: whether all channels of an example are dropped at the same places.
      rescale: of what k is the share: "example", "batch", or "expected" for its expectation.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits that decide whether a block begins at a place: 8, 16 or 32.

    References:
      Ghiasi, Lin, Le, "DropBlock: a regularization method for convolutional networks", NeurIPS 2018,
      https://arxiv.org/abs/1810.12890.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.DropBlock(0.3, block_size=2, deterministic=False)
      >>> y = layer.apply({}, jnp.ones((1, 5, 6, 1)), rngs={"dropout": jax.random.key(0)})
      >>> print((y[0, :, :, 0] != 0).astype(int))
      [[0 0 1 1 1 1]
       [0 0 0 1 1 1]
       [1 0 0 0 0 1]
       [1 1 1 0 0 1]
       [1 1 1 1 1 1]]
    """

    noise: ClassVar = DROP_BLOCK

    rate: float | jax.Array
    block_size: int | Sequence[int] = 7
    channel_axis: int = -1
    shared: bool = False
    rescale: Rescale = "example"
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16
