"""Patch dropout as a `flax.linen` module."""

import jax
from flax import linen as nn

from jaxnorm._noise_modules import apply_patch_dropout
from jaxnorm.linen._noise_layer import DrawingModule


class PatchDropout(DrawingModule):
    """Patch dropout: `jaxnorm.patch_dropout` with the rng stream of `Dropout`.

    Training: `y = x_S`, a random part of every sequence's tokens, and which they are. Inference (`deterministic`): the identity,
    and the indices of all tokens.

    Attributes:
      rate: the share to leave out, in [0, 1], a number.
      num_prefix_tokens: how many tokens at the beginning are kept always.
      ordered: whether kept tokens keep their order.
      deterministic: whether to return all tokens; here or in the call.
      rng_collection: name of the stream of keys.

    References:
      Liu, Matsoukas, Strand, Azizpour, Smith, "PatchDropout: economizing vision transformers using patch dropout", WACV 2023,
      https://arxiv.org/abs/2208.07220.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.PatchDropout(0.5, ordered=True, deterministic=False)
      >>> y, indices = layer.apply({}, jnp.arange(7.0).reshape(1, 7, 1), rngs={"dropout": jax.random.key(0)})
      >>> print(y[0, :, 0], indices[0])
      [0. 1. 2. 3.] [0 1 2]
    """

    rate: float
    num_prefix_tokens: int = 1
    ordered: bool = False
    deterministic: bool | jax.Array | None = None
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | jax.Array | None = None, rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Leaves tokens out.

        Args:
          inputs: array of floating point numbers, `[B, num_prefix_tokens + L, ...]`.
          deterministic: as the field of this name, known when the function is traced; given once, here or there.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          `(y, indices)`, as of `jaxnorm.patch_dropout`.

        Raises:
          ValueError: if `deterministic` is given nowhere or twice; if a field does not fit.
          TypeError: if the inputs do not hold floating point numbers, or if rng is no key.
        """
        return apply_patch_dropout(self, inputs, **self._drawing(deterministic, rng))
