"""Safetensors files, read and written; other and damaged files are refused with what is wrong. Nothing is ever unpickled."""

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUFFIX = ".safetensors"

_INSTEAD = "; in torch, safetensors.torch.save_file(model.state_dict(), path) writes what is read here"
_FOREIGN = (  # how other files begin
    (b"PK\x03\x04", f"a zip archive, as torch.save and numpy.savez write: pickled contents are not read{_INSTEAD}"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x80", f"a pickled file, as torch.save once wrote: those are not read{_INSTEAD}"),
    (b"\x93NUMPY", "a NumPy file; numpy.load reads it, and a dict of arrays is taken too"),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes"),
    (b"GGUF", "a GGUF file, whose weights may be quantized"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"ustar", "a tar archive; unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file; git lfs pull fetches it"),
    (b"<", "a page of HTML or XML, as a failed download leaves"),
    (b"{", "a JSON file; the index of a file in parts has no weights itself"),
    (b"\x08", "a Protocol Buffers file, as of ONNX or TensorFlow"),
)


def _all(name: str, shape: Sequence[int]) -> bool:
    return True


def read_safetensors(path: str | Path, *, wanted: Callable[[str, Sequence[int]], bool] = _all) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file, those whose names and shapes are wanted.

    Raises:
      ValueError: if it is no such file, or damaged.
      OSError: if it is not there, or cannot be read.
      ImportError: if the package safetensors is not installed.
    """
    path = Path(path).expanduser()
    _check_header(path)
    library = _library()
    arrays = {}
    try:
        with library.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                if not wanted(name, file.get_slice(name).get_shape()):
                    continue
                try:
                    arrays[name] = file.get_tensor(name)
                except AttributeError as error:  # of NumPy, which lacks the type
                    dtype = file.get_slice(name).get_dtype()
                    raise ValueError(f"{str(path)!r} has {name!r} in {dtype}, which NumPy does not have") from error
    except library.SafetensorError as error:
        raise ValueError(f"{str(path)!r} is a damaged safetensors file: {error}") from error
    return arrays


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to a safetensors file, which appears under its name when it is complete."""
    path = Path(path).expanduser()
    library = _library()
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        unfinished.write_bytes(library.numpy.save({name: np.asarray(a, order="C") for name, a in arrays.items()}))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_header(path: Path) -> None:
    """Raises unless a file begins as a safetensors file does: the length of a JSON header, and the header."""
    if path.is_dir():
        raise ValueError(f"{str(path)!r} must be a safetensors file, got a folder")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        if not size:
            raise ValueError(f"{str(path)!r} is an empty file")
        for magic, what in _FOREIGN:
            if (start.startswith(magic) and not _is_header(start)) or (magic == b"ustar" and start[257:262] == magic):
                raise ValueError(f"{str(path)!r} is no safetensors file, but {what}")
        if not _is_header(start):
            raise ValueError(
                f"{str(path)!r} is no safetensors file: it does not begin with the length of a header and the header"
            )
        (length,) = struct.unpack("<Q", start[:8])
        if length + 8 > size:
            raise ValueError(
                f"{str(path)!r} is a truncated safetensors file: its header is of {length} bytes, the file of {size}"
            )
        file.seek(8)
        text = file.read(length)
    try:
        json.loads(text, object_pairs_hook=_without_duplicates)
    except _DuplicateError as error:
        raise ValueError(f"{str(path)!r} is a damaged safetensors file: its header has {error} twice") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is a damaged safetensors file: its header is no JSON: {error}") from error


def _is_header(start: bytes) -> bool:
    """Whether a file may be one: JSON follows its first eight bytes, of which no header uses more than four."""
    return len(start) > 8 and start[8:9] == b"{" and start[4:8] == b"\0\0\0\0"


class _DuplicateError(Exception):
    """A name that stands in a header twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateError(repr(next(name for name in names if names.count(name) > 1)))
    return found


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("safetensors files need the package safetensors: pip install 'jaxnorm[interop]'") from error
    return safetensors
