"""Frozen batch normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._modules import apply_frozen_layer
from jaxnorm._norm.batch import init_frozen_batch_norm
from jaxnorm._types import AffineParams, RunningStats, wide_dtype


class FrozenBatchNorm(nnx.Module):
    """Batch normalization by constants: `jaxnorm.frozen_batch_norm`.

    `y = scale (x - mean) / sqrt(var + epsilon) + bias` with variables that are those of `BatchNorm`, from whose checkpoints it
    loads, and that no gradient flows to. A new layer is the identity.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      axis: the axis, or axes, of the features.
      epsilon: added to the variance, a number or a traced scalar: that of the network which the constants are from.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the variables.
      param_dtype: type of scale and bias.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.

    References:
      Wu, Johnson, "Rethinking 'batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> norm = jaxnorm.nnx.FrozenBatchNorm(2)
      >>> print(norm(jnp.array([[5.0, -3.0]])))
      [[ 5. -3.]]
    """

    is_frozen: ClassVar = True  # one that was a batch norm still has its flag, and is not one whose statistics are estimated

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        axis: int | Sequence[int] = -1,
        epsilon: float | jax.Array = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
    ):
        """Makes the variables; the arguments are those of the class."""
        options = {"use_scale": use_scale, "use_bias": use_bias, "param_dtype": param_dtype}
        wide = wide_dtype(param_dtype if dtype is None else dtype)
        params, state = init_frozen_batch_norm(num_features, epsilon=epsilon, dtype=wide, **options)
        self.scale, self.bias = (nnx.data(None if part is None else nnx.Param(part)) for part in params)
        self.mean, self.var = (nnx.BatchStat(part) for part in state)
        self.num_features = num_features
        self.axis = axis
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array, use_running_average: Any = None, *, mask: Any = None) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of floating point numbers, `[..., C]` or with the features on `axis`.
          use_running_average: accepted and without effect, for calls of a batch norm.
          mask: accepted and without effect, likewise.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if an attribute does not fit.
          TypeError: if x does not hold floating point numbers.
        """
        params = AffineParams(*(None if part is None else part[...] for part in (self.scale, self.bias)))
        state = RunningStats(self.mean[...], self.var[...])
        return apply_frozen_layer(params, state, x, axis=self.axis, epsilon=self.epsilon, dtype=self.dtype)
