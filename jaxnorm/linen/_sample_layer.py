"""What the norms of channels of the example share as `flax.linen` modules, where Flax has none of their own."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import SampleFunction, apply_sample_layer, feature_shape
from jaxnorm.linen._norm_layer import layer_params, options_here


class SampleLayer(nn.Module):
    """A layer that is its docstring, the fields that it has besides these, and `layer`: its function and parameters."""

    layer: ClassVar[SampleFunction]

    epsilon: float | jax.Array = 1e-6
    channel_axis: int | Sequence[int] = -1
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Callable[..., Any] = nn.initializers.zeros
    scale_init: Callable[..., Any] = nn.initializers.ones
    axis_name: Any = None
    axis_index_groups: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of floating point numbers, `[B, ..., C]` or with the channels on `channel_axis`.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if a field or the mask does not fit; if axis_name is not bound where the module is applied.
          TypeError: if x does not hold floating point numbers.
        """
        return self._run(x, mask)

    @nn.nowrap
    def _run(self, x: jax.Array, mask: jax.Array | None, **then: Any) -> jax.Array:
        """Calls the function with the parameters, the options that it knows by name, and `then`."""
        params = layer_params(self, self.layer, feature_shape(x, self.channel_axis, "channel_axis"))
        options = {"channel_axis": self.channel_axis, **options_here(self.layer.function, self), **then}
        return apply_sample_layer(self.layer.function, params, x, mask=mask, dtype=self.dtype, **options)
