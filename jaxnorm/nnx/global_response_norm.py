"""Global response normalization as a `flax.nnx` module."""

from typing import ClassVar, Unpack

from flax import nnx

from jaxnorm._modules import SampleFunction
from jaxnorm._norm.response import global_response_norm
from jaxnorm.nnx._sample_layer import SampleLayer, SampleOptions


class GlobalResponseNorm(SampleLayer):
    """Global response normalization: `jaxnorm.global_response_norm`.

    `y = x + scale x g / (mean(g) + epsilon) + bias` with `g = sqrt(sum(x^2))` of each example's channels over all positions, and
    its mean over the channels. Scale and bias begin with 0: a new layer is the identity.

    Args:
      num_features: number of channels, C.
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
      rngs: the streams, of which `params` gives the keys of the initializers.
      bias_metadata: metadata of the bias, as for its sharding.
      scale_metadata: metadata of the scale.

    References:
      Woo, Debnath, Hu, Chen, Liu, Kweon, Xie, "ConvNeXt V2: co-designing and scaling ConvNets with masked autoencoders", CVPR
      2023, https://arxiv.org/abs/2301.00808.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = jaxnorm.nnx.GlobalResponseNorm(2, rngs=nnx.Rngs(0))
      >>> print(norm(jnp.array([[[3.0, 0.0], [4.0, 5.0]]])))
      [[[3. 0.]
        [4. 5.]]]
    """

    layer: ClassVar = SampleFunction(global_response_norm)

    def __init__(self, num_features: int, *, rngs: nnx.Rngs, **options: Unpack[SampleOptions]):
        """Makes the parameters; the arguments are those of the class."""
        options.setdefault("scale_init", nnx.initializers.zeros)
        super().__init__(num_features, rngs=rngs, **options)
