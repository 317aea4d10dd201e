"""Decorrelated batch normalization (whitening) as a `flax.linen` module."""

from typing import ClassVar

from jaxnorm._modules import BatchFunction, uncorrelated
from jaxnorm._norm.whitening import decorrelated_batch_norm
from jaxnorm._types import CovarianceStats
from jaxnorm.linen._batch_layer import BatchLayer


class DecorrelatedBatchNorm(BatchLayer):
    """Decorrelated batch norm (ZCA): `jaxnorm.decorrelated_batch_norm` with the fields, variables and call of `BatchNorm`.

    Training: `y = scale W (x - mean) + bias` in each group of channels, where `W = (cov + epsilon I)^(-1/2)`, with the mean and
    covariance of the batch, and `running <- momentum running + (1 - momentum) batch`. Inference: the same with the running
    statistics.

    The statistics are `mean` and `cov`, in the collection `batch_stats`. A mask has size 1 along the channels.

    Attributes:
      group_size: number of neighboring channels that are decorrelated together, which divides their number; 1 is batch norm.
      unbiased: whether the running covariance averages `n / (n - 1)` times the batch's.
      use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `BatchNorm`, with one axis alone.

    References:
      Huang, Yang, Lang, Deng, "Decorrelated batch normalization", CVPR 2018, https://arxiv.org/abs/1804.08450.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.DecorrelatedBatchNorm(group_size=2)
      >>> x = jnp.array([[5.0, 1.0], [1.0, 5.0], [-5.0, -1.0], [-1.0, -5.0]])
      >>> variables = norm.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> print((y.T @ y / 4).round(3))
      [[1. 0.]
       [0. 1.]]
    """

    layer: ClassVar = BatchFunction(decorrelated_batch_norm, CovarianceStats, uncorrelated)

    group_size: int = 16
    unbiased: bool = False
