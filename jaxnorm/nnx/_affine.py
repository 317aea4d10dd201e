"""Scale and bias of a `flax.nnx` module."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxnorm._checks import check_sizes
from jaxnorm._modules import extra_variables


class AffineLayer(nnx.Module):
    """A layer with the parameters `scale` and `bias`, of which either may be absent, and with those of its function besides."""

    layer: ClassVar[Any]  # a BatchFunction or SampleFunction

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_scale: bool,
        use_bias: bool,
        scale_init: Callable[..., jax.Array],
        bias_init: Callable[..., jax.Array],
        param_dtype: Any,
        rngs: nnx.Rngs,
        scale_metadata: Mapping[str, Any],
        bias_metadata: Mapping[str, Any],
        rows: tuple[int, ...] = (),
    ):
        shape = (*rows, *check_sizes("num_features", num_features))
        # An absent part is data too, so that a layer with and one without it differ in their leaves and not in static fields.
        self.scale = nnx.data(None)
        self.bias = nnx.data(None)
        if use_scale:
            self.scale = nnx.Param(scale_init(rngs.params(), shape, param_dtype), **scale_metadata)
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), shape, param_dtype), **bias_metadata)
        self.param_dtype = param_dtype
        for made in extra_variables(self.layer, self, shape).values():
            if made is not None:
                setattr(self, made[0], nnx.Param(made[1]()))
        self.num_features = num_features
        self.use_scale = use_scale
        self.use_bias = use_bias

    @property
    def params(self) -> Any:
        """The parameters as the function takes them."""
        affine = (None if part is None else part[...] for part in (self.scale, self.bias))
        extras = {
            extra.name: getattr(self, name)[...] if hasattr(self, name := extra.variable or extra.name) else None
            for extra in self.layer.extras
        }
        return self.layer.params(*affine, **extras)
