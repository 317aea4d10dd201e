"""Checkpoints that are written beside the training."""

import resource
import threading
from pathlib import Path

import chex
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
    save_checkpoint,
)
from jaxnorm.training import checkpoint_writer as writer_module


def make_state(step=0, fill=1.0):
    state = init_train_state(jax.random.key(0), jnp.full(3, fill), (), optax.sgd(0.1))
    return state._replace(step=jnp.int32(step))


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture
def held(monkeypatch):
    """Holds the write back, in the background, until it is set."""
    event = threading.Event()
    complete = CheckpointWriter._complete

    def wait_and_complete(self, *args):
        assert event.wait(60)
        complete(self, *args)

    monkeypatch.setattr(CheckpointWriter, "_complete", wait_and_complete)
    yield event
    event.set()


@pytest.fixture
def full_disk():
    """Makes the disk full, from the first call until the second: writes then fail where those on a full disk do."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda full: resource.setrlimit(resource.RLIMIT_FSIZE, (100 if full else before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_save_returns_before_the_checkpoint_is_complete(held, tmp_path):
    with CheckpointWriter(tmp_path) as writer:
        writer.save(make_state(step=1))
        assert latest_step(tmp_path) is None
        held.set()
        writer.wait()
        assert latest_step(tmp_path) == 1
        writer.wait()


def test_the_buffers_may_be_donated_right_after(held, tmp_path):
    step = jax.jit(lambda s: s._replace(step=s.step + 1, params=jax.tree.map(lambda w: w * 1.5, s.params)), donate_argnums=0)
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=size), jnp.float32) for name, size in (("big", 200_000), ("small", 3))}
    state = init_train_state(jax.random.key(0), params, (), optax.sgd(0.1))
    expected = []
    held.set()
    with CheckpointWriter(tmp_path, keep=5) as writer:
        for _ in range(5):
            state = step(state)
            expected.append(jax.device_get(state.params))
            writer.save(state)
    for number, params in enumerate(expected, 1):
        chex.assert_trees_all_equal(load_checkpoint(tmp_path, state, step=number).state.params, params)


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = [0.1, 0.9, 0.2, np.nan, 0.9, 0.3]
    with CheckpointWriter(tmp_path, keep=2, best="accuracy") as writer:
        for step, score in enumerate(scores):
            writer.save(make_state(step=step), history=[{"accuracy": 0.95}, {"accuracy": score, "step": step}])
            writer.wait()
            assert best_step(tmp_path) == (0 if step == 0 else 1)
            assert steps_in(tmp_path) == sorted({max(0, step - 1), step, best_step(tmp_path)})
        writer.save(make_state(step=6), history=[{"accuracy": 0.99, "step": 5}])  # of another state than this
        writer.save(make_state(step=7))
    assert steps_in(tmp_path) == [1, 6, 7]
    with CheckpointWriter(tmp_path, keep=1, best="accuracy") as writer:  # a run that goes on knows what was
        writer.save(make_state(step=8), history=[{"accuracy": 0.91}])
    assert steps_in(tmp_path) == [8]
    assert load_checkpoint(tmp_path, make_state(), step=best_step(tmp_path)).state.step == 8


def test_the_least_may_be_the_best_and_another_metric_starts_anew(tmp_path):
    with CheckpointWriter(tmp_path, keep=1, best="loss", best_mode="min") as writer:
        for step, score in enumerate([3, 1, 2]):
            writer.save(make_state(step=step), history=[{"loss": score, "accuracy": step}])
    assert steps_in(tmp_path) == [1, 2]
    with CheckpointWriter(tmp_path, keep=2, best="accuracy") as writer:
        writer.save(make_state(step=3), history=[{"accuracy": 0.5}])
    assert best_step(tmp_path) == 3
    assert steps_in(tmp_path) == [2, 3]


@pytest.mark.parametrize("row", [{"loss": 1.0}, {"accuracy": "high"}, {"accuracy": True}, {"accuracy": None}], ids=repr)
def test_a_best_that_the_row_does_not_have(row, tmp_path):
    with CheckpointWriter(tmp_path, best="accuracy") as writer:
        message = "best must be the name of a number in the newest row of the history, got 'accuracy' for {"
        with pytest.raises(ValueError, match=message):
            writer.save(make_state(), history=[{"accuracy": 1.0}, row])
    assert latest_step(tmp_path) is None


@pytest.mark.parametrize("call", ["save", "wait", "close"])
def test_what_failed_in_the_background_is_raised_by_the_next_call(call, full_disk, tmp_path):
    save_checkpoint(tmp_path, make_state(step=1))
    writer = CheckpointWriter(tmp_path)
    full_disk(True)
    writer.save(make_state(step=2))
    writer._writing[1].exception()
    full_disk(False)
    with pytest.raises(OSError, match=f"^checkpoint {tmp_path}/2 could not be written: .*[Ff]ile too large"):
        getattr(writer, call)(*[make_state(step=3)] * (call == "save"))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    if call != "close":
        writer.save(make_state(step=2, fill=5.0))  # the step is free again, and the error is told once
        writer.close()
        assert steps_in(tmp_path) == [1, 2]
        assert load_checkpoint(tmp_path, make_state()).state.params[0] == 5


def test_a_failure_while_the_buffers_are_copied_does_not_hang(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise RuntimeError("no copy")

    with CheckpointWriter(tmp_path) as writer:
        monkeypatch.setattr(writer._handler, "async_save", fail)
        writer.save(make_state())
        with pytest.raises(OSError, match=f"checkpoint {tmp_path}/0 could not be written: no copy"):
            writer.wait()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_cleared_away(monkeypatch, tmp_path):
    def fail(path):
        raise PermissionError("no right")

    monkeypatch.setattr(writer_module, "remove_unfinished", fail)
    with pytest.raises(OSError, match=f"folder {tmp_path} could not be cleared of unfinished checkpoints: no right"):
        CheckpointWriter(tmp_path)


def test_an_exception_waits_for_the_write_and_says_if_that_failed(full_disk, tmp_path):
    with pytest.raises(KeyError) as caught, CheckpointWriter(tmp_path) as writer:  # noqa: PT012
        writer.save(make_state(step=1))
        raise KeyError("stop")
    assert not hasattr(caught.value, "__notes__")
    assert latest_step(tmp_path) == 1
    with pytest.raises(KeyError) as caught, CheckpointWriter(tmp_path) as writer:  # noqa: PT012
        full_disk(True)
        writer.save(make_state(step=2))
        raise KeyError("stop")
    full_disk(False)
    (note,) = caught.value.__notes__
    assert note.startswith(f"checkpoint {tmp_path}/2 could not be written: ")
    assert latest_step(tmp_path) == 1


def test_nothing_stays_open(tmp_path):
    def write(number):
        with CheckpointWriter(tmp_path / str(number)) as writer:
            writer.save(make_state())

    write(0)
    files, threads = len(list(Path("/proc/self/fd").iterdir())), set(threading.enumerate())
    for number in range(1, 4):
        write(number)
    assert set(threading.enumerate()) <= threads
    assert len(list(Path("/proc/self/fd").iterdir())) <= files


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        CheckpointWriter(tmp_path, keep=0)
    with pytest.raises(ValueError, match="best_mode must be 'max' or 'min', got 'most'"):
        CheckpointWriter(tmp_path, best_mode="most")
    with pytest.raises(TypeError, match="best must be str, got 3"):
        CheckpointWriter(tmp_path, best=3)
    with CheckpointWriter(tmp_path / "new") as writer:
        with pytest.raises(TypeError, match="position and history must be numbers, strings, lists and dicts"):
            writer.save(make_state(), position={1, 2})
        writer.save(make_state(step=4))
        with pytest.raises(ValueError, match=f"folder {tmp_path}/new already has a checkpoint of step 4, got one of step 4"):
            writer.save(make_state(step=4))
