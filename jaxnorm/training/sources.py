"""Examples in folders, found by their index and read when they are asked for: sources for `GrainBatches`."""

import bisect
import functools
import itertools
import operator
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnorm._checks import check_choice, check_size
from jaxnorm.training.readers import check_folder

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MODES = ("L", "RGB", "RGBA")


class ImageFolder:
    """Images in a folder with a subfolder for each class, as `cats/1.jpg`, `dogs/a/2.png`.

    Images of several sizes are brought to one by a transform of `GrainBatches`, as with Pillow's `Image.resize`.

    Attributes:
      classes: the names of the subfolders, sorted; the label of an image is its class's index.

    Raises:
      ValueError: if there is no such folder, no subfolder, or one without images; when an example is read: if its file is
        damaged.
      ImportError: if the package pillow is not installed.

    Example:
      >>> import pathlib, tempfile
      >>> from PIL import Image
      >>> from jaxnorm.training import ImageFolder
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for name in ("cats", "dogs"):
      ...     (folder / name).mkdir()
      ...     Image.new("RGB", (5, 4)).save(folder / name / "1.png")
      >>> source = ImageFolder(folder)
      >>> source.classes, len(source)
      (['cats', 'dogs'], 2)
      >>> image, label = source[1]
      >>> image.shape, int(label)
      ((4, 5, 3), 1)

      Where all images are of one size and fit in memory, they can be read at once:

      >>> import numpy as np
      >>> images, labels = map(np.stack, zip(*source))
      >>> images.shape
      (2, 4, 5, 3)
    """

    def __init__(self, folder: str | Path, *, mode: str = "RGB") -> None:
        """Lists the images.

        Args:
          folder: the folder of the subfolders; those whose names begin with a point are left out.
          mode: what images are converted to: `"RGB"`, `"RGBA"`, or `"L"`, which is gray.
        """
        _pillow()
        check_choice("mode", mode, _MODES)
        path = check_folder(folder)
        folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not folders:
            raise ValueError(f"folder {path} must have a subfolder for each class, got none")
        self.classes = [p.name for p in folders]
        self._mode = mode
        self._files = [(file, label) for label, p in enumerate(folders) for file in _images(p)]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32]:
        """Returns an image, uint8 `[height, width, channels]`, and its label."""
        file, label = self._files[operator.index(index)]
        with _naming(file), _pillow().open(file) as image:
            pixels = np.array(image.convert(self._mode))
        return pixels.reshape(*pixels.shape[:2], -1), np.int32(label)


class NpzFolder:
    """Examples in the `.npz` files of a folder, each of which holds some, as arrays that begin with the axis of the examples.

    A file is read when one of its examples is asked for, and the latest few are kept. A shuffle over more files than are kept
    reads a file for nearly every example: keep all that fit in memory.

    Raises:
      ValueError: if there is no such folder, or no `.npz` file in it; if a file is damaged or lacks an array; or if its arrays do
        not hold the same number of examples, or examples of other shapes or dtypes than the first file's.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> from jaxnorm.training import NpzFolder
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> np.savez(folder / "a.npz", image=np.zeros((3, 8, 8)), label=np.array([0, 1, 2]))
      >>> np.savez(folder / "b.npz", image=np.zeros((2, 8, 8)), label=np.array([3, 4]))
      >>> source = NpzFolder(folder, ["image", "label"])
      >>> len(source)
      5
      >>> image, label = source[3]
      >>> image.shape, int(label)
      ((8, 8), 3)
    """

    def __init__(self, folder: str | Path, names: Sequence[str], *, keep: int = 16) -> None:
        """Looks at the shapes in all files, without reading the arrays.

        Args:
          folder: the folder of the files, which count in the order of their names.
          names: names of arrays in each file; an example is the tuple of a row of each.
          keep: number of files whose arrays are kept in memory.
        """
        path = check_folder(folder)
        if isinstance(names, str) or not names:
            raise TypeError(f"names must be a sequence of names of arrays, at least one, got {names!r}")
        self._arguments = folder, tuple(names), check_size("keep", keep)
        self._files = sorted(p for p in path.iterdir() if p.suffix == ".npz")
        if not self._files:
            raise ValueError(f"folder {path} must have at least one .npz file, got none")
        self._ends = list(itertools.accumulate(_lengths(self._files, names)))
        self._read = functools.lru_cache(keep)(functools.partial(_arrays, names=tuple(names)))

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """Returns an example: a row of each array."""
        index = range(len(self))[index]
        number = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        return tuple(array[row] for array in self._read(self._files[number]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to another process as its arguments: each has its own files in memory."""
        folder, names, keep = self._arguments
        return functools.partial(NpzFolder, keep=keep), (folder, names)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("ImageFolder needs the package pillow: pip install 'jaxnorm[data]'") from error
    return Image


def _images(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGES and p.is_file() and not p.name.startswith("."))
    if not files:
        raise ValueError(f"folder {folder} must have an image, a file that ends in {', '.join(_IMAGES)}, got none")
    return files


class _Rows(NamedTuple):
    """The number of rows of an array in a file, and what each is."""

    length: int
    shape: tuple[int, ...]
    dtype: np.dtype


def _lengths(files: Sequence[Path], names: Sequence[str]) -> list[int]:
    """Returns the number of examples in each file, or raises unless their arrays fit together."""
    found = [[_header(file, name) for name in names] for file in files]
    for file, arrays in zip(files, found, strict=True):
        if len({rows.length for rows in arrays}) > 1:
            listed = ", ".join(f"{name} {rows.length}" for name, rows in zip(names, arrays, strict=True))
            raise ValueError(f"arrays of {file} must have the same number of examples, got {listed}")
        for name, rows, first in zip(names, arrays, found[0], strict=True):
            if rows[1:] != first[1:]:
                expected, got = (f"{r.dtype}{list(r.shape)}" for r in (first, rows))
                raise ValueError(f"examples of {name!r} in {file} must be {expected} as in {files[0]}, got {got}")
    if not any(arrays[0].length for arrays in found):
        raise ValueError(f"files of {files[0].parent} must hold at least one example, got 0")
    return [arrays[0].length for arrays in found]


def _header(file: Path, name: str) -> _Rows:
    """Returns what an array in a file is, without reading its elements."""
    with _naming(file), zipfile.ZipFile(file) as archive:
        entries = archive.namelist()
        if f"{name}.npy" not in entries:
            raise ValueError(f"it has no array {name!r}, only {', '.join(entry.removesuffix('.npy') for entry in entries)}")
        with archive.open(f"{name}.npy") as entry:
            version = np.lib.format.read_magic(entry)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(entry)
        if not shape:
            raise ValueError(f"{name!r} must begin with the axis of the examples, got a scalar")
    return _Rows(shape[0], shape[1:], dtype)


def _arrays(file: Path, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    with _naming(file), np.load(file) as archive:
        return tuple(archive[name] for name in names)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turns whatever Pillow, NumPy or zipfile raise over a broken file into an error that names it."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"file {file} cannot be read: {error}") from error
