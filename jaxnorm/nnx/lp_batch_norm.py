"""l_p batch normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._modules import LP_BATCH_NORM
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class LpBatchNorm(BatchLayer):
    """l_p batch normalization: `jaxnorm.lp_batch_norm` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale (x - mean) / sqrt(deviation^2 + epsilon) + bias` with `deviation = (sum(|x - mean|^p) / n)^(1/p)` of the
    batch, and `running <- momentum running + (1 - momentum) batch`. Inference: the same y with the running statistics.

    The statistics are `mean` and `deviation`, which the function calls scale.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      p: the power, at least 1, and possibly infinite.
      gaussian: whether the deviation is divided by that of a standard normal variable.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Hoffer, Banner, Golan, Soudry, "Norm matters: efficient and accurate normalization schemes in deep networks", NeurIPS 2018,
      https://arxiv.org/abs/1803.01814.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.LpBatchNorm(1, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[0.0], [0.0], [3.0], [9.0]]))
      >>> print(y.round(1).T)
      [[-1. -1.  0.  2.]]
    """

    layer: ClassVar = LP_BATCH_NORM

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        p: float = 1.0,
        gaussian: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[BatchOptions],
    ):
        """Makes the variables; the arguments are those of the class."""
        super().__init__(num_features, rngs=rngs, **options)
        self.p = p
        self.gaussian = gaussian
