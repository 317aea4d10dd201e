"""Decorrelated batch normalization (whitening) as a `flax.nnx` module."""

from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._modules import BatchFunction, uncorrelated
from jaxnorm._norm.whitening import decorrelated_batch_norm
from jaxnorm._types import CovarianceStats
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class DecorrelatedBatchNorm(BatchLayer):
    """Decorrelated batch norm (ZCA): `jaxnorm.decorrelated_batch_norm` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale W (x - mean) + bias` in each group of channels, where `W = (cov + epsilon I)^(-1/2)`, with the mean and
    covariance of the batch, and `running <- momentum running + (1 - momentum) batch`. Inference: the same with the running
    statistics.

    The statistics are `mean` and `cov`, of type `nnx.BatchStat`. A mask has size 1 along the channels.

    Args:
      num_features: number of features, C.
      group_size: number of neighboring channels that are decorrelated together, which divides their number; 1 is batch norm.
      unbiased: whether the running covariance averages `n / (n - 1)` times the batch's.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Huang, Yang, Lang, Deng, "Decorrelated batch normalization", CVPR 2018, https://arxiv.org/abs/1804.08450.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.DecorrelatedBatchNorm(2, group_size=2, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[5.0, 1.0], [1.0, 5.0], [-5.0, -1.0], [-1.0, -5.0]]))
      >>> print((y.T @ y / 4).round(3))
      [[1. 0.]
       [0. 1.]]
    """

    layer: ClassVar = BatchFunction(decorrelated_batch_norm, CovarianceStats, uncorrelated)

    def __init__(
        self,
        num_features: int,
        *,
        group_size: int = 16,
        unbiased: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[BatchOptions],
    ):
        """Makes the variables; the arguments are those of the class."""
        self.group_size = group_size
        self.unbiased = unbiased
        super().__init__(num_features, rngs=rngs, **options)
