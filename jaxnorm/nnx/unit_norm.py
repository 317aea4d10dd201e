"""Unit normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from jaxnorm._modules import apply_sample_layer, options_of
from jaxnorm._norm.length import unit_norm


class UnitNorm(nnx.Module):
    """Unit normalization: `jaxnorm.unit_norm`, without parameters.

    `y = C^(k / 2) x / max(|x|, epsilon)` with the length of each vector of features.

    Args:
      k: power of the number of features that is the square of the length, a number or a traced scalar: 1 for RMS norm, 0 for
        length 1.
      epsilon: the least length that is divided by, a number or a traced scalar.
      reduction_axes: the axis, or axes, of the features.
      dtype: type of the output, which alone is rounded to it; None for that of x.
      axis_name: name or names of mapped axes over which the features are divided, and the statistics pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.

    References:
      Huang, Kümmerle, Zhang, "UnitNorm: rethinking normalization for transformers in time series", 2024,
      https://arxiv.org/abs/2405.15903.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> norm = jaxnorm.nnx.UnitNorm(k=0.0)
      >>> print(norm(jnp.array([[3.0, 4.0], [0.0, -2.0]])))
      [[ 0.6  0.8]
       [ 0.  -1. ]]
    """

    def __init__(
        self,
        *,
        k: float | jax.Array = 1.0,
        epsilon: float | jax.Array = 1e-6,
        reduction_axes: int | Sequence[int] = -1,
        dtype: Any = None,
        axis_name: Any = None,
        axis_index_groups: Any = None,
    ):
        """Keeps the arguments, which are those of the class."""
        self.k = k
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
        return apply_sample_layer(unit_norm, None, x, mask=mask, dtype=self.dtype, **options_of(unit_norm, self))
