"""The experiment `precise_statistics` from the command line: its files, and, in the slow tests, what it finds."""

import csv
from pathlib import Path

import numpy as np
import pytest

from jaxnorm.__main__ import main
from jaxnorm.experiments.precise_statistics import MOMENTA, PLACES, RATES

TINY = ("--depth", "2", "--width", "4", "--epochs", "1", "--seeds", "2")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_files(tmp_path: Path) -> None:
    assert main(["run", "precise_statistics", "--out", str(tmp_path), *TINY]) == 0
    rows = read(tmp_path / "results.csv")
    assert len(rows) == 2 * (len(RATES) * (6 + 5) + 4 * len(MOMENTA))
    assert len(PLACES) == 2
    assert all(0 <= float(row["test_accuracy"]) <= 1 for row in rows)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "](precise_statistics.png)" in text
    assert "seeds 2" in text
    assert (tmp_path / "precise_statistics.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_spoils_statistics_and_what_restores_them(tmp_path: Path) -> None:
    assert main(["run", "precise_statistics", "--quick", "--out", str(tmp_path)]) == 0
    rows = read(tmp_path / "results.csv")

    def accuracy(row: str, statistics: str) -> float:
        return float(np.mean([float(r["test_accuracy"]) for r in rows if (r["row"], r["statistics"]) == (row, statistics)]))

    for place in PLACES:
        spoilt = [accuracy(f"{place}, rate {rate}", "spoilt") for rate in RATES]
        assert np.all(np.diff(spoilt) < 0), spoilt
        for rate in RATES:
            row = f"{place}, rate {rate}"
            for again in ("by batches", "layer by layer"):
                assert abs(accuracy(row, again) - accuracy(row, "as trained")) < 0.01
            assert accuracy(row, "stale pass") < accuracy(row, "as trained") - 0.1
    assert accuracy("before batch norm, rate 0.7", "corrected") > accuracy("before batch norm, rate 0.7", "spoilt") + 0.3
    assert accuracy("momentum 0.999", "as trained") < 0.9
    for again in ("debiased", "by batches", "layer by layer"):
        assert accuracy("momentum 0.999", again) > 0.94
