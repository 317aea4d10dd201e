"""What the layers that multiply by noise share as `flax.linen` modules: the flag, the key and the call."""

from typing import Any, ClassVar

import jax
from flax import linen as nn

from jaxnorm._modules import NoiseFunction, apply_noise


class NoiseLayer(nn.Module):
    """A layer that is its docstring, its fields and `noise`: its function.

    The fields are the amount of noise, and `broadcast_dims`, `deterministic`, `rng_collection` and `bits`, in Flax's order.
    """

    noise: ClassVar[NoiseFunction]

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None
    ) -> jax.Array:
        """Multiplies the inputs by noise.

        Args:
          inputs: array of floating point numbers, any shape.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of the shape and dtype of the inputs.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if the amount, broadcast_dims or bits do not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rng is no key.
        """
        fields: Any = self
        return apply_noise(
            self.noise,
            fields,
            lambda: self.make_rng(fields.rng_collection) if rng is None else rng,
            inputs,
            deterministic=nn.merge_param("deterministic", fields.deterministic, deterministic),
        )
