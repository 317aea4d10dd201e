"""Dicts of arrays, as other libraries keep their layers: checked as a whole before anything is made of them."""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import is_concrete

Arrays = dict[str, np.ndarray]
Faults = Callable[[Arrays], Iterable[str]]


def read_entries(
    entries: Any,
    names: Mapping[str, str],
    *,
    of: str,
    faults: Faults,
    optional: Iterable[str] = (),
    numbers: Iterable[str] = (),
) -> Arrays:
    """Returns the arrays by our names, or raises one error that names every entry that is missing, extra or misshapen.

    Args:
      entries: the dict; dicts in it are taken for paths of names, joined by a slash.
      names: the peer's name of each part, by ours.
      of: what the entries are of, for the errors.
      faults: tells what is wrong with the shapes of arrays, by our names.
      optional: parts, by our names, that may be missing.
      numbers: parts, by our names, that are an integer or a bool, and no array of floating point numbers.
    """
    if not isinstance(entries, Mapping):
        raise TypeError(f"entries must be a dict of arrays, got {reprlib.repr(entries)} ({type(entries).__name__})")
    given = dict(_flat(entries))
    missing = [f"{name!r} is missing" for ours, name in names.items() if name not in given and ours not in optional]
    extra = [f"{name!r} is none of them" for name in given if name not in names.values()]
    found = {ours: given[name] for ours, name in names.items() if name in given}
    for ours, value in found.items():
        check_array(f"entries[{names[ours]!r}]", value, number=ours in numbers)
    arrays = {ours: np.asarray(value) for ours, value in found.items()}
    scalars = [f"{names[ours]!r} must be one number" for ours in numbers if ours in arrays and arrays[ours].shape]
    rest = {ours: array for ours, array in arrays.items() if ours not in numbers}
    if wrong := [*missing, *extra, *scalars, *faults(rest)]:
        raise ValueError(f"entries of {of} are {', '.join(map(repr, names.values()))}: {'; '.join(wrong)}")
    return arrays


def check_array(name: str, value: Any, *, number: bool = False) -> None:
    """Raises a TypeError unless `value` is a concrete array of floating point numbers, or of integers or bools if `number`."""
    kind = "an integer or a bool" if number else "floating point numbers"
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        raise TypeError(f"{name} must be a NumPy array of {kind}, got {reprlib.repr(value)} ({type(value).__name__})")
    if not is_concrete(value):
        raise TypeError(f"{name} must be a concrete array of {kind}, got a traced {value.dtype}{list(value.shape)}")
    wanted = (jnp.integer, jnp.bool_) if number else (jnp.inexact,)
    if not any(jnp.issubdtype(value.dtype, family) for family in wanted):
        raise TypeError(f"{name} must be an array of {kind}, got {value.dtype}{list(value.shape)}")


def alike(names: Mapping[str, str], *, one_axis: bool) -> Faults:
    """Returns what tells of arrays that have not the shape of the first of them, or several axes where there must be one."""

    def faults(arrays: Arrays) -> Iterator[str]:
        first = next(iter(arrays), None)
        for ours, array in arrays.items():
            if one_axis and array.ndim != 1:
                yield f"{names[ours]!r} must have one axis, got shape {list(array.shape)}"
            elif first is not None and array.shape != arrays[first].shape:
                yield f"{names[ours]!r} has shape {list(array.shape)}, and {names[first]!r} {list(arrays[first].shape)}"

    return faults


def _flat(entries: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        path = "/".join(map(str, name)) if isinstance(name, tuple) else str(name)
        if isinstance(value, Mapping):
            yield from ((f"{path}/{rest}", inner) for rest, inner in _flat(value))
        else:
            yield path, value
