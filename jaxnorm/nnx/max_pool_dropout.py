"""Max-pooling dropout as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax

from jaxnorm._noise_modules import MAX_POOL_DROPOUT
from jaxnorm.nnx._noise_layer import NoiseLayer, NoiseOptions


class MaxPoolDropout(NoiseLayer):
    """Max-pooling dropout: `jaxnorm.max_pool_dropout` with the rng stream and call of `Dropout`.

    Training: `y = max_i m_i x_i` over every window, with m_i = 0 with probability `rate`, else 1. Inference (`deterministic`):
    `jaxnorm.max_pool_dropout_mean`, the expectation of that.

    Args:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      window: the size of windows along every spatial dimension, or one for each.
      strides: the distance from one window to the next, likewise; None for that of windows that touch.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Wu, Gu, "Towards dropout training for convolutional neural networks", Neural Networks 71, 2015,
      https://arxiv.org/abs/1512.00242.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.MaxPoolDropout(0.5, window=2, rngs=nnx.Rngs(0))
      >>> y = layer(jnp.arange(1.0, 9).reshape(1, 8, 1))
      >>> print(y[0, :, 0])
      [2. 4. 5. 8.]
    """

    noise: ClassVar = MAX_POOL_DROPOUT

    def __init__(
        self,
        rate: float | jax.Array,
        *,
        window: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        **options: Unpack[NoiseOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.window = window
        self.strides = strides
