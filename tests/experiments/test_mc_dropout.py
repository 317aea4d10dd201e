"""The experiment `mc_dropout` from the command line: its files, and, in the slow tests, what it finds."""

import csv
from pathlib import Path

import numpy as np
import pytest

from jaxnorm.__main__ import main
from jaxnorm.experiments.mc_dropout import ARMS

TINY = ("--width", "8", "--steps", "12", "--samples", "5", "--seeds", "2")
REGIONS = ["data", "gap", "up to 1 beyond", "1 to 3 beyond", "3 to 5 beyond"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_have_every_arm_region_and_seed(tmp_path: Path) -> None:
    assert main(["run", "mc_dropout", "--out", str(tmp_path), *TINY]) == 0
    rows = read(tmp_path / "results.csv")
    assert [(row["units"], row["region"], row["seed"]) for row in rows] == [
        (a, r, s) for a in ARMS for r in REGIONS for s in "01"
    ]
    for row in rows:
        assert float(row["std"]) > 0
        assert 0 <= float(row["within_two_std"]) <= 1
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "rate 0.1, width 8, steps 12, samples 5, seeds 2" in text
    assert text.count("| ReLU, ") == len(REGIONS)
    assert (tmp_path / "mc_dropout.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_deviation_grows_off_the_data(tmp_path: Path) -> None:
    """Issue 9: with every distance for ReLU units; tanh units saturate, and theirs stays below."""
    assert main(["run", "mc_dropout", "--out", str(tmp_path)]) == 0
    rows = read(tmp_path / "results.csv")

    def std(units: str, region: str) -> float:
        return float(np.mean([float(row["std"]) for row in rows if (row["units"], row["region"]) == (units, region)]))

    of_relu = [std("ReLU", region) for region in ("data", *REGIONS[2:])]
    assert (np.diff(of_relu) > 0).all()
    assert of_relu[-1] > 3 * of_relu[0]
    assert std("tanh", "3 to 5 beyond") > std("tanh", "data")
    assert std("tanh", "3 to 5 beyond") < of_relu[-1]
