"""Alpha dropout as a `flax.linen` module."""

from collections.abc import Sequence
from typing import ClassVar

import jax

from jaxnorm._noise_modules import ALPHA_DROPOUT
from jaxnorm.linen._noise_layer import NoiseLayer


class AlphaDropout(NoiseLayer):
    """Alpha dropout: `jaxnorm.alpha_dropout` with the rng stream and call of `Dropout`.

    Training: `y = a (d x + (1 - d) s) + b` with `d = 1` with probability `1 - rate`, else 0, the value s at which a SELU
    saturates, and a and b that keep mean and variance. Inference (`deterministic`): the identity.

    Attributes:
      rate: the probability of dropping, in [0, 1); a number or a traced scalar.
      mean: the mean to keep, a number or a traced scalar.
      var: the variance to keep, a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      deterministic: whether to return the inputs as they are; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element that decide: 8, 16 or 32.

    References:
      Klambauer, Unterthiner, Mayr, Hochreiter, "Self-normalizing neural networks", NIPS 2017, https://arxiv.org/abs/1706.02515.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> drop = jaxnorm.linen.AlphaDropout(0.1, deterministic=False)
      >>> x = jax.random.normal(jax.random.key(1), (100_000,))
      >>> y = drop.apply({}, x, rngs={"dropout": jax.random.key(0)})
      >>> print(f"mean {abs(y.mean()):.2f}, variance {y.var():.2f}")
      mean 0.00, variance 1.00
    """

    noise: ClassVar = ALPHA_DROPOUT

    rate: float | jax.Array
    mean: float | jax.Array = 0.0
    var: float | jax.Array = 1.0
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16
