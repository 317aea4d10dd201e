"""The experiment `mc_dropout` from the command line: its files, and, in the slow tests, what it finds."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from experiment_results import measured

from jaxnorm.__main__ import main
from jaxnorm.experiments.mc_dropout import ARMS, GP, REGIONS, RELU, TANH, gaussian_process, points

TINY = ("--width", "8", "--steps", "12", "--samples", "5", "--seeds", "2")


def test_files_have_every_arm_region_and_seed(tmp_path: Path) -> None:
    assert main(["run", "mc_dropout", "--out", str(tmp_path), *TINY]) == 0
    found = measured(tmp_path)
    assert list(found) == list(ARMS)
    for parts in found.values():
        assert all(np.all(parts[region] > 0) and parts[region].shape == (2,) for region in REGIONS)
        assert np.all((parts["within"] >= 0) & (parts["within"] <= 1))
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "rate 0.1, width 8, steps 12, samples 5, seeds 2" in text
    assert (tmp_path / "mc_dropout.png").read_bytes().startswith(b"\x89PNG")


def test_regions_are_apart_and_cover_the_grid() -> None:
    assert list(REGIONS) == ["gap", "data", "up to 1 beyond", "1 to 3 beyond", "3 to 5 beyond"]
    np.testing.assert_array_equal(np.sum([*REGIONS.values()], axis=0), 1)


def test_the_gaussian_process_is_near_the_curve_on_data_and_knows_nothing_far_off() -> None:
    mean, std = gaussian_process(*points(jax.random.key(0)))
    assert np.all(std[REGIONS["data"]] < 0.1)
    np.testing.assert_allclose(std[:5], 1, atol=1e-3)
    np.testing.assert_allclose(mean[:5], 0, atol=0.05)


@pytest.mark.slow
def test_the_deviation_grows_off_the_data(tmp_path: Path) -> None:
    """Issue 9: with every distance for ReLU units; tanh units saturate, and theirs stays below."""
    assert main(["run", "mc_dropout", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "verdict.json").read_text())["verdict"] == "holds"
    std = {arm: {region: parts[region].mean() for region in REGIONS} for arm, parts in measured(tmp_path).items()}
    of_relu = [std[RELU][region] for region in REGIONS if region != "gap"]
    assert np.all(np.diff(of_relu) > 0)
    assert of_relu[-1] > 3 * of_relu[0]
    assert std[TANH]["data"] < std[TANH]["3 to 5 beyond"] < of_relu[-1] < std[GP]["3 to 5 beyond"]
