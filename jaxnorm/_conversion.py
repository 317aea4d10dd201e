"""Batch norms of a model as other ones, by their paths: what linen and nnx share of it."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxnorm._checks import check_type

_OPTIONS: dict[str, tuple[str, ...]] = {
    "batch": (),
    "frozen": (),
    "ghost": ("ghost_size",),
    "group": ("num_groups", "group_size"),
    "synced": ("axis_name", "axis_index_groups"),
}

_DIFFERS = {
    "batch": "It is a batch norm of jaxnorm",
    "frozen": "Statistics, scale and bias are constants: training is as evaluation, and nothing is averaged or learned",
    "ghost": "In training every ghost of {ghost_size} examples has statistics of its own",
    "group": "Statistics are of groups of each example's channels, in evaluation too: there are no running averages",
    "synced": "In training statistics are pooled over {axis_name}",
}


def check_conversion(to: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a kind of norm with its defaults, or raises unless there is such a kind with such options."""
    if to not in _OPTIONS:
        raise ValueError(f"to must be one of {', '.join(_OPTIONS)}, got {to!r}")
    unknown = [name for name in options if name not in _OPTIONS[to]]
    if unknown:
        allowed = ", ".join(_OPTIONS[to]) or "no options"
        raise TypeError(f"{to!r} takes {allowed}, got {', '.join(f'{name}={options[name]!r}' for name in unknown)}")
    if to == "synced" and options.get("axis_name") is None:
        raise ValueError("axis_name must be the name of a mapped axis, or several, for 'synced', got None")
    if to == "ghost":
        check_type("ghost_size", options.get("ghost_size", 128), int)
        return {"ghost_size": 128, **options}
    if to == "group":
        return {"num_groups": 32 if options.get("group_size") is None else None, "group_size": None, **options}
    return {"axis_index_groups": None, **options} if to == "synced" else {}


def what_differs(to: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what the report says of a norm that was converted."""
    return (_DIFFERS[to].format(**options),)


def why_not(module: Any, to: str) -> str:
    """Returns why a batch norm can't become one of this kind; empty if it can."""
    if to == "group" and module.axis != -1:
        return f"has its features on axis {module.axis}, a group norm on the last"
    if to in ("frozen", "ghost", "group"):
        own = [name for name in ("activation", "unbiased") if getattr(module, name, None)]
        return f"has {' and '.join(own)}, which such a norm has not" if own else ""
    return ""


def path_filter(paths: str | Sequence[str]) -> Callable[[str], bool]:
    """Returns whether a path matches one of the patterns, or raises unless they are texts."""
    patterns = (paths,) if isinstance(paths, str) else paths
    check_type("paths", patterns, Sequence)
    for pattern in patterns:
        check_type("paths", pattern, str)
    return lambda path: any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
