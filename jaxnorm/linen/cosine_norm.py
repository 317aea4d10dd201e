"""Cosine normalization as a `flax.linen` module."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import feature_shape, options_of, output_dtype
from jaxnorm._norm.length import cosine_norm


class CosineNorm(nn.Module):
    """A layer of cosines in the place of `nn.Dense`: `jaxnorm.cosine_norm`.

    `y = sum(x kernel) / (|x| |kernel|)` with the lengths of each vector of features and of each column of the kernel.

    Attributes:
      features: number of outputs, F.
      centered: whether the means over the features are subtracted from x and the kernel: y is then a correlation.
      epsilon: the least length that is divided by, a number or a traced scalar.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the kernel.
      param_dtype: type of the kernel.
      kernel_init: initializer of the kernel.

    References:
      Luo, Zhan, Wang, Yang, "Cosine normalization: using cosine similarity instead of dot product in neural networks", ICANN
      2018, https://arxiv.org/abs/1702.05870.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.CosineNorm(2)
      >>> params = {"kernel": jnp.array([[2.0, 1.0], [0.0, 1.0]])}
      >>> print(norm.apply({"params": params}, jnp.array([[5.0, 5.0], [-3.0, 0.0]])).round(2))
      [[ 0.71  1.  ]
       [-1.   -0.71]]
    """

    features: int
    centered: bool = False
    epsilon: float | jax.Array = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiplies x by the kernel.

        Args:
          x: array of real numbers, `[..., C]`.

        Returns:
          Array of shape `[..., F]`, in `dtype`.

        Raises:
          ValueError: if a field does not fit x.
          TypeError: if x does not hold real floating point numbers.
        """
        shape = (*feature_shape(x, -1), self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        return cosine_norm(kernel, x, dtype=output_dtype(self.dtype, x, kernel), **options_of(cosine_norm, self))
