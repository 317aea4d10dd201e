"""What the layers that multiply by noise share as `flax.nnx` modules: arguments, the flag, a stream of keys, and the call."""

from collections.abc import Sequence
from typing import ClassVar, TypedDict

import jax
from flax import nnx

from jaxnorm._modules import NoiseFunction, apply_noise
from jaxnorm.nnx._flags import first_given

Keys = nnx.Rngs | nnx.RngStream | jax.Array


class NoiseOptions(TypedDict, total=False):
    """The arguments of every layer besides its amount of noise, with Flax's names and defaults."""

    broadcast_dims: Sequence[int]
    deterministic: bool | jax.Array | None
    rng_collection: str
    rngs: nnx.Rngs | nnx.RngStream | None
    bits: int


class NoiseLayer(nnx.Module):
    """A layer that is its docstring, its amount of noise and `noise`: its function."""

    noise: ClassVar[NoiseFunction]

    def __init__(
        self,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | jax.Array | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        bits: int = 16,
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        self.broadcast_dims = broadcast_dims
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        self.bits = bits
        if rngs is None:
            self.rngs = nnx.data(None)
        elif isinstance(rngs, nnx.Rngs):
            self.rngs = rngs[rng_collection].fork()
        elif isinstance(rngs, nnx.RngStream):
            self.rngs = rngs.fork()
        else:
            raise TypeError(f"rngs must be a Rngs, RngStream or None, but got {type(rngs)}.")

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None
    ) -> jax.Array:
        """Multiplies the inputs by noise.

        Args:
          inputs: array of floating point numbers, any shape.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of the shape and dtype of the inputs.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if the amount, broadcast_dims or bits do
            not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rngs is nothing to draw with.
        """
        flag = first_given(self, "deterministic", deterministic)
        return apply_noise(self.noise, self, lambda: self._key(rngs), inputs, deterministic=flag)

    def _key(self, rngs: Keys | None) -> jax.Array:
        """Returns the key to draw with: from the call's rngs if given, else from the layer's own stream."""
        rngs = self.rngs if rngs is None else rngs
        if rngs is None:
            raise ValueError(
                f"`deterministic` is False, but no `rngs` argument was provided to {type(self).__name__}, neither to its "
                "constructor nor to its call"
            )
        if isinstance(rngs, nnx.Rngs):
            return rngs[self.rng_collection]()
        if isinstance(rngs, nnx.RngStream):
            return rngs()
        if isinstance(rngs, jax.Array):
            return rngs
        raise TypeError(f"rngs must be a Rngs, RngStream or jax.Array, but got {type(rngs)}.")

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the flag in a view of the module, as `nnx.view` asks for.

        Args:
          deterministic: if True, the inputs are returned as they are.
        """
        if deterministic is not None:
            self.deterministic = deterministic
