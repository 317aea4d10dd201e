"""Batch renormalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import jax
from flax import nnx

from jaxnorm._modules import BatchFunction
from jaxnorm._norm.renorm import batch_renorm
from jaxnorm._types import RenormStats
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class BatchRenorm(BatchLayer):
    """Batch renormalization: `jaxnorm.batch_renorm` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale (r (x - mean) / std + d) + bias` with the statistics of the batch, `r = clip(std / running_std,
    1 / r_max, r_max)` and `d = clip((mean - running_mean) / running_std, -d_max, d_max)`, and
    `running <- momentum running + (1 - momentum) batch`. Inference: `y = scale (x - running_mean) / running_std + bias`.

    The statistics are `mean` and `std`, of type `nnx.BatchStat`. For limits that follow a
    schedule, set `r_max` and `d_max` before each step.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      r_max: the largest factor between the batch's deviation and the running one that is corrected, at least 1; a number or a
        traced scalar.
      d_max: the largest distance between the batch's mean and the running one that is corrected, in running deviations, at least
        0; a number or a traced scalar.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized models", NIPS 2017,
      https://arxiv.org/abs/1702.03275.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.BatchRenorm(2, momentum=0.5, epsilon=0.0, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[1.0, 10.0], [3.0, 26.0]]))
      >>> print(y)
      [[1. 2.]
       [3. 8.]]
      >>> print(norm.std[...])
      [1.  4.5]
    """

    layer: ClassVar = BatchFunction(batch_renorm, RenormStats)

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        r_max: float | jax.Array = 3.0,
        d_max: float | jax.Array = 5.0,
        rngs: nnx.Rngs,
        **options: Unpack[BatchOptions],
    ):
        """Makes the variables; the arguments are those of the class."""
        super().__init__(num_features, rngs=rngs, **options)
        self.r_max = r_max
        self.d_max = d_max
