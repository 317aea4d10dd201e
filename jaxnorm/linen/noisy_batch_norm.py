"""Noisy batch normalization as a `flax.linen` module."""

from typing import ClassVar

import jax
from flax import linen as nn

from jaxnorm._modules import NOISY_BATCH_NORM
from jaxnorm.linen._batch_layer import BatchLayer


class NoisyBatchNorm(BatchLayer):
    """Noisy batch normalization, an instrument of analysis: `jaxnorm.noisy_batch_norm` with the fields of `BatchNorm`.

    Training: `y = s (scale (x - mean) / sqrt(var + epsilon) + bias) + m` with the statistics of the batch, where m and s are
    drawn for every element around values that are drawn for every channel, and
    `running <- momentum running + (1 - momentum) batch`. Inference: batch norm, without noise and without a key.

    Attributes:
      mean_bound: the largest mean of a channel, a number or a traced scalar.
      std_bound: the largest deviation of a channel, at least 1, a number or a traced scalar.
      spread: of single elements around these, a number or a traced scalar.
      bits: random bits of which a number is made: 16 or 32.
      rng_collection: the stream of keys.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Santurkar, Tsipras, Ilyas, Madry, "How does batch normalization help optimization?", NeurIPS 2018,
      https://arxiv.org/abs/1805.11604.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.NoisyBatchNorm(mean_bound=0.0, std_bound=1.0, spread=0.0)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
      >>> streams = {"dropout": jax.random.key(1)}
      >>> y, _ = norm.apply(variables, x, use_running_average=False, rngs=streams, mutable=["batch_stats"])
      >>> print(y.round(2).T)
      [[-1.  1.]]
    """

    layer: ClassVar = NOISY_BATCH_NORM

    mean_bound: float | jax.Array = 0.5
    std_bound: float | jax.Array = 1.25
    spread: float | jax.Array = 0.1
    bits: int = 16
    rng_collection: str = "dropout"

    @nn.compact
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
          use_running_average: as the field of this name; given once, here or there.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.
          rng: the key to draw with, instead of one from the stream.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: as `BatchNorm`.
          TypeError: as `BatchNorm`.
        """
        draw_key = lambda: self.make_rng(self.rng_collection) if rng is None else rng  # noqa: E731
        return self._run(x, use_running_average, mask, draw_key=draw_key)
