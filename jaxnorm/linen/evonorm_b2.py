"""EvoNorm-B2 as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import EVONORM_B2
from jaxnorm.linen._batch_layer import BatchLayer


class EvoNormB2(BatchLayer):
    """EvoNorm-B2: `jaxnorm.evonorm_b2` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale x / max(sqrt(var + epsilon), sqrt(own_square + epsilon) - x) + bias` with the variance of the batch and
    the mean square of the example, and `running <- momentum running + (1 - momentum) var`. Inference: the same y with the running
    variance in the batch's place. No activation is to follow.

    The statistic is `var`.

    Attributes:
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.EvoNormB2()
      >>> x = jnp.array([[[-4.0], [4.0]]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(3).ravel())
      [-0.5  1. ]
    """

    layer: ClassVar = EVONORM_B2
