"""Iterative normalization as a `flax.nnx` module."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._modules import ITERATIVE_NORM
from jaxnorm.nnx._batch_layer import BatchLayer, BatchOptions


class IterativeNorm(BatchLayer):
    """Iterative normalization: `jaxnorm.iterative_norm` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale W (x - mean) + bias` in groups of channels, with what a few steps of Newton's iteration make of the
    inverse root of the batch's covariance, and `running <- momentum running + (1 - momentum) batch`. Inference: the same y with
    the running mean and covariance.

    The statistics are `mean` and `cov`.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      group_size: number of channels that are whitened together, which divides that of all.
      iterations: steps of Newton's iteration, at least 1.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Huang, Zhou, Zhu, Liu, Shao, "Iterative normalization: beyond standardization towards efficient whitening", CVPR 2019,
      https://arxiv.org/abs/1904.03441.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.IterativeNorm(2, group_size=2, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[5.0, 1.0], [1.0, 5.0], [-5.0, -1.0], [-1.0, -5.0]]))
      >>> print(jnp.abs(y).max() < 2)
      True
    """

    layer: ClassVar = ITERATIVE_NORM

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        group_size: int = 64,
        iterations: int = 5,
        rngs: nnx.Rngs,
        **options: Unpack[BatchOptions],
    ):
        """Makes the variables; the arguments are those of the class."""
        self.group_size = group_size
        self.iterations = iterations
        super().__init__(num_features, rngs=rngs, **options)
