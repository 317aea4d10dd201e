import builtins
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxnorm.training import ImageFolder, NpzFolder

RNG = np.random.default_rng(0)


@pytest.fixture
def images(tmp_path):
    """A folder of images, of two classes and an ignored folder, and what is in it by path."""
    pixels = {
        name: RNG.integers(256, size=(4, 5, 3), dtype=np.uint8)
        for name in ("cats/b.png", "cats/a.bmp", "dogs/deep/er/1.PNG", "dogs/2.ppm", "dogs/10.png", ".trash/no.png")
    }
    for name, array in pixels.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(tmp_path / name)
    for name in ("cats/notes.txt", "cats/._b.png", "readme.png"):
        (tmp_path / name).write_text("no image")
    return tmp_path, pixels


def test_image_folder(images):
    folder, pixels = images
    source = ImageFolder(str(folder))
    assert source.classes == ["cats", "dogs"]
    names = ["cats/a.bmp", "cats/b.png", "dogs/10.png", "dogs/2.ppm", "dogs/deep/er/1.PNG"]
    assert len(source) == 5
    for index, name in enumerate(names):
        image, label = source[index]
        np.testing.assert_array_equal(image, pixels[name], strict=True)
        assert (label, label.dtype) == (source.classes.index(name.split("/")[0]), np.int32)
        assert image.flags.writeable
    np.testing.assert_array_equal(source[-1][0], pixels[names[-1]])
    np.testing.assert_array_equal(source[np.int64(1)][0], pixels[names[1]])
    with pytest.raises(IndexError):
        source[5]
    together, labels = map(np.stack, zip(*source, strict=True))
    np.testing.assert_array_equal(together, [pixels[name] for name in names])
    assert labels.tolist() == [0, 0, 1, 1, 1]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[2][0], pixels[names[2]])


@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_images_of_all_modes_come_in_one(mode, channels, tmp_path):
    (tmp_path / "a").mkdir()
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for kind in ("L", "P", "RGB", "RGBA", "LA"):
        Image.fromarray(gray).convert(kind).save(tmp_path / "a" / f"{kind}.png")
    for image, _ in ImageFolder(tmp_path, mode=mode):
        assert (image.shape, image.dtype) == ((3, 4, channels), np.uint8)
        np.testing.assert_array_equal(image[..., : min(channels, 3)], np.repeat(gray[..., None], min(channels, 3), -1))
        assert channels < 4 or (image[..., 3] == 255).all()


def test_folders_without_images(images):
    folder, _ = images
    (folder / "birds").mkdir()
    (folder / "birds" / "list.txt").write_text("none yet")
    with pytest.raises(
        ValueError, match=rf"folder {folder}/birds must have an image, a file that ends in \.bmp, .*\.webp, got none"
    ):
        ImageFolder(folder)
    with pytest.raises(ValueError, match=f"folder {folder}/birds must have a subfolder for each class, got none"):
        ImageFolder(folder / "birds")
    with pytest.raises(ValueError, match=f"folder {folder}/fish does not exist"):
        ImageFolder(folder / "fish")
    with pytest.raises(ValueError, match=f"folder {folder}/readme.png is a file"):
        ImageFolder(folder / "readme.png")
    with pytest.raises(ValueError, match="mode must be 'L' or 'RGB' or 'RGBA', got 'CMYK'"):
        ImageFolder(folder, mode="CMYK")


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-30], lambda content: b"?" + content[1:]])
def test_damaged_images(damage, images):
    folder, _ = images
    file = folder / "cats" / "b.png"
    source = ImageFolder(folder)
    file.write_bytes(damage(file.read_bytes()))
    assert source[0][0].shape == (4, 5, 3)
    with pytest.raises(ValueError, match=f"file {file} cannot be read: "):
        source[1]
    file.unlink()
    with pytest.raises(ValueError, match=f"file {file} cannot be read: .*No such file"):
        source[1]


def test_images_need_pillow(images, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "PIL":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"ImageFolder needs the package pillow: pip install 'jaxnorm\[data\]'"):
        ImageFolder(images[0])


@pytest.fixture(params=[np.savez, np.savez_compressed])
def arrays(request, tmp_path):
    """A folder of three files of 3, 1 and 4 examples, and what is in them."""
    x, y = RNG.normal(size=(8, 2, 3)).astype(np.float32), np.arange(8, dtype=np.int16)
    for name, start, stop in (("a", 0, 3), ("b", 3, 4), ("c", 4, 8)):
        request.param(tmp_path / f"{name}.npz", x=x[start:stop], y=y[start:stop], other=np.ones(1))
    (tmp_path / "notes.txt").write_text("no arrays")
    return tmp_path, x, y


@pytest.mark.parametrize("keep", [1, 2, 16])
def test_npz_folder(keep, arrays):
    folder, x, y = arrays
    source = NpzFolder(str(folder), ["x", "y"], keep=keep)
    assert len(source) == 8
    for index in [*range(8), 5, 0, 7, -1, -8, np.int64(3)]:
        found = source[index]
        np.testing.assert_array_equal(found[0], x[index], strict=True)
        assert (found[1], found[1].dtype) == (y[index], np.int16)
    for index in (8, -9):
        with pytest.raises(IndexError):
            source[index]
    np.testing.assert_array_equal(np.stack([image for _, image in NpzFolder(folder, ["y", "x"], keep=keep)]), x)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(np.stack([image for image, _ in copy]), x)


def test_npz_files_are_read_when_needed_and_the_latest_are_kept(arrays, monkeypatch):
    folder, _, _ = arrays
    opened, real = [], np.load

    def load(file, *arguments, **options):
        opened.append(file.name)
        return real(file, *arguments, **options)

    monkeypatch.setattr(np, "load", load)
    source = NpzFolder(folder, ["x", "y"], keep=2)
    assert opened == []
    for index in (0, 1, 3, 2, 7, 0, 4, 3):
        source[index]
    assert opened == ["a.npz", "b.npz", "c.npz", "b.npz"]


def test_npz_folders_that_do_not_fit(arrays):
    folder, _, _ = arrays
    where = f"file {folder}/d.npz cannot be read: "

    def raises(message, names=("x", "y"), **arrays):
        np.savez(folder / "d.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            NpzFolder(folder, names)

    x, y = np.zeros((2, 2, 3), np.float32), np.zeros(2, np.int16)
    raises(where + "it has no array 'y', only x, label", x=x, label=y)
    raises(where + "'y' must begin with the axis of the examples, got a scalar", x=x, y=np.int16(1))
    raises(f"arrays of {folder}/d.npz must have the same number of examples, got x 2, y 1", x=x, y=y[:1])
    raises(r"examples of 'x' in .*d.npz must be float32\[2, 3\] as in .*a.npz, got float32\[2, 1\]", x=x[..., :1], y=y)
    raises(r"examples of 'y' in .*d.npz must be int16\[\] as in .*a.npz, got float16\[\]", x=x, y=y.astype(np.float16))
    (folder / "d.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=where + "File is not a zip file"):
        NpzFolder(folder, ["x", "y"])
    (folder / "d.npz").write_bytes((folder / "c.npz").read_bytes()[:-100])
    with pytest.raises(ValueError, match=where):
        NpzFolder(folder, ["x", "y"])
    for names in ("x", []):
        with pytest.raises(TypeError, match="names must be a sequence of names of arrays, at least one, got"):
            NpzFolder(folder, names)
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        NpzFolder(folder, ["x"], keep=0)
    with pytest.raises(ValueError, match=f"folder {folder}/none does not exist"):
        NpzFolder(folder / "none", ["x"])
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=f"folder {folder}/empty must have at least one .npz file, got none"):
        NpzFolder(folder / "empty", ["x"])
    np.savez(folder / "empty" / "a.npz", x=x[:0])
    with pytest.raises(ValueError, match=f"files of {folder}/empty must hold at least one example, got 0"):
        NpzFolder(folder / "empty", ["x"])


def test_an_npz_file_that_is_damaged_later(arrays):
    folder, x, _ = arrays
    source = NpzFolder(folder, ["x", "y"])
    content = bytearray((folder / "c.npz").read_bytes())
    content[200] ^= 0xFF
    (folder / "c.npz").write_bytes(content)
    np.testing.assert_array_equal(source[0][0], x[0])
    with pytest.raises(ValueError, match=f"file {folder}/c.npz cannot be read: "):
        source[4]
