"""Folders with compilers for devices that are not there: what must lie in one, and how to get it."""

import importlib.metadata
import os
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path


def find_folder(variable: str, needed: Mapping[str, str]) -> Path:
    """Returns the folder that an environment variable names, which holds these packages.

    Args:
      variable: its name.
      needed: versions of packages by their names, which may end in `.*`; empty where any will do.

    Raises:
      ValueError: if the variable names none, or a folder without all packages, or with one of another version.
    """
    packages = " ".join(f"{name}=={version}" if version else name for name, version in needed.items())
    install = f"pip install --no-deps --target DIR {packages}"
    folder = os.environ.get(variable)
    if not folder:
        raise ValueError(f"{variable} must name the folder of the compiler, the DIR of: {install}")
    found = {distribution.name: distribution.version for distribution in importlib.metadata.distributions(path=[folder])}
    if missing := [name for name in needed if name not in found]:
        raise ValueError(f"{variable} names {folder!r}, which lacks {', '.join(missing)}; all of it: {install}")
    for name, version in needed.items():
        if version and not fnmatch(found[name], version):
            raise ValueError(
                f"{variable} names {folder!r}, whose {name} is {found[name]}, and not {version}, as the installed jax needs; "
                f"for that: {install}"
            )
    return Path(folder)
