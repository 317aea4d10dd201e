"""Tracked instance normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._modules import TRACKED_INSTANCE_NORM
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class TrackedInstanceNorm(BatchLayer):
    """Tracked instance normalization: `jaxnorm.tracked_instance_norm` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias` with the statistics of each channel of each example, and
    `running <- momentum running + (1 - momentum)` times their means over the examples. Inference: the same y with the running
    statistics, as batch norm.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      unbiased: whether the running variance averages `var n / (n - 1)`, as PyTorch's, rather than var.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Ulyanov, Vedaldi, Lempitsky, "Instance normalization: the missing ingredient for fast stylization", 2016,
      https://arxiv.org/abs/1607.08022.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.TrackedInstanceNorm(1, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[[1.0], [3.0]], [[10.0], [20.0]]]))
      >>> print(y.round(1)[..., 0])
      [[-1.  1.]
       [-1.  1.]]
    """

    layer: ClassVar = TRACKED_INSTANCE_NORM

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        unbiased: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[BatchOptions],
    ):
        """Makes the variables; the arguments are those of the class."""
        super().__init__(num_features, rngs=rngs, **options)
        self.unbiased = unbiased
