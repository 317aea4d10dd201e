"""Batch renormalization as a `flax.linen` module."""

from typing import ClassVar

import jax

from jaxnorm._modules import BatchFunction
from jaxnorm._norm.renorm import batch_renorm
from jaxnorm._types import RenormStats
from jaxnorm.linen._batch_layer import BatchLayer


class BatchRenorm(BatchLayer):
    """Batch renormalization: `jaxnorm.batch_renorm` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale (r (x - mean) / std + d) + bias` with the statistics of the batch, `r = clip(std / running_std,
    1 / r_max, r_max)` and `d = clip((mean - running_mean) / running_std, -d_max, d_max)`, and
    `running <- momentum running + (1 - momentum) batch`. Inference: `y = scale (x - running_mean) / running_std + bias`.

    The statistics are `mean` and `std`, in the collection `batch_stats`.
    For limits that follow a schedule, give the fields traced scalars inside the jitted step.

    Attributes:
      r_max: the largest factor between the batch's deviation and the running one that is corrected, at least 1; a number or a
        traced scalar.
      d_max: the largest distance between the batch's mean and the running one that is corrected, in running deviations, at least
        0; a number or a traced scalar.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized models", NIPS 2017,
      https://arxiv.org/abs/1702.03275.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.BatchRenorm(momentum=0.5, epsilon=0.0)
      >>> x = jnp.array([[1.0, 10.0], [3.0, 26.0]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y)
      [[1. 2.]
       [3. 8.]]
      >>> print(updates["batch_stats"]["std"])
      [1.  4.5]
    """

    layer: ClassVar = BatchFunction(batch_renorm, RenormStats)

    r_max: float | jax.Array = 3.0
    d_max: float | jax.Array = 5.0
