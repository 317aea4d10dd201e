"""Split batch normalization as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import BatchFunction
from jaxnorm._norm.kinds import split_batch_norm
from jaxnorm._types import RunningStats
from jaxnorm.linen._batch_layer import BatchLayer


class SplitBatchNorm(BatchLayer):
    """Split batch normalization: `jaxnorm.split_batch_norm` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias` with scale, bias and statistics of each of `num_splits` equal
    parts of the batch, and `running <- momentum running + (1 - momentum) part`. Inference: the same y with those of the first.

    Parameters and statistics have the shape `[num_splits, C]`.

    Attributes:
      num_splits: number of parts, at least 1.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Xie, Tan, Gong, Wang, Yuille, Le, "Adversarial examples improve image recognition", CVPR 2020,
      https://arxiv.org/abs/1911.09665.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.SplitBatchNorm(num_splits=2)
      >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(3).T)
      [[-1.  1. -1.  1.]]
    """

    layer: ClassVar = BatchFunction(
        split_batch_norm, RunningStats, rows=lambda module: ((module.num_splits,), (module.num_splits,))
    )

    num_splits: int = 2
