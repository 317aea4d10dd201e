"""What the norms of channels of the example share as `flax.nnx` modules, where Flax has none of their own."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._modules import SampleFunction, apply_sample_layer, options_of
from jaxnorm.nnx._affine import AffineLayer


class SampleOptions(TypedDict, total=False):
    """The arguments of every layer besides its own."""

    epsilon: float | jax.Array
    channel_axis: int | Sequence[int]
    dtype: Any
    param_dtype: Any
    use_bias: bool
    use_scale: bool
    bias_init: Callable[..., jax.Array]
    scale_init: Callable[..., jax.Array]
    axis_name: Any
    axis_index_groups: Any
    bias_metadata: Mapping[str, Any]
    scale_metadata: Mapping[str, Any]


class SampleLayer(AffineLayer):
    """A layer that is its docstring, the attributes that it has besides these, and `layer`: its function and parameters."""

    layer: ClassVar[SampleFunction]

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float | jax.Array = 1e-6,
        channel_axis: int | Sequence[int] = -1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., jax.Array] = nnx.initializers.zeros,
        scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        """Makes the parameters; the arguments are those of the class."""
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
        self.epsilon = epsilon
        self.channel_axis = channel_axis
        self.dtype = dtype
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes x.

        Args:
          x: array of floating point numbers, `[B, ..., C]` or with the channels on `channel_axis`.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if num_features is not the size of x along its channels; if an attribute or the mask does not fit; if
            axis_name is not bound where the module is called.
          TypeError: if x does not hold floating point numbers.
        """
        return self._run(x, mask)

    def _run(self, x: jax.Array, mask: jax.Array | None, **then: Any) -> jax.Array:
        """Calls the function with the parameters, the options that it knows by name, and `then`."""
        options = {"channel_axis": self.channel_axis, **options_of(self.layer.function, self), **then}
        return apply_sample_layer(self.layer.function, self.params, x, mask=mask, dtype=self.dtype, **options)
