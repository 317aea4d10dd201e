"""Dynamic tanh as a `flax.linen` module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import DYNAMIC_TANH, apply_sample_layer, feature_shape
from jaxnorm._norm.modulation import dynamic_tanh
from jaxnorm.linen._norm_layer import layer_params


class DynamicTanh(nn.Module):
    """Dynamic tanh, in the place of a norm: `jaxnorm.dynamic_tanh`.

    `y = scale tanh(alpha x) + bias`. The parameter `alpha` is one number.

    Attributes:
      alpha_init: the factor of x to begin with; the paper has larger ones in the attention of large language models.
      channel_axis: the axis, or axes, of the channels; their sizes in ascending order are the shape of scale and bias.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the parameters.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.

    References:
      Zhu, Chen, He, LeCun, Liu, "Transformers without normalization", CVPR 2025, https://arxiv.org/abs/2503.10622.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.DynamicTanh()
      >>> x = jnp.array([[0.0, -100.0]])
      >>> print(layer.apply(layer.init(jax.random.key(0), x), x))
      [[ 0. -1.]]
    """

    alpha_init: float = 0.5
    channel_axis: int | Sequence[int] = -1
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Callable[..., Any] = nn.initializers.zeros
    scale_init: Callable[..., Any] = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Squashes x.

        Args:
          x: array of real numbers, `[..., C]` or with the channels on `channel_axis`.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if a field does not fit x.
          TypeError: if x does not hold real floating point numbers.
        """
        params = layer_params(self, DYNAMIC_TANH, feature_shape(x, self.channel_axis, "channel_axis"))
        return apply_sample_layer(dynamic_tanh, params, x, dtype=self.dtype, channel_axis=self.channel_axis)
