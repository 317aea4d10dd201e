"""Batch-instance normalization as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import BATCH_INSTANCE_NORM
from jaxnorm.linen._batch_layer import BatchLayer


class BatchInstanceNorm(BatchLayer):
    """Batch-instance normalization: `jaxnorm.batch_instance_norm` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale (gate a + (1 - gate) b) + bias`, where a is x normalized by the batch and b by the example, and
    `running <- momentum running + (1 - momentum) batch`. Inference: the same y with the running statistics in the batch's place.

    The parameter `gate` of each channel begins with 1, as batch norm; clip it to [0, 1] after every step of the optimizer.

    Attributes:
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Nam, Kim, "Batch-instance normalization for adaptively style-invariant neural networks", NeurIPS 2018,
      https://arxiv.org/abs/1805.07925.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.BatchInstanceNorm()
      >>> x = jnp.array([[[1.0], [3.0]], [[11.0], [13.0]]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(1)[..., 0])
      [[-1.2 -0.8]
       [ 0.8  1.2]]
    """

    layer: ClassVar = BATCH_INSTANCE_NORM
