"""What the layers with noise share as `flax.linen` modules: the flag, the key and the call."""

from typing import Any, ClassVar

import jax
from flax import linen as nn

from jaxnorm._checks import check_float
from jaxnorm._noise_modules import Drawing, NoiseFunction, apply_noise


class DrawingModule(nn.Module):
    """A layer that draws from a stream of keys. Among its fields are `deterministic` and `rng_collection`."""

    @nn.nowrap  # a table of layers would take what it returns for arrays
    def _drawing(self, deterministic: bool | jax.Array | None, rng: jax.Array | None) -> Drawing:
        """Returns the flag, which is given once, here or as a field, and what gives the key."""
        fields: Any = self
        return {
            "deterministic": nn.merge_param("deterministic", fields.deterministic, deterministic),
            "draw_key": lambda: self.make_rng(fields.rng_collection) if rng is None else rng,
        }


class NoiseModule(DrawingModule):
    """A layer with noise, of any number of inputs: its docstring, its fields, `noise`, which is its function, and its call.

    Among the fields are those arguments of the function that are no inputs.
    """

    noise: ClassVar[NoiseFunction]

    @nn.nowrap
    def _noisy(self, *inputs: Any, deterministic: bool | jax.Array | None, rng: jax.Array | None) -> jax.Array:
        """Returns what the layer makes of the inputs; flag and key are those of the call."""
        return apply_noise(self.noise, self, *inputs, **self._drawing(deterministic, rng))


class NoiseLayer(NoiseModule):
    """A layer with noise that is its docstring, its fields, in Flax's order, and `noise`."""

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None
    ) -> jax.Array:
        """Makes the inputs noisy.

        Args:
          inputs: array of floating point numbers, any shape that the function takes.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of the dtype of the inputs, and of their shape unless they are pooled.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if a field does not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rng is no key.
        """
        return self._noisy(check_float("inputs", inputs), deterministic=deterministic, rng=rng)


class JoinLayer(NoiseModule):
    """A join of branches that is its docstring, its fields and `noise`."""

    @nn.compact
    def __call__(self, *branches: Any, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None) -> jax.Array:
        """Joins the branches.

        Args:
          *branches: as for the function.
          deterministic: as the field of this name; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of the shape and dtype of the first branch.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if a field or a branch does not fit.
          TypeError: if a branch does not hold floating point numbers, or if rng is no key.
        """
        return self._noisy(*branches, deterministic=deterministic, rng=rng)
