"""Mean-only batch normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._modules import MEAN_ONLY_BATCH_NORM
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class MeanOnlyBatchNorm(BatchLayer):
    """Mean-only batch normalization: `jaxnorm.mean_only_batch_norm` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale (x - mean) + bias` with the mean of the batch, and `running <- momentum running + (1 - momentum) mean`.
    Inference: the same y with the running mean.

    The statistic is `mean`. There is no variance: epsilon is without effect.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=False, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Salimans, Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural networks", NIPS
      2016, section 4, https://arxiv.org/abs/1602.07868.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.MeanOnlyBatchNorm(1, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[1.0], [5.0]]))
      >>> print(y.T)
      [[-2.  2.]]
    """

    layer: ClassVar = MEAN_ONLY_BATCH_NORM

    def __init__(self, num_features: int | Sequence[int], *, rngs: nnx.Rngs, **options: Unpack[BatchOptions]):
        """Makes the variables; the arguments are those of the class."""
        options.setdefault("use_scale", False)
        super().__init__(num_features, rngs=rngs, **options)
