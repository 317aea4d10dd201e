"""Patch dropout as a `flax.nnx` module."""

from typing import Unpack

import jax

from jaxnorm._noise_modules import apply_patch_dropout
from jaxnorm.nnx._noise_layer import DrawingModule, Keys, StreamOptions


class PatchDropout(DrawingModule):
    """Patch dropout: `jaxnorm.patch_dropout` with the rng stream of `Dropout`.

    Training: `y = x_S`, a random part of every sequence's tokens, and which they are. Inference (`deterministic`): the identity,
    and the indices of all tokens.

    Args:
      rate: the share to leave out, in [0, 1], a number.
      num_prefix_tokens: how many tokens at the beginning are kept always.
      ordered: whether kept tokens keep their order.
      **options: `deterministic=False, rng_collection="dropout", rngs=None`, as in `Dropout`.

    References:
      Liu, Matsoukas, Strand, Azizpour, Smith, "PatchDropout: economizing vision transformers using patch dropout", WACV 2023,
      https://arxiv.org/abs/2208.07220.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.PatchDropout(0.5, ordered=True, rngs=nnx.Rngs(0))
      >>> y, indices = layer(jnp.arange(7.0).reshape(1, 7, 1))
      >>> print(y[0, :, 0], indices[0])
      [0. 1. 5. 6.] [0 4 5]
    """

    def __init__(
        self,
        rate: float,
        *,
        num_prefix_tokens: int = 1,
        ordered: bool = False,
        **options: Unpack[StreamOptions],
    ):
        """Forks the stream of keys; the arguments are those of the class."""
        super().__init__(**options)
        self.rate = rate
        self.num_prefix_tokens = num_prefix_tokens
        self.ordered = ordered

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | jax.Array | None = None, rngs: Keys | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Leaves tokens out.

        Args:
          inputs: array of floating point numbers, `[B, num_prefix_tokens + L, ...]`.
          deterministic: goes before the attribute of this name; known when the function is traced.
          rngs: a key, a stream or streams, to draw with instead of the layer's own.

        Returns:
          `(y, indices)`, as of `jaxnorm.patch_dropout`.

        Raises:
          ValueError: if `deterministic` is given nowhere, or nothing to draw with is; if an attribute does not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rngs is nothing to draw with.
        """
        return apply_patch_dropout(self, inputs, **self._drawing(deterministic, rngs))
