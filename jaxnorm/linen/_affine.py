"""Scale and bias of a `flax.linen` module."""

from typing import Any

from jaxnorm._types import AffineParams


def affine_params(module: Any, shape: tuple[int, ...]) -> AffineParams:
    """Returns the parameters `scale` and `bias` of a module with Flax's fields for them, of those that it uses."""
    return AffineParams(
        scale=module.param("scale", module.scale_init, shape, module.param_dtype) if module.use_scale else None,
        bias=module.param("bias", module.bias_init, shape, module.param_dtype) if module.use_bias else None,
    )
