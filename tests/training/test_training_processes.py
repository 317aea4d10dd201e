"""Processes that find each other, or say why not; that share a run, and end together."""

import filecmp
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from experiments.test_frame import EXAMPLE
from jax.sharding import AxisType
from several_processes import ends, free_port, start
from training.many_devices_run import run

from jaxnorm.experiments._run import run_experiment
from jaxnorm.training import connect
from jaxnorm.training.processes import VARIABLES, _meet, gather, place_among

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def meet(port: int, *processes: tuple[int, int], seconds: float = 0.5) -> list[str]:
    """What goes wrong for processes, given as `(num_processes, process_id)`, that meet at a port, each in a thread."""
    wrong = [""] * len(processes)

    def one(number: int, count: int, own: int) -> None:
        try:
            _meet(f"localhost:{port}", count, own, time.monotonic() + seconds, seconds)
        except ConnectionError as error:
            wrong[number] = str(error)

    threads = [threading.Thread(target=one, args=(i, *process)) for i, process in enumerate(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10 * seconds)
    assert not any(thread.is_alive() for thread in threads)
    return wrong


def test_processes_meet():
    assert meet(free_port(), (3, 2), (3, 0), (3, 1), seconds=5) == [""] * 3


def test_one_that_does_not_come_is_named():
    port = free_port()
    wrong = meet(port, (4, 0), (4, 2))
    expected = f"of 4 processes, these have not come to localhost:{port} within 0.5 s: 1, 3; see what they say"
    assert wrong[0] == expected
    assert expected in wrong[1] or "could not be reached by process 2" in wrong[1]


def test_a_coordinator_that_is_not_there():
    (wrong,) = meet(port := free_port(), (2, 1))
    assert wrong.startswith(
        f"coordinator localhost:{port} could not be reached by process 1 within 0.5 s: Connection refused; is"
    )
    assert wrong.endswith("is process 0 running there, with the same address, and does a firewall let the port through?")


def test_all_are_told_of_two_numbers_of_processes():
    words = "num_processes must be the same in all processes, got 3 in process 0 and 2 in process 1"
    assert meet(free_port(), (3, 0), (2, 1), seconds=5) == [words] * 2


def test_all_are_told_of_a_number_that_two_have():
    words = "process_id must be another one in each process, got 1 twice"
    assert meet(free_port(), (3, 0), (3, 1), (3, 1), seconds=5) == [words] * 3


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        found = meet(port, (2, 0), (2, 1))
    assert f"coordinator localhost:{port} cannot be opened by process 0: Address already in use" in found[0]
    assert "could not be reached by process 1" in found[1]


def test_strangers_are_no_processes():
    port = free_port()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(meet(port, (2, 0), seconds=1)))
    thread.start()
    time.sleep(0.3)
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        thread.join()
    assert "have not come" in found[0]


@pytest.mark.parametrize("given, words", [
    (("h:1", 2, None), "given all three, or none, got process_id=None and no variable JAX_PROCESS_ID"),
    ((None, 2, 1), "got coordinator=None and no variable JAX_COORDINATOR_ADDRESS"),
    (("h", 2, 1), "coordinator must be an address with a port, HOST:PORT, got 'h'"),
    ((":80", 2, 1), "HOST:PORT, got ':80'"),
    (("h:99999", 2, 1), "HOST:PORT, got 'h:99999'"),
    (("h:1", 2, 2), "process_id must be below num_processes, 2, got 2"),
    (("h:1", 0, 0), "num_processes must be at least 1, got 0"),
    (("h:1", 2, -1), "process_id must be at least 0, got -1"),
])  # fmt: skip
def test_a_place_that_is_none(given, words):
    with pytest.raises(ValueError, match=re.escape(words)), connect(*given):
        pass


def test_a_place_from_the_environment(monkeypatch):
    assert place_among(None, None, None) is None
    for name, value in zip(VARIABLES, ("[::1]:80", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    assert place_among(None, None, None) == ("[::1]:80", 4, 3)
    assert place_among("h:1", None, 2) == ("h:1", 4, 2)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "four")
    with pytest.raises(ValueError, match="the variable JAX_NUM_PROCESSES must be an integer of at least 0, got 'four'"):
        place_among(None, None, None)


def test_one_process_needs_no_other():
    with connect("localhost:1", 1, 0):
        assert gather("x") == ["x"]
        assert not jax.distributed.is_initialized()
    with pytest.raises(KeyError), connect("localhost:1", 1, 0):
        raise KeyError


@pytest.mark.slow
def test_two_processes_refuse_together_what_differs(tmp_path):
    for status, output in ends(start(HERE / "process_run.py", 2, "checks", tmp_path)):
        assert status == 0, output
        assert output.endswith("the end\n")


@pytest.mark.slow
def test_processes_that_slurm_starts_find_each_other(tmp_path):
    for status, output in ends(start(HERE / "process_run.py", 2, "slurm", tmp_path)):
        assert status == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("what", ["raise", "exit", "kill", "sleep"])
def test_when_one_ends_the_other_does(what, tmp_path):
    (first, output), (second, own) = ends(start(HERE / "process_run.py", 2, what, tmp_path), 40)
    assert second == (-signal.SIGKILL if what == "kill" else 1), own
    assert ("all is over" in own) == (what != "kill")
    assert ("ValueError" in own) == (what in ("raise", "sleep"))
    assert first in (1, -signal.SIGABRT), output
    assert "the end" not in output + own


@pytest.mark.slow
@pytest.mark.parametrize("what, words", [
    ("rows", "come to a batch of another size than the one before within 2 s"),
    ("steps", "come to the end of epoch 1 after 2 steps within 2 s"),
])  # fmt: skip
def test_processes_that_go_astray_end(what, words, tmp_path):
    (_, output), (status, own) = found = ends(start(HERE / "process_run.py", 2, what, tmp_path), 60)
    assert all(code != 0 for code, _ in found), output + own
    assert status == 1
    assert f"RuntimeError: not all processes have {words}: they must all take the same steps" in own


@pytest.mark.slow
def test_an_experiment_of_two_processes_writes_what_one_does(tmp_path):
    outputs = ends(start(HERE / "process_run.py", 2, "experiment", tmp_path / "two"))
    assert [status for status, _ in outputs] == [0, 0], outputs
    run_experiment("variance_shift", EXAMPLE, out=tmp_path / "one")
    names = sorted(os.listdir(tmp_path / "one"))
    assert len(names) == 4
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False) == (names, [], [])
    assert ["Two is more than one: holds in part." in output or "holds." in output for _, output in outputs] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("processes, devices, axis_type", [(2, 2, "Explicit"), (4, 1, "Auto")])
def test_a_conv_net_in_several_processes_is_that_of_one(processes, devices, axis_type, tmp_path):
    result = tmp_path / "result.npz"
    for status, output in ends(start(HERE / "many_devices_run.py", processes, result, 1, axis_type, devices)):
        assert status == 0, output
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    expected = run(mesh, 1)
    with np.load(result) as found:
        assert set(found) == set(expected)
        for name, value in expected.items():
            if name.startswith("masks"):
                np.testing.assert_array_equal(found[name], value)
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=2e-6)
