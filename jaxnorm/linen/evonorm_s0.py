"""EvoNorm-S0 as a `flax.linen` module."""

from typing import ClassVar

import jax

from jaxnorm._modules import EVONORM_S0
from jaxnorm.linen._sample_layer import SampleLayer


class EvoNormS0(SampleLayer):
    """EvoNorm-S0, normalization and activation in one: `jaxnorm.evonorm_s0`.

    `y = scale x sigmoid(v x) / sqrt(var + epsilon) + bias` with the variance of each example's groups of channels.
    No activation is to follow.

    The parameter `v` begins with 1.

    Attributes:
      num_groups: number of groups; None if group_size is given.
      group_size: channels of a group, or None.
      epsilon: added to the variance, a number or a traced scalar.
      channel_axis: the axis of the channels.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the parameters.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      axis_name: name or names of mapped axes over which the positions are divided, and the statistics pooled.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.EvoNormS0(num_groups=1)
      >>> x = jnp.array([[[-40.0, 40.0]]])
      >>> print(norm.apply(norm.init(jax.random.key(0), x), x).round(2))
      [[[-0.  1.]]]
    """

    layer: ClassVar = EVONORM_S0

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float | jax.Array = 1e-5
