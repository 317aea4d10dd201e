"""What the layers with noise share as `flax.nnx` modules: arguments, the flag, a stream of keys, and the call."""

from typing import Any, ClassVar, TypedDict, Unpack

import jax
from flax import nnx

from jaxnorm._checks import check_float
from jaxnorm._noise_modules import Drawing, NoiseFunction, apply_noise
from jaxnorm.nnx._flags import first_given

Keys = nnx.Rngs | nnx.RngStream | jax.Array


class StreamOptions(TypedDict, total=False):
    """The arguments of every layer that draws, with Flax's names and defaults."""

    deterministic: bool | jax.Array | None
    rng_collection: str
    rngs: nnx.Rngs | nnx.RngStream | None


class NoiseOptions(StreamOptions, total=False):
    """Those of every layer with noise."""

    bits: int


class DrawingModule(nnx.Module):
    """A layer that draws from a stream of keys, unless its flag says not to."""

    def __init__(
        self,
        *,
        deterministic: bool | jax.Array | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        if rngs is None:
            self.rngs = nnx.data(None)
        elif isinstance(rngs, nnx.Rngs):
            self.rngs = rngs[rng_collection].fork()
        elif isinstance(rngs, nnx.RngStream):
            self.rngs = rngs.fork()
        else:
            raise TypeError(f"rngs must be a Rngs, RngStream or None, but got {type(rngs)}.")

    def _drawing(self, deterministic: bool | jax.Array | None, rngs: Keys | None) -> Drawing:
        """Returns the flag, that of the call if given, and what gives the key."""
        return {"deterministic": first_given(self, "deterministic", deterministic), "draw_key": lambda: self._key(rngs)}

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
          deterministic: if True, nothing is drawn.
        """
        if deterministic is not None:
            self.deterministic = deterministic


class NoiseModule(DrawingModule):
    """A layer with noise, of any number of inputs: its docstring, its arguments, `noise`, which is its function, and its call."""

    noise: ClassVar[NoiseFunction]

    def __init__(self, *, bits: int = 16, **options: Unpack[StreamOptions]):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.bits = bits

    def _noisy(self, *inputs: Any, deterministic: bool | jax.Array | None, rngs: Keys | None) -> jax.Array:
        """Returns what the layer makes of the inputs; flag and keys are those of the call."""
        return apply_noise(self.noise, self, *inputs, **self._drawing(deterministic, rngs))


class NoiseLayer(NoiseModule):
    """A layer with noise that is its docstring, its arguments and `noise`."""

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None
    ) -> jax.Array:
        """Makes the inputs noisy.

        Args:
          inputs: array of floating point numbers, any shape that the function takes.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of the dtype of the inputs, and of their shape unless they are pooled.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if an attribute does not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rngs is nothing to draw with.
        """
        return self._noisy(check_float("inputs", inputs), deterministic=deterministic, rngs=rngs)


class JoinLayer(NoiseModule):
    """A join of branches that is its docstring, its arguments and `noise`."""

    def __call__(self, *branches: Any, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None) -> jax.Array:
        """Joins the branches.

        Args:
          *branches: as for the function.
          deterministic: goes before the attribute of this name.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          Array of the shape and dtype of the first branch.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if an attribute or a branch does not fit.
          TypeError: if a branch does not hold floating point numbers, or if rngs is nothing to draw with.
        """
        return self._noisy(*branches, deterministic=deterministic, rngs=rngs)
