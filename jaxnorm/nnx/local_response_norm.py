"""Local response normalization as a `flax.nnx` module."""

from typing import Any

import jax
from flax import nnx

from jaxnorm._modules import options_of
from jaxnorm._norm.response import local_response_norm


class LocalResponseNorm(nnx.Module):
    """Local response normalization: `jaxnorm.local_response_norm`, without parameters.

    `y = x / (k + alpha sum(x^2))^beta` with the sum over the `size` channels around the element's own.

    Args:
      size: number of channels in the window, at least 1; of an even number one more lies before the element's own.
      k: added to the sum, a number or a traced scalar.
      alpha: factor of the sum, a number or a traced scalar; PyTorch divides its own by the size.
      beta: exponent, a number or a traced scalar.
      channel_axis: the axis of the channels.
      dtype: type of the output, which alone is rounded to it; None for that of x.

    References:
      Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012, section 3.3,
      https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> norm = jaxnorm.nnx.LocalResponseNorm(3, k=0.0, alpha=1.0, beta=0.5)
      >>> print(norm(jnp.array([3.0, 4.0])))
      [0.6 0.8]
    """

    def __init__(
        self,
        size: int = 5,
        *,
        k: float | jax.Array = 2.0,
        alpha: float | jax.Array = 1e-4,
        beta: float | jax.Array = 0.75,
        channel_axis: int = -1,
        dtype: Any = None,
    ):
        """Keeps the arguments, which are those of the class."""
        self.size = size
        self.k = k
        self.alpha = alpha
        self.beta = beta
        self.channel_axis = channel_axis
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of real or complex numbers, `[..., C]` or with the channels on `channel_axis`.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if an attribute does not fit.
          TypeError: if x holds integers or bools.
        """
        options = options_of(local_response_norm, self)
        return local_response_norm(x, channel_axis=self.channel_axis, dtype=self.dtype, **options)
