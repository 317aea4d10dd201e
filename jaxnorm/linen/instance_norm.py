"""Instance normalization as a `flax.linen` module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import apply_sample_layer, feature_shape
from jaxnorm._norm.group import instance_norm
from jaxnorm.linen._norm_layer import affine_params, options_here


class InstanceNorm(nn.Module):
    """Instance normalization: `jaxnorm.instance_norm` in place of `flax.linen.InstanceNorm`, with its fields and parameters.

    `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the mean and the variance of each example's channels.

    Parameters `scale` and `bias` are those of Flax: checkpoints load both ways. Unlike Flax's the variance does not cancel for
    means far from zero, only the output is rounded to `dtype`, what a mask leaves out may be NaN, and the gradient keeps x alone.
    Initialization needs no bound `axis_name`.

    Attributes:
      epsilon: added to the variance, a number or a traced scalar.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of scale and bias.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      feature_axes: the axis, or axes, of the channels; their sizes in ascending order are the shape of scale and bias.
      axis_name: name or names of mapped axes over which the positions are divided, and the statistics pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      use_fast_variance: accepted and without effect: the variance is always exact.
      force_float32_reductions: accepted and without effect: statistics are always computed in float32 or wider.

    References:
      Ulyanov, Vedaldi, Lempitsky, "Instance normalization: the missing ingredient for fast stylization", 2016,
      https://arxiv.org/abs/1607.08022.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.InstanceNorm()
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
      >>> print(norm.apply(norm.init(jax.random.key(0), x), x).round(3))
      [[[-1. -1.]
        [ 1.  1.]]]
    """

    epsilon: float | jax.Array = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Callable[..., Any] = nn.initializers.zeros
    scale_init: Callable[..., Any] = nn.initializers.ones
    feature_axes: int | Sequence[int] = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of real or complex numbers, `[B, ..., C]` or with the channels on `feature_axes`.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if a field or the mask does not fit; if axis_name is not bound where the module is applied.
          TypeError: if x holds integers or bools.
        """
        params = affine_params(self, feature_shape(x, self.feature_axes, "feature_axes"))
        return apply_sample_layer(
            instance_norm,
            params,
            x,
            mask=mask,
            dtype=self.dtype,
            channel_axis=self.feature_axes,
            **options_here(instance_norm, self),
        )
