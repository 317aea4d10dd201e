"""EvoNorm-B2 as a `flax.nnx` module."""

from typing import ClassVar

from jaxnorm._modules import EVONORM_B2
from jaxnorm.nnx._batch_layer import BatchLayer


class EvoNormB2(BatchLayer):
    """EvoNorm-B2: `jaxnorm.evonorm_b2` with the arguments, variables and call of `BatchNorm`.

    Training: `y = scale x / max(sqrt(var + epsilon), sqrt(own_square + epsilon) - x) + bias` with the variance of the batch and
    the mean square of the example, and `running <- momentum running + (1 - momentum) var`. Inference: the same y with the running
    variance in the batch's place. No activation is to follow.

    The statistic is `var`.

    Args:
      num_features: number of features, C; with several axes their sizes in ascending order of the axes.
      rngs: the streams, of which `params` gives the keys of the initializers.
      **options: `use_running_average=False, axis=-1, momentum=0.99, epsilon=1e-5, dtype=None, param_dtype=float32, use_bias=True,
        use_scale=True, bias_init=zeros, scale_init=ones, axis_name=None, axis_index_groups=None, bias_metadata, scale_metadata`,
        as in `BatchNorm`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.EvoNormB2(1, rngs=nnx.Rngs(0))
      >>> y = norm(jnp.array([[[-4.0], [4.0]]]))
      >>> print(y.round(3).ravel())
      [-0.5  1. ]
    """

    layer: ClassVar = EVONORM_B2
