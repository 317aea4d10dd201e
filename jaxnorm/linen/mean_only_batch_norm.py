"""Mean-only batch normalization as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import MEAN_ONLY_BATCH_NORM
from jaxnorm.linen._batch_layer import BatchLayer


class MeanOnlyBatchNorm(BatchLayer):
    """Mean-only batch normalization: `jaxnorm.mean_only_batch_norm` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale (x - mean) + bias` with the mean of the batch, and `running <- momentum running + (1 - momentum) mean`.
    Inference: the same y with the running mean.

    The statistic is `mean`. There is no variance: epsilon is without effect.

    Attributes:
      use_scale: whether there is a scale; the paper has none.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Salimans, Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural networks", NIPS
      2016, section 4, https://arxiv.org/abs/1602.07868.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.MeanOnlyBatchNorm()
      >>> x = jnp.array([[1.0], [5.0]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(y.T)
      [[-2.  2.]]
    """

    layer: ClassVar = MEAN_ONLY_BATCH_NORM

    use_scale: bool = False
