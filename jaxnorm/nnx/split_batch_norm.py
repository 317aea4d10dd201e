"""Split batch normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._checks import check_size
from jaxnorm._modules import BatchFunction
from jaxnorm._norm.kinds import split_batch_norm
from jaxnorm._types import RunningStats
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class SplitBatchNorm(BatchLayer):
    """Split batch normalization: `jaxnorm.split_batch_norm` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias` with scale, bias and statistics of each of `num_splits` equal
    parts of the batch, and `running <- momentum running + (1 - momentum) part`. Inference: the same y with those of the first.

    Parameters and statistics have the shape `[num_splits, C]`.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      num_splits: number of parts, at least 1.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Xie, Tan, Gong, Wang, Yuille, Le, "Adversarial examples improve image recognition", CVPR 2020,
      https://arxiv.org/abs/1911.09665.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.SplitBatchNorm(1, num_splits=2, rngs=nnx.Rngs(0))
      >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
      >>> print(norm(x).round(3).T)
      [[-1.  1. -1.  1.]]
    """

    layer: ClassVar = BatchFunction(
        split_batch_norm, RunningStats, rows=lambda module: ((module.num_splits,), (module.num_splits,))
    )

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        num_splits: int = 2,
        rngs: nnx.Rngs,
        **options: Unpack[BatchOptions],
    ):
        """Makes the variables; the arguments are those of the class."""
        self.num_splits = check_size("num_splits", num_splits)
        super().__init__(num_features, rngs=rngs, **options)
