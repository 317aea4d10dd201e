"""What the norms of weights share as `flax.nnx` modules: a layer that is called with other parameters than its own."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

Path = tuple[Any, ...]


def parameters(layer: nnx.Module) -> dict[Path, nnx.Variable]:
    """Returns the parameters of a layer by their paths."""
    return dict(nnx.to_flat_state(nnx.state(layer, nnx.Param)))


def call_with(layer: nnx.Module, values: Mapping[Path, jax.Array], *args: Any, **kwargs: Any) -> Any:
    """Calls a copy of the layer with these values of parameters; what else the layer keeps is as after a call of its own.

    The parameters of the layer itself are not touched: a value that is made of one is not to take its place.
    """
    graph, params, others = nnx.split(layer, nnx.Param, ...)
    replaced = [(path, variable.replace(values.get(path, variable[...]))) for path, variable in nnx.to_flat_state(params)]
    copy: Any = nnx.merge(graph, nnx.from_flat_state(replaced), others, copy=True)
    y = copy(*args, **kwargs)
    if others:
        nnx.update(layer, nnx.state(copy, nnx.Not(nnx.Param)))
    return y
