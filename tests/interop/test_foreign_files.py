"""Files that are damaged, or something else: each is refused with what is wrong, and nothing of it is run."""

import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxnorm.interop import from_torch_model, inspect_checkpoint, variables_from_torch
from jaxnorm.interop._files import read_safetensors, write_safetensors

ARRAYS = {"bn.weight": np.ones(2, np.float32), "bn.bias": np.zeros(2, np.float32)}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = np.ones(2, np.float32).tobytes()


def file_of(header: Any, data: bytes = DATA, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes: Any) -> bytes:
    return file_of({"bn.weight": {**ENTRY, **changes}})


def good() -> bytes:
    import safetensors.numpy

    return safetensors.numpy.save(ARRAYS)


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("import sys; sys.unpickled = True",)


DAMAGED: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "empty": (b"", "is an empty file"),
    "three bytes": (b"abc", "does not begin with the length of a header"),
    "text": (b"conv1.weight 64 3 7 7\n" * 9, "does not begin with the length of a header"),
    "zeros": (bytes(100), "does not begin with the length of a header"),
    "random": (np.random.default_rng(0).bytes(1000), "does not begin with the length of a header"),
    "pickled": (pickle.dumps({"bn.weight": Bomb()}), "a pickled file.*not read; in torch, safetensors.torch.save_file"),
    "pickled, protocol 0": (pickle.dumps(Bomb(), 0), "does not begin with the length of a header"),
    "gzip": (b"\x1f\x8b" + bytes(50), "compressed by gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(50), "compressed by zstd"),
    "tar": (b"a".ljust(257, b"\0") + b"ustar\0" + bytes(300), "a tar archive"),
    "NumPy": (b"\x93NUMPY\x01\x00" + bytes(50), "a NumPy file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    "GGUF": (b"GGUF" + bytes(50), "a GGUF file"),
    "ONNX": (b"\x08\x07\x12\x07pytorch", "a Protocol Buffers file"),
    "HTML": (b"<!DOCTYPE html><title>404</title>", "a page of HTML"),
    "JSON": (b'{"weight_map": {}}', "a JSON file"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
    "cut in the data": (lambda: good()[:-3], "damaged.*not fully covered"),
    "cut in the header": (lambda: good()[:40], r"truncated.*its header is of \d+ bytes, the file of 40"),
    "longer than it says": (lambda: good() + b"\0", "damaged.*not fully covered"),
    "header too long": (file_of({"a": ENTRY}, length=2**31), "truncated.*its header is of 2147483648 bytes"),
    "header of 2^40": (file_of({"a": ENTRY}, length=2**40), "does not begin with the length of a header"),
    "header cut short": (file_of({"a": ENTRY}, length=9), "its header is no JSON"),
    "broken JSON": (file_of(b"{not JSON"), "its header is no JSON"),
    "no UTF-8": (file_of(b'{"\xff\xfe": 1}'), "its header is no JSON"),
    "deep JSON": (file_of(b"{" + b'"a":{' * 50_000), "its header is no JSON"),
    "a name twice": (
        file_of(b'{"bn.weight":%s,"bn.weight":%s}' % ((json.dumps(ENTRY).encode(),) * 2)), "its header has 'bn.weight' twice"
    ),
    "no shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "damaged.*missing field `shape`"),
    "number for an entry": (file_of({"a": 3}), "damaged.*invalid type"),
    "shape too large": (entry(shape=[3]), "damaged.*invalid shape"),
    "negative shape": (entry(shape=[-2]), "damaged.*invalid value"),
    "shape beyond memory": (entry(shape=[2**40, 2**40]), "damaged.*overflow"),
    "unknown type": (entry(dtype="Q9"), "damaged.*unknown variant `Q9`"),
    "offsets turned": (entry(data_offsets=[8, 0]), "damaged.*invalid offset"),
    "offsets behind the end": (entry(data_offsets=[100, 108]), "damaged.*invalid offset"),
    "a gap": (file_of({"a": {**ENTRY, "data_offsets": [4, 12]}}, DATA + DATA[:4]), "damaged.*invalid offset"),
    "an overlap": (file_of({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, DATA + DATA[:4]), "damaged.*invalid offset"),
    "eight bits": (entry(dtype="F8_E4M3", shape=[8]), "'bn.weight' in F8_E4M3, which NumPy does not have"),
    "four bits": (entry(dtype="F4", shape=[16]), "'bn.weight' in F4, which NumPy does not have"),
    "no entries": (file_of({}, b""), "source must have entries, got none"),
    "metadata alone": (file_of({"__metadata__": {"format": "pt"}}, b""), "source must have entries, got none"),
    "NaN": (file_of({"bn.weight": ENTRY}, np.array([1, np.nan], np.float32).tobytes()), "not finite: bn.weight has 1 of 2"),
    "infinity": (file_of({"bn.weight": ENTRY}, np.array([1, -np.inf], np.float32).tobytes()), "not finite: bn.weight"),
    "integers": (entry(dtype="I32"), "of another type: bn.weight must hold floating point numbers, got int32"),
    "bools": (entry(dtype="BOOL", shape=[8]), "misshapen: bn.weight must be .2.*got .8."),
    "complex": (entry(dtype="C64", shape=[1]), "misshapen: bn.weight must be .2.*got .1."),
    "wrong shape": (entry(shape=[2, 1]), "misshapen: bn.weight must be .2.*got .2, 1."),
    "wrong name": (file_of({"nb.wieght": ENTRY}), "(?s)extra: nb.wieght.*missing: the model's bn/scale"),
    "quantized": (
        file_of({"bn.weight": {**ENTRY, "dtype": "I8", "shape": [8]}, "bn.absmax": {**ENTRY, "data_offsets": [8, 16]}}, DATA * 2),
        "(?s)extra: bn.absmax.*misshapen: bn.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_foreign_file_is_refused_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    content, words = DAMAGED[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content() if callable(content) else content)
    model = {"params": {"bn": {"scale": np.zeros(2, np.float32)}}}
    with pytest.raises(ValueError, match=words) as error:
        from_torch_model(path, model)
    message = str(error.value)
    assert str(path) in message or message.startswith("source ")
    assert len(message) < 600
    assert not hasattr(sys, "unpickled")


def test_archives_and_what_torch_saves_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    for read in (read_safetensors, variables_from_torch, inspect_checkpoint):
        with pytest.raises(ValueError, match=r"a zip archive, as torch\.save .* pickled contents are not read"):
            read(path)
    assert not hasattr(sys, "unpickled")
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(ValueError, match="an empty zip archive"):
        read_safetensors(path)
    np.savez(tmp_path / "model.npz", a=np.ones(2))
    with pytest.raises(ValueError, match="a zip archive"):
        read_safetensors(tmp_path / "model.npz")


def test_a_file_by_torch_itself_is_refused_in_both_of_its_formats(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for new, what in ((True, "a zip archive, as torch.save"), (False, "a pickled file, as torch.save")):
        torch.save({"a": torch.ones(2)}, tmp_path / "model.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match=what):
            read_safetensors(tmp_path / "model.pth")


def test_folders_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a safetensors file, got a folder"):
        read_safetensors(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        read_safetensors(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="is no checkpoint"):
        inspect_checkpoint(tmp_path)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"a": ENTRY}))
    for call in (read_safetensors, inspect_checkpoint, lambda path: write_safetensors(path, {})):
        with pytest.raises(ImportError, match=r"need the package safetensors: pip install 'jaxnorm\[interop\]'"):
            call(path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    arrays = {
        **ARRAYS, "half": np.ones((2, 3), ml_dtypes.bfloat16), "count": np.array(3), "none": np.zeros((0, 2), np.float16),
        "turned": np.arange(6.0).reshape(2, 3).T,
    }  # fmt: skip
    path = tmp_path / "model.safetensors"
    write_safetensors(path, arrays)
    read = read_safetensors(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
