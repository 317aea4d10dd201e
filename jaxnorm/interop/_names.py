"""Which module of torch is which of a Flax model: by a map of names, by equal names, by shapes, by numbers in names."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Names = Mapping[str, str | None]
"""Regular expressions of the names of torch modules, and paths of the model, or None for modules or entries that are left out."""


class NameMap(NamedTuple):
    """A map of names.

    Attributes:
      paths: path or None by key.
      patterns: the keys that are regular expressions.
    """

    paths: Mapping[str, str | None]
    patterns: tuple[re.Pattern[str], ...]

    def find(self, name: str) -> tuple[str, str | None] | None:
        """Returns the key that a name fits, a name itself before expressions, and its path for it; None if it fits none."""
        found = None if name in self.paths else next(filter(None, (p.fullmatch(name) for p in self.patterns)), None)
        key = name if found is None else found.re.pattern
        if key not in self.paths:
            return None
        path = self.paths[key]
        try:
            return key, path if path is None or found is None else found.expand(path)
        except (re.error, IndexError) as error:
            raise ValueError(f"names[{key!r}] must be a path, or refer to groups of its key, got {path!r}: {error}") from error

    def refuses(self, name: str) -> bool:
        """Whether a name is to be left out."""
        found = self.find(name)
        return found is not None and found[1] is None

    def unused(self, names: Iterable[str]) -> list[str]:
        """Returns what is wrong with keys that no name fits, in lines."""
        used = {found[0] for found in map(self.find, names) if found}
        return [f"names has {key!r}, and there is no such module" for key in self.paths if key not in used]


def name_map(names: Any) -> NameMap:
    """Returns a map of names, or raises unless it is one."""
    names = {} if names is None else names
    if not isinstance(names, Mapping) or not all(isinstance(key, str) for key in names):
        raise TypeError(f"names must be a dict of names of torch modules to paths, got {names!r}")
    patterns = []
    for key, path in names.items():
        if path is not None and not isinstance(path, str):
            raise TypeError(f"names[{key!r}] must be a path or None, got {path!r}")
        try:
            patterns.append(re.compile(key))
        except re.error as error:
            raise ValueError(f"names must have regular expressions as keys, got {key!r}: {error}") from error
    return NameMap(names, tuple(patterns))


def fitting(name: str, patterns: Any, candidates: Iterable[str], of: str) -> set[str]:
    """Returns the candidates that regular expressions fit, or raises unless they are such and each fits one at least."""
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise TypeError(f"{name} must be a sequence of regular expressions, got {patterns!r}")
    found: set[str] = set()
    for pattern in patterns:
        try:
            here = {candidate for candidate in candidates if re.fullmatch(pattern, candidate)}
        except (re.error, TypeError) as error:
            raise ValueError(f"{name} must be regular expressions, got {pattern!r}: {error}") from error
        if not here:
            raise ValueError(f"{name} has {pattern!r}, and {of} has no such name")
        found |= here
    return found


class Pairs(NamedTuple):
    """What belongs together.

    Attributes:
      path: the path of a torch module, by its name; None for one that is left out.
      by: by what it was found, by its name.
      troubles: what is wrong with the map, in lines.
    """

    path: dict[str, str | None]
    by: dict[str, str]
    troubles: list[str]


def pair_modules(modules: list[str], paths: dict[str, object], names: NameMap, fits: Callable[[str, str], bool]) -> Pairs:
    """Returns which module is which path.

    Args:
      modules: names of torch's modules.
      paths: paths of the model's, with what is equal for paths whose variables have equal names and shapes.
      names: the map, which goes before all else.
      fits: whether all entries of a module and all variables at a path are the same numbers.
    """
    pairs = Pairs({}, {}, [])
    _take_mapped(pairs, modules, paths, names)
    _take_equal_names(pairs, modules, paths)
    _take_shapes(pairs, modules, paths, fits)
    taken = defaultdict(list)
    for module, path in pairs.path.items():
        taken[path].append(module)
    for path, many in taken.items():
        if path is not None and len(many) > 1:
            pairs.troubles.append(f"more than one: the model's {_show(path)} is meant by {' and '.join(map(_show, many))}")
    return pairs


def _take_mapped(pairs: Pairs, modules: list[str], paths: Mapping[str, object], names: NameMap) -> None:
    by_name = _unique(paths)
    for module in modules:
        if (found := names.find(module)) is None:
            continue
        _, wanted = found
        path = wanted if wanted is None or wanted in paths else by_name.get(_plain(wanted))
        if path is None and wanted is not None:
            pairs.troubles.append(f"names has {wanted!r} for {_show(module)}, and the model has no such path")
        pairs.path[module], pairs.by[module] = path, "names"


def _take_equal_names(pairs: Pairs, modules: list[str], paths: Mapping[str, object]) -> None:
    """Pairs what has equal names but for what stands between their parts, as `layer1.0.conv1` and `layer1_0/conv1`."""
    taken = set(pairs.path.values())
    free = [path for path in paths if path not in taken]
    here, there = _unique([m for m in modules if m not in pairs.path]), _unique(free)
    for name in here.keys() & there.keys():
        pairs.path[here[name]], pairs.by[here[name]] = there[name], "equal names"


def _take_shapes(pairs: Pairs, modules: list[str], paths: dict[str, object], fits: Callable[[str, str], bool]) -> None:
    """Pairs what fits nothing else; and of several that fit each other, those whose names differ in numbers, in order."""
    places, taken = defaultdict(list), set(pairs.path.values())
    for path, kind in paths.items():
        if path not in taken:
            places[kind].append(path)
    groups = defaultdict(list)
    for module in modules:
        if module not in pairs.path:
            kinds = [kind for kind, same in places.items() if fits(module, same[0])]
            if len(kinds) == 1:
                groups[kinds[0]].append(module)
    for kind, here in groups.items():
        there = places[kind]
        if len(here) != len(there):
            continue
        by = "shape"
        if len(here) > 1:
            if len(set(map(_without_numbers, here))) > 1 or len(set(map(_without_numbers, there))) > 1:
                continue
            here, there, by = sorted(here, key=_numbers), sorted(there, key=_numbers), "order of numbers"
        for module, path in zip(here, there, strict=True):
            pairs.path[module], pairs.by[module] = path, by


def _unique(names: Iterable[str]) -> dict[str, str]:
    """Returns names by how they read without what stands between their parts, those alone that differ in more."""
    found = defaultdict(list)
    for name in names:
        found[_plain(name)].append(name)
    return {plain: same[0] for plain, same in found.items() if len(same) == 1}


def _plain(name: str) -> str:
    return re.sub(r"[./_]+", ".", name)


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", name)))


def _show(name: str) -> str:
    return repr(name) if name else "the outermost module"
