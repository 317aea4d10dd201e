"""Flags that are an attribute of a module or an argument of its call."""

from typing import Any

from flax import nnx


def first_given(module: nnx.Module, name: str, argument: Any) -> Any:
    """Returns the argument of the call if it was given, else the module's attribute, or raises if that is None too."""
    value = getattr(module, name) if argument is None else argument
    if value is None:
        layer = type(module).__name__
        raise ValueError(
            f"No `{name}` argument was provided to {layer}: give {name}=True or False to its constructor, to its call, or to "
            f"nnx.view(model, {name}=...)"
        )
    return value
