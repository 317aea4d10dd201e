"""The experiment `variance_shift` from the command line: its files, and, in the slow tests, what it finds."""

import json
from pathlib import Path

import numpy as np
import pytest
from experiment_results import measured

from jaxnorm.__main__ import main
from jaxnorm.experiments import variance_shift
from jaxnorm.experiments._experiment import Options
from jaxnorm.experiments._mlp import NO_NORM

ARMS = [
    "no norm", "batch norm", "dropout", "dropout before batch norm", "dropout, layer, batch norm",
    "Uout (beta 0.5) before batch norm", "dropout after the last batch norm",
]  # fmt: skip
WITHOUT_NORM = {"no norm", "dropout"}
TINY = ("--depth", "2", "--width", "8", "--epochs", "2", "--seeds", "2")


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "new" / "folder"
    assert main(["run", "variance_shift", "--out", str(folder), *TINY]) == 0
    return folder


def test_results_have_every_arm_seed_and_layer(folder):
    found = measured(folder)
    assert list(found) == ARMS
    for arm, parts in found.items():
        assert np.all((parts["nll"] > 0) & (parts["nll"] < 10))
        assert np.all((parts["train accuracy"] >= 0) & (parts["train accuracy"] <= 1))
        np.testing.assert_allclose(500 * parts["accuracy"], np.round(500 * parts["accuracy"]), atol=1e-3)
        assert ("shift" in parts) == ("re-estimated" in parts) == ("largest shift" in parts) == (arm not in WITHOUT_NORM)
        if arm not in WITHOUT_NORM:
            assert parts["shift"].shape == (2, 2)
            np.testing.assert_array_equal(parts["shift"].max(0), parts["largest shift"])
            assert np.all(parts["shift"] >= 1)
            np.testing.assert_allclose(parts["alone"], parts["closed form"], rtol=0.05)


def test_markdown_has_the_tables_and_the_picture(folder):
    text = (folder / "results.md").read_text(encoding="utf-8")
    assert all(f"\n| {arm} | " in text for arm in ARMS)
    assert "](variance_shift.png)" in text
    assert "rate 0.5, depth 2, width 8, epochs 2, seeds 2" in text


def test_picture_is_a_picture(folder):
    content = (folder / "variance_shift.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    assert width > 1900
    assert height > 700


def test_arms_are_those_of_the_experiment_whatever_the_rate():
    for rate in (0.0, 0.3):
        arms = variance_shift.arms(Options(rate=rate, depth=2, width=8))
        assert list(arms) == ARMS
        assert {name for name, model in arms.items() if model.norm is NO_NORM} == WITHOUT_NORM
    assert {model.noise.place for model in arms.values() if model.noise} == {"before norm", "before dense", "before classifier"}


@pytest.mark.slow
def test_same_options_same_results(folder, tmp_path):
    assert main(["run", "variance_shift", "--out", str(tmp_path), *TINY]) == 0
    for name in ("results.csv", "results.md", "verdict.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.slow
def test_finds_what_the_literature_says(tmp_path):
    assert main(["run", "variance_shift", "--out", str(tmp_path)]) == 0
    found = measured(tmp_path)
    assert json.loads((tmp_path / "verdict.json").read_text())["verdict"] != "fails here"

    def mean(arm: str, quantity: str) -> float:
        return float(np.mean(found[arm][quantity]))

    none, before, layer, uout, last = "batch norm", *ARMS[3:]
    assert mean(none, "largest shift") < 1.1
    assert mean(last, "largest shift") < 1.1
    order = [mean(arm, "largest shift") for arm in (none, uout, layer, before)]
    assert np.all(np.diff(order) > 0.05), order
    assert mean(none, "accuracy") > 0.96
    assert mean(before, "accuracy") < mean(none, "accuracy") - 0.2
    for arm in (uout, last):
        assert mean(arm, "accuracy") > mean(none, "accuracy") - 0.01
    for arm in (before, layer):
        assert mean(arm, "accuracy") + 0.03 < mean(arm, "re-estimated") < mean(none, "accuracy") - 0.05
    for arm in set(ARMS) - WITHOUT_NORM:
        np.testing.assert_allclose(found[arm]["alone"], found[arm]["closed form"], rtol=0.05)
        np.testing.assert_allclose(found[arm]["shift"][0], found[arm]["closed form"][0], rtol=0.05)
