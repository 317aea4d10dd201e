"""Running an experiment: seeds, progress, verdict, tables, picture, files."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._progress import progress_bar
from jaxnorm.experiments import _panels as panels
from jaxnorm.experiments._experiment import Experiment, Found, Options, settings
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._report import Results, Table, make_folder, markdown_page, print_tables, write_csv
from jaxnorm.experiments._tables import CSV_COLUMNS, rows, tables
from jaxnorm.experiments._verdict import Decision, decide, verdict
from jaxnorm.training.processes import gather

_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


class Outcome(NamedTuple):
    """What a run found.

    Attributes:
      verdict: "holds", "holds in part" or "fails here".
      decisions: what was said of each part of the claim.
      found: what was measured, by arm and quantity.
      options: all options of the run.
      written: in a line, which files were written; empty in a process that writes none.
    """

    verdict: str
    decisions: list[Decision]
    found: Found
    options: Options
    written: str


class Interrupted(KeyboardInterrupt):
    """Says what a run that was interrupted has written."""


def missing_package() -> str | None:
    """Returns a package that experiments need and that is not installed, None if all are."""
    return next((package for package in ("matplotlib", "sklearn") if importlib.util.find_spec(package) is None), None)


def options_of(experiment: Experiment) -> tuple[Option, ...]:
    """Returns an experiment's options, and those that all have."""
    default, quick = experiment.seeds
    return (*experiment.options, Option("seeds", count, default, quick, "number of initial keys, trained together"))


def run_experiment(
    name: str,
    experiment: Experiment,
    *,
    out: str | Path,
    quick: bool = False,
    control: bool = False,
    progress: bool = True,
    **given: Any,
) -> Outcome:
    """Runs an experiment, and writes `results.csv`, `results.md`, `verdict.json` and a picture.

    Several processes (`jaxnorm.training.connect`) share the arms among them, and the first one writes.

    Args:
      name: the experiment's, and its picture's.
      experiment: what to run.
      out: the folder to write to.
      quick: whether options that are not given have the values of a first look.
      control: whether the effect is switched off, as the experiment says how; its verdict must then be "fails here".
      progress: whether to show a progress bar.
      **given: options, by their names.

    Returns:
      What was found, in all processes.

    Raises:
      ValueError: if the folder cannot be written to, or an option is none of the experiment's.
      WriteError: if a file cannot be written, as on a full disk; the others are.
      Interrupted: by Ctrl-C; arms that are finished are written.
    """
    options, swap = _resolve(name, experiment, quick, control, given)
    leads = jax.process_index() == 0
    folder = make_folder(Path(out)) if leads else Path(out)
    gather(None)  # the first exchange waits half a minute at most: it comes before the work, of which one has more than another
    arms, found = experiment.arms_of(options), {}
    own = list(arms)[jax.process_index() :: jax.process_count()]
    keys = jax.vmap(jax.random.key)(jnp.arange(options.seeds))
    with progress_bar(total=len(own), unit="arm", bar_format=_BAR, disable=not (progress and leads)) as bar:

        def advance(share: float) -> None:
            bar.update(min(share, len(found) + 1 - bar.n))

        for arm in own:
            bar.set_description(f"{name}: {arm}")
            try:
                # Clones, as all arms are meant to have the same keys: what looks for keys that are used twice lets them be.
                measured = experiment.measure(arms[arm], jax.random.clone(keys), options, advance)
            except KeyboardInterrupt as error:
                raise Interrupted(_keep(folder, experiment, found, options) if leads else "interrupted") from error
            found[arm] = _checked(name, arm, experiment, jax.device_get(dict(measured)), options)
            bar.update(len(found) - bar.n)
    everywhere = {arm: parts for part in gather(found) for arm, parts in part.items()}
    found = {arm: everywhere[arm] for arm in arms}
    found = {swap.get(arm, arm): parts for arm, parts in found.items()}
    decisions = decide(experiment.parts, found)
    written = _write(folder, name, experiment, found, decisions, options) if leads else ""
    return Outcome(verdict(decisions), decisions, found, options, written)


def print_outcome(experiment: Experiment, outcome: Outcome) -> None:
    """Prints the tables, the claim with its verdict, and what was written."""
    print_tables(tables(experiment, outcome.found, outcome.decisions, outcome.options))
    print(f"{experiment.claim}: {outcome.verdict}.")
    if experiment.note:
        print(experiment.note)
    print(outcome.written)


def _resolve(
    name: str, experiment: Experiment, quick: bool, control: bool, given: Mapping[str, Any]
) -> tuple[Options, Mapping[str, str]]:
    """Returns all options, and the arms that take other arms' names."""
    known = options_of(experiment)
    names = {option.name for option in known}
    if unknown := given.keys() - names:
        raise ValueError(f"options of {name} must be of {', '.join(sorted(names))}, got {', '.join(sorted(unknown))}")
    values = {option.name: option.quick if quick else option.default for option in known} | dict(given)
    swap: dict[str, str] = {}
    if control:
        values |= {key: value for key, value in experiment.control.items() if key in names}
        swap = {key: value for key, value in experiment.control.items() if key not in names}
        swap |= {value: key for key, value in swap.items()}
    return Options(**values), swap


def _checked(name: str, arm: str, experiment: Experiment, measured: Mapping[str, Any], options: Options) -> dict[str, np.ndarray]:
    """Returns what was measured of an arm as arrays, of the experiment's quantities and as many seeds as there are."""
    parts = {key: np.asarray(value) for key, value in measured.items()}
    unknown = parts.keys() - {quantity.name for quantity in experiment.quantities}
    assert not unknown, f"{name}: {arm} measures {sorted(unknown)}, which are no quantities"
    for quantity in experiment.quantities:
        if quantity.name in parts:
            shape = (options.seeds,) if quantity.axis is None else (options.seeds, len(quantity.axis.values(options)))
            assert parts[quantity.name].shape == shape, (
                f"{name}: {arm}: {quantity.name} is {parts[quantity.name].shape}, not {shape}"
            )
    return parts


def _keep(folder: Path, experiment: Experiment, found: Found, options: Options) -> str:
    """Writes what was measured before an interruption, and says so."""
    results = Results(folder)
    if found:
        _write_rows(results, experiment, found, options)
    return f"interrupted; finished arms: {', '.join(found) or 'none'}. {results.summary()}"


def _write_rows(results: Results, experiment: Experiment, found: Found, options: Options) -> None:
    results.write("results.csv", lambda path: write_csv(path, CSV_COLUMNS, rows(experiment, found, options)))


def _write(folder: Path, name: str, experiment: Experiment, found: Found, decisions: Sequence[Decision], options: Options) -> str:
    results, shown = Results(folder), list(tables(experiment, found, decisions, options))
    _write_rows(results, experiment, found, options)
    results.write(f"{name}.png", lambda path: panels.save(path, experiment, found, decisions, options))
    results.write(
        "results.md", lambda path: path.write_text(_page(name, experiment, shown, decisions, options), encoding="utf-8")
    )
    as_json = {"claim": experiment.claim, "verdict": verdict(decisions), "decisions": [each._asdict() for each in decisions]}
    results.write("verdict.json", lambda path: path.write_text(json.dumps(as_json, indent=1) + "\n", encoding="utf-8"))
    return results.summary()


def _page(name: str, experiment: Experiment, shown: Sequence[Table], decisions: Sequence[Decision], options: Options) -> str:
    paragraphs = [
        f"**{verdict(decisions).capitalize()}.** {experiment.note}".rstrip(),
        f"![{experiment.claim}]({name}.png)",
        f"{experiment.protocol} Here: {settings(options)}. Mean ± standard deviation over the seeds; a part of the claim "
        "holds where its mean is within the bound with two standard errors to spare.",
        "\n".join(f"- {source}" for source in experiment.sources),
    ]
    return markdown_page(experiment.claim, paragraphs, shown)
