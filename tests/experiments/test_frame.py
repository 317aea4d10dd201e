"""The frame of experiments: verdicts, tables, files, controls, interruptions; on an experiment that trains nothing."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxnorm.experiments
from jaxnorm.experiments import _run_all as run_all_module
from jaxnorm.experiments import experiment_names, load_experiment
from jaxnorm.experiments._claims import BIBLIOGRAPHY, CONTEXT, CORE
from jaxnorm.experiments._claims_page import claims_page
from jaxnorm.experiments._experiment import Axis, Bars, Drawing, Experiment, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._run import Interrupted, options_of, run_experiment
from jaxnorm.experiments._verdict import FAILS, HOLDS, IN_PART, decide, verdict

EXPERIMENTS = Path(jaxnorm.experiments.__file__).parent
KEYS = []
DRAWN = []


def measure(arm, keys, options, progress):
    """Numbers around the arm's, as far apart as the seeds' numbers, and a curve, which one arm has not."""
    KEYS.append(keys)
    progress(0.5)
    number = arm * options.scale + 0.1 * np.arange(options.seeds)
    curve = number[:, None] * np.arange(1, 13)
    return {"number": number} if arm == 3 else {"number": number, "curve": curve}


EXAMPLE = Experiment(
    claim="Two is more than one",
    sources=('Author, "Title", Venue 2000, https://example.org',),
    options=(Option("scale", count, 10, 2, "what arms are multiplied by"),),
    arms={"one": 1, "two": 2, "three": 3},
    measure=measure,
    quantities=(
        Quantity("number", "number, %", 1, 100),
        Quantity("curve", "curve", axis=Axis("step", lambda _: np.arange(12.0))),
    ),
    parts=(
        Part("0.8", "two less one", lambda found: found["two"]["number"] - found["one"]["number"], at_least(1)),
        Part("0.8 4.2", "one", lambda found: found["one"]["number"], at_most(5)),
    ),
    panels=(Bars("number"), Lines("curve"), Drawing(lambda axes, found, colors, options: DRAWN.append((list(found), colors)))),
    protocol="Nothing is trained.",
    note="A note.",
    control={"one": "two"},
)


def test_files_hold_all_that_was_measured(tmp_path: Path) -> None:
    outcome = run_experiment("example", EXAMPLE, out=tmp_path / "new", quick=True)
    folder = tmp_path / "new"
    assert outcome.verdict == HOLDS
    assert outcome.written == f"Written to {folder}: results.csv, example.png, results.md, verdict.json"
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 + 2 * 12 * 2
    values = {(row["arm"], row["quantity"], row["place"], row["seed"]): float(row["value"]) for row in rows}
    assert values["two", "number", "", "1"] == pytest.approx(4.1)
    assert values["one", "curve", "11.0", "0"] == pytest.approx(24)
    text = (folder / "results.md").read_text(encoding="utf-8")
    assert "# Two is more than one\n\n**Holds.** A note.\n\n![Two is more than one](example.png)" in text
    assert "Nothing is trained. Here: scale 2, seeds 2." in text
    assert "- Author," in text
    assert "| two less one | 2.00 ± 0.00 | at least 1 | yes |" in text
    assert "| three | 605.0 ± 7.1 |" in text
    assert "| one | 2.05 ± 0.07 |" in text
    assert text.count("| three | ") == 1  # it has no curve
    assert re.search(r"\| arm \| step 0 \| 1 \| 2 \| 4 \|.* 11 \|", text)
    said = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    assert (said["verdict"], said["claim"], len(said["decisions"])) == (HOLDS, EXAMPLE.claim, 2)
    assert said["decisions"][1]["claims"] == "0.8 4.2"


def test_a_picture_is_wide_and_small(tmp_path: Path) -> None:
    DRAWN.clear()
    run_experiment("example", EXAMPLE, out=tmp_path, quick=True)
    content = (tmp_path / "example.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") > 1900
    assert len(content) < 150_000
    ((arms, colors),) = DRAWN
    assert arms == list(colors) == ["one", "two", "three"]
    assert len(set(colors.values())) == 3


def test_the_same_keys_for_every_arm_and_more_seeds_keep_the_first(tmp_path: Path) -> None:
    KEYS.clear()
    run_experiment("example", EXAMPLE, out=tmp_path, seeds=2)
    run_experiment("example", EXAMPLE, out=tmp_path, seeds=3)
    data = [np.asarray(jax.random.key_data(keys)) for keys in KEYS]
    for keys in data[:3]:
        np.testing.assert_array_equal(keys, data[0])
        assert not np.array_equal(keys[0], keys[1])
    np.testing.assert_array_equal(data[3][:2], data[0])


def part(values: list[float], bound) -> bool:
    (decision,) = decide([Part("", "", lambda found: np.asarray(values), bound)], {})
    return decision.holds


def test_a_part_holds_with_two_standard_errors_to_spare() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    slack = 2 * np.std(values, ddof=1) / 2
    assert part(values, at_least(2.5 - slack - 1e-9))
    assert not part(values, at_least(2.5 - slack + 1e-9))
    assert part(values, at_most(2.5 + slack + 1e-9))
    assert not part(values, at_most(2.5 + slack - 1e-9))
    assert part([1.0], at_least(1))
    for bound in (at_least(0), at_most(0)):
        assert not part([1.0, float("nan")], bound)


@pytest.mark.parametrize("first, second, expected", [(1, 1, HOLDS), (1, 0, IN_PART), (0, 1, FAILS), (0, 0, FAILS)])
def test_the_first_part_is_the_heart(first: int, second: int, expected: str) -> None:
    parts = [Part("", "", lambda found, value=value: [value], at_least(1)) for value in (first, second)]
    assert verdict(decide(parts, {})) == expected


def test_a_control_swaps_arms_or_sets_options(tmp_path: Path) -> None:
    outcome = run_experiment("example", EXAMPLE, out=tmp_path, control=True)
    assert outcome.verdict == FAILS
    assert outcome.found["one"]["number"][0] == 20
    weak = dataclasses.replace(EXAMPLE, control={"scale": 0})
    assert run_experiment("example", weak, out=tmp_path, control=True).verdict == FAILS
    assert run_experiment("example", weak, out=tmp_path).verdict == IN_PART


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="options of example must be of scale, seeds, got width"):
        run_experiment("example", EXAMPLE, out=tmp_path, width=3)


def test_what_is_finished_is_written_at_an_interruption(tmp_path: Path) -> None:
    def stop(arm, keys, options, progress):
        if arm == 3:
            raise KeyboardInterrupt
        return measure(arm, keys, options, progress)

    with pytest.raises(Interrupted, match=r"finished arms: one, two. Written to .*: results.csv$"):
        run_experiment("example", dataclasses.replace(EXAMPLE, measure=stop), out=tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        assert {row["arm"] for row in csv.DictReader(file)} == {"one", "two"}


@pytest.mark.parametrize("name", experiment_names())
def test_experiments_are_complete(name: str) -> None:
    experiment = load_experiment(name)
    assert len(experiment.claim) <= 95
    assert not experiment.claim.endswith(".")
    assert experiment.control, "what switches the effect off?"
    assert experiment.seeds[0] >= 5
    for source in experiment.sources:
        assert re.search(r'.+, ".+", .*https?://\S+$', source)
    known = {claim.number for claim in (*CORE, *CONTEXT)}
    for each in experiment.parts:
        assert each.claims
        assert set(each.claims.split()) <= known
    for option in options_of(experiment):
        for value in (option.default, option.quick):
            assert option.parse(str(value)) == value
    options = Options(**{option.name: option.quick for option in options_of(experiment)})
    arms = experiment.arms_of(options)
    assert 1 <= len(arms) <= 14
    names = {quantity.name for quantity in experiment.quantities}
    assert {panel.quantity for panel in experiment.panels if not isinstance(panel, Drawing)} <= names
    for key, value in experiment.control.items():
        assert key in vars(options) or {key, value} <= arms.keys()


def test_every_claim_is_borne_on_by_an_experiment() -> None:
    borne = {number for name in experiment_names() for each in load_experiment(name).parts for number in each.claims.split()}
    assert {claim.number for claim in (*CORE, *CONTEXT)} - borne == set()
    assert not borne & set(BIBLIOGRAPHY)


def test_the_page_of_claims_says_what_runs_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxnorm.experiments._claims_page.experiment_names", lambda: ("example", "other"))
    run_experiment("example", EXAMPLE, out=tmp_path / "runs" / "example")
    page = claims_page(tmp_path / "runs", tmp_path)
    (row,) = (line for line in page.splitlines() if line.startswith("| 0.8 |"))
    assert "| holds in part | one: 10.20 ± 0.16 (at most 5) |" in row
    assert row.endswith("| [example](runs/example/results.md) |")
    (row,) = (line for line in page.splitlines() if line.startswith("| 4.2 |"))
    assert "| fails here | one: 10.20" in row
    (row,) = (line for line in page.splitlines() if line.startswith("| 0.1 |"))
    assert "| not run |" in row
    assert "| [example](runs/example/results.md) | Two is more than one | holds in part | 1 of 2 |" in page
    (tmp_path / "runs" / "example" / "verdict.json").write_text("{")
    with pytest.raises(ValueError, match=r"verdict\.json' must be what an experiment wrote"):
        claims_page(tmp_path / "runs")


@pytest.mark.parametrize("name", experiment_names())
def test_the_reference_run_was_decided_by_the_rules_of_today(name: str) -> None:
    folder = EXPERIMENTS / "results" / name
    said = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    rules = [(each.claims, each.text, str(each.bound)) for each in load_experiment(name).parts]
    assert [(each["claims"], each["text"], each["bound"]) for each in said["decisions"]] == rules
    assert (folder / f"{name}.png").stat().st_size < 150_000
    text = (folder / "results.md").read_text(encoding="utf-8")
    assert f"**{said['verdict'].capitalize()}.**" in text
    seeds = re.search(r"Here: .*seeds (\d+)\.", text)
    assert seeds is not None
    assert int(seeds[1]) >= 5


def test_the_page_of_claims_is_that_of_the_reference_run() -> None:
    made = claims_page(EXPERIMENTS / "results", EXPERIMENTS)
    assert (EXPERIMENTS / "CLAIMS.md").read_text(encoding="utf-8") == made


@pytest.mark.slow
def test_run_all_runs_in_processes_and_summarizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    names = ("dropout_scaling", "scale_invariance", "batch_estimates")
    monkeypatch.setattr(run_all_module, "experiment_names", lambda: names)
    ended = run_all_module.run_all(out=tmp_path, quick=True)
    assert sorted(ended) == sorted(names)
    for name in names:
        assert (tmp_path / name / f"{name}.png").exists()
    out = capfd.readouterr().out
    assert "Verdicts" in out
    assert f"Written to {tmp_path}: CLAIMS.md" in out
    assert "| 0.1 |" in (tmp_path / "CLAIMS.md").read_text(encoding="utf-8")


SHORTER = {  # what takes long, and is of no consequence for a verdict without an effect
    "batch_noise_regularizes": {"steps": 30},
    "batch_norm_and_dropout": {"epochs": 2, "depth": 4},
    "batch_size": {"steps": 60},
    "initialization": {"steps": 20, "depth": 6},
    "internal_covariate_shift": {"steps": 8, "depth": 5},
    "loss_landscape": {"steps": 20},
    "models": {"percent": 3},
    "sparse_variational_dropout": {"epochs": 3},
    "uniform_noise": {"epochs": 2},
    "variance_shift": {"epochs": 5},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", experiment_names())
def test_without_its_effect_every_claim_fails(name: str, tmp_path: Path) -> None:
    # Loops over keys under `vmap`, which models of sequences have, are taken for keys that are used twice.
    with jax.debug_key_reuse(name != "models"):
        options = {"quick": True, "control": True, "progress": False, **SHORTER.get(name, {})}
        outcome = run_experiment(name, load_experiment(name), out=tmp_path, **options)
    assert outcome.verdict == FAILS
    assert (tmp_path / f"{name}.png").stat().st_size < 150_000
