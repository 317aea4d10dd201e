"""Virtual batch normalization as a `flax.linen` module."""

from typing import ClassVar

import jax
from flax import linen as nn

from jaxnorm._modules import VIRTUAL_BATCH_NORM
from jaxnorm._types import Moments
from jaxnorm.linen._sample_layer import SampleLayer


class VirtualBatchNorm(SampleLayer):
    """Virtual batch normalization: `jaxnorm.virtual_batch_norm`.

    `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the mean and variance of a reference batch and the example together.

    Attributes:
      epsilon: added to the variance, a number or a traced scalar.
      channel_axis: the axis, or axes, of the channels; their sizes in ascending order are the shape of scale and bias.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of scale and bias.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      axis_name, axis_index_groups: without effect: no example depends on another.

    References:
      Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen, "Improved techniques for training GANs", NIPS 2016,
      https://arxiv.org/abs/1606.03498.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm, jaxnorm.linen
      >>> norm = jaxnorm.linen.VirtualBatchNorm()
      >>> reference = jaxnorm.reference_moments(jnp.array([[1.0], [-1.0], [1.0], [-1.0]]))
      >>> x = jnp.array([[0.0], [5.0]])
      >>> print(norm.apply(norm.init(jax.random.key(0), x, reference), x, reference).round().T)
      [[0. 2.]]
    """

    layer: ClassVar = VIRTUAL_BATCH_NORM

    epsilon: float | jax.Array = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, reference: Moments, *, mask: jax.Array | None = None) -> jax.Array:  # type: ignore[override]
        """Normalizes x.

        Args:
          x: array of floating point numbers, `[B, ..., C]` or with the channels on `channel_axis`.
          reference: `jaxnorm.reference_moments` of the reference batch, where this layer meets it.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if a field, the reference or the mask does not fit.
          TypeError: if x does not hold floating point numbers, or reference is no Moments.
        """
        return self._run(x, mask, reference=reference)
