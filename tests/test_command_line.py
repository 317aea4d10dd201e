"""The command line: what it says, its exit status, and what a run writes."""

import dataclasses
import errno
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import flax
import jax
import jaxlib
import optax
import pytest

import jaxnorm
from jaxnorm import __main__ as command_line
from jaxnorm import _functions as functions
from jaxnorm.__main__ import main
from jaxnorm.benchmarks import _run as bench
from jaxnorm.experiments import describe, experiment_names, load_experiment
from jaxnorm.experiments._experiment import Experiment, Options
from jaxnorm.experiments._report import Results


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Returns the one line with which a wrong command line ends, with exit status 2."""
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


def test_explains_itself(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == out
    for word in ("list", "run", "info", "python -m jaxnorm run variance_shift"):
        assert word in out


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"jaxnorm {jaxnorm.__version__}\n"


def test_list_names_every_experiment_with_a_description(capsys):
    assert main(["list"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in experiment_names():
        assert name in out
        assert describe(name)[:30] in out


def test_list_describes_every_function(capsys):
    assert main(["list"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for family in functions.families():
        assert family.title in out
        for layer in family.layers:
            for words in (*layer.functions, *layer.classes, layer.summary[:30]):
                assert words.replace("`", "") in out
            assert all(f"{paper.first_authors} {paper.year}, {paper.url}" in out for paper in layer.papers)


def test_list_fits_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["list"]) == 0
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert any("https://jmlr.org/papers/v15/srivastava14a.html" in line for line in lines), "an address is not cut"


def test_list_prints_the_markdown_page(capsys):
    assert main(["list", "--markdown"]) == 0
    assert capsys.readouterr().out == functions.markdown()
    assert functions.COMMAND.startswith("python -m jaxnorm list --markdown > ")


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    versions = {module.__name__: module.__version__ for module in (jaxnorm, jax, jaxlib, flax, optax)}
    for name, version in (versions | {"Python": ".".join(map(str, sys.version_info[:3]))}).items():
        assert f"{name} {version}" in " ".join(out.split())
    assert out.count("device") == jax.device_count()


def test_an_unknown_command_names_the_known_ones(capsys):
    err = fails(capsys, "trian")
    for word in ("trian", "list", "run", "info"):
        assert word in err


def test_an_unknown_experiment_names_the_known_ones(capsys):
    err = fails(capsys, "run", "variance_drift")
    assert "'variance_drift', the nearest is 'variance_shift'" in err
    assert all(name in err for name in experiment_names())


@pytest.mark.parametrize(
    "option, value",
    [
        ("--rate", "1"), ("--rate", "-0.1"), ("--rate", "nan"), ("--rate", "half"), ("--depth", "0"), ("--depth", "2.5"),
        ("--width", "-3"), ("--epochs", "0"), ("--epochs", "many"), ("--seeds", "0"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_option(capsys, option, value):
    err = fails(capsys, "run", "variance_shift", f"{option}={value}")
    assert option in err
    assert repr(value) in err


def test_an_unknown_option_is_named(capsys):
    assert "--layers" in fails(capsys, "run", "variance_shift", "--layers", "3")


@pytest.mark.parametrize(
    "options, words",
    [
        (("--processes", "2", "--process", "1"), "got coordinator=None and no variable JAX_COORDINATOR_ADDRESS"),
        (("--coordinator", "host", "--processes", "2", "--process", "1"), "HOST:PORT, got 'host'"),
        (("--coordinator", "host:1", "--processes", "2", "--process", "2"), "process_id must be below num_processes, 2, got 2"),
        (
            ("--coordinator", "host:1", "--processes", "0", "--process", "0"),
            "--processes: must be an integer of at least 1, got '0'",
        ),
        (("--coordinator", "host:1", "--processes", "2", "--process", "-1"), "--process: must be an integer of at least 0"),
    ],
)
def test_a_place_among_processes_that_is_none_is_said_before_the_work_begins(capsys, options, words, tmp_path):
    assert words in fails(capsys, "run", "variance_shift", "--out", str(tmp_path / "out"), *options)
    assert not (tmp_path / "out").exists()


def test_a_missing_name_is_asked_for(capsys):
    assert "NAME" in fails(capsys, "run")


def test_a_folder_that_cannot_be_written_to_is_named_before_the_work_begins(capsys, tmp_path):
    file = tmp_path / "taken"
    file.write_text("")
    err = fails(capsys, "run", "variance_shift", "--out", str(file))
    assert "--out" in err
    assert str(file) in err


def test_a_missing_package_is_named_with_the_extra_that_has_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else object())
    err = fails(capsys, "run", "variance_shift", "--out", str(tmp_path / "out"))
    assert "sklearn" in err
    assert "pip install 'jaxnorm[demo]'" in err


def replaced(**parts: object) -> Callable[[str], Experiment]:
    """Returns what takes the place of `load_experiment`: `variance_shift` with other parts."""
    experiment = dataclasses.replace(load_experiment("variance_shift"), **parts)
    return lambda name: experiment


def test_an_interrupted_run_ends_in_a_line(capsys, monkeypatch, tmp_path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "load_experiment", replaced(measure=interrupt))
    with pytest.raises(SystemExit) as exit_:
        main(["run", "variance_shift", "--out", str(tmp_path)])
    assert exit_.value.code == 130
    assert capsys.readouterr().err.endswith(f"interrupted; finished arms: none. Written to {tmp_path}: nothing\n")


@pytest.mark.parametrize("quick", [True, False])
def test_quick_sets_what_was_not_given(monkeypatch, tmp_path, quick):
    given = []

    def stop(arm: object, keys: object, options: Options, progress: object) -> None:
        given.append(options)
        raise KeyboardInterrupt

    experiment = load_experiment("variance_shift")
    monkeypatch.setattr(command_line, "load_experiment", replaced(measure=stop))
    with pytest.raises(SystemExit):
        main(["run", "variance_shift", "--out", str(tmp_path), "--depth", "3", *(["--quick"] if quick else [])])
    for option in experiment.options:
        assert getattr(given[0], option.name) == (3 if option.name == "depth" else option.quick if quick else option.default)
    assert given[0].seeds == experiment.seeds[quick]


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_in_a_line_that_names_the_file(capsys, monkeypatch, tmp_path):
    def run(*, out: Path, **_: object) -> None:
        results = Results(out)
        results.write("first.csv", lambda path: path.write_text("1"))
        results.write("second.csv", full)
        results.write("third.csv", lambda path: path.write_text("3"))
        results.summary()

    monkeypatch.setattr(bench, "run", run)
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "--out", str(tmp_path)])
    assert exit_.value.code == 1
    out, err = capsys.readouterr()
    named, written = f"'{tmp_path}/second.csv': No space left on device", f"{tmp_path}: first.csv, third.csv"
    assert (out, err) == ("", f"jaxnorm: cannot write {named}; written to {written}\n")


def test_claims_without_runs_say_how_to_make_them(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main(["claims", str(tmp_path)])
    assert exit_.value.code == 1
    err = capsys.readouterr().err
    assert str(tmp_path) in err
    assert "python -m jaxnorm run all" in err


def test_help_and_list_import_nothing_slow():
    code = (
        "import sys; from jaxnorm.__main__ import main; main(['list'])\n"
        "slow = {'flax', 'optax', 'orbax', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_runs_as_a_module():
    ran = subprocess.run([sys.executable, "-m", "jaxnorm", "run", "nothing"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
