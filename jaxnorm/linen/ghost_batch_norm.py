"""Ghost batch normalization as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import BatchFunction
from jaxnorm._norm.ghost import ghost_batch_norm
from jaxnorm._types import RunningStats
from jaxnorm.linen._batch_layer import BatchLayer


class GhostBatchNorm(BatchLayer):
    """Ghost batch normalization: `jaxnorm.ghost_batch_norm` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the statistics of every ghost, `ghost_size` consecutive
    examples, and `running <- momentum running + (1 - momentum) ghost` for one after another. Inference: the same y with the
    running statistics.

    Attributes:
      ghost_size: examples of a ghost, at least 1; the last ghost has what remains.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Hoffer, Hubara, Soudry, "Train longer, generalize better: closing the generalization gap in large batch training of neural
      networks", NIPS 2017, https://arxiv.org/abs/1705.08741.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.GhostBatchNorm(ghost_size=2)
      >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(3).T)
      [[-1.  1. -1.  1.]]
    """

    layer: ClassVar = BatchFunction(ghost_batch_norm, RunningStats)

    ghost_size: int = 128
