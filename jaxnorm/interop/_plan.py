"""The plan of a conversion: which entry of torch is which variable, found and checked before anything is changed."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.interop._files import read_safetensors
from jaxnorm.interop._layouts import COUNTER, Layout, layout_of, variable_of
from jaxnorm.interop._names import NameMap, fitting, pair_modules
from jaxnorm.interop._trees import Tree
from jaxnorm.interop.report import Match, ModelReport

LINEN_NAME = r"(.*/)?ConvTranspose_\d+"
"""Paths of modules that linen named by their class."""


class Plan(NamedTuple):
    """A conversion.

    Attributes:
      report: what is done with each entry.
      layouts: those of the report's matches, in their order.
    """

    report: ModelReport
    layouts: tuple[Layout, ...]


def read_entries(name: str, source: Any) -> dict[str, np.ndarray]:
    """Returns a state_dict as NumPy arrays, read from a file if it is a path."""
    if not isinstance(source, Mapping):
        if not isinstance(source, str | Path):
            raise TypeError(
                f"{name} must be a dict of NumPy arrays or the path of a safetensors file, got {type(source).__name__}"
            )
        source = read_safetensors(source)
    for entry, value in source.items():
        if not isinstance(entry, str):
            raise TypeError(f"{name} must have names as keys, got {entry!r}")
        if not isinstance(value, np.ndarray | np.generic | jax.Array):
            hint = "; tensor.detach().cpu().numpy() makes one" if hasattr(value, "detach") else ""
            raise TypeError(f"{name}[{entry!r}] must be a NumPy array, got {type(value).__name__}{hint}")
    if not source:
        raise ValueError(f"{name} must have entries, got none")
    return {entry: np.asarray(value) for entry, value in source.items()}


class _Sides(NamedTuple):
    """What is to be brought together.

    Attributes:
      entries: torch's arrays, by name.
      modules: names of entries, by torch module and what they are called there.
      leaves: the model's arrays, by path.
      variables: paths of variables, by the path of the module and what they are called there.
      transposed: paths of modules that are transposed convolutions.
    """

    entries: Mapping[str, np.ndarray]
    modules: dict[str, dict[str, str]]
    leaves: Mapping[str, Any]
    variables: dict[str, dict[str, str]]
    transposed: set[str]

    def layout(self, module: str, leaf: str, path: str, variable: str) -> Layout:
        torch_shape = self.entries[self.modules[module][leaf]].shape
        shape = np.shape(self.leaves[self.variables[path][variable]])
        return layout_of(variable, torch_shape, shape, transposed=path in self.transposed)

    def fits(self, module: str, path: str) -> bool:
        """Whether all entries of a module and all variables at a path can be the same numbers."""
        pairs = {leaf: variable_of(leaf, self.variables[path]) for leaf in self.modules[module] if leaf != COUNTER}
        if None in pairs.values() or set(pairs.values()) != set(self.variables[path]):
            return False
        shapes = {leaf: self.entries[self.modules[module][leaf]].shape for leaf in pairs}
        return all(self.layout(module, leaf, path, v).torch_shape == shapes[leaf] for leaf, v in pairs.items() if v is not None)

    def kinds(self) -> dict[str, object]:
        """Returns for each path what is equal where variables have equal names and shapes."""
        return {
            path: (path in self.transposed, *sorted((v, np.shape(self.leaves[inner])) for v, inner in variables.items()))
            for path, variables in self.variables.items()
        }


def make_plan(
    name: str,
    entries: Mapping[str, np.ndarray],
    tree: Tree,
    *,
    names: NameMap,
    transposed: Sequence[str] | None,
    keep: Sequence[str],
    check_values: bool,
) -> Plan:
    """Returns which entry of torch goes where, or raises one error that names all that have no place, lack or do not fit.

    `name` is what the entries are called in errors, `check_values` whether their values will go to the model; the rest is as for
    `from_torch_model`.
    """
    chosen = fitting("keep", keep, {*tree.leaves, *_module_paths(tree)}, "the model")
    kept = tuple(path for path in tree.leaves if path in chosen or _split(path, "/")[0] in chosen)
    refused = set(filter(names.refuses, entries))
    sides = _Sides(
        entries,
        _grouped((entry for entry in entries if entry not in refused), "."),
        tree.leaves,
        _grouped((path for path in tree.leaves if path not in kept), "/"),
        _transposed_paths(tree, transposed),
    )
    pairs = pair_modules(list(sides.modules), sides.kinds(), names, sides.fits)
    troubles = [*names.unused([*entries, *(_split(entry, ".")[0] for entry in entries)]), *pairs.troubles]
    matches, layouts, left_out = [], [], []
    for entry, array in entries.items():
        module, leaf = _split(entry, ".")
        if entry in refused or pairs.path.get(module, "") is None:
            left_out.append((entry, "by names"))
            continue
        path = pairs.path.get(module)
        variables = {} if path is None else sides.variables[path]
        variable = variable_of(leaf, variables)
        if path is None or (variable is None and not (leaf == COUNTER and "var" in variables)):
            where = "the model" if path is None else f"the model's {path or 'outermost module'}"
            troubles.append(f"extra: {_described(entry, array)} has no place in {where}")
        elif variable is None:
            left_out.append((entry, "counters of batches"))
        else:
            target = tree.leaves[variables[variable]]
            layout = sides.layout(module, leaf, path, variable)
            troubles += _misfits(entry, array, variables[variable], target, layout, check_values)
            dtypes = (str(array.dtype), str(target.dtype))
            shape = np.shape(target)
            matches.append(Match(entry, variables[variable], array.shape, shape, layout.name, pairs.by[module], dtypes))
            layouts.append(layout)
    reached = Counter(match.path for match in matches)
    troubles += [f"more than one: the model's {path} is meant by {n} entries of a module" for path, n in reached.items() if n > 1]
    for path, leaf in tree.leaves.items():
        if path not in reached and path not in kept:
            troubles.append(f"missing: the model's {_described(path, leaf)} has no entry")
    if troubles:
        unpaired = len(pairs.path) < len(sides.modules) and set(sides.variables) - set(pairs.path.values())
        hint = " (names says which module is which path where that is not clear)" if unpaired else ""
        raise ValueError(f"{name} does not fit the model, and nothing was changed{hint}:\n  " + "\n  ".join(troubles))
    return Plan(ModelReport(tuple(matches), tuple(left_out), kept), tuple(layouts))


def _misfits(entry: str, array: np.ndarray, path: str, leaf: Any, layout: Layout, check_values: bool) -> list[str]:
    """Returns what is wrong with an entry for a variable, at most one line."""
    if array.shape != layout.torch_shape:
        wanted = f"{list(layout.torch_shape)}, for the model's {_described(path, leaf)}"
        return [f"misshapen: {entry} must be {wanted}, got {list(array.shape)}"]
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return [f"of another type: {entry} must hold floating point numbers, got {array.dtype}{list(array.shape)}"]
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return [f"of another type: the model's {_described(path, leaf)} must hold floating point numbers for {entry}"]
    if not check_values:
        return []
    finite = np.isfinite(array)
    if not finite.all():
        return [f"not finite: {entry} has {np.sum(~finite)} of {array.size} numbers that are NaN or infinite"]
    least, most = float(np.min(array, initial=0)), float(np.max(abs(array), initial=0))
    if path.rpartition("/")[2] == "var" and least < 0:
        return [f"negative: {entry} must hold variances, got {least:g}"]
    if most > float(jnp.finfo(leaf.dtype).max):
        return [f"too large: {entry} has numbers up to {most:g}, more than the model's {leaf.dtype} holds"]
    return []


def _transposed_paths(tree: Tree, transposed: Sequence[str] | None) -> set[str]:
    if transposed is not None:
        return fitting("transposed", transposed, _module_paths(tree), "the model")
    if tree.transposed is not None:
        return set(tree.transposed)
    return {path for path in _module_paths(tree) if re.fullmatch(LINEN_NAME, path)}


def _module_paths(tree: Tree) -> set[str]:
    return {_split(path, "/")[0] for path in tree.leaves}


def _grouped(names: Iterable[str], separator: str) -> dict[str, dict[str, str]]:
    """Returns names by what stands before their last part, and by that part."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        outer, inner = _split(name, separator)
        groups[outer][inner] = name
    return dict(groups)


def _split(name: str, separator: str) -> tuple[str, str]:
    outer, _, inner = name.rpartition(separator)
    return outer, inner


def _described(name: str, array: Any) -> str:
    return f"{name} ({array.dtype}{list(np.shape(array))})"
