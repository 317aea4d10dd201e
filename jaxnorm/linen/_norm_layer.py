"""What all norms share as `flax.linen` modules: scale and bias, and the function's options."""

from collections.abc import Callable
from typing import Any

from jaxnorm._modules import BatchFunction, SampleFunction, extra_variables, options_of
from jaxnorm._types import AffineParams


def affine_params(module: Any, shape: tuple[int, ...]) -> AffineParams:
    """Returns the parameters `scale` and `bias` of a module with Flax's fields for them, of those that it has and uses."""
    return AffineParams(
        scale=module.param("scale", module.scale_init, shape, module.param_dtype) if module.use_scale else None,
        bias=module.param("bias", module.bias_init, shape, module.param_dtype) if getattr(module, "use_bias", False) else None,
    )


def layer_params(module: Any, layer: BatchFunction | SampleFunction, shape: tuple[int, ...]) -> Any:
    """Returns all parameters of a module, as its function takes them."""
    extras = {name: None if made is None else module.param(*made) for name, made in extra_variables(layer, module, shape).items()}
    return layer.params(*affine_params(module, shape), **extras)


def options_here(function: Callable[..., Any], module: Any) -> dict[str, Any]:
    """Returns the options of a norm's function that the module has as fields; in initialization no mapped axis is bound."""
    options = options_of(function, module)
    if not module.is_initializing():
        return options
    return {name: None if name in ("axis_name", "axis_index_groups") else value for name, value in options.items()}
