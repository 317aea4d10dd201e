"""l_p batch normalization as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import LP_BATCH_NORM
from jaxnorm.linen._batch_layer import BatchLayer


class LpBatchNorm(BatchLayer):
    """l_p batch normalization: `jaxnorm.lp_batch_norm` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(deviation^2 + epsilon) + bias` with `deviation = (sum(|x - mean|^p) / n)^(1/p)` of the
    batch, and `running <- momentum running + (1 - momentum) batch`. Inference: the same y with the running statistics.

    The statistics are `mean` and `deviation`, which the function calls scale.

    Attributes:
      p: the power, at least 1, and possibly infinite.
      gaussian: whether the deviation is divided by that of a standard normal variable.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Hoffer, Banner, Golan, Soudry, "Norm matters: efficient and accurate normalization schemes in deep networks", NeurIPS 2018,
      https://arxiv.org/abs/1803.01814.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.LpBatchNorm()
      >>> x = jnp.array([[0.0], [0.0], [3.0], [9.0]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.round(1).T)
      [[-1. -1.  0.  2.]]
    """

    layer: ClassVar = LP_BATCH_NORM

    p: float = 1.0
    gaussian: bool = False
