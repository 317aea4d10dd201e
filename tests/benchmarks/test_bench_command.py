"""`python -m jaxnorm bench`: its errors, and a run from the command to the files."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from jaxnorm.__main__ import main
from jaxnorm.benchmarks import _report, _run
from jaxnorm.benchmarks._environment import worker_environment
from jaxnorm.benchmarks._rows import ROWS


def fails(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 2) -> str:
    """Returns the one line with which a command line ends."""
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *argv])
    assert exit_.value.code == status
    out, err = capsys.readouterr()
    assert not out
    return err


def test_list_names_every_row(capsys) -> None:
    assert main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(row.name in out for row in ROWS)


def test_an_unknown_row_names_the_known_ones(capsys) -> None:
    err = fails(capsys, "--only", "dropout", "batchnorm")
    assert err.count("\n") == 1
    assert "--only" in err
    assert "'batchnorm'" in err
    assert all(row.name in err for row in ROWS)


def test_only_needs_a_name(capsys) -> None:
    assert "--only" in fails(capsys, "--only")


def test_a_folder_that_cannot_be_written_to_is_named_before_the_work_begins(capsys, tmp_path) -> None:
    file = tmp_path / "taken"
    file.write_text("")
    err = fails(capsys, "--out", str(file))
    assert err.count("\n") == 1
    assert "--out" in err
    assert str(file) in err


def test_missing_matplotlib_is_named_with_the_extra_that_has_it(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    err = fails(capsys, "--out", str(tmp_path))
    assert "matplotlib" in err
    assert "pip install 'jaxnorm[demo]'" in err


def test_options_reach_the_run(monkeypatch, tmp_path) -> None:
    given = []
    monkeypatch.setattr(_run, "run", lambda **options: given.append(options))
    assert main(["bench", "--quick", "--only", "dropout", "batch_norm", "--out", str(tmp_path)]) == 0
    assert main(["bench"]) == 0
    assert given == [
        {"out": tmp_path, "only": ["dropout", "batch_norm"], "quick": True},
        {"out": Path("results", "bench"), "only": (), "quick": False},
    ]


def test_memory_is_reused_and_devices_are_made_in_the_process_that_measures_alone() -> None:
    environment = worker_environment(8)
    assert environment["MALLOC_MMAP_MAX_"] == "0"
    assert environment["MALLOC_ARENA_MAX"] == "1"  # without it the others hold for the main thread alone
    assert environment["JAX_NUM_CPU_DEVICES"] == "8"
    assert environment["PATH"] == os.environ["PATH"]
    assert "MALLOC_MMAP_MAX_" not in os.environ


def test_rows_that_need_several_devices_are_measured_apart() -> None:
    groups = _run._groups(ROWS)
    assert [devices for devices, _ in groups] == [1, 8]
    assert groups[1][1] == ["sync_batch_norm", "sync_batch_norm_growth"]
    assert sorted(name for _, names in groups for name in names) == sorted(row.name for row in ROWS)


def test_a_run_from_the_command_to_the_files(capsys, tmp_path) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["bench", "--quick", "--only", "dropout_call", "--out", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["quick"] is True
    assert results["only"] == ["dropout_call"]
    assert [case["row"] for case in results["cases"]] == ["dropout_call"]
    assert [one["name"] for one in results["cases"][0]["contenders"]] == ["plain pass", "jaxnorm", "flax linen"]
    assert results["environment"]["devices"] == 1
    assert "| dropout call: jaxnorm |" in (folder / "RESULTS.md").read_text()
    captured = capsys.readouterr()
    assert "Dropout, eager call" in captured.out
    assert "dropout_call" in captured.err  # the progress


def test_a_process_that_fails_says_its_last_words(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(_run, "_groups", lambda rows: [(1, ["no such row"])])
    err = fails(capsys, "--only", "dropout_call", "--out", str(tmp_path), status=1)
    assert "ended with status 1" in err
    assert "unknown row 'no such row'" in err


def test_what_was_measured_before_a_failure_is_written(monkeypatch, tmp_path) -> None:
    written = []

    def messages(names, devices, *, quick):
        yield {"environment": {"backend": "cpu"}}
        yield {"row": "dropout"}
        yield {"case": {"row": "dropout", "failed": {"keras": "OSError: gone"}}}
        raise RuntimeError("killed")

    monkeypatch.setattr(_run, "_messages", messages)
    monkeypatch.setattr(_report, "write", lambda folder, results: written.append(results))
    with pytest.raises(RuntimeError, match="killed"):
        _run.run(out=tmp_path, only=["dropout"])
    assert len(written[0]["cases"]) == 1
    assert "dropout: keras failed and is left out: OSError: gone" in written[0]["notes"]


def test_an_interrupted_run_ends_in_a_line(capsys, monkeypatch) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_run, "run", interrupt)
    assert fails(capsys, status=130) == "interrupted\n"
