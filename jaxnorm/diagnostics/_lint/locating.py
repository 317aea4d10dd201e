"""Where an equation comes from: the line of the user's code, the layer by its name, and whose library the layer is of."""

import os
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jaxnorm

_INSTALLED = tuple(
    os.path.join(sysconfig.get_path(name), "") for name in ("purelib", "platlib", "stdlib")
)  # with a separator at the end, as `python3.11` begins `python3.11-extra`
_OURS = os.path.join(Path(jaxnorm.__file__).parent, "")
_LIBRARIES = {"flax/linen/": "linen", "flax/nnx/": "nnx", "haiku/_src/": "haiku", "equinox/": "equinox"}
_SCOPE = "jaxnorm."  # what the names of our functions begin with, as they are in stacks of names
_MACHINERY = (
    "module.py",
    "transforms.py",
    "lift.py",
    "scope.py",
    "base.py",
    "transform.py",
    "stateful.py",
    "_jit.py",
    "_module.py",
)


def frames_of(eqn: Any) -> Sequence[Any]:
    """Returns the frames of an equation, the innermost first."""
    traceback = eqn.source_info.traceback
    return () if traceback is None else traceback.frames


def user_line(stack: Sequence[Any]) -> str:
    """Returns the line of the user's code of an equation: the innermost that is in no installed package.

    Args:
      stack: the equation, and those that it is within, the innermost first.
    """
    elsewhere = ""
    for eqn in stack:
        for frame in frames_of(eqn):
            if not _is_installed(frame.file_name):
                return _line(frame)
            if not elsewhere and not _is_machinery(frame.file_name):
                elsewhere = _line(frame)
    return elsewhere


def library_of(stack: Sequence[Any]) -> str:
    """Returns the library whose layer an equation is of, or an empty string if it is of the user's own functions."""
    for eqn in stack:
        for frame in frames_of(eqn):
            if frame.file_name.startswith(_OURS) and "diagnostics" not in frame.file_name:
                return "jaxnorm"
            name = frame.file_name.replace(os.sep, "/")
            for part, library in _LIBRARIES.items():
                if f"/{part}" in name and not name.endswith(_MACHINERY):
                    return library
            if not _is_installed(frame.file_name):
                return ""
    return ""


def function_of_ours(stack: Sequence[Any]) -> str:
    """Returns the public function of jaxnorm by which an equation was asked for, or an empty string."""
    asked = ""
    for eqn in stack:
        for frame in frames_of(eqn):
            name = frame.function_name.rpartition(".")[2]
            if frame.file_name.startswith(_OURS) and name in jaxnorm.__all__:
                asked = name
    return asked


def attention_of_flax(stack: Sequence[Any]) -> str:
    """Returns the name of Flax's function that drops attention weights, if an equation is of it, or an empty string."""
    name = "dot_product_attention_weights"
    return name if any(frame.function_name == name for eqn in stack for frame in frames_of(eqn)) else ""


def is_mapped(stack: Sequence[Any]) -> bool:
    """Whether an equation is under a `jax.vmap` of the user's: one that is around what functions of ours do."""
    names = [part for eqn in reversed(stack) for part in eqn.source_info.name_stack.stack]
    ours = next((number for number, part in enumerate(names) if part.name.startswith(_SCOPE)), len(names))
    return any(part.name == "vmap" for part in names[:ours] if type(part).__name__ == "Transform")


def layer_of(leaf: str) -> str:
    """Returns the path of the layer that a parameter or running statistic is of; Haiku's averages are modules within it."""
    path = "/".join(leaf.split("/")[1:-1])
    return path.removesuffix("/~/mean_ema").removesuffix("/~/var_ema")


def layer_path(stack: Sequence[Any]) -> str:
    """Returns the path of the layer that an equation is of, where its library names it."""
    names: list[str] = []
    for eqn in reversed(stack):
        own = [part.name for part in eqn.source_info.name_stack.stack if type(part).__name__ == "Scope"]
        names += own[len(names) :] if own[: len(names)] == names else own
    names = [part for name in names for part in name.split("/") if part not in _TRANSFORMATIONS and not part.startswith(_SCOPE)]
    return "/".join(_modules(names)[1:] if library_of(stack) == "linen" or _begins_a_module(stack) else names)


def _modules(names: Sequence[str]) -> list[str]:
    """Returns the modules of linen's names, which have those of methods as well, as `Net`, `Net.encode`, `Dropout_0`."""
    modules: list[str] = []
    for name in names:
        module, _, method = name.partition(".")
        if not method or modules[-1:] != [module]:
            modules.append(module)
    return modules


_TRANSFORMATIONS = ("checkpoint", "rematted_computation", "while", "body", "cond", "scan", "closed_call", "jit")


def _begins_a_module(stack: Sequence[Any]) -> bool:
    """Whether names are those of linen, which begin with that of the model."""
    return any("flax/linen/" in frame.file_name.replace(os.sep, "/") for eqn in stack for frame in frames_of(eqn))


@cache
def _is_installed(file: str) -> bool:
    return file.startswith((*_INSTALLED, _OURS)) or f"{os.sep}site-packages{os.sep}" in file or file.startswith("<frozen")


@cache
def _is_machinery(file: str) -> bool:
    name = file.replace(os.sep, "/")
    packages = ("jax", "jaxlib", "flax", "haiku", "equinox", "optax", "jaxnorm")
    return (
        any(f"/{package}/" in name for package in packages)
        or name.startswith("<")
        or not name.endswith(".py")
        or (file.startswith(_INSTALLED[2]) and "site-packages" not in name)
    )


def _line(frame: Any) -> str:
    folder, file = os.path.split(frame.file_name)
    in_notebook = os.path.basename(folder).startswith("ipykernel_")  # where files are named by hashes of cells
    return f"{'cell' if in_notebook else file}:{frame.line_num} in {frame.function_name}"
