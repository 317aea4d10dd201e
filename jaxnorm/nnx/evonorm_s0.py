"""EvoNorm-S0 as a `flax.nnx` module."""

from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._checks import check_groups
from jaxnorm._modules import EVONORM_S0
from jaxnorm.nnx._sample_layer import SampleLayer, SampleOptions


class EvoNormS0(SampleLayer):
    """EvoNorm-S0, normalization and activation in one: `jaxnorm.evonorm_s0`.

    `y = scale x sigmoid(v x) / sqrt(var + epsilon) + bias` with the variance of each example's groups of channels.
    No activation is to follow.

    The parameter `v` begins with 1.

    Args:
      num_features: number of channels, C.
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
      rngs: the streams, of which `params` gives the keys of the initializers.
      bias_metadata: metadata of the bias, as for its sharding.
      scale_metadata: metadata of the scale.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.EvoNormS0(2, num_groups=1, rngs=nnx.Rngs(0))
      >>> print(norm(jnp.array([[[-40.0, 40.0]]])).round(2))
      [[[-0.  1.]]]
    """

    layer: ClassVar = EVONORM_S0

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int | None = 32,
        group_size: int | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[SampleOptions],
    ):
        """Makes the parameters; the arguments are those of the class."""
        check_groups(num_features, num_groups=num_groups, group_size=group_size)
        options.setdefault("epsilon", 1e-5)
        super().__init__(num_features, rngs=rngs, **options)
        self.num_groups = num_groups
        self.group_size = group_size
