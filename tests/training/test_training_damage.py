"""Checkpoints that are damaged: none is read as if it were whole, and the one before it is found."""

import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnorm.training import (
    CheckpointWriter,
    best_step,
    init_train_state,
    latest_step,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from jaxnorm.training import checkpoints as checkpoints_module

POSITION, HISTORY = {"epoch": 3, "note": "é"}, [{"epoch": 1, "loss": 0.1}]


def make_state(step=4):
    state = init_train_state(jax.random.key(0), {"w": jnp.arange(600.0), "b": jnp.ones(3)}, (), optax.sgd(0.1))
    return state._replace(step=jnp.int32(step))


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damages(content):
    """Gives what a file may have become: removed, emptied, cut, lengthened, or changed somewhere."""
    yield from (None, b"", content[: len(content) // 2], content + b"\0")
    for place in (0, len(content) // 3, len(content) // 2, -1):
        changed = bytearray(content)
        changed[place] ^= 0x20
        yield bytes(changed)


def test_damage_to_any_file_is_found(tmp_path):
    save_checkpoint(tmp_path, make_state(), position=POSITION, history=HISTORY)
    paths = files_of(tmp_path)
    assert {path.relative_to(tmp_path / "4").parts[0] for path in paths} == {"state", "record.jsonl"}
    for path in paths:
        content = path.read_bytes()
        name = path.relative_to(tmp_path / "4")
        for changed in damages(content):
            path.unlink() if changed is None else path.write_bytes(changed)
            what = "missing" if changed is None else "not as it was written"
            message = f"folder {tmp_path}/4 is a damaged checkpoint; load_newest sets it aside .*: file {name} is {what}"
            with pytest.raises(ValueError, match=message):
                load_checkpoint(tmp_path, make_state())
            path.write_bytes(content)
    found = load_checkpoint(tmp_path, make_state())
    assert (found.position, found.history) == (POSITION, HISTORY)


def damage_at_random(folder, rng):
    """Damages a checkpoint as a broken disk might, and returns what it did."""
    files = files_of(folder)
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    file = files[rng.integers(len(files))]
    content = bytearray(file.read_bytes())
    kind = ("cut", "flipped", "removed", "folder removed", "everything removed")[rng.integers(5)]
    if kind == "cut":
        file.write_bytes(content[: rng.integers(len(content))])
    elif kind == "flipped":
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
    elif kind == "removed":
        file.unlink()
    elif kind == "folder removed":
        shutil.rmtree(folders[rng.integers(len(folders))])
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    return kind


def test_drill_the_newest_whole_one_is_found_whatever_happens_to_newer_ones(tmp_path):
    rng = np.random.default_rng(0)
    save_checkpoint(tmp_path, make_state(step=1), position=POSITION)
    kinds = set()
    for step in range(2, 14):
        save_checkpoint(tmp_path, make_state(step=step), keep=20)
        kinds.add(damage_at_random(tmp_path / str(step), rng))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load_newest(tmp_path, make_state())
    assert len(kinds) == 5
    assert (found.position, found.state.step) == (POSITION, 1)
    for step, warning in zip(range(13, 1, -1), caught, strict=True):
        assert warning.category is RuntimeWarning
        assert warning.filename == __file__
        assert str(warning.message).startswith(f"checkpoint {tmp_path}/{step} is damaged and was set aside, with .dam")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["1", *(f"{step}.damaged" for step in range(2, 14))])


def test_what_was_set_aside_is_not_found_again_and_its_step_is_free(tmp_path):
    for _ in range(2):
        save_checkpoint(tmp_path, make_state(step=8), position=POSITION)
        (tmp_path / "8/record.jsonl").unlink()
        with (
            pytest.warns(RuntimeWarning, match=r"8 is damaged and .* file record\.jsonl is missing"),
            pytest.raises(ValueError, match=f"folder {tmp_path} has no complete checkpoint"),
        ):
            load_newest(tmp_path, make_state())
        assert latest_step(tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8.damaged", "8.damaged-1"]
    save_checkpoint(tmp_path, make_state(step=8), position=POSITION)
    assert load_newest(tmp_path, make_state()).position == POSITION


def test_a_damaged_one_is_never_the_best(tmp_path):
    with CheckpointWriter(tmp_path, keep=1, best="score") as writer:
        for step, score in enumerate([3.0, 2.0, 1.0]):
            writer.save(make_state(step=step), history=[{"score": score}])
    assert best_step(tmp_path) == 0
    (tmp_path / "0/record.jsonl").write_text("{}")
    assert best_step(tmp_path) == 2
    shutil.rmtree(tmp_path / "2")
    assert best_step(tmp_path) is None


@pytest.mark.parametrize("error", [MemoryError("no memory"), ValueError("RESOURCE_EXHAUSTED")], ids=repr)
def test_what_is_whole_but_cannot_be_read_is_not_set_aside(error, tmp_path, monkeypatch):
    def fail(place, blanks):
        raise error

    save_checkpoint(tmp_path, make_state())
    monkeypatch.setattr(checkpoints_module, "_restore", fail)
    with pytest.raises(OSError, match=f"checkpoint {tmp_path}/4 could not be read: {error}"):
        load_newest(tmp_path, make_state())
    assert latest_step(tmp_path) == 4


def test_arrays_that_are_read_otherwise_than_they_were_written(tmp_path, monkeypatch):
    restore = checkpoints_module._restore

    def other(place, blanks):
        arrays = restore(place, blanks)
        return arrays | {".params['w']": arrays[".params['w']"].at[7].add(1)}

    save_checkpoint(tmp_path, make_state())
    monkeypatch.setattr(checkpoints_module, "_restore", other)
    with pytest.raises(ValueError, match=r"4 is a damaged checkpoint; .*: \.params\['w'\] is not as it was written"):
        load_checkpoint(tmp_path, make_state())
