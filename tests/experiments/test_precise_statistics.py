"""The experiment `precise_statistics` from the command line: its files, and, in the slow tests, what it finds."""

import json
from pathlib import Path

import numpy as np
import pytest
from experiment_results import measured

from jaxnorm.__main__ import main
from jaxnorm.experiments.precise_statistics import ARMS, MOMENTA, PLACES

TINY = ("--depth", "2", "--width", "4", "--epochs", "1", "--seeds", "2")
TRAINED, STORED, CORRECTED, DEBIASED, STALE, *ANEW = ARMS


@pytest.mark.slow
def test_files(tmp_path: Path) -> None:
    assert main(["run", "precise_statistics", "--out", str(tmp_path), *TINY]) == 0
    found = measured(tmp_path)
    assert list(found) == list(ARMS)
    assert all(found[arm][place].shape == (3, 2) for arm in (TRAINED, STORED, STALE, *ANEW) for place in PLACES)
    assert all(found[arm]["few"].shape == (len(MOMENTA), 2) for arm in (STORED, DEBIASED, *ANEW))
    assert all(
        np.all((parts[place] >= 0) & (parts[place] <= 1)) for parts in found.values() for place in PLACES if place in parts
    )
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "](precise_statistics.png)" in text
    assert "seeds 2" in text
    assert (tmp_path / "precise_statistics.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_spoils_statistics_and_what_restores_them(tmp_path: Path) -> None:
    assert main(["run", "precise_statistics", "--quick", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "verdict.json").read_text())["verdict"] == "holds"
    mean = {arm: {name: value.mean(-1) for name, value in parts.items()} for arm, parts in measured(tmp_path).items()}
    for place in PLACES:
        assert np.all(np.diff(mean[STORED][place]) < 0)
        for again in ANEW:
            np.testing.assert_allclose(mean[again][place], mean[TRAINED][place], atol=0.01)
        assert np.all(mean[STALE][place] < mean[TRAINED][place] - 0.1)
    before = next(iter(PLACES))
    assert mean[CORRECTED][before][-1] > mean[STORED][before][-1] + 0.3
    assert mean[STORED]["few"][-1] < 0.9
    for again in (DEBIASED, *ANEW):
        assert mean[again]["few"][-1] > 0.94
