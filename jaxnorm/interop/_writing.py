"""Variables on disk: in a folder that Orbax writes, or in a safetensors file."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxnorm.interop._files import SUFFIX, write_safetensors


def write_variables(path: Path, variables: dict[str, Any]) -> None:
    """Writes nested dicts of arrays; into a file, by paths as `params/conv1/kernel`, if the name ends as one of safetensors.

    Raises:
      ValueError: if there is something at this path.
      OSError: if it cannot be written.
      ImportError: if the package safetensors is needed and not installed.
    """
    path = path.expanduser().resolve()
    if path.exists():
        raise ValueError(f"{str(path)!r} is there already; remove it or give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == SUFFIX:
        leaves, _ = jax.tree.flatten_with_path(variables)
        write_safetensors(path, {"/".join(str(part.key) for part in parts): np.asarray(leaf) for parts, leaf in leaves})
        return
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, variables)
