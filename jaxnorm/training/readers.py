"""Readers of data sets in files, from where the user has them: arrays, for `shuffled_batches`."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxnorm._checks import check_choice

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
_CIFAR_IMAGE = (3, 32, 32)


def read_idx(path: str | Path) -> np.ndarray:
    """Returns the array in an IDX file, the format of MNIST.

    The file is two zero bytes, a byte for the type, a byte for the number of dimensions, each dimension as a big-endian 32 bit
    number, and the elements, big-endian and in C order.

    Args:
      path: the file, compressed by gzip or not.

    Returns:
      An array of uint8, int8, int16, int32, float32 or float64, as the file says.

    Raises:
      ValueError: if the file is empty, truncated, longer than it says, damaged, or no IDX file, or its type is none of these.
      OSError: if it cannot be read.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxnorm.training import read_idx
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels-idx1-ubyte"
      >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
      >>> read_idx(path)
      array([7, 2, 1], dtype=uint8)
    """
    path = Path(path).expanduser()
    content = _content(path)
    if content[:2] != b"\0\0":
        raise ValueError(f"file {path} must begin with two zero bytes, the magic number of IDX, got {content[:2].hex(' ')}")
    if len(content) < 4:
        raise ValueError(f"file {path} must have a header of at least 4 bytes, got {len(content)}")
    if content[2] not in _IDX_TYPES:
        known = ", ".join(f"0x{code:02x}" for code in _IDX_TYPES)
        raise ValueError(f"file {path} must have one of IDX's type codes, {known}, got 0x{content[2]:02x}")
    dtype, start = np.dtype(_IDX_TYPES[content[2]]), 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"file {path} must have a header of {start} bytes for {content[3]} dimensions, got {len(content)}")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(f"file {path} must have {expected} bytes for shape {list(shape)}, got {len(content)}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def read_mnist(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of MNIST, or of a set in files of the same names, as Fashion-MNIST and KMNIST.

    Args:
      folder: the folder of the files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
        `t10k-labels-idx1-ubyte`, with or without `.gz`, and with `.` for the second `-` if it is so there.
      split: `"train"` or `"test"`.

    Returns:
      Images, uint8 `[N, 28, 28, 1]`, and labels, int32 `[N]`, from 0 to 9.

    Raises:
      ValueError: if there is no such folder or file, if a file is damaged, as in `read_idx`, or does not hold bytes of this
        rank, if there are not as many labels as images, or if a label is above 9.

    Example:
      >>> from jaxnorm.training import read_mnist, shuffled_batches
      >>> images, labels = read_mnist("~/data/mnist", "train")  # doctest: +SKIP
    """
    folder = check_folder(folder)
    check_choice("split", split, ("train", "test"))
    prefix = {"train": "train", "test": "t10k"}[split]
    images = _mnist_part(folder, f"{prefix}-images", 3)
    labels = _mnist_part(folder, f"{prefix}-labels", 1)
    if len(images) != len(labels):
        raise ValueError(f"folder {folder} must have as many labels as images of {split}, got {len(labels)} and {len(images)}")
    return images[..., None], _labels(labels, folder)


def read_cifar10(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of CIFAR-10, of its binary version.

    Args:
      folder: the folder of the files `data_batch_1.bin` to `data_batch_5.bin`, and `test_batch.bin`.
      split: `"train"` or `"test"`.

    Returns:
      Images, uint8 `[N, 32, 32, 3]`, and labels, int32 `[N]`, from 0 to 9.

    Raises:
      ValueError: if there is no such folder or file, if a file is empty or truncated, or if a label is above 9.

    Example:
      >>> from jaxnorm.training import read_cifar10
      >>> images, labels = read_cifar10("~/data/cifar-10-batches-bin", "train")  # doctest: +SKIP
    """
    folder = check_folder(folder)
    check_choice("split", split, ("train", "test"))
    names = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}[split]
    records, length = [], 1 + math.prod(_CIFAR_IMAGE)
    for path in (_find(folder, [name]) for name in names):
        content = _content(path)
        if len(content) % length:
            raise ValueError(f"file {path} must have {length} bytes for each image, got {len(content)} in all")
        records.append(np.frombuffer(content, np.uint8).reshape(-1, length))
        _labels(records[-1][:, 0], path)
    whole = np.concatenate(records)
    images = whole[:, 1:].reshape(-1, *_CIFAR_IMAGE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), whole[:, 0].astype(np.int32)


def check_folder(folder: str | Path) -> Path:
    """Returns the path of a folder, or raises unless there is one."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"folder {path} " + ("is a file" if path.exists() else "does not exist"))
    return path


def _content(path: Path) -> bytes:
    """Returns the bytes of a file, decompressed, or raises if there are none."""
    content = path.read_bytes()
    if content[:2] == _GZIP_MAGIC:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"file {path} is damaged: {error}") from error
    if not content:
        raise ValueError(f"file {path} is empty")
    return content


def _find(folder: Path, names: Sequence[str]) -> Path:
    """Returns the first of these files that is in the folder."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"folder {folder} must have a file {' or '.join(names)}, got none")


def _mnist_part(folder: Path, name: str, ndim: int) -> np.ndarray:
    path = _find(folder, [f"{name}{mark}idx{ndim}-ubyte{end}" for end in ("", ".gz") for mark in ("-", ".")])
    array = read_idx(path)
    if array.dtype != np.uint8 or array.ndim != ndim:
        raise ValueError(f"file {path} must hold uint8 of {ndim} dimensions, got {array.dtype}{list(array.shape)}")
    if not array.size:
        raise ValueError(f"file {path} must hold at least one example, got shape {list(array.shape)}")
    return array


def _labels(labels: np.ndarray, path: Path) -> np.ndarray:
    """Returns labels as int32, or raises unless all are those of ten classes."""
    if labels.max() > 9:
        first = int(np.argmax(labels > 9))
        raise ValueError(f"labels of {path} must be from 0 to 9, got {labels[first]} at {first}, and {labels.max()} at most")
    return labels.astype(np.int32)
