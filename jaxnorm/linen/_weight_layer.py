"""What the norms of weights share as `flax.linen` modules: a layer that is called with other parameters than its own."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn


def call_with(module: Any, kernel_of: Callable[[str, jax.Array, bool], jax.Array], *args: Any, **kwargs: Any) -> Any:
    """Calls the wrapped layer with each parameter as `kernel_of(path, value, boxed)` makes it; what else it keeps is as ever.

    A parameter in a box of metadata stays in it, and its path is the same as without.
    """

    def mapped(variables: Any) -> Any:
        def kernel(path: Any, param: Any) -> Any:
            names = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            value = kernel_of(f"{module.layer_instance.name}/{names}", nn.meta.unbox(param), is_boxed(param))
            return nn.meta.replace_boxed(param, value)

        return jax.tree_util.tree_map_with_path(kernel, variables, is_leaf=is_boxed)

    def is_boxed(param: Any) -> bool:
        return isinstance(param, nn.meta.AxisMetadata)

    def run(layer: Any) -> Any:
        return layer(*args, **kwargs)

    return nn.map_variables(run, "params", mapped, init=module.is_initializing())(module.layer_instance)
