"""Histories as files, whole or not at all, and as pictures."""

import math
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxnorm.training import plot_history, read_history, write_history

HISTORY: list[dict[str, Any]] = [
    {"epoch": 1, "step": 10, "loss": 0.1 + 0.2, "accuracy": 1.0},
    {"epoch": 2, "step": 20, "loss": 1e-30, "accuracy": 0.5, "eval_loss": -math.inf, "dead/Dense_0, first": 0.25},
    {"epoch": 3, "step": 30, "loss": math.nan, "eval_loss": 1e22},
]


@pytest.fixture
def no_space() -> Iterator[None]:
    """Lets no file grow beyond 1,000 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_what_is_written_is_read_to_the_bit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"history.{suffix}"
    for rows in (HISTORY[:1], HISTORY):
        write_history(str(path), rows)
        found = read_history(path)
        assert repr(found) == repr(rows)  # which shows types, order and every digit, and NaN as equal
        assert os.listdir(path.parent) == [path.name]
    write_history(path, [])
    assert read_history(path) == []


def test_a_table_has_its_columns_in_the_order_of_their_appearance(tmp_path: Path) -> None:
    write_history(tmp_path / "history.csv", HISTORY)
    assert (tmp_path / "history.csv").read_text() == (
        'epoch,step,loss,accuracy,eval_loss,"dead/Dense_0, first"\n'
        "1,10,0.30000000000000004,1.0,,\n"
        "2,20,1e-30,0.5,-inf,0.25\n"
        "3,30,nan,,1e+22,\n"
    )


@pytest.mark.parametrize("name", ["history.csv", "history.json"])
def test_a_file_that_does_not_fit_is_named_and_the_older_one_stays(tmp_path: Path, no_space: None, name: str) -> None:
    path = tmp_path / name
    write_history(path, HISTORY)
    with pytest.raises(OSError, match=rf"{path} could not be written: .*File too large"):
        write_history(path, HISTORY * 20)
    assert repr(read_history(path)) == repr(HISTORY)
    assert os.listdir(tmp_path) == [name]


def test_a_picture_that_does_not_fit_leaves_the_older_one(tmp_path: Path, no_space: None) -> None:
    path = tmp_path / "history.png"
    path.write_bytes(b"older")
    with pytest.raises(OSError, match=rf"{path} could not be written: .*File too large"):
        plot_history([{"loss": 1.0}], path)
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["history.png"]


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/history.csv could not be written: .*(exists|Not a directory)"):
        write_history(tmp_path / "file" / "history.csv", HISTORY)


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write_history(tmp_path / "history.csv", HISTORY)
    assert os.listdir(tmp_path) == []


def test_a_picture_has_a_panel_for_each_metric(tmp_path: Path) -> None:
    path = tmp_path / "history.png"
    rows = [
        {"epoch": e, "step": 9 * e, "loss": 1 / e, "dead/a": 0.1, "dead/b": 0.2, "seconds": 3.0}
        | ({"eval_loss": 2 / e, "eval_accuracy": 0.9} if e % 2 == 0 else {})
        for e in range(1, 31)
    ]
    figure = plot_history(rows, path)
    shown = {
        axes.get_title("left"): {line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in figure.axes
    }
    assert {panel: list(curves) for panel, curves in shown.items()} == {
        "loss": ["training", "evaluation"],
        "dead": ["a", "b"],
        "seconds": ["training"],
        "accuracy": ["evaluation"],
    }
    assert shown["loss"]["training"] == [[e, 1 / e] for e in range(1, 31)]
    assert shown["loss"]["evaluation"] == [[e, 2 / e] for e in range(2, 31, 2)]
    assert figure.get_suptitle() == "After epoch 30: eval loss 0.06667, eval accuracy 0.9"
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert 1900 < int.from_bytes(content[16:20], "big") <= 2000
    assert len(content) < 100_000


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"plot_history needs the package matplotlib: pip install 'jaxnorm\[demo\]'"):
        plot_history(HISTORY[:1])


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in .csv or .json, got 'history.txt'"):
        write_history("history.txt", HISTORY)
    with pytest.raises(TypeError, match=r"history must hold numbers, got 'high' as loss in row 1"):
        write_history(tmp_path / "history.csv", [{"loss": 1.0}, {"loss": "high"}])
    with pytest.raises(TypeError, match=r"history must hold numbers, got True as done in row 0"):
        write_history(tmp_path / "history.json", [{"done": True}])
    with pytest.raises(ValueError, match="history must have rows with metrics, got 1 rows without"):
        plot_history([{"epoch": 1, "step": 10}])
    assert os.listdir(tmp_path) == []
    for name, text in (
        ("a.csv", "epoch,loss\n1,high\n"),
        ("b.csv", "epoch,loss\n1\n"),
        ("c.json", '[{"loss": '),
        ("d.json", "3"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"history {tmp_path}/{name} must hold rows of numbers: "):
            read_history(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_history(tmp_path / "nowhere.csv")
