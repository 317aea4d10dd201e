"""Ghost batch normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._modules import BatchFunction
from jaxnorm._norm.ghost import ghost_batch_norm
from jaxnorm._types import RunningStats
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class GhostBatchNorm(BatchLayer):
    """Ghost batch normalization: `jaxnorm.ghost_batch_norm` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the statistics of every ghost, `ghost_size` consecutive
    examples, and `running <- momentum running + (1 - momentum) ghost` for one after another. Inference: the same y with the
    running statistics.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      ghost_size: examples of a ghost, at least 1; the last ghost has what remains.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Hoffer, Hubara, Soudry, "Train longer, generalize better: closing the generalization gap in large batch training of neural
      networks", NIPS 2017, https://arxiv.org/abs/1705.08741.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.GhostBatchNorm(1, ghost_size=2, rngs=nnx.Rngs(0))
      >>> print(norm(jnp.array([[1.0], [3.0], [10.0], [30.0]])).round(3).T)
      [[-1.  1. -1.  1.]]
    """

    layer: ClassVar = BatchFunction(ghost_batch_norm, RunningStats)

    def __init__(
        self, num_features: int | Sequence[int], *, ghost_size: int = 128, rngs: nnx.Rngs, **options: Unpack[BatchOptions]
    ):
        """Makes the variables; the arguments are those of the class."""
        super().__init__(num_features, rngs=rngs, **options)
        self.ghost_size = ghost_size
