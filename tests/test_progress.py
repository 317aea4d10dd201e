"""Bars of progress: drawn anew in a terminal, a line every half minute in a log."""

import io
import os
import pty
import sys
import termios
from collections.abc import Callable

import pytest

from jaxnorm import _progress as progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes time pass only when told to, for the log and for tqdm."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_a_log_has_a_line_at_the_beginning_one_every_half_minute_and_one_at_the_end(capsys, clock) -> None:
    with progress.progress_bar(total=100, unit="step") as bar:
        for number in range(100):
            bar.set_description(f"epoch {number // 50}")
            bar.set_postfix(loss=number)
            clock(1)
            bar.update()
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert "\r" not in err
    assert [line.partition("/100")[0].split()[-1] for line in lines] == ["0", "30", "60", "90", "100"]
    assert all(line == line.strip() and line.isascii() for line in lines)
    assert "[00:30<01:10," in lines[1]  # time taken and left
    assert "1.00step/s" in lines[1]
    assert lines[-1].startswith("epoch 1: 100%")
    assert "loss=99" in lines[-1]


def test_slow_steps_have_a_line_each_and_a_standing_bar_none(capsys, clock) -> None:
    with progress.progress_bar(total=3) as bar:
        for _ in range(3):
            clock(70)
            bar.update()
            for _ in range(100):
                bar.refresh()
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == [
        "0%|",
        "33%|###3",
        "67%|######6",
        "100%|##########|",
    ]


def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        with progress.progress_bar(total=3) as bar:
            bar.update(3)
        assert bar.n == 3
        monkeypatch.undo()
        with pytest.raises(OSError):  # noqa: PT011
            full.close()


def _read_to_the_end(leader: int) -> bytes:
    """What was written to a terminal that is closed now: it comes in pieces, and after the last Linux reports an error."""
    pieces = []
    while not pieces or pieces[-1]:
        try:
            pieces.append(os.read(leader, 10_000))
        except OSError:
            break
    return b"".join(pieces)


def test_a_terminal_shows_a_bar_in_one_line(monkeypatch) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", encoding="utf-8") as terminal:
        termios.tcsetwinsize(terminal, (24, 80))
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.progress_bar(total=3, mininterval=0) as bar:
            for _ in range(3):
                bar.update()
        terminal.flush()
    shown = _read_to_the_end(leader).decode()
    os.close(leader)
    assert shown.count("\n") == 1
    assert shown.count("\r") > 3
    assert "3/3" in shown


def test_a_notebook_shows_a_bar_in_one_line(monkeypatch) -> None:
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.progress_bar(total=1) as bar:
        bar.update()
    assert stream.getvalue().count("\n") == 1
    assert "\r" in stream.getvalue()


def test_a_bar_that_is_off_writes_nothing(capsys) -> None:
    with progress.progress_bar(total=1, disable=True) as bar:
        bar.update()
    assert not capsys.readouterr().err
