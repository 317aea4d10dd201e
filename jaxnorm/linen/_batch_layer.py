"""What the layers with statistics of the batch share as `flax.linen` modules: fields, variables and call."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._modules import BatchFunction, apply_batch_layer, compute_dtype, feature_shape
from jaxnorm._types import wide_dtype
from jaxnorm.linen._norm_layer import layer_params, options_here


class BatchLayer(nn.Module):
    """A layer that is its docstring, the fields that it has besides these, and `layer`: its function and state."""

    layer: ClassVar[BatchFunction]

    use_running_average: bool | jax.Array | None = None
    axis: int | Sequence[int] = -1
    momentum: float | jax.Array = 0.99
    epsilon: float | jax.Array = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Callable[..., Any] = nn.initializers.zeros
    scale_init: Callable[..., Any] = nn.initializers.ones
    axis_name: Any = None
    axis_index_groups: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | jax.Array | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes x, and in training averages the statistics where `batch_stats` is mutable.

        Args:
          x: array of floating point numbers, `[..., C]` or with the features on `axis`.
          use_running_average: as the field of this name; given once, here or there.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if `use_running_average` is given nowhere or twice; if a field or the mask does not fit; if axis_name is
            not bound where the module is applied.
          TypeError: if x does not hold floating point numbers.
        """
        return self._run(x, use_running_average, mask)

    @nn.nowrap
    def _run(self, x: jax.Array, use_running_average: bool | jax.Array | None, mask: jax.Array | None, **then: Any) -> jax.Array:
        """Calls the function with the variables, the fields that it knows by name, and `then`."""
        frozen = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        channels = feature_shape(x, self.axis)
        shape_of_params, shape = ((*rows, *channels) for rows in self.layer.rows(self))
        params = layer_params(self, self.layer, shape_of_params)
        mean_dtype = wide_dtype(compute_dtype(self.dtype, x, *params))
        made = self.layer.new_statistics(self, shape, mean_dtype)
        kept = [self.variable("batch_stats", name, new) for name, new in made.items()]
        y, stats = apply_batch_layer(
            self.layer,
            params,
            [variable.value for variable in kept],
            x,
            use_running_average=frozen,
            mask=mask,
            axis=self.axis,
            dtype=self.dtype,
            **options_here(self.layer.function, self),
            **then,
        )
        if stats is not None and not self.is_initializing():
            for variable, value in zip(kept, stats, strict=True):
                variable.value = value
        return y
