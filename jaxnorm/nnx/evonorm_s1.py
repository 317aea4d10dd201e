"""EvoNorm-S1 as a `flax.nnx` module."""

from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._checks import check_groups
from jaxnorm._modules import EVONORM_S1
from jaxnorm.nnx._sample_layer import SampleLayer, SampleOptions


class EvoNormS1(SampleLayer):
    """EvoNorm-S1, normalization and activation in one: `jaxnorm.evonorm_s1`.

    `y = scale x sigmoid(x) / sqrt(var + epsilon) + bias` with the variance of each example's groups of channels.
    No activation is to follow.

    Args:
      epsilon: added to the variance, a number or a traced scalar.
      num_features, num_groups, group_size, channel_axis, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init,
        axis_name, axis_index_groups, rngs, bias_metadata, scale_metadata: as in `EvoNormS0`.

    References:
      Liu, Brock, Simonyan, Le, "Evolving normalization-activation layers", NeurIPS 2020, https://arxiv.org/abs/2004.02967.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.EvoNormS1(2, num_groups=1, rngs=nnx.Rngs(0))
      >>> print(norm(jnp.array([[[-40.0, 40.0]]])).round(2))
      [[[-0.  1.]]]
    """

    layer: ClassVar = EVONORM_S1

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
