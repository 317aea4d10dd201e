"""RMS normalization as a `flax.linen` module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import apply_sample_layer, feature_shape
from jaxnorm._norm.rms import rms_norm
from jaxnorm.linen._norm_layer import affine_params, options_here


class RMSNorm(nn.Module):
    """RMS normalization: `jaxnorm.rms_norm` with Flax's fields, parameters and call, in place of `flax.linen.RMSNorm`.

    `y = (scale_offset + scale) x / sqrt(mean_square + epsilon) + bias` with the mean square of each example's features.

    The parameter `scale` is that of Flax: checkpoints load both ways. Unlike Flax's only the output is rounded to `dtype`, what a
    mask leaves out may be NaN, and the gradient keeps x alone. Initialization needs no bound `axis_name`.

    Attributes:
      epsilon: added to the mean square, a number or a traced scalar.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the scale.
      use_scale: whether there is a scale.
      scale_init: initializer of the scale.
      reduction_axes: the axis, or axes, over which the mean square is taken.
      feature_axes: the axis, or axes, of the scale; their sizes in ascending order are the shape of it.
      axis_name: name or names of mapped axes over which the features are divided, and the statistics pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      fraction: of the features, the first of which are squared (pRMSNorm).
      scale_offset: added to the scale; 1 where it is kept as its difference from 1, with a `scale_init` of zeros.
      round_before_scale: whether what is normalized is rounded before it is multiplied by the scale, as in T5 and Llama.
      use_bias: whether there is a bias, as in equinox. Not in Flax.
      bias_init: initializer of the bias. Not in Flax.
      use_fast_variance: accepted and without effect: there is no other.
      force_float32_reductions: accepted and without effect: statistics are always computed in float32 or wider.

    References:
      Zhang, Sennrich, "Root mean square layer normalization", NeurIPS 2019, https://arxiv.org/abs/1910.07467.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.RMSNorm()
      >>> x = jnp.array([[0.0, 0.0, 0.0, 4.0], [-3.0, 3.0, 3.0, 3.0]])
      >>> print(norm.apply(norm.init(jax.random.key(0), x), x).round(2))
      [[ 0.  0.  0.  2.]
       [-1.  1.  1.  1.]]
    """

    epsilon: float | jax.Array = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_scale: bool = True
    scale_init: Callable[..., Any] = nn.initializers.ones
    reduction_axes: int | Sequence[int] = -1
    feature_axes: int | Sequence[int] = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    fraction: float = 1.0
    scale_offset: float | jax.Array = 0.0
    round_before_scale: bool = False
    use_bias: bool = False
    bias_init: Callable[..., Any] = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of real or complex numbers, `[..., C]` or with the features on `feature_axes`.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if a field or the mask does not fit; if axis_name is not bound where the module is applied.
          TypeError: if x holds integers or bools.
        """
        params = affine_params(self, feature_shape(x, self.feature_axes, "feature_axes"))
        return apply_sample_layer(rms_norm, params, x, mask=mask, dtype=self.dtype, **options_here(rms_norm, self))
