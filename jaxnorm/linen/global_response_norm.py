"""Global response normalization as a `flax.linen` module."""

from collections.abc import Callable
from typing import Any, ClassVar

from flax import linen as nn

from jaxnorm._modules import SampleFunction
from jaxnorm._norm.response import global_response_norm
from jaxnorm.linen._sample_layer import SampleLayer


class GlobalResponseNorm(SampleLayer):
    """Global response normalization: `jaxnorm.global_response_norm`.

    `y = x + scale x g / (mean(g) + epsilon) + bias` with `g = sqrt(sum(x^2))` of each example's channels over all positions, and
    its mean over the channels. Scale and bias begin with 0: a new layer is the identity.

    Attributes:
      epsilon: added to the mean of the channels' responses, a number or a traced scalar.
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
      Woo, Debnath, Hu, Chen, Liu, Kweon, Xie, "ConvNeXt V2: co-designing and scaling ConvNets with masked autoencoders", CVPR
      2023, https://arxiv.org/abs/2301.00808.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm = jaxnorm.linen.GlobalResponseNorm()
      >>> x = jnp.array([[[3.0, 0.0], [4.0, 5.0]]])
      >>> variables = norm.init(jax.random.key(0), x)
      >>> print(norm.apply(variables, x))
      [[[3. 0.]
        [4. 5.]]]
    """

    layer: ClassVar = SampleFunction(global_response_norm)

    scale_init: Callable[..., Any] = nn.initializers.zeros
