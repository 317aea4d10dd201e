"""Runs that are killed by SIGKILL and go on, in processes of their own, against one that never stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training.checkpoint_processes import assert_equal as assert_equal_states
from training.checkpoint_processes import make_state

import jaxnorm
from jaxnorm.training import latest_step, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(Path(jaxnorm.__file__).parents[1]),
    "PYTHONWARNINGS": "error",
}


def start(script: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def launch(folder: Path, result: Path, kind: str, *moment: str) -> subprocess.Popen:
    return start("killed_run.py", folder, result, kind, *moment)


def launch_processes(count: int, folder: Path, result: Path, moment: str | None = None) -> list[subprocess.Popen]:
    """Starts a run of so many processes, of which the last one is killed at the moment, if there is one."""
    port = free_port()
    moments = [()] * (count - 1) + [(moment,) if moment else ()]
    return [start("killed_processes.py", folder, result, port, count, i, *moments[i]) for i in range(count)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def finish(process: subprocess.Popen) -> int:
    output, _ = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode


def result_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as found:
        return dict(found)


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    assert len(a["history"]) > 1
    for name in a:
        assert (a[name].dtype, a[name].shape, a[name].tobytes()) == (b[name].dtype, b[name].shape, b[name].tobytes()), name


@pytest.fixture(scope="module", params=["function", "iterator"])
def straight(request, tmp_path_factory):
    """The result of a run of each kind that nothing stopped."""
    folder = tmp_path_factory.mktemp(request.param)
    assert finish(launch(folder / "run", folder / "result.npz", request.param)) == 0
    return request.param, result_of(folder / "result.npz")


def test_killed_again_and_again_it_ends_as_if_it_had_never_stopped(straight, tmp_path):
    kind, expected = straight
    folder, result = tmp_path / "run", tmp_path / "result.npz"
    moments = {
        "function": [
            (r"file:open .*6\.unfinished/state/_METADATA:1", (3,)),  # while a checkpoint's arrays are being written
            (r"file:os.rename .*9\.unfinished .*/9$:1", (6,)),  # before a complete checkpoint gets its name
            (r"file:os.rmdir .*/3\.unfinished :1", (9,)),  # while an old checkpoint is being removed
        ],
        "iterator": [
            ("batch:9", (3, 6)),  # between two checkpoints, of which the first may still be on its way to the disk
        ],
    }[kind]
    for moment, reached in moments:
        assert finish(launch(folder, result, kind, moment)) == -signal.SIGKILL, moment
        assert latest_step(folder) in reached, moment
        assert not result.exists()
    assert finish(launch(folder, result, kind)) == 0
    assert_equal(result_of(result), expected)
    assert sorted(p.name for p in folder.iterdir()) == ["18", "20"]


@pytest.mark.parametrize("number", range(3, 121, 40))
def test_killed_before_any_operation_on_a_file(number, straight, tmp_path):
    kind, expected = straight
    folder, result = tmp_path / "run", tmp_path / "result.npz"
    killed = finish(launch(folder, result, kind, f"file:{number}")) == -signal.SIGKILL
    assert killed == (not result.exists())
    if killed:
        assert finish(launch(folder, result, kind)) == 0
    assert_equal(result_of(result), expected)


@pytest.mark.parametrize("attempt", range(2))
def test_killed_from_outside_at_any_time(attempt, straight, tmp_path):
    kind, expected = straight
    folder, result = tmp_path / "run", tmp_path / "result.npz"
    process = launch(folder, result, kind)
    while process.poll() is None and latest_step(folder) is None:
        time.sleep(0.002)
    time.sleep(0.1 * attempt)
    process.kill()
    finish(process)
    result.unlink(missing_ok=True)
    assert finish(launch(folder, result, kind)) == 0
    assert_equal(result_of(result), expected)


def finish_all(processes: list[subprocess.Popen], killed: bool) -> None:
    """Waits for a run's processes; where one is killed, jax ends the others once they miss it."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes[-1] == (-signal.SIGKILL if killed else 0), outputs[-1]
    assert all((code != 0) == killed for code in codes[:-1]), (codes, outputs)


def test_killed_while_the_background_writes(tmp_path):
    finish_all(launch_processes(1, tmp_path / "straight", tmp_path / "straight.npz"), killed=False)
    moments = [
        (r"file:open .*3\.unfinished/part_0:1", None),  # when the arrays of the first checkpoint are written
        (r"file:open .*9\.unfinished/record:1", 6),  # before a checkpoint has its record
        (r"file:os.rename .*/6 .*/6\.unfinished:1", 12),  # before an old one is removed
    ]
    for moment, reached in moments:
        finish_all(launch_processes(1, tmp_path / "run", tmp_path / "run.npz", moment), killed=True)
        assert latest_step(tmp_path / "run") == reached, moment
    finish_all(launch_processes(1, tmp_path / "run", tmp_path / "run.npz"), killed=False)
    assert_equal(result_of(tmp_path / "run.npz"), result_of(tmp_path / "straight.npz"))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["18", "20"]


def test_one_of_two_processes_is_killed_while_the_background_writes(tmp_path):
    finish_all(launch_processes(2, tmp_path / "straight", tmp_path / "straight.npz"), killed=False)
    moment = r"file:open .*9.unfinished/part_1:1"
    finish_all(launch_processes(2, tmp_path / "run", tmp_path / "run.npz", moment), killed=True)
    assert latest_step(tmp_path / "run") == 6
    assert not (tmp_path / "run.npz").exists()
    finish_all(launch_processes(2, tmp_path / "run", tmp_path / "run.npz"), killed=False)
    assert_equal(result_of(tmp_path / "run.npz"), result_of(tmp_path / "straight.npz"))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["18", "20"]


def test_sigterm_to_one_of_two_processes_ends_both_with_a_checkpoint(tmp_path):
    finish_all(launch_processes(2, tmp_path / "straight", tmp_path / "straight.npz"), killed=False)
    processes = launch_processes(2, tmp_path / "run", tmp_path / "run.npz", "term:4")
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    reached = latest_step(tmp_path / "run")
    assert 4 <= reached <= 20
    assert f"SIGTERM: saved step {reached} in {tmp_path / 'run'}" in outputs[0]
    assert "saved step" not in outputs[1]
    finish_all(launch_processes(2, tmp_path / "run", tmp_path / "run.npz"), killed=False)
    assert_equal(result_of(tmp_path / "run.npz"), result_of(tmp_path / "straight.npz"))


def test_two_processes_read_what_one_wrote_and_one_reads_what_two_wrote(tmp_path):
    save_checkpoint(tmp_path / "one", make_state(), position={"by": "one"})
    port = free_port()
    finish_all([start("checkpoint_processes.py", tmp_path, port, 2, i) for i in range(2)], killed=False)
    found = load_checkpoint(tmp_path / "many", make_state(), step=5)
    assert found.position == 5
    assert_equal_states(found.state, make_state(step=5))
