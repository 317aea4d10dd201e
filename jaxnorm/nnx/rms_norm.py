"""RMS normalization as a `flax.nnx` module."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._modules import SampleFunction, apply_sample_layer, options_of
from jaxnorm._norm.rms import rms_norm
from jaxnorm.nnx._affine import AffineLayer


class RMSNorm(AffineLayer):
    """RMS normalization: `jaxnorm.rms_norm` with Flax's arguments, parameters and call, in place of `flax.nnx.RMSNorm`.

    `y = (scale_offset + scale) x / sqrt(mean_square + epsilon) + bias` with the mean square of each example's features.

    The parameter `scale` is that of Flax: checkpoints load both ways. Unlike Flax's only the output is rounded to `dtype`, what a
    mask leaves out may be NaN, and the gradient keeps x alone.

    Args:
      num_features: number of features, C; with several feature axes their sizes in ascending order of the axes.
      epsilon: added to the mean square, a number or a traced scalar.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the scale.
      use_scale: whether there is a scale.
      scale_init: initializer of the scale.
      reduction_axes: the axis, or axes, over which the mean square is taken.
      feature_axes: the axis, or axes, of the scale; their sizes in ascending order are the shape of it.
      axis_name: name or names of mapped axes over which the features are divided, and the statistics pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      use_fast_variance: accepted and without effect: there is no other.
      promote_dtype: accepted and without effect: nothing but the output is rounded.
      fraction: of the features, the first of which are squared (pRMSNorm).
      scale_offset: added to the scale; 1 where it is kept as its difference from 1, with a `scale_init` of zeros.
      round_before_scale: whether what is normalized is rounded before it is multiplied by the scale, as in T5 and Llama.
      use_bias: whether there is a bias, as in equinox. Not in Flax.
      bias_init: initializer of the bias. Not in Flax.
      bias_metadata: metadata of the bias. Not in Flax.
      rngs: the streams, of which `params` gives the keys of the initializers.
      scale_metadata: metadata of the scale, as for its sharding.

    References:
      Zhang, Sennrich, "Root mean square layer normalization", NeurIPS 2019, https://arxiv.org/abs/1910.07467.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.RMSNorm(4, rngs=nnx.Rngs(0))
      >>> print(norm(jnp.array([[0.0, 0.0, 0.0, 4.0], [-3.0, 3.0, 3.0, 3.0]])).round(2))
      [[ 0.  0.  0.  2.]
       [-1.  1.  1.  1.]]
    """

    layer: ClassVar = SampleFunction(rms_norm)

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float | jax.Array = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_scale: bool = True,
        scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
        reduction_axes: int | Sequence[int] = -1,
        feature_axes: int | Sequence[int] = -1,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Callable[..., Any] | None = None,
        fraction: float = 1.0,
        scale_offset: float | jax.Array = 0.0,
        round_before_scale: bool = False,
        use_bias: bool = False,
        bias_init: Callable[..., jax.Array] = nnx.initializers.zeros,
        rngs: nnx.Rngs,
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        """Makes the parameters; the arguments are those of the class."""
        super().__init__(
            num_features,
            use_scale=use_scale,
            use_bias=use_bias,
            scale_init=scale_init,
            bias_init=bias_init,
            param_dtype=param_dtype,
            rngs=rngs,
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
        )
        self.epsilon = epsilon
        self.dtype = dtype
        self.reduction_axes = reduction_axes
        self.feature_axes = feature_axes
        self.fraction = fraction
        self.scale_offset = scale_offset
        self.round_before_scale = round_before_scale
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of real or complex numbers, `[..., C]` or with the features on `feature_axes`.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if num_features is not the size of x along its channels; if an attribute or the mask does not fit; if
            axis_name is not bound where the module is called.
          TypeError: if x holds integers or bools.
        """
        return apply_sample_layer(rms_norm, self.params, x, mask=mask, dtype=self.dtype, **options_of(rms_norm, self))
