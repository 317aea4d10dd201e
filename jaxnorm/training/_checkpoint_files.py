"""What is in a folder of checkpoints: one folder a checkpoint, named by its step, with Orbax's arrays and a record.

A checkpoint that is being written, or removed, has another name until it is complete, or gone.
"""

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxnorm.training.state import PyTree, describe, is_key

Folder = str | Path
ARRAYS = "state"
_RECORD = "record.jsonl"
_UNFINISHED = ".unfinished"


def folder_path(folder: Folder) -> Path:
    """Returns the whole path of a folder of checkpoints."""
    return Path(folder).expanduser().resolve()


def steps_in(path: Path) -> list[int]:
    """Returns the steps of all complete checkpoints, in order."""
    return sorted(int(p.name) for p in path.iterdir() if p.name.isdigit() and p.is_dir()) if path.is_dir() else []


def unfinished(path: Path, step: int) -> Path:
    """Returns where a checkpoint is as long as it is not complete."""
    return path / f"{step}{_UNFINISHED}"


def remove_unfinished(path: Path) -> None:
    """Removes what writers that were killed have left."""
    for place in path.glob(f"*{_UNFINISHED}"):
        shutil.rmtree(place)


def remove_checkpoint(path: Path, step: int) -> None:
    """Removes a checkpoint such that there is no moment at which half of it looks like a whole one."""
    shutil.rmtree((path / str(step)).rename(unfinished(path, step)))


def set_aside(path: Path, step: int) -> None:
    """Gives a checkpoint a name under which it is not found again."""
    names = (f"{step}.damaged" + (f"-{number}" if number else "") for number in itertools.count())
    (path / str(step)).rename(next(path / name for name in names if not (path / name).exists()))


class _Arrays(ocp.type_handlers.ArrayHandler):
    """Writes arrays as one transaction, as Orbax does where it sets no limit to the bytes in flight.

    Else it writes one by one, all at a time, and what fails leaves others behind that still write to the folder.
    """

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        """Starts to write arrays."""
        return await super().serialize(values, [info.replace(byte_limiter=None) for info in infos], args)


def arrays_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns what writes and reads arrays; of shardings it writes nothing, since those to read with are given."""
    arrays, numpy = _Arrays(enable_write_sharding_file=False), ocp.type_handlers.NumpyHandler()
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays), (np.ndarray, numpy))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def named_arrays(state: PyTree) -> dict[str, jax.Array]:
    """Returns the leaves by their paths: keys as their data, and no empty arrays, which Orbax does not take."""
    leaves = zip(describe(state), jax.tree.leaves(state), strict=True)
    arrays = {name: jax.random.key_data(leaf) if is_key(leaf) else leaf for name, leaf in leaves if leaf.size}
    if jax.process_count() > 1 and (local := [name for name, array in arrays.items() if array.is_fully_addressable]):
        raise ValueError(
            f"state must have arrays that all {jax.process_count()} processes share, as `shard_state` makes them, and "
            f"{', '.join(local[:3])} {'is' if len(local) == 1 else 'are'} of one process"
        )
    return arrays


def files_in(place: Path) -> list[str]:
    """Returns the names of all files in a folder, in the folders in it too."""
    return sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())


def file_digests(place: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of files by their names."""

    def digest(name: str) -> str:
        with (place / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    names = list(names)
    with ThreadPoolExecutor() as pool:  # Python lets go of its lock to read and to hash
        return dict(zip(names, pool.map(digest, names), strict=True))


def check_files(place: Path, written: dict[str, str]) -> None:
    """Raises unless the files that were written are there and unchanged; each process looks at some of them."""
    own = sorted(written)[jax.process_index() :: jax.process_count()]
    if missing := [name for name in own if not (place / name).is_file()]:
        raise ValueError(f"file {place.name}/{missing[0]} is missing")
    if changed := [name for name, digest in file_digests(place, own).items() if digest != written[name]]:
        raise ValueError(f"file {place.name}/{changed[0]} is not as it was written")


def write_record(place: Path, record: dict[str, Any]) -> None:
    """Writes the record of a checkpoint, a dict of JSON, as a line after that of its digest."""
    content = json.dumps(record).encode()
    (place / _RECORD).write_bytes(_digest(content) + b"\n" + content)


def read_record(place: Path) -> dict[str, Any]:
    """Returns the record of a checkpoint, or raises if it is missing or damaged."""
    if not (place / _RECORD).is_file():
        raise ValueError(f"file {_RECORD} is missing")
    digest, _, content = (place / _RECORD).read_bytes().partition(b"\n")
    if digest != _digest(content):
        raise ValueError(f"file {_RECORD} is not as it was written")
    return json.loads(content)


def best_in(path: Path) -> int | None:
    """Returns the step of the best checkpoint by the metric that the newest one with a metric has, the first one of equals."""
    scores = {}
    for step in steps_in(path):
        try:
            score = read_record(path / str(step))["score"]
        except (ValueError, OSError):
            continue
        if score is not None and not math.isnan(score["value"]):
            scores[step] = score
    if not scores:
        return None
    last = scores[max(scores)]
    values = {step: score["value"] for step, score in scores.items() if score["metric"] == last["metric"]}
    return (max if last["mode"] == "max" else min)(values, key=values.__getitem__)


def _digest(content: bytes) -> bytes:
    return json.dumps(hashlib.sha256(content).hexdigest()).encode()
