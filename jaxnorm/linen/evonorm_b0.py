"""EvoNorm-B0 as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import EVONORM_B0
from jaxnorm.linen._batch_layer import BatchLayer


class EvoNormB0(BatchLayer):
    """EvoNorm-B0: `jaxnorm.evonorm_b0` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale x / max(sqrt(var + epsilon), v x + sqrt(own_var + epsilon)) + bias` with the variances of the batch and
    of the example, and `running <- momentum running + (1 - momentum) var`. Inference: the same y with the running variance in
    the batch's place. No activation is to follow.

    The statistic is `var`, and the parameter `v` begins with 1.

    Attributes:
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.EvoNormB0()
      >>> x = jnp.array([[[-4.0], [4.0]]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(3).ravel())
      [-1.   0.5]
    """

    layer: ClassVar = EVONORM_B0
