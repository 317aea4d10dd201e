"""What the layers with statistics of the batch share as `flax.nnx` modules: arguments, variables and call."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._checks import check_sizes
from jaxnorm._modules import BatchFunction, apply_batch_layer, options_of
from jaxnorm._types import wide_dtype
from jaxnorm.nnx._affine import AffineLayer
from jaxnorm.nnx._flags import first_given


class BatchOptions(TypedDict, total=False):
    """The arguments of every layer besides its own, all with Flax's names and defaults."""

    use_running_average: bool | jax.Array | None
    axis: int | Sequence[int]
    momentum: float | jax.Array
    epsilon: float | jax.Array
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


class BatchLayer(AffineLayer):
    """A layer that is its docstring, the attributes that it has besides these, and `layer`: its function and state."""

    layer: ClassVar[BatchFunction]

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | jax.Array | None = False,
        axis: int | Sequence[int] = -1,
        momentum: float | jax.Array = 0.99,
        epsilon: float | jax.Array = 1e-5,
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
        """Makes the variables; the arguments are those of the class."""
        rows_of_params, rows = self.layer.rows(self)
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
            rows=rows_of_params,
        )
        shape = (*rows, *check_sizes("num_features", num_features))
        mean_dtype = wide_dtype(param_dtype if dtype is None else dtype)
        for name, new in self.layer.new_statistics(self, shape, mean_dtype).items():
            setattr(self, name, nnx.BatchStat(new()))
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups

    def __call__(
        self, x: jax.Array, use_running_average: bool | jax.Array | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes x, and in training averages the statistics.

        Args:
          x: array of floating point numbers, `[..., C]` or with the features on `axis`.
          use_running_average: goes before the attribute of this name.
          mask: array that broadcasts to x: nonzero for the elements that count in the statistics.

        Returns:
          Array of x's shape, in `dtype`.

        Raises:
          ValueError: if `use_running_average` is given nowhere; if num_features is not the size of x along axis; if an attribute
            or the mask does not fit; if axis_name is not bound where the module is called.
          TypeError: if x does not hold floating point numbers.
        """
        return self._run(x, use_running_average, mask)

    def _run(self, x: jax.Array, use_running_average: bool | jax.Array | None, mask: jax.Array | None, **then: Any) -> jax.Array:
        """Calls the function with the variables, the attributes that it knows by name, and `then`."""
        kept = [getattr(self, name) for name in self.layer.statistics]
        y, stats = apply_batch_layer(
            self.layer,
            self.params,
            [variable[...] for variable in kept],
            x,
            use_running_average=first_given(self, "use_running_average", use_running_average),
            mask=mask,
            axis=self.axis,
            dtype=self.dtype,
            **options_of(self.layer.function, self),
            **then,
        )
        if stats is not None:
            for variable, value in zip(kept, stats, strict=True):
                variable[...] = value
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the flag in a view of the module, as `nnx.view` asks for.

        Args:
          use_running_average: if True, the running statistics are used instead of those of the batch.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
