"""The page of all claims: what runs say of each."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxnorm.experiments import experiment_names
from jaxnorm.experiments._claims import (
    BIBLIOGRAPHY,
    CHANGED_RULES,
    CONTEXT,
    CORE,
    CORRECTIONS,
    DIFFERENCES,
    OUT_OF_SCOPE,
    SOURCES,
    Claim,
)
from jaxnorm.experiments._report import Table, markdown_table
from jaxnorm.experiments._verdict import FAILS, HOLDS, IN_PART, Decision

_NOT_RUN = "not run"


def claims_page(results: Path, where: Path | None = None) -> str:
    """Returns the page, in Markdown.

    Args:
      results: the folder that experiments wrote to, each into a folder of its name, as `run all` does.
      where: the folder that the page will stand in, for its links; the same by default.

    Raises:
      ValueError: if no experiment wrote there, or one of its files can't be read.
    """
    runs = {name: run for name in experiment_names() if (run := _read(results / name / "verdict.json")) is not None}
    if not runs:
        raise ValueError(f"folder {str(results)!r} must hold results of experiments, as `python -m jaxnorm run all` writes them")
    links = Path(os.path.relpath(results, where or results))
    parts = [
        "# Claims, and what runs say of them",
        "Made by `python -m jaxnorm claims`. A claim *holds* if all figures that bear on it are within the bounds that were "
        "written down before the run (but for those named below), and *fails here* if none is. Shown is the first figure that is "
        "not within its bound, or else the first, as mean ± standard deviation over the seeds. All are of small networks and "
        "small data; what is reported are figures of papers, or of another program, in double precision, at this size.",
        markdown_table(Table("", _COLUMNS, [_row(claim, runs, links) for claim in (*CORE, *CONTEXT)]), numbers=False),
        "## Corrections\n\n" + "\n".join(f"{n}. ({of}) {text}" for n, (of, text) in enumerate(CORRECTIONS, 1)),
        "## Where figures differ from those reported\n\n" + "\n".join(f"- {of}: {text}" for of, text in DIFFERENCES),
        "## Rules that were changed after a run\n\n" + "\n".join(f"- {names}: {text}" for names, text in CHANGED_RULES),
        "## Experiments",
        markdown_table(
            Table("", ("experiment", "claim", "verdict", "parts that hold"), [*_experiments(runs, links)]), numbers=False
        ),
        "## Sources\n\n" + "\n".join(f"- {number}: {text}" for number, text in SOURCES.items()),
        f"{' and '.join(BIBLIOGRAPHY)} are lists of references. The papers stand on the experiments' pages.",
        "## Out of scope\n\nEntries of source 4's index (4.12) that are neither normalization nor dropout: "
        + ", ".join(OUT_OF_SCOPE)
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


_COLUMNS = ("number", "claim", "verdict", "figure", "reported", "command, each `python -m jaxnorm run`")


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} must be what an experiment wrote: {error}") from error


def _row(claim: Claim, runs: Mapping[str, Any], links: Path) -> tuple[str, ...]:
    bearing = [
        (name, Decision(**each))
        for name, run in runs.items()
        for each in run["decisions"]
        if claim.number in each["claims"].split()
    ]
    if not bearing:
        return claim.number, claim.text, _NOT_RUN, "", claim.reported, ""
    shown = next((each for _, each in bearing if not each.holds), bearing[0][1])
    figure = f"{shown.text}: {shown.figure} ({shown.bound})"
    holding = [each.holds for _, each in bearing]
    said = HOLDS if all(holding) else IN_PART if any(holding) else FAILS
    names = dict.fromkeys(name for name, _ in bearing)
    commands = ", ".join(f"[{name}]({(links / name / 'results.md').as_posix()})" for name in names)
    return claim.number, claim.text, said, figure, claim.reported, commands


def _experiments(runs: Mapping[str, Any], links: Path) -> Iterator[tuple[str, ...]]:
    for name, run in runs.items():
        decisions = run["decisions"]
        held = f"{sum(each['holds'] for each in decisions)} of {len(decisions)}"
        yield f"[{name}]({(links / name / 'results.md').as_posix()})", run["claim"], run["verdict"], held
