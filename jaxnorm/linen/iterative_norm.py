"""Iterative normalization as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import ITERATIVE_NORM
from jaxnorm.linen._batch_layer import BatchLayer


class IterativeNorm(BatchLayer):
    """Iterative normalization: `jaxnorm.iterative_norm` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale W (x - mean) + bias` in groups of channels, with what a few steps of Newton's iteration make of the
    inverse root of the batch's covariance, and `running <- momentum running + (1 - momentum) batch`. Inference: the same y with
    the running mean and covariance.

    The statistics are `mean` and `cov`.

    Attributes:
      group_size: number of channels that are whitened together, which divides that of all.
      iterations: steps of Newton's iteration, at least 1.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`.

    References:
      Huang, Zhou, Zhu, Liu, Shao, "Iterative normalization: beyond standardization towards efficient whitening", CVPR 2019,
      https://arxiv.org/abs/1904.03441.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.IterativeNorm(group_size=2)
      >>> x = jnp.array([[5.0, 1.0], [1.0, 5.0], [-5.0, -1.0], [-1.0, -5.0]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print(jnp.abs(y).max() < 2)
      True
    """

    layer: ClassVar = ITERATIVE_NORM

    group_size: int = 64
    iterations: int = 5
