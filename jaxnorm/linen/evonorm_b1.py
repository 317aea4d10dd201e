"""EvoNorm-B1 as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import EVONORM_B1
from jaxnorm.linen._batch_layer import BatchLayer


class EvoNormB1(BatchLayer):
    """EvoNorm-B1: `jaxnorm.evonorm_b1` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale x / max(sqrt(var + epsilon), (x + 1) sqrt(own_square + epsilon)) + bias` with the variance of the batch
    and the mean square of the example, and `running <- momentum running + (1 - momentum) var`. Inference: the same y with the
    running variance in the batch's place. No activation is to follow.

    The statistic is `var`.

    Attributes:
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.EvoNormB1()
      >>> x = jnp.array([[[-7.0], [7.0]]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(3).ravel())
      [-1.     0.125]
    """

    layer: ClassVar = EVONORM_B1
