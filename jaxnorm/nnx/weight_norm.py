"""Weight normalization as a `flax.nnx` module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._axes import canonical_axes
from jaxnorm._modules import apply_weight_norm
from jaxnorm.nnx._weight_layer import call_with, parameters

_KERNELS = nnx.PathContains("kernel")


class WeightNorm(nnx.Module):
    """Weight normalization of a layer: `jaxnorm.weight_norm` in place of `flax.nnx.WeightNorm`, with its arguments.

    The layer is called with `scale kernel / sqrt(sum(kernel^2) + epsilon)` for each of its kernels, with the sum over all that
    belongs to a feature.

    The layer's own kernels are what is learned, and are never overwritten, as Flax's module does in every call; the scales, in
    `scales` by the path of the kernel, are of type `nnx.Param`, and so are learned too.

    Args:
      layer_instance: the layer.
      feature_axes: the axis, or axes, of the features of a kernel; None for one length of all.
      use_scale: whether there are scales.
      scale_init: initializer of the scales.
      epsilon: added to the square of the length, a number or a traced scalar.
      dtype: type of the kernel that the layer takes; None infers it from the kernel and its scale.
      param_dtype: type of the scales.
      variable_filter: an nnx filter of the parameters that are normalized.
      promote_dtype: accepted and without effect: nothing but the kernel that the layer takes is rounded.
      rngs: the streams, of which `params` gives the keys of the initializers.

    References:
      Salimans, Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural networks", NIPS
      2016, https://arxiv.org/abs/1602.07868.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> linear = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> linear.kernel.set_value(jnp.array([[3.0], [4.0]]))
      >>> layer = jaxnorm.nnx.WeightNorm(linear, rngs=nnx.Rngs(0))
      >>> print(layer(jnp.array([[5.0, 5.0]])).round(2))
      [[7.]]
      >>> print(linear.kernel[...].T)
      [[3. 4.]]
    """

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        feature_axes: int | Sequence[int] | None = -1,
        use_scale: bool = True,
        scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
        epsilon: float | jax.Array = 1e-12,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        variable_filter: Any = _KERNELS,
        promote_dtype: Callable[..., Any] | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes the scales; the arguments are those of the class."""
        self.layer_instance = layer_instance
        self.feature_axes = () if feature_axes is None else feature_axes
        self.use_scale = use_scale
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.variable_filter = nnx.filterlib.to_predicate(variable_filter)
        self.promote_dtype = promote_dtype
        self.scales: Any = None
        if use_scale:
            self.scales = nnx.data(
                {
                    path: nnx.Param(scale_init(rngs.params(), self._scale_shape(variable), param_dtype))
                    for path, variable in self._normalized().items()
                }
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with its normalized kernels.

        Args:
          *args: as for the layer.
          **kwargs: as for the layer.

        Returns:
          What the layer returns.

        Raises:
          ValueError: if epsilon is out of range, or if the layer has other parameters than it had.
        """
        options: dict[str, Any] = {"feature_axes": self.feature_axes, "epsilon": self.epsilon, "dtype": self.dtype}
        normalized = self._normalized()
        if self.use_scale and set(normalized) != set(self.scales):
            raise ValueError(f"layer_instance must have the parameters that it had, {list(self.scales)}, got {list(normalized)}")
        scales = {path: self.scales[path][...] if self.use_scale else None for path in normalized}
        values = {path: apply_weight_norm(variable[...], scales[path], **options) for path, variable in normalized.items()}
        return call_with(self.layer_instance, values, *args, **kwargs)

    def _normalized(self) -> dict[Any, nnx.Variable]:
        found = parameters(self.layer_instance)
        return {path: variable for path, variable in found.items() if self.variable_filter(path, variable)}

    def _scale_shape(self, variable: nnx.Variable) -> tuple[int, ...]:
        return tuple(variable.shape[axis] for axis in canonical_axes("feature_axes", self.feature_axes, variable.ndim))
