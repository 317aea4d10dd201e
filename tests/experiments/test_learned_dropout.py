"""The experiments with learned noise from the command line: their files, and, in the slow tests, what they find."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from jaxnorm.__main__ import main
from jaxnorm.experiments.concrete_dropout import SIZES
from jaxnorm.experiments.sparse_variational_dropout import ARMS

TINY = {
    "concrete_dropout": ("--width", "4", "--steps", "3", "--seeds", "2"),
    "sparse_variational_dropout": ("--epochs", "1", "--seeds", "1"),
}
FIRST = {"concrete_dropout": [f"{size:,}" for size in SIZES], "sparse_variational_dropout": [arm.name for arm in ARMS]}
each = pytest.mark.parametrize("name", TINY)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@each
def test_files(name: str, tmp_path: Path) -> None:
    assert main(["run", name, "--out", str(tmp_path), *TINY[name]]) == 0
    seeds = TINY[name][-1]
    rows = read(tmp_path / "results.csv")
    names = [first.replace(",", "") if name == "concrete_dropout" else first for first in FIRST[name]]
    assert [tuple(row.values())[:2] for row in rows] == list(itertools.product(names, map(str, range(int(seeds)))))
    assert all(np.isfinite(float(value)) for row in rows for value in list(row.values())[1:])
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert f"]({name}.png)" in text
    assert f"seeds {seeds}" in text
    assert all(f"\n| {first} | " in text for first in FIRST[name])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_rate_falls_with_the_number_of_examples(tmp_path: Path) -> None:
    assert main(["run", "concrete_dropout", "--quick", "--out", str(tmp_path)]) == 0
    rows = read(tmp_path / "results.csv")

    def mean(size: int, *columns: str) -> float:
        return float(np.mean([float(row[column]) for row in rows if row["examples"] == str(size) for column in columns]))

    rates = [mean(size, "rate_1", "rate_2", "rate_3") for size in SIZES]
    assert np.all(np.diff(rates) < 0), rates
    assert rates[0] > 0.4
    assert rates[-1] < 0.1
    of_network = [mean(size, "noise_of_network") for size in SIZES]
    assert np.all(np.diff(of_network) < 0), of_network
    assert mean(SIZES[-1], "noise_of_data") == pytest.approx(1, abs=0.15)
    assert mean(SIZES[-1], "error") < 0.15


@pytest.mark.slow
def test_a_network_prunes_itself(tmp_path: Path) -> None:
    assert main(["run", "sparse_variational_dropout", "--quick", "--out", str(tmp_path)]) == 0
    rows = read(tmp_path / "results.csv")

    def mean(arm: int, column: str) -> float:
        return float(np.mean([float(row[column]) for row in rows if row["network"] == ARMS[arm].name]))

    assert mean(0, "left") == 1
    for arm in (1, 2):
        assert mean(arm, "left") < 0.02
        assert mean(arm, "test_accuracy") > mean(0, "test_accuracy") - 0.02
        assert abs(mean(arm, "test_accuracy") - mean(arm, "unpruned_accuracy")) < 0.01
