"""Layer normalization as a `flax.nnx` module."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._modules import SampleFunction, apply_sample_layer, options_of
from jaxnorm._norm.sample import layer_norm
from jaxnorm.nnx._affine import AffineLayer


class LayerNorm(AffineLayer):
    """Layer normalization: `jaxnorm.layer_norm` with Flax's arguments, parameters and call, in place of `flax.nnx.LayerNorm`.

    `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the mean and the variance of each example's features.

    Parameters `scale` and `bias` are those of Flax: checkpoints load both ways. Unlike Flax's the variance does not cancel for
    means far from zero, only the output is rounded to `dtype`, what a mask leaves out may be NaN, and the gradient keeps x alone.

    Args:
      num_features: number of features, C; with several feature axes their sizes in ascending order of the axes.
      epsilon: added to the variance, a number or a traced scalar.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of scale and bias.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      reduction_axes: the axis, or axes, over which mean and variance are taken.
      feature_axes: the axis, or axes, of scale and bias; their sizes in ascending order are the shape of these.
      axis_name: name or names of mapped axes over which the features are divided, and the statistics pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      use_fast_variance: accepted and without effect: the variance is always exact.
      promote_dtype: accepted and without effect: nothing but the output is rounded.
      rngs: the streams, of which `params` gives the keys of the initializers.
      bias_metadata: metadata of the bias, as for its sharding.
      scale_metadata: metadata of the scale.

    References:
      Ba, Kiros, Hinton, "Layer normalization", 2016, https://arxiv.org/abs/1607.06450.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.LayerNorm(4, rngs=nnx.Rngs(0))
      >>> print(norm(jnp.array([[1.0, 1.0, 3.0, 3.0], [50.0, 10.0, 50.0, 10.0]])).round(3))
      [[-1. -1.  1.  1.]
       [ 1. -1.  1. -1.]]
    """

    layer: ClassVar = SampleFunction(layer_norm)

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float | jax.Array = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., jax.Array] = nnx.initializers.zeros,
        scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
        reduction_axes: int | Sequence[int] = -1,
        feature_axes: int | Sequence[int] = -1,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Callable[..., Any] | None = None,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
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
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of real or complex numbers, `[..., C]` or with the features on `feature_axes`.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if num_features is not the size of x along feature_axes; if an attribute or the mask does not fit; if
            axis_name is not bound where the module is called.
          TypeError: if x holds integers or bools.
        """
        return apply_sample_layer(layer_norm, self.params, x, mask=mask, dtype=self.dtype, **options_of(layer_norm, self))
