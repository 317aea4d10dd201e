"""Zoneout as a `flax.nnx` module."""

from typing import ClassVar, Unpack

import jax

from jaxnorm._noise_modules import ZONEOUT
from jaxnorm.nnx._noise_layer import Keys, NoiseModule, NoiseOptions


class Zoneout(NoiseModule):
    """Zoneout: `jaxnorm.zoneout` with the rng stream and flag of `Dropout`.

    Training: `y = h_prev` with probability `rate`, else `y = h`. Inference (`deterministic`): `y = rate h_prev + (1 - rate) h`.

    Args:
      rate: the probability of staying as before, in [0, 1]; a number or a traced scalar.
      **options: `deterministic=False, rng_collection="dropout", rngs=None, bits=16`, as in `Dropout`.

    References:
      Krueger, Maharaj, Kramar, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville, Pal, "Zoneout: regularizing RNNs by randomly
      preserving hidden activations", ICLR 2017, https://arxiv.org/abs/1606.01305.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> zone = jaxnorm.nnx.Zoneout(0.5, rngs=nnx.Rngs(0))
      >>> print(zone(jnp.zeros(6), jnp.ones(6)))
      [1. 1. 1. 1. 1. 0.]
      >>> print(zone(jnp.zeros(3), jnp.ones(3), deterministic=True))
      [0.5 0.5 0.5]
    """

    noise: ClassVar = ZONEOUT

    def __init__(self, rate: float | jax.Array, **options: Unpack[NoiseOptions]):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate

    def __call__(
        self, h_prev: jax.Array, h: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None
    ) -> jax.Array:
        """Lets elements of the state be what they were a step before.

        Args:
          h_prev: the state of the step before, array of floating point numbers, any shape.
          h: the new state, of the shape and dtype of `h_prev`.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of the shape and dtype of h.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if the rate or bits do not fit, or the
            states differ in shape.
          TypeError: if the states do not hold floating point numbers of one dtype, or if rngs is nothing to draw with.
        """
        return self._noisy(h_prev, h, deterministic=deterministic, rngs=rngs)
