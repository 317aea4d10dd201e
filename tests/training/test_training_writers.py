"""TensorBoard's files, read back record by record."""

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from jaxnorm.training import Status, TensorBoardWriter, init_train_state

PARAMS = {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)}, "table": jnp.arange(4)}
STATS = {"norm": {"mean": jnp.array([jnp.nan, 1.0, 3.0, jnp.inf]), "var": jnp.full(2, jnp.nan)}}
STATE = init_train_state(jax.random.key(0), PARAMS, STATS, optax.sgd(0.1))


def status(step: int, history: Sequence[dict[str, Any]] = (), *, epoch: int = 1, **metrics: float) -> Status:
    return Status(STATE, epoch, step, metrics, list(history))


def records(path: Path) -> list[Event]:
    """The events of a file: each is its length, the length's checksum, itself, and its checksum."""
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        data = content[12 : 12 + length]
        assert content[8:12] == struct.pack("<I", masked_crc32c(content[:8]))
        assert content[12 + length : 16 + length] == struct.pack("<I", masked_crc32c(data))
        events.append(Event.FromString(data))
        content = content[16 + length :]
    return events


def shown(folder: Path) -> dict[str, dict[int, Any]]:
    """What TensorBoard shows of a folder: values by name and step, without what a later file takes back."""
    found: dict[str, dict[int, Any]] = {}
    for path in sorted(folder.iterdir()):
        first, *events = records(path)
        assert first.file_version == "brain.Event:2"
        for event in events:
            if event.session_log.status == SessionLog.START:
                found = {tag: {step: v for step, v in of.items() if step < event.step} for tag, of in found.items()}
            for value in event.summary.value:
                assert event.step not in found.setdefault(value.tag, {}), f"{value.tag} is there twice for step {event.step}"
                found[value.tag][event.step] = value.histo if value.HasField("histo") else value.simple_value
    return found


def open_files(folder: Path) -> list[str]:
    descriptors = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return [path for path in (os.path.realpath(one) for one in descriptors) if path.startswith(str(folder))]


def test_scalars_are_those_of_steps_and_of_epochs(tmp_path: Path) -> None:
    history = [{"epoch": 1, "step": 18, "loss": 0.1, "eval_loss": 0.2}]  # two steps of the 20 were skipped
    with TensorBoardWriter(tmp_path / "run") as board:
        assert not (tmp_path / "run").exists()
        board.scalars(status(10, loss=0.3, accuracy=float("nan")))
        board.scalars(status(20, loss=1e-7))
        board.scalars(status(20, history, loss=1e-7))  # the hook of the epoch, which ends with a step
        board.scalars(status(30, history, epoch=2, loss=5.0))
        assert len(open_files(tmp_path)) == 1
    assert open_files(tmp_path) == []
    found = shown(tmp_path / "run")
    accuracy = found.pop("step/accuracy")
    assert found == {
        "step/loss": {10: np.float32(0.3), 20: np.float32(1e-7), 30: 5.0},
        "epoch/loss": {20: np.float32(0.1)},
        "epoch/eval_loss": {20: np.float32(0.2)},
    }
    assert list(accuracy) == [10]
    assert np.isnan(accuracy[10])


def test_histograms_are_of_parameters_and_statistics_by_path(tmp_path: Path) -> None:
    with TensorBoardWriter(tmp_path) as board:
        write = board.histograms()
        write(status(1))
        write(status(1))
        board.histograms(select="norm|bias$")(status(2))
    found = shown(tmp_path)
    assert {tag: list(steps) for tag, steps in found.items()} == {
        "params/Dense_0/kernel": [1],
        "params/Dense_0/bias": [1, 2],
        "stats/norm/mean": [1, 2],
    }
    kernel = found["params/Dense_0/kernel"][1]
    assert (kernel.min, kernel.max, kernel.num, kernel.sum, kernel.sum_squares) == (0, 5, 6, 15, 55)
    counts, limits = np.asarray(kernel.bucket), np.asarray(kernel.bucket_limit)
    assert limits[-1] == 5
    assert_array_equal(np.cumsum(counts)[np.searchsorted(limits, np.arange(6.0))], np.arange(1, 7))
    mean = found["stats/norm/mean"][1]
    assert (mean.min, mean.max, mean.num) == (1, 3, 2)
    assert_allclose([found["params/Dense_0/bias"][2].sum, sum(found["params/Dense_0/bias"][2].bucket)], 3)


def test_a_resumed_run_shows_nothing_twice(tmp_path: Path) -> None:
    for start, loss in ((0, 1.0), (20, 2.0)):  # killed after step 50, resumed from step 20
        with TensorBoardWriter(tmp_path) as board:
            for step in range(start + 10, 60 - start // 2, 10):
                board.scalars(status(step, loss=loss))
                board.histograms(select="kernel")(status(step))
    assert len(list(tmp_path.iterdir())) == 2
    found = shown(tmp_path)
    assert found["step/loss"] == {10: 1, 20: 1, 30: 2, 40: 2}
    assert list(found["params/Dense_0/kernel"]) == [10, 20, 30, 40]


@pytest.mark.slow
def test_what_a_hook_has_written_outlives_a_killed_run(tmp_path: Path) -> None:
    program = f"""
import os, signal, types
from jaxnorm.training import TensorBoardWriter
board = TensorBoardWriter({str(tmp_path)!r})
for step in (1, 2, 3):
    board.scalars(types.SimpleNamespace(epoch=1, step=step, metrics={{"loss": step / 3}}, history=[]))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert shown(tmp_path) == {"step/loss": {step: np.float32(step / 3) for step in (1, 2, 3)}}


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with TensorBoardWriter(tmp_path / "run") as board:
        board.scalars(status(1, loss=1.0))
        board.histograms()(status(1))
    assert not (tmp_path / "run").exists()


def test_errors_name_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with (
        TensorBoardWriter(tmp_path / "file") as board,
        pytest.raises(OSError, match=r"TensorBoard's folder .*/file could not be written: .*exists"),
    ):
        board.scalars(status(1, loss=1.0))
    with pytest.raises(ValueError, match=r"TensorBoardWriter of .*/file is closed: hooks must run inside its with block"):
        board.scalars(status(1, loss=1.0))
    with pytest.raises(ValueError, match=r"select must be a regular expression, got '\('"):
        board.histograms(select="(")
    with pytest.raises(ValueError, match=r"select must be in a path of params/Dense_0/bias, .*, stats/norm/var, got 'conv'"):
        board.histograms(select="conv")(status(1))
    monkeypatch.setitem(sys.modules, "tensorboardX.proto", None)
    with pytest.raises(ImportError, match=r"needs the package tensorboardX: pip install 'jaxnorm\[board\]'"):
        TensorBoardWriter(tmp_path)


def test_a_full_disk_is_an_error_and_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TensorBoardWriter(tmp_path) as board:
        board.scalars(status(1, loss=1.0))
        inner = board._file._writer
        monkeypatch.setattr(board._file, "_writer", open("/dev/full", "wb"))  # noqa: SIM115
        with pytest.raises(OSError, match=f"TensorBoard's folder {tmp_path} could not be written: .*No space left"):
            board.scalars(status(2, loss=1.0))
        inner.close()
        with pytest.raises(OSError, match="No space left"):
            board.__exit__()
    assert open_files(Path("/dev/full")) == []
    assert shown(tmp_path) == {"step/loss": {1: 1.0}}


@pytest.mark.slow
def test_parameters_that_are_spread_over_processes_are_written_whole(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = f"""
import sys, types
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxnorm.training import TensorBoardWriter
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize({address!r}, 2, int(sys.argv[1]))
rows = np.arange(8, dtype=np.float32).reshape(2, 4)
mesh = jax.make_mesh((2,), ("data",))
params = {{
    name: jax.make_array_from_callback((2, 4), NamedSharding(mesh, PartitionSpec(*spec)), lambda part: rows[part])
    for name, spec in {{"spread": ("data",), "copied": ()}}.items()
}}
state = types.SimpleNamespace(params=params, stats=())
with TensorBoardWriter({str(tmp_path)!r}) as board:
    board.histograms()(types.SimpleNamespace(state=state, step=1))
"""
    both = [subprocess.Popen([sys.executable, "-c", program, str(number)]) for number in range(2)]
    assert [process.wait(100) for process in both] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1
    found = shown(tmp_path)
    assert found.keys() == {"params/spread", "params/copied"}
    for steps in found.values():
        assert (steps[1].num, steps[1].sum, steps[1].max) == (8, 28, 7)
