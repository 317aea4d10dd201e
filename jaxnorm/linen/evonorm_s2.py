"""EvoNorm-S2 as a `flax.linen` module."""

from typing import ClassVar

import jax

from jaxnorm._modules import EVONORM_S2
from jaxnorm.linen._sample_layer import SampleLayer


class EvoNormS2(SampleLayer):
    """EvoNorm-S2, normalization and activation in one: `jaxnorm.evonorm_s2`.

    `y = scale x sigmoid(x) / sqrt(square + epsilon) + bias` with the mean square of each example's groups of channels.
    No activation is to follow.

    Attributes:
      epsilon: added to the mean square, a number or a traced scalar.
      num_groups, group_size, channel_axis, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init, axis_name,
        axis_index_groups: as in `EvoNormS0`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.EvoNormS2(num_groups=1)
      >>> x = jnp.array([[[-40.0, 40.0]]])
      >>> print(norm.apply(norm.init(jax.random.key(0), x), x).round(2))
      [[[-0.  1.]]]
    """

    layer: ClassVar = EVONORM_S2

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float | jax.Array = 1e-5
