"""Tracked instance normalization as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import TRACKED_INSTANCE_NORM
from jaxnorm.linen._batch_layer import BatchLayer


class TrackedInstanceNorm(BatchLayer):
    """Tracked instance normalization: `jaxnorm.tracked_instance_norm` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the statistics of each channel of each example, and
    `running <- momentum running + (1 - momentum)` times their means over the examples. Inference: the same y with the running
    statistics, as batch norm.

    Attributes:
      unbiased: whether the running variance averages `var n / (n - 1)`, as PyTorch's, rather than var.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Ulyanov, Vedaldi, Lempitsky, "Instance normalization: the missing ingredient for fast stylization", 2016,
      https://arxiv.org/abs/1607.08022.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.TrackedInstanceNorm()
      >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [20.0]]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(1)[..., 0])
      [[-1.  1.]
       [-1.  1.]]
    """

    layer: ClassVar = TRACKED_INSTANCE_NORM

    unbiased: bool = False
