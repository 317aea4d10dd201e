"""Zoneout as a `flax.linen` module."""

from typing import ClassVar

import jax

from jaxnorm._noise_modules import ZONEOUT
from jaxnorm.linen._noise_layer import NoiseModule


class Zoneout(NoiseModule):
    """Zoneout: `jaxnorm.zoneout` with the rng stream and flag of `Dropout`.

    Training: `y = h_prev` with probability `rate`, else `y = h`. Inference (`deterministic`): `y = rate h_prev + (1 - rate) h`.

    Attributes:
      rate: the probability of staying as before, in [0, 1]; a number or a traced scalar.
      deterministic: whether to mix the states instead of choosing; here or in the call.
      rng_collection: name of the stream of keys.
      bits: random bits an element that decide: 8, 16 or 32.

    References:
      Krueger, Maharaj, Kramar, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville, Pal, "Zoneout: regularizing RNNs by randomly
      preserving hidden activations", ICLR 2017, https://arxiv.org/abs/1606.01305.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> zone = jaxnorm.linen.Zoneout(0.5)
      >>> print(zone.apply({}, jnp.zeros(6), jnp.ones(6), deterministic=False, rngs={"dropout": jax.random.key(0)}))
      [0. 1. 1. 0. 0. 1.]
      >>> print(zone.apply({}, jnp.zeros(3), jnp.ones(3), deterministic=True))
      [0.5 0.5 0.5]
    """

    noise: ClassVar = ZONEOUT

    rate: float | jax.Array
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"
    bits: int = 16

    def __call__(
        self,
        h_prev: jax.Array,
        h: jax.Array,
        deterministic: bool | jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Lets elements of the state be what they were a step before.

        Args:
          h_prev: the state of the step before, array of floating point numbers, any shape.
          h: the new state, of the shape and dtype of `h_prev`.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of the shape and dtype of h.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if the rate or bits do not fit, or the states differ in shape.
          TypeError: if the states do not hold floating point numbers of one dtype, or if rng is no key.
        """
        return self._noisy(h_prev, h, deterministic=deterministic, rng=rng)
