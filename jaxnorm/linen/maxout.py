"""Maxout as a `flax.linen` module."""

import jax
from flax import linen as nn

from jaxnorm._dropout.maxout import maxout


class Maxout(nn.Module):
    """The largest of so many neighboring channels: `jaxnorm.maxout`.

    Attributes:
      pieces: how many channels a unit takes the largest of.
      channel_axis: the axis of the channels.

    References:
      Goodfellow, Warde-Farley, Mirza, Courville, Bengio, "Maxout networks", ICML 2013, https://arxiv.org/abs/1302.4389.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.linen
      >>> jaxnorm.linen.Maxout(2).apply({}, jnp.array([1.0, 5.0, -3.0, -1.0]))
      Array([ 5., -1.], dtype=float32)
    """

    pieces: int
    channel_axis: int = -1

    def __call__(self, x: jax.Array) -> jax.Array:
        """Takes the largest.

        Args:
          x: array of floating point numbers, with `pieces C` channels.

        Returns:
          Array of x's shape and dtype, but with C channels.

        Raises:
          ValueError: if the pieces do not divide the number of channels.
          TypeError: if x does not hold real floating point numbers.
        """
        return maxout(x, self.pieces, channel_axis=self.channel_axis)
