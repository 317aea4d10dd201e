"""Linen variables, nnx models and nnx states as arrays by path, and models like them with other arrays."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

COLLECTIONS = ("params", "batch_stats")
_KINDS = "linen variables, as from module.init, an nnx model or an nnx state"


class Tree(NamedTuple):
    """A model's parameters and running statistics.

    Attributes:
      leaves: arrays, or what only has their shapes and types, by path, as `layer1/0/conv1/kernel`.
      transposed: paths of modules that are known to be transposed convolutions whose kernel torch has turned around; None where
        the types of modules are not known.
      filled: gives a model like this one with these arrays at their paths.
    """

    leaves: dict[str, Any]
    transposed: frozenset[str] | None
    filled: Callable[[Mapping[str, np.ndarray]], Any]


def tree_of(name: str, model: Any) -> Tree:
    """Returns a model as a tree, or raises unless it is one."""
    tree = _tree_of(name, model)
    if not tree.leaves:
        raise ValueError(f"{name} must have parameters or running statistics, got none")
    for path, leaf in tree.leaves.items():
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"{name} must hold arrays, got {leaf!r} at {path!r}")
    return tree


def _tree_of(name: str, model: Any) -> Tree:
    if isinstance(model, nnx.Module):
        return _of_nnx_model(model)
    if isinstance(model, nnx.State):
        return _of_nnx_state(model)
    if not isinstance(model, Mapping) or isinstance(model, linen.Module):
        hint = "; give its variables" if isinstance(model, linen.Module) else ""
        raise TypeError(f"{name} must be {_KINDS}, got {type(model).__name__}{hint}")
    if not any(collection in model for collection in COLLECTIONS):
        raise ValueError(f"{name} must be {_KINDS}, got a dict without 'params', but with {sorted(map(str, model))[:8]}")
    return _of_linen_variables(name, model)


def _of_linen_variables(name: str, variables: Mapping[str, Any]) -> Tree:
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree.flatten_with_path(variables)[0]:
        if (inner := _inner_path(path)) is not None:
            if inner in leaves:
                raise ValueError(f"{name} must not have one name in params and in batch_stats, got {inner!r}")
            leaves[inner] = leaf

    def filled(values: Mapping[str, np.ndarray]) -> Any:
        def fill(path: tuple[Any, ...], leaf: Any) -> Any:
            inner = _inner_path(path)
            return leaf if inner is None or inner not in values else _array_like(leaf, values[inner])

        return jax.tree.map_with_path(fill, variables)

    return Tree(leaves, None, filled)


def _inner_path(path: tuple[Any, ...]) -> str | None:
    """Returns the path inside params or batch_stats, without the boxes that hold arrays' shardings; None elsewhere."""
    collection, *parts = (getattr(part, "key", None) for part in path)
    return "/".join(str(part) for part in parts if part is not None) if collection in COLLECTIONS else None


def _of_nnx_model(model: nnx.Module) -> Tree:
    graphdef, state = nnx.split(model)
    inner = _of_nnx_state(state)
    transposed = frozenset(
        "/".join(map(str, path))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.ConvTranspose) and not module.transpose_kernel
    )
    return Tree(inner.leaves, transposed, lambda values: nnx.merge(graphdef, inner.filled(values), copy=True))


def _of_nnx_state(state: nnx.State) -> Tree:
    flat = {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}
    leaves = {
        path: variable.get_value() for path, (_, variable) in flat.items() if isinstance(variable, nnx.Param | nnx.BatchStat)
    }

    def filled(values: Mapping[str, np.ndarray]) -> nnx.State:
        return nnx.from_flat_state(
            [
                (path, variable.replace(_array_like(leaves[name], values[name])) if name in values else variable)
                for name, (path, variable) in flat.items()
            ]
        )

    return Tree(leaves, None, filled)


def _array_like(leaf: Any, value: np.ndarray) -> jax.Array:
    """Returns a new array of the leaf's type and on its devices; never memory of the value, which torch may write to."""
    array = jnp.array(value.astype(leaf.dtype, copy=False), copy=True)
    sharding = leaf.sharding if getattr(leaf, "committed", isinstance(leaf, jax.ShapeDtypeStruct)) else None
    return array if sharding is None else jax.device_put(array, sharding)
