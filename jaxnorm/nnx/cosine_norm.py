"""Cosine normalization as a `flax.nnx` module."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._checks import check_size
from jaxnorm._modules import options_of, output_dtype
from jaxnorm._norm.length import cosine_norm

_LECUN_NORMAL = nnx.initializers.lecun_normal()


class CosineNorm(nnx.Module):
    """A layer of cosines in the place of `nnx.Linear`: `jaxnorm.cosine_norm`.

    `y = sum(x kernel) / (|x| |kernel|)` with the lengths of each vector of features and of each column of the kernel.

    Args:
      in_features: number of features of x, C.
      out_features: number of outputs, F.
      centered: whether the means over the features are subtracted from x and the kernel: y is then a correlation.
      epsilon: the least length that is divided by, a number or a traced scalar.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the kernel.
      param_dtype: type of the kernel.
      kernel_init: initializer of the kernel.
      rngs: the streams, of which `params` gives the key of the initializer.

    References:
      Luo, Zhan, Wang, Yang, "Cosine normalization: using cosine similarity instead of dot product in neural networks", ICANN
      2018, https://arxiv.org/abs/1702.05870.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.CosineNorm(2, 3, rngs=nnx.Rngs(0))
      >>> norm(jnp.array([[5.0, 5.0], [-3.0, 0.0]])).shape
      (2, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        centered: bool = False,
        epsilon: float | jax.Array = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Callable[..., Any] = _LECUN_NORMAL,
        rngs: nnx.Rngs,
    ):
        """Makes the kernel; the arguments are those of the class."""
        shape = (check_size("in_features", in_features), check_size("out_features", out_features))
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.in_features, self.out_features = shape
        self.centered = centered
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiplies x by the kernel.

        Args:
          x: array of real numbers, `[..., C]`.

        Returns:
          Array of shape `[..., F]`, in `dtype`.

        Raises:
          ValueError: if an attribute does not fit x.
          TypeError: if x does not hold real floating point numbers.
        """
        kernel = self.kernel[...]
        return cosine_norm(kernel, x, dtype=output_dtype(self.dtype, x, kernel), **options_of(cosine_norm, self))
