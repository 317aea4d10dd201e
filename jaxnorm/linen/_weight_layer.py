"""What the norms of weights share as `flax.linen` modules: a layer that is called with other parameters than its own."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn


def call_with(module: Any, kernel_of: Callable[[str, jax.Array], jax.Array], *args: Any, **kwargs: Any) -> Any:
    """Calls the wrapped layer with each parameter as `kernel_of(path, value)` makes it; what else it keeps is as ever.

    A parameter with metadata keeps them, and its path is the same as without.
    """

    def mapped(variables: Any) -> Any:
        def kernel(path: Any, boxed: Any) -> Any:
            names = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            value = kernel_of(f"{module.layer_instance.name}/{names}", nn.meta.unbox(boxed))
            return nn.meta.replace_boxed(boxed, value)

        return jax.tree_util.tree_map_with_path(kernel, variables, is_leaf=lambda a: isinstance(a, nn.meta.AxisMetadata))

    def run(layer: Any) -> Any:
        return layer(*args, **kwargs)

    return nn.map_variables(run, "params", mapped, init=module.is_initializing())(module.layer_instance)
