"""Layer scale as a `flax.linen` module."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import apply_sample_layer, feature_shape
from jaxnorm._norm.modulation import init_layer_scale, layer_scale
from jaxnorm._types import AffineParams


class LayerScale(nn.Module):
    """A learned factor of a residual block's branch: `jaxnorm.layer_scale`.

    `y = scale x`, and the block is `x + LayerScale()(branch(x))`.

    Attributes:
      init_value: the scale to begin with: in CaiT 0.1 for 18 layers or fewer, 1e-5 for 24, 1e-6 for more; in ReZero and
        SkipInit 0.
      shared: whether it is one number for all channels, as in ReZero and SkipInit.
      channel_axis: the axis, or axes, of the channels; their sizes in ascending order are the shape of the scale.
      dtype: type of the output, which alone is rounded to it; None infers it from x and the scale.
      param_dtype: type of the scale.

    References:
      Touvron, Cord, Sablayrolles, Synnaeve, Jégou, "Going deeper with image transformers", ICCV 2021,
      https://arxiv.org/abs/2103.17239.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.LayerScale(init_value=0.5)
      >>> x = jnp.array([[2.0, -4.0]])
      >>> print(layer.apply(layer.init(jax.random.key(0), x), x))
      [[ 1. -2.]]
    """

    init_value: float = 1e-5
    shared: bool = False
    channel_axis: int | Sequence[int] = -1
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales x.

        Args:
          x: array of real or complex numbers, `[..., C]` or with the channels on `channel_axis`.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if a field does not fit x.
          TypeError: if x does not hold floating point numbers.
        """
        shape = () if self.shared else feature_shape(x, self.channel_axis, "channel_axis")
        new = init_layer_scale(shape, scale=self.init_value, param_dtype=self.param_dtype)
        params = AffineParams(self.param("scale", lambda _: new.scale), None)
        return apply_sample_layer(layer_scale, params, x, dtype=self.dtype, channel_axis=self.channel_axis)
