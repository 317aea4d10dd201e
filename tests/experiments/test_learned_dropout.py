"""The experiments with learned noise from the command line: their files, and, in the slow tests, what they find."""

import json
from pathlib import Path

import numpy as np
import pytest
from experiment_results import measured

from jaxnorm.__main__ import main
from jaxnorm.experiments import load_experiment
from jaxnorm.experiments._experiment import Options
from jaxnorm.experiments.concrete_dropout import sizes
from jaxnorm.experiments.sparse_variational_dropout import DENSE, EXACT, FIT

TINY = {
    "concrete_dropout": ("--width", "4", "--steps", "3", "--examples", "100", "--seeds", "2"),
    "sparse_variational_dropout": ("--epochs", "1", "--seeds", "1"),
}


@pytest.mark.parametrize("name", TINY)
def test_files(name: str, tmp_path: Path) -> None:
    assert main(["run", name, "--out", str(tmp_path), *TINY[name]]) == 0
    found = measured(tmp_path)
    assert list(found) == list(load_experiment(name).arms_of(Options()))
    seeds = TINY[name][-1]
    assert all(value.shape[-1] == int(seeds) and np.isfinite(value).all() for parts in found.values() for value in parts.values())
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert f"]({name}.png)" in text
    assert f"seeds {seeds}" in text
    assert all(f"\n| {arm} | " in text for arm in found)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_of_examples() -> None:
    assert list(sizes(Options(examples=10_000))) == [10, 100, 1000, 10_000]


@pytest.mark.slow
def test_the_rate_falls_with_the_number_of_examples(tmp_path: Path) -> None:
    assert main(["run", "concrete_dropout", "--quick", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "verdict.json").read_text())["verdict"] != "fails here"
    found = measured(tmp_path)
    rates = np.mean([parts["rate"] for parts in found.values() if "rate" in parts], axis=0).mean(1)
    assert np.all(np.diff(rates) < 0), rates
    assert rates[0] > 0.4
    assert rates[-1] < 0.1
    of_data, of_network, error = (parts["std"].mean(1) for parts in found.values() if "std" in parts)
    assert of_network[0] > of_network[1] > of_network[2]
    assert of_data[-1] == pytest.approx(1, abs=0.15)
    assert error[-1] < 0.15


@pytest.mark.slow
def test_a_network_prunes_itself(tmp_path: Path) -> None:
    assert main(["run", "sparse_variational_dropout", "--quick", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "verdict.json").read_text())["verdict"] != "fails here"
    mean = {arm: {name: value.mean(-1) for name, value in parts.items()} for arm, parts in measured(tmp_path).items()}
    assert mean[DENSE]["left"] == 1
    for arm in (FIT, EXACT):
        assert mean[arm]["left"] < 0.02
        assert mean[arm]["accuracy"] > mean[DENSE]["accuracy"] - 0.02
        assert abs(mean[arm]["accuracy"] - mean[arm]["unpruned"]) < 0.01
