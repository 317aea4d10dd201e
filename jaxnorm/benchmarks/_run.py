"""A run of the benchmark: processes that measure, one after the other, and what they tell."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxnorm._progress import progress_bar
from jaxnorm.benchmarks import _report as report
from jaxnorm.benchmarks._environment import worker_environment
from jaxnorm.benchmarks._peers import missing_peers
from jaxnorm.benchmarks._rows import Row, cases, chosen_rows
from jaxnorm.experiments._report import make_folder

_LAST_LINES = 3


def run(*, out: str | Path, only: Sequence[str] = (), quick: bool = False) -> dict[str, Any]:
    """Measures, prints the tables, and writes `results.json`, `RESULTS.md`, `times.png` and those after it, and `curves.png`.

    Args:
      out: the folder to write to.
      only: names of the rows to measure; all if empty.
      quick: whether to measure less, and fewer rows unless they are named.

    Returns:
      What was measured, as in `results.json`.

    Raises:
      ValueError: if the folder cannot be written to.
      RuntimeError: if a process that measures fails; what was measured before is written nevertheless.
    """
    folder = make_folder(Path(out))
    rows = chosen_rows(only, quick=quick)
    notes = [f"{peer.distribution} is not installed and left out" for peer in missing_peers()]
    results: dict[str, Any] = {"quick": quick, "only": list(only), "environment": {}, "notes": notes, "cases": []}
    try:
        with progress_bar(total=sum(len(cases(row, quick=quick)) for row in rows), unit="case") as bar:
            for devices, names in _groups(rows):
                for message in _messages(names, devices, quick=quick):
                    _take(message, results, bar)
    finally:
        if results["cases"]:
            report.write(folder, results)
    return results


def _groups(rows: Sequence[Row]) -> list[tuple[int, list[str]]]:
    """Returns the names of the rows that a process measures, after the number of CPU devices that it needs."""
    groups: dict[int, list[str]] = {}
    for row in rows:
        groups.setdefault(max(row.devices, default=1), []).append(row.name)
    return list(groups.items())


def _messages(names: list[str], devices: int, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Yields what a new process tells, which measures these rows.

    Raises:
      RuntimeError: if it fails.
    """
    request = json.dumps({"names": names, "quick": quick})
    command = [sys.executable, "-m", "jaxnorm.benchmarks._worker", request]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command, env=worker_environment(devices), stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield from map(json.loads, process.stdout)
        except BaseException:
            process.kill()
            raise
        if status := process.wait():
            errors.seek(0)
            last = "\n".join(errors.read().splitlines()[-_LAST_LINES:])
            raise RuntimeError(f"the process that measures ended with status {status}: {last or 'it said nothing'}")


def _take(message: dict[str, Any], results: dict[str, Any], bar: tqdm) -> None:
    """Puts what a process told into the results, and shows how far it is."""
    for kind, value in message.items():
        if kind == "environment":
            results["environment"] = results["environment"] or value
        elif kind == "row":
            bar.set_description(value)
        else:
            bar.update()
            if kind == "case":
                results["cases"].append(value)
                results["notes"] += [
                    f"{value['row']}: {name} failed and is left out: {why}" for name, why in value["failed"].items()
                ]
            else:
                results["notes"].append(value)
