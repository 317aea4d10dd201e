"""Frozen batch normalization as a `flax.linen` module."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import apply_frozen_layer, compute_dtype, feature_shape
from jaxnorm._norm.batch import init_frozen_batch_norm
from jaxnorm._types import AffineParams, RunningStats, wide_dtype


class FrozenBatchNorm(nn.Module):
    """Batch normalization by constants: `jaxnorm.frozen_batch_norm`.

    `y = scale (x - mean) / sqrt(var + epsilon) + bias` with variables that are those of `BatchNorm`, from whose checkpoints it
    loads, and that no gradient flows to. A new layer is the identity.

    Attributes:
      axis: the axis, or axes, of the features.
      epsilon: added to the variance, a number or a traced scalar: that of the network which the constants are from.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the variables.
      param_dtype: type of scale and bias.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.

    References:
      Wu, Johnson, "Rethinking 'batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.FrozenBatchNorm()
      >>> x = jnp.array([[5.0, -3.0]])
      >>> print(norm.apply(norm.init(jax.random.key(0), x), x))
      [[ 5. -3.]]
    """

    axis: int | Sequence[int] = -1
    epsilon: float | jax.Array = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: Any = None, *, mask: Any = None) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of floating point numbers, `[..., C]` or with the features on `axis`.
          use_running_average: accepted and without effect, for calls of a batch norm.
          mask: accepted and without effect, likewise.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if a field does not fit.
          TypeError: if x does not hold floating point numbers.
        """
        shape = feature_shape(x, self.axis)
        options = {"use_scale": self.use_scale, "use_bias": self.use_bias, "param_dtype": self.param_dtype}
        dtype = wide_dtype(compute_dtype(self.dtype, x))
        params, state = init_frozen_batch_norm(shape, epsilon=self.epsilon, dtype=dtype, **options)
        params = AffineParams(
            *(None if new is None else self.param(name, lambda _, new=new: new) for name, new in params._asdict().items())
        )
        stats = [self.variable("batch_stats", name, lambda new=new: new).value for name, new in state._asdict().items()]
        return apply_frozen_layer(params, RunningStats(*stats), x, axis=self.axis, epsilon=self.epsilon, dtype=self.dtype)
