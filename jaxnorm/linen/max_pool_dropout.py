"""Max-pooling dropout as a `flax.linen` module."""

from collections.abc import Sequence
from typing import ClassVar

import jax

from jaxnorm._noise_modules import MAX_POOL_DROPOUT
from jaxnorm.linen._noise_layer import NoiseLayer


class MaxPoolDropout(NoiseLayer):
    """Max-pooling dropout: `jaxnorm.max_pool_dropout` with the rng stream and call of `Dropout`.

    Training: `y = max_i m_i x_i` over every window, with m_i = 0 with probability `rate`, else 1. Inference (`deterministic`):
    `jaxnorm.max_pool_dropout_mean`, the expectation of that.

    Attributes:
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar.
      window: the size of windows along every spatial dimension, or one for each.
      strides: the distance from one window to the next, likewise; None for that of windows that touch.
      deterministic: whether to return the expectation; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element that decide: 8, 16 or 32.

    References:
      Wu, Gu, "Towards dropout training for convolutional neural networks", Neural Networks 71, 2015,
      https://arxiv.org/abs/1512.00242.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.MaxPoolDropout(0.5, window=2, deterministic=False)
      >>> y = layer.apply({}, jnp.arange(1.0, 9).reshape(1, 8, 1), rngs={"dropout": jax.random.key(0)})
      >>> print(y[0, :, 0])
      [2. 3. 6. 8.]
    """

    noise: ClassVar = MAX_POOL_DROPOUT

    rate: float | jax.Array
    window: int | Sequence[int]
    strides: int | Sequence[int] | None = None
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16
