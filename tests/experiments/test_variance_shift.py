"""The experiment `variance_shift` from the command line: its files, and, in the slow tests, what it finds."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from jaxnorm.__main__ import main
from jaxnorm.experiments import variance_shift

ARMS = [
    "no norm", "batch norm", "dropout", "dropout before batch norm", "dropout, layer, batch norm",
    "Uout (beta 0.5) before batch norm", "dropout after the last batch norm",
]  # fmt: skip
WITHOUT_NORM = {"no norm", "dropout"}
TINY = ("--depth", "2", "--width", "8", "--epochs", "2", "--seeds", "2")


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return list(reader.fieldnames or ()), rows


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "new" / "folder"
    assert main(["run", "variance_shift", "--out", str(folder), *TINY]) == 0
    return folder


def test_results_have_a_row_for_every_arm_and_seed(folder):
    columns, rows = read(folder / "results.csv")
    assert columns == ["arm", "seed", "train_accuracy", "test_accuracy", "test_nll", "max_shift", "reestimated_accuracy"]
    assert [(row["arm"], row["seed"]) for row in rows] == list(itertools.product(ARMS, "01"))
    for row in rows:
        numbers = {name: float(row[name]) for name in columns[2:]}
        assert 0 < numbers["test_nll"] < 10
        assert 0 <= numbers["train_accuracy"] <= 1
        assert numbers["test_accuracy"] * 500 == pytest.approx(round(numbers["test_accuracy"] * 500), abs=1e-3)
        for name in ("max_shift", "reestimated_accuracy"):
            assert np.isnan(numbers[name]) == (row["arm"] in WITHOUT_NORM)
        assert not numbers["max_shift"] < 1


def test_layers_have_a_row_for_every_batch_norm(folder):
    _, rows = read(folder / "layers.csv")
    names = [arm for arm in ARMS if arm not in WITHOUT_NORM]
    assert [(row["arm"], row["seed"], row["layer"]) for row in rows] == list(itertools.product(names, "01", "12"))
    largest: dict[tuple[str, str], float] = {}
    for row in rows:
        stored, real = float(row["stored_variance"]), float(row["real_variance"])
        assert float(row["shift"]) == pytest.approx(max(stored / real, real / stored), rel=1e-5)
        assert float(row["shift_alone"]) == pytest.approx(float(row["closed_form"]), rel=0.05)
        place = row["arm"], row["seed"]
        largest[place] = max(largest.get(place, 0), float(row["shift"]))
    _, results = read(folder / "results.csv")
    for row in results:
        if row["arm"] not in WITHOUT_NORM:
            assert float(row["max_shift"]) == largest[row["arm"], row["seed"]]


def test_markdown_has_both_tables_and_the_picture(folder):
    text = (folder / "results.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    for arm in ARMS:
        assert any(line.startswith(f"| {arm} | ") for line in lines)
    assert "](variance_shift.png)" in text
    assert "rate 0.5, depth 2, width 8, epochs 2, seeds 2" in text
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == (2 + len(ARMS)) + (2 + 2)
    assert {line.count("|") for line in tables[: 2 + len(ARMS)]} == {8}


def test_picture_is_a_picture(folder):
    content = (folder / "variance_shift.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    assert width > 2000
    assert height > 1000


def test_arms_are_those_of_the_experiment_whatever_the_rate():
    for rate in (0.0, 0.3):
        arms = variance_shift.arms(rate)
        assert [arm.name for arm in arms] == ARMS
        assert {arm.name for arm in arms if not arm.norm} == WITHOUT_NORM
    assert {arm.noise.place for arm in arms if arm.noise} == {"before norm", "before dense", "before classifier"}


@pytest.mark.slow
def test_same_options_same_results(folder, tmp_path):
    assert main(["run", "variance_shift", "--out", str(tmp_path), *TINY]) == 0
    for name in ("results.csv", "layers.csv", "results.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.slow
def test_finds_what_the_literature_says(tmp_path):
    assert main(["run", "variance_shift", "--out", str(tmp_path)]) == 0
    _, rows = read(tmp_path / "results.csv")

    def mean(arm: str, column: str) -> float:
        return float(np.mean([float(row[column]) for row in rows if row["arm"] == arm]))

    none, before, layer, uout, last = "batch norm", *ARMS[3:]
    assert mean(none, "max_shift") < 1.1
    assert mean(last, "max_shift") < 1.1
    order = [mean(arm, "max_shift") for arm in (none, uout, layer, before)]
    assert np.all(np.diff(order) > 0.05), order
    accuracy = {arm: mean(arm, "test_accuracy") for arm in ARMS}
    assert accuracy[none] > 0.96
    assert accuracy[before] < accuracy[none] - 0.2
    for arm in (uout, last):
        assert accuracy[arm] > accuracy[none] - 0.01
    for arm in (before, layer):
        assert accuracy[arm] + 0.03 < mean(arm, "reestimated_accuracy") < accuracy[none] - 0.05
    _, layers = read(tmp_path / "layers.csv")
    for row in layers:
        assert float(row["shift_alone"]) == pytest.approx(float(row["closed_form"]), rel=0.05)
        if row["layer"] == "1":
            assert float(row["shift"]) == pytest.approx(float(row["closed_form"]), rel=0.05)
