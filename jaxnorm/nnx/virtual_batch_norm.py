"""Virtual batch normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax
from flax import nnx

from jaxnorm._modules import VIRTUAL_BATCH_NORM
from jaxnorm._types import Moments
from jaxnorm.nnx._sample_layer import SampleLayer, SampleOptions


class VirtualBatchNorm(SampleLayer):
    """Virtual batch normalization: `jaxnorm.virtual_batch_norm`.

    `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the mean and variance of a reference batch and the example together.

    Args:
      num_features: number of channels, C; with several axes their sizes in ascending order of the axes.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `epsilon=1e-5, channel_axis=-1, dtype=None, param_dtype=float32, use_bias=True, use_scale=True, bias_init=zeros,
        scale_init=ones, bias_metadata, scale_metadata`, as in `FilterResponseNorm`.

    References:
      Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen, "Improved techniques for training GANs", NIPS 2016,
      https://arxiv.org/abs/1606.03498.

    Example:
      >>> import jax.numpy as jnp, jaxnorm, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.VirtualBatchNorm(1, rngs=nnx.Rngs(0))
      >>> reference = jaxnorm.reference_moments(jnp.array([[1.0], [-1.0], [1.0], [-1.0]]))
      >>> print(norm(jnp.array([[0.0], [5.0]]), reference).round().T)
      [[0. 2.]]
    """

    layer: ClassVar = VIRTUAL_BATCH_NORM

    def __init__(self, num_features: int | Sequence[int], *, rngs: nnx.Rngs, **options: Unpack[SampleOptions]):
        """Makes the parameters; the arguments are those of the class."""
        options.setdefault("epsilon", 1e-5)
        super().__init__(num_features, rngs=rngs, **options)

    def __call__(self, x: jax.Array, reference: Moments, *, mask: jax.Array | None = None) -> jax.Array:  # type: ignore[override]
        """Normalizes x.

        Args:
          x: array of floating point numbers, `[B, ..., C]` or with the channels on `channel_axis`.
          reference: `jaxnorm.reference_moments` of the reference batch, where this layer meets it.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if an attribute, the reference or the mask does not fit.
          TypeError: if x does not hold floating point numbers, or reference is no Moments.
        """
        return self._run(x, mask, reference=reference)
