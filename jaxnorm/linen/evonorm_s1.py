"""EvoNorm-S1 as a `flax.linen` module."""

from typing import ClassVar

import jax

from jaxnorm._modules import EVONORM_S1
from jaxnorm.linen._sample_layer import SampleLayer


class EvoNormS1(SampleLayer):
    """EvoNorm-S1, normalization and activation in one: `jaxnorm.evonorm_s1`.

    `y = scale x sigmoid(x) / sqrt(var + epsilon) + bias` with the variance of each example's groups of channels.
    No activation is to follow.

    Attributes:
      epsilon: added to the variance, a number or a traced scalar.
      num_groups, group_size, channel_axis, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `EvoNormS0`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.EvoNormS1(num_groups=1)
      >>> x = jnp.array([[[-40.0, 40.0]]])
      >>> print(norm.apply(norm.init(jax.random.key(0), x), x).round(2))
      [[[-0.  1.]]]
    """

    layer: ClassVar = EVONORM_S1

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float | jax.Array = 1e-5
