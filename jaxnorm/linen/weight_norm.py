"""Weight normalization as a `flax.linen` module."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._axes import canonical_axes
from jaxnorm._modules import apply_weight_norm
from jaxnorm.linen._weight_layer import call_with


class WeightNorm(nn.Module):
    """Weight normalization of a layer: `jaxnorm.weight_norm` in place of `flax.linen.WeightNorm`, with its variables.

    The layer is called with `scale kernel / sqrt(sum(kernel^2) + epsilon)` for each of its kernels, with the sum over all that
    belongs to a feature.

    Parameters are those of the layer and, for each kernel, `layer/kernel/scale`, as Flax's: checkpoints load both ways. Unlike
    Flax's only the kernel that the layer takes is rounded, its gradient keeps the parameter alone, and what the layer keeps
    besides its parameters, as running statistics, is averaged as ever. The scale of a kernel with metadata, as for its
    sharding, is `layer/kernel/value/scale`, as Flax's; it is found by either name, also when the metadata are taken off.

    Attributes:
      layer_instance: the layer.
      epsilon: added to the square of the length, a number or a traced scalar.
      dtype: type of the kernel that the layer takes; None infers it from the kernel and its scale.
      param_dtype: type of the scales.
      use_scale: whether there are scales.
      scale_init: initializer of the scales.
      feature_axes: the axis, or axes, of the features of a kernel; None for one length of all.
      variable_filter: names, of which one must be in the path of a parameter that is normalized; None for all parameters.

    References:
      Salimans, Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural networks", NIPS
      2016, https://arxiv.org/abs/1602.07868.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen
      >>> layer = jaxnorm.linen.WeightNorm(nn.Dense(2))
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> variables["params"]["layer_instance/kernel/scale"]
      Array([1., 1.], dtype=float32)
    """

    layer_instance: nn.Module
    epsilon: float | jax.Array = 1e-12
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_scale: bool = True
    scale_init: Callable[..., Any] = nn.initializers.ones
    feature_axes: int | Sequence[int] | None = -1
    variable_filter: Iterable[str] | None = dataclasses.field(default_factory=lambda: {"kernel"})

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with its normalized kernels.

        Args:
          *args: as for the layer.
          **kwargs: as for the layer.

        Returns:
          What the layer returns.

        Raises:
          ValueError: if feature_axes names an axis that a kernel does not have, or if epsilon is out of range.
        """

        def name_of_scale(path: str, boxed: bool) -> str:
            wanted = [f"{path}/scale", f"{path}/value/scale"]
            wanted = wanted[::-1] if boxed else wanted
            return next((name for name in wanted if self.has_variable("params", name)), wanted[0])

        def kernel_of(path: str, value: jax.Array, boxed: bool) -> jax.Array:
            names = self.variable_filter
            if names and not any(name in path for name in names):
                return value
            axes = canonical_axes("feature_axes", () if self.feature_axes is None else self.feature_axes, value.ndim)
            shape = tuple(value.shape[axis] for axis in axes)
            name = name_of_scale(path, boxed)
            scale = self.param(name, self.scale_init, shape, self.param_dtype) if self.use_scale else None
            return apply_weight_norm(value, scale, feature_axes=axes, epsilon=self.epsilon, dtype=self.dtype)

        return call_with(self, kernel_of, *args, **kwargs)
