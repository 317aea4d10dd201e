import gzip
import struct

import numpy as np
import pytest

from jaxnorm.training import read_cifar10, read_idx, read_mnist

TYPES = {0x08: np.uint8, 0x09: np.int8, 0x0B: np.int16, 0x0C: np.int32, 0x0D: np.float32, 0x0E: np.float64}
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(256, size=(7, 4, 5), dtype=np.uint8), np.array([3, 0, 9, 1, 1, 4, 7], np.uint8)


def idx(array, code=None):
    """An array as an IDX file."""
    code = code or next(code for code, dtype in TYPES.items() if dtype == array.dtype)
    header = bytes([0, 0, code, array.ndim]) + b"".join(struct.pack(">I", size) for size in array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def cifar(images, labels):
    """Images `[N, 32, 32, 3]` and labels as a file of CIFAR-10."""
    return b"".join(bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dtype", TYPES.values())
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (2, 1, 3, 1, 2), (0, 4)])
def test_idx_gives_back_what_was_written(shape, dtype, zipped, tmp_path):
    limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(dtype)
    array = np.asarray(RNG.uniform(limits.min / 2, limits.max / 2, size=shape)).astype(dtype)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx(array), mtime=0) if zipped else idx(array))
    found = read_idx(str(path))
    assert (found.dtype, found.dtype.isnative, found.shape) == (dtype, True, shape)
    np.testing.assert_array_equal(found, array)
    assert found.flags.writeable


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (b"\0\1\x08\1", "must begin with two zero bytes, the magic number of IDX, got 00 01"),
        (b"PK", "must begin with two zero bytes, the magic number of IDX, got 50 4b"),
        (b"\0\0\x08", "must have a header of at least 4 bytes, got 3"),
        (b"\0\0\x0a\1" + bytes(4), "must have one of IDX's type codes, 0x08, 0x09, .* 0x0e, got 0x0a"),
        (b"\0\0\x08\2" + bytes(5), "must have a header of 12 bytes for 2 dimensions, got 9"),
        (idx(IMAGES)[:-1], r"must have 156 bytes for shape \[7, 4, 5\], got 155"),
        (idx(IMAGES) + b"!", r"must have 156 bytes for shape \[7, 4, 5\], got 157"),
        (b"\0\0\x0e\3" + b"\xff" * 12, r"must have \d+ bytes for shape \[4294967295, 4294967295, 4294967295\], got 16"),
        (gzip.compress(idx(IMAGES), mtime=0)[:-9], "is damaged: Compressed file ended"),
        (gzip.compress(idx(IMAGES), mtime=0)[:20] + bytes(9), "is damaged: "),
    ],
)
def test_files_that_are_no_idx(content, message, tmp_path):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=f"file {tmp_path}/bad {message}"):
        read_idx(tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none"):
        read_idx(tmp_path / "none")


@pytest.mark.parametrize("mark, end", [("-", ""), (".", ""), ("-", ".gz"), (".", ".gz")])
def test_mnist(mark, end, tmp_path):
    pack = gzip.compress if end else bytes
    for prefix, number in (("train", 7), ("t10k", 3)):
        (tmp_path / f"{prefix}-images{mark}idx3-ubyte{end}").write_bytes(pack(idx(IMAGES[:number])))
        (tmp_path / f"{prefix}-labels{mark}idx1-ubyte{end}").write_bytes(pack(idx(LABELS[:number])))
    for split, number in (("train", 7), ("test", 3)):
        images, labels = read_mnist(tmp_path, split)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(images, IMAGES[:number, :, :, None], strict=True)
        np.testing.assert_array_equal(labels, LABELS[:number])


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (IMAGES, LABELS[:5], "folder .* must have as many labels as images of test, got 5 and 7"),
        (IMAGES, np.array([0, 12, 3, 9, 10, 0, 0], np.uint8), "labels of .* must be from 0 to 9, got 12 at 1, and 12 at most"),
        (IMAGES[0], LABELS, r"images-idx3-ubyte must hold uint8 of 3 dimensions, got uint8\[4, 5\]"),
        (IMAGES, LABELS.astype(np.int32), r"labels-idx1-ubyte must hold uint8 of 1 dimensions, got int32\[7\]"),
        (IMAGES[:0], LABELS[:0], r"images-idx3-ubyte must hold at least one example, got shape \[0, 4, 5\]"),
    ],
)
def test_files_that_are_no_mnist(images, labels, message, tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(ValueError, match=message):
        read_mnist(tmp_path, "test")


def test_cifar10(tmp_path):
    images, labels = RNG.integers(256, size=(13, 32, 32, 3), dtype=np.uint8), RNG.integers(10, size=13)
    bounds = {
        "data_batch_1": (0, 3),
        "data_batch_2": (3, 4),
        "data_batch_3": (4, 7),
        "data_batch_4": (7, 8),
        "data_batch_5": (8, 10),
    }
    for name, (start, stop) in (bounds | {"test_batch": (10, 13)}).items():
        (tmp_path / f"{name}.bin").write_bytes(cifar(images[start:stop], labels[start:stop]))
    for split, rows in (("train", slice(10)), ("test", slice(10, 13))):
        found = read_cifar10(tmp_path, split)
        np.testing.assert_array_equal(found[0], images[rows], strict=True)
        np.testing.assert_array_equal(found[1], labels[rows].astype(np.int32), strict=True)
        assert found[0].flags.c_contiguous


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "test_batch.bin is empty"),
        (bytes(3073 * 2 - 1), "test_batch.bin must have 3073 bytes for each image, got 6145 in all"),
        (bytes(3073) + b"\x0a" + bytes(3072), "test_batch.bin must be from 0 to 9, got 10 at 1, and 10 at most"),
    ],
)
def test_files_that_are_no_cifar10(content, message, tmp_path):
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_cifar10(tmp_path, "test")
    with pytest.raises(ValueError, match=f"folder {tmp_path} must have a file data_batch_1.bin, got none"):
        read_cifar10(tmp_path, "train")


@pytest.mark.parametrize("read", [read_mnist, read_cifar10])
def test_folders_and_splits_that_are_not_there(read, tmp_path):
    with pytest.raises(ValueError, match=f"folder {tmp_path}/none does not exist"):
        read(tmp_path / "none", "train")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=f"folder {tmp_path}/file is a file"):
        read(tmp_path / "file", "train")
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        read(tmp_path, "valid")
    with pytest.raises(ValueError, match=f"folder {tmp_path} must have a file .*, got none"):
        read(tmp_path, "train")
