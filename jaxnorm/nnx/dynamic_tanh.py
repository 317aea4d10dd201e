"""Dynamic tanh as a `flax.nnx` module."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._modules import DYNAMIC_TANH, apply_sample_layer
from jaxnorm._norm.modulation import dynamic_tanh
from jaxnorm.nnx._affine import AffineLayer


class DynamicTanh(AffineLayer):
    """Dynamic tanh, in the place of a norm: `jaxnorm.dynamic_tanh`.

    `y = scale tanh(alpha x) + bias`. The parameter `alpha` is one number.

    Args:
      num_features: number of channels, C; with several axes their sizes in ascending order of the axes.
      alpha_init: the factor of x to begin with; the paper has larger ones in the attention of large language models.
      channel_axis: the axis, or axes, of the channels; their sizes in ascending order are the shape of scale and bias.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the parameters.
      param_dtype: type of the parameters.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      rngs: the streams, of which `params` gives the keys of the initializers.
      bias_metadata: metadata of the bias, as for its sharding.
      scale_metadata: metadata of the scale.

    References:
      Zhu, Chen, He, LeCun, Liu, "Transformers without normalization", CVPR 2025, https://arxiv.org/abs/2503.10622.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> layer = jaxnorm.nnx.DynamicTanh(2, rngs=nnx.Rngs(0))
      >>> print(layer(jnp.array([[0.0, -100.0]])))
      [[ 0. -1.]]
    """

    layer: ClassVar = DYNAMIC_TANH

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        alpha_init: float = 0.5,
        channel_axis: int | Sequence[int] = -1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., jax.Array] = nnx.initializers.zeros,
        scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        """Makes the parameters; the arguments are those of the class."""
        self.alpha_init = alpha_init
        super().__init__(
            num_features,
            use_scale=use_scale,
            use_bias=use_bias,
            scale_init=scale_init,
            bias_init=bias_init,
            param_dtype=param_dtype,
            rngs=rngs,
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
        )
        self.channel_axis = channel_axis
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Squashes x.

        Args:
          x: array of real numbers, `[..., C]` or with the channels on `channel_axis`.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if an attribute does not fit x.
          TypeError: if x does not hold real floating point numbers.
        """
        return apply_sample_layer(dynamic_tanh, self.params, x, dtype=self.dtype, channel_axis=self.channel_axis)
