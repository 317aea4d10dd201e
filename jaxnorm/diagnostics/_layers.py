"""Which arrays of a parameter tree are which layer's, and sums, norms and cosines by layer."""

import difflib
import fnmatch
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import check_type
from jaxnorm._types import wide_dtype

PyTree = Any
Layer = str | Sequence[str]
"""A layer of a network: a path in its parameters, as `"Dense_0"` or `"hidden/kernel"`, or several that make one layer."""

_NUMBER = re.compile(r"\d*$")


class Layers(NamedTuple):
    """The layers of a tree of parameters, from the first to the last.

    Attributes:
      names: of each layer.
      numbers: for each array of the tree the number of its layer, `[]`; of an array of stacked layers the number of each,
        `[L, 1, ...]`. The number of layers where it is in none.
    """

    names: tuple[str, ...]
    numbers: tuple[np.ndarray, ...]

    def sums(self, tree: PyTree) -> jax.Array:
        """Returns the sum of all elements of each layer, `[layers]`."""
        parts = [jnp.sum(leaf, _axes(number), dtype=wide_dtype(leaf.dtype)) for number, leaf in self._leaves(tree)]
        return self._gather(parts, "add")[:-1]

    def norms(self, tree: PyTree) -> jax.Array:
        """Returns the l2 norm of each layer, `[layers]`, also where squares would be too small or too large for their type."""
        parts = [jnp.max(jnp.abs(leaf), _axes(number), initial=0) for number, leaf in self._leaves(tree)]
        largest = self._gather([part.astype(wide_dtype(part.dtype)) for part in parts], "max")
        scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        squares = [jnp.square(jnp.abs(leaf).astype(scale.dtype) / scale[number]) for number, leaf in self._leaves(tree)]
        return jnp.sqrt(self.sums(squares)) * scale[:-1]

    def cosines(self, a: PyTree, b: PyTree) -> jax.Array:
        """Returns the cosine of the angle between two trees in each layer, `[layers]`; NaN where one is 0."""

        def units(tree: PyTree) -> list[jax.Array]:
            lengths = jnp.pad(self.norms(tree), (0, 1), constant_values=1)
            return [leaf.astype(lengths.dtype) / lengths[number] for number, leaf in self._leaves(tree)]

        found = self.sums([one * other for one, other in zip(units(a), units(b), strict=True)])
        return jnp.clip(found, -1, 1)  # beyond by rounding

    def blend(self, number: jax.Array, below: PyTree, others: PyTree) -> PyTree:
        """Returns a tree with the layers below a number from one tree, and the others from another."""
        leaves = [
            jnp.where(own < number, one, other)
            for own, one, other in zip(self.numbers, jax.tree.leaves(below), jax.tree.leaves(others), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(others), leaves)

    def _leaves(self, tree: PyTree) -> list[tuple[np.ndarray, jax.Array]]:
        return list(zip(self.numbers, jax.tree.leaves(tree), strict=True))

    def _gather(self, parts: Sequence[jax.Array], method: str) -> jax.Array:
        """Returns what the arrays give for each layer, and last for what is in none."""
        dtype = jnp.result_type(*(part.dtype for part in parts))
        total = jnp.zeros(len(self.names) + 1, dtype)
        for number, part in zip(self.numbers, parts, strict=True):
            total = getattr(total.at[number.reshape(part.shape)], method)(part.astype(dtype))
        return total


def layers_of(
    params: PyTree, layers: Sequence[Layer] | None, stacked: str | Sequence[str] = (), *, name: str = "layers"
) -> Layers:
    """Returns the layers of a tree of parameters, or raises unless every one is there and none has a part of another.

    Args:
      params: the tree.
      layers: the layers in their order; None for the children of the tree, where they have an order.
      stacked: paths, or patterns of paths, of arrays whose first axis is that of layers alike, each of which counts.
      name: what the layers are called in errors.
    """
    keyed, _ = jax.tree.flatten_with_path(params)
    leaves = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in keyed]
    paths = [path for path, _ in leaves]
    if not paths:
        raise ValueError("params must hold arrays, got none")
    groups = _children(params, paths) if layers is None else [_group(name, layer) for layer in check_list(name, layers)]
    patterns = _group("stacked", stacked) if stacked else ()
    is_stacked = _matches("stacked", patterns, paths)
    owner: dict[str, str] = {}
    names: list[str] = []
    numbers = {}
    for group in groups:
        own = [(path, leaf) for (path, leaf), found in zip(leaves, _matches(name, group, paths), strict=True) if found]
        for path, _ in own:
            if path in owner:
                raise ValueError(f"{name} must have no array in common, but {path} is in {owner[path]} and in {group[0]}")
            owner[path] = group[0]
        lengths = {np.shape(leaf)[:1] if is_stacked[paths.index(path)] else None for path, leaf in own}
        if len(lengths) > 1 or lengths == {()}:
            listed = ", ".join(f"{path} {list(np.shape(leaf))}" for path, leaf in own)
            raise ValueError(f"arrays of {group[0]} must all be stacked, and be of one length, or none be, got {listed}")
        first, length = len(names), lengths.pop()
        for path, leaf in own:
            number = np.int32(first)
            if length is not None:
                number = first + np.arange(*length, dtype=np.int32).reshape(-1, *[1] * (np.ndim(leaf) - 1))
            numbers[path] = np.asarray(number)
        names += [group[0]] if length is None else [f"{group[0]}/{i}" for i in range(*length)]
    none = np.asarray(len(names), np.int32)
    return Layers(tuple(names), tuple(numbers.get(path, none) for path in paths))


def whole(tree: PyTree) -> Layers:
    """Returns all of a tree as one layer."""
    return Layers(("",), (np.zeros((), np.int32),) * len(jax.tree.leaves(tree)))


def difference(new: PyTree, old: PyTree) -> PyTree:
    """Returns `new - old`, in float32 or wider."""
    return jax.tree.map(lambda a, b: a.astype(wide_dtype(a.dtype)) - b.astype(wide_dtype(b.dtype)), new, old)


def check_list(name: str, value: Any) -> Sequence[Any]:
    """Returns `value`, or raises unless it is a sequence that is no text, and has an entry."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a sequence of paths, got the text {value!r}")
    check_type(name, value, Sequence)
    if not value:
        raise ValueError(f"{name} must have at least one entry, got none")
    return value


def _find(name: str, pattern: str, paths: Sequence[str]) -> list[bool]:
    """Returns which paths are that of a pattern or lie under it, or raises a ValueError with the nearest if none does."""
    found = [fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*") for path in paths]
    if not any(found):
        above = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 2)}
        near = difflib.get_close_matches(pattern, sorted(above), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"they have {', '.join(sorted(above)[:8])}"
        raise ValueError(f"{name} must be paths of arrays in the parameters, which have no {pattern!r}: {hint}")
    return found


def _matches(name: str, patterns: Sequence[str], paths: Sequence[str]) -> list[bool]:
    columns = [_find(name, pattern, paths) for pattern in patterns]
    return [any(column[row] for column in columns) for row in range(len(paths))]


def _group(name: str, layer: Any) -> tuple[str, ...]:
    group = (layer,) if isinstance(layer, str) else tuple(check_list(name, layer))
    for path in group:
        check_type(name, path, str)
    return group


def _children(params: PyTree, paths: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the children of a tree, or of its only child, in their order; raises where they have none, as those of a dict."""
    depth = 1
    while len(names := dict.fromkeys("/".join(path.split("/")[:depth]) for path in paths)) == 1 and names.keys() != set(paths):
        depth += 1
    keys = {path[depth - 1] if len(path) >= depth else None for path, _ in jax.tree.flatten_with_path(params)[0]}
    if all(isinstance(key, jax.tree_util.DictKey) for key in keys) and len(names) > 1:
        if len({_NUMBER.sub("", name) for name in names}) > 1:
            listed = ", ".join(list(names)[:8])
            raise ValueError(
                f"layers must say which is the first and which the last of what params have, a dict without an order: {listed}"
            )
        return [(name,) for name in sorted(names, key=lambda name: int(_NUMBER.findall(name)[0] or -1))]
    return [(name,) for name in names]


def _axes(number: np.ndarray) -> Any:
    return tuple(range(1, number.ndim)) if number.ndim else None
