"""Scale normalization as a `flax.nnx` module."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._checks import check_sizes
from jaxnorm._modules import apply_sample_layer, options_of
from jaxnorm._norm.length import init_scale_norm, scale_norm
from jaxnorm._types import AffineParams


class ScaleNorm(nnx.Module):
    """Scale normalization: `jaxnorm.scale_norm`.

    `y = scale x / max(|x|, epsilon)` with the length of each vector of features. The parameter `scale` is one number, which
    begins with the root of the number of features: a new layer is RMS norm.

    Args:
      num_features: number of features; with several axes their sizes in ascending order of the axes.
      epsilon: the least length that is divided by, a number or a traced scalar.
      reduction_axes: the axis, or axes, of the features.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the scale.
      param_dtype: type of the scale.
      axis_name: name or names of mapped axes over which the features are divided, and the statistics pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.

    References:
      Nguyen, Salazar, "Transformers without tears: improving the normalization of self-attention", IWSLT 2019,
      https://arxiv.org/abs/1910.05895.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> norm = jaxnorm.nnx.ScaleNorm(4)
      >>> print(norm(jnp.array([[0.0, 0.0, 0.0, 4.0]])).round(2))
      [[0. 0. 0. 2.]]
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float | jax.Array = 1e-5,
        reduction_axes: int | Sequence[int] = -1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        axis_name: Any = None,
        axis_index_groups: Any = None,
    ):
        """Makes the parameter; the arguments are those of the class."""
        size = math.prod(check_sizes("num_features", num_features))
        self.scale = nnx.Param(init_scale_norm(size, param_dtype=param_dtype).scale)
        self.num_features = num_features
        self.epsilon = epsilon
        self.reduction_axes = reduction_axes
        self.dtype = dtype
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of real or complex numbers, `[..., C]` or with the features on `reduction_axes`.
          mask: array that broadcasts to x: nonzero for the elements that count in the length.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if an attribute or the mask does not fit; if axis_name is not bound where the module is called.
          TypeError: if x does not hold floating point numbers.
        """
        params = AffineParams(self.scale[...], None)
        return apply_sample_layer(scale_norm, params, x, mask=mask, dtype=self.dtype, **options_of(scale_norm, self))
