"""Runs that are killed by SIGKILL and go on, in processes of their own, against one that never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxnorm
from jaxnorm.training import latest_step

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "killed_run.py"
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(Path(jaxnorm.__file__).parents[1]),
    "PYTHONWARNINGS": "error",
}


def launch(folder: Path, result: Path, kind: str, *moment: str) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), str(folder), str(result), kind, *moment]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> int:
    output, _ = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode


def result_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as found:
        return dict(found)


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    assert len(a["history"]) == 4
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
            ("file:open .*tmp/state.*tmp/_METADATA:2", 3),  # while a checkpoint's arrays are being written
            (r"file:os.rename .*tmp .*/\d+$:2", 6),  # before a complete checkpoint (the second from here) gets its name
            (r"file:os.rmdir .*/\d+ :1", 9),  # while an old checkpoint is being removed
        ],
        "iterator": [
            ("batch:9", 6),  # between two checkpoints
        ],
    }[kind]
    for moment, reached in moments:
        assert finish(launch(folder, result, kind, moment)) == -signal.SIGKILL, moment
        assert latest_step(folder) == reached, moment
        assert not result.exists()
    assert finish(launch(folder, result, kind)) == 0
    assert_equal(result_of(result), expected)
    assert sorted(p.name for p in folder.iterdir()) == ["18", "20"]


@pytest.mark.parametrize("number", range(3, 240, 24))
def test_killed_before_any_operation_on_a_file(number, straight, tmp_path):
    kind, expected = straight
    folder, result = tmp_path / "run", tmp_path / "result.npz"
    killed = finish(launch(folder, result, kind, f"file:{number}")) == -signal.SIGKILL
    assert killed == (not result.exists())
    if killed:
        assert finish(launch(folder, result, kind)) == 0
    assert_equal(result_of(result), expected)


@pytest.mark.parametrize("attempt", range(4))
def test_killed_from_outside_at_any_time(attempt, straight, tmp_path):
    kind, expected = straight
    folder, result = tmp_path / "run", tmp_path / "result.npz"
    process = launch(folder, result, kind)
    while process.poll() is None and latest_step(folder) is None:
        time.sleep(0.002)
    time.sleep(0.06 * attempt)
    process.kill()
    finish(process)
    result.unlink(missing_ok=True)
    assert finish(launch(folder, result, kind)) == 0
    assert_equal(result_of(result), expected)
