"""Noisy batch normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax
from flax import nnx

from jaxnorm._modules import NOISY_BATCH_NORM
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class NoisyBatchNorm(BatchLayer):
    """Noisy batch normalization, an instrument of analysis: `jaxnorm.noisy_batch_norm` with the arguments of `BatchNorm`.

    Training: `y = s (scale (x - mean) / sqrt(var + epsilon) + bias) + m` with the statistics of the batch, where m and s are
    drawn for every element around values that are drawn for every channel, and
    `running <- momentum running + (1 - momentum) batch`. Inference: batch norm, without noise and without a key.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      mean_bound: the largest mean of a channel, a number or a traced scalar.
      std_bound: the largest deviation of a channel, at least 1, a number or a traced scalar.
      spread: of single elements around these, a number or a traced scalar.
      bits: random bits of which a number is made: 16 or 32.
      rng_collection: the stream of keys.
      rngs: the streams, of which `params` gives the keys of the initializers, and that of `rng_collection` is forked.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Santurkar, Tsipras, Ilyas, Madry, "How does batch normalization help optimization?", NeurIPS 2018,
      https://arxiv.org/abs/1805.11604.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.NoisyBatchNorm(1, mean_bound=0.0, std_bound=1.0, spread=0.0, rngs=nnx.Rngs(0))
      >>> print(norm(jnp.array([[1.0], [3.0]])).round(2).T)
      [[-1.  1.]]
    """

    layer: ClassVar = NOISY_BATCH_NORM

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        mean_bound: float | jax.Array = 0.5,
        std_bound: float | jax.Array = 1.25,
        spread: float | jax.Array = 0.1,
        bits: int = 16,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
        **options: Unpack[BatchOptions],
    ):
        """Makes the variables; the arguments are those of the class."""
        super().__init__(num_features, rngs=rngs, **options)
        self.mean_bound = mean_bound
        self.std_bound = std_bound
        self.spread = spread
        self.bits = bits
        self.rng_collection = rng_collection
        self.rngs = rngs[rng_collection].fork()

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes x, and in training averages the statistics and adds noise.

        Args:
          x: array of real numbers, `[..., C]` or with the features on `axis`.
          use_running_average: goes before the attribute of this name.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: as `BatchNorm`.
          TypeError: as `BatchNorm`.
        """
        return self._run(x, use_running_average, mask, draw_key=lambda: self.rngs() if rng is None else rng)
