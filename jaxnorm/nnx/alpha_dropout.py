"""Alpha dropout as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax

from jaxnorm._noise_modules import ALPHA_DROPOUT
from jaxnorm.nnx._noise_layer import NoiseLayer, NoiseOptions


class AlphaDropout(NoiseLayer):
    """Alpha dropout: `jaxnorm.alpha_dropout` with the rng stream and call of `Dropout`.

    Training: `y = a (d x + (1 - d) s) + b` with `d = 1` with probability `1 - rate`, else 0, the value s at which a SELU
    saturates, and a and b that keep mean and variance. Inference (`deterministic`): the identity.

    Args:
      rate: the probability of dropping, in [0, 1); a number or a traced scalar.
      mean: the mean to keep, a number or a traced scalar.
      var: the variance to keep, a number or a traced scalar.
      broadcast_dims: axes along which all elements share one draw.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Klambauer, Unterthiner, Mayr, Hochreiter, "Self-normalizing neural networks", NIPS 2017, https://arxiv.org/abs/1706.02515.

    Example:
      >>> import jax, jaxnorm.nnx
      >>> from flax import nnx
      >>> y = jaxnorm.nnx.AlphaDropout(0.1, rngs=nnx.Rngs(0))(jax.random.normal(jax.random.key(1), (100_000,)))
      >>> print(f"mean {abs(y.mean()):.2f}, variance {y.var():.2f}")
      mean 0.00, variance 1.00
    """

    noise: ClassVar = ALPHA_DROPOUT

    def __init__(
        self,
        rate: float | jax.Array,
        *,
        mean: float | jax.Array = 0.0,
        var: float | jax.Array = 1.0,
        broadcast_dims: Sequence[int] = (),
        **options: Unpack[NoiseOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.mean = mean
        self.var = var
        self.broadcast_dims = broadcast_dims
