"""The report of a run: tables in the terminal, and a folder with a Markdown file, pictures and the figures themselves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxnorm.benchmarks._cases import OURS
from jaxnorm.benchmarks._picture import save_pictures
from jaxnorm.benchmarks._tables import by_row, first_of, main_tables, time_tables
from jaxnorm.experiments._report import Results, markdown_table, print_tables

_HEADING = "jaxnorm beside other libraries"
_HOW_TO_READ = """\
All contenders of a row do the same work on the same random numbers, in one process and in turns: each once a round, in a random
order. A figure is the median over the rounds. Those on jax are compiled, with all inputs as arguments; PyTorch runs eagerly, as
it comes. Memory is used again and not given back to the system between calls, since fresh memory costs more than arithmetic does.

- *Plain pass*: `x * c` and its gradient, or `x * c` alone for inference: what reading and writing the array once costs. Networks
  are compared with the same network without the layer. A number in parentheses says how many times as fast as Flax linen a
  contender is.
- *Forward and backward*: the layer, and its gradient for x and the parameters from a given random cotangent.
- *Temporaries*: what the compiled program needs beside its inputs and outputs. *Kept*: arrays that the layer keeps for its
  gradient, in arrays of x's size, `+ x` where it keeps its input too, which is there anyway.
- *Training step*: loss, gradient and update. The transformer has 4 layers of width 256, with dropout of the attention's
  weights and output and of the perceptron's hidden units and output; the ResNet is of 20 layers with bottlenecks, for 32 x 32
  images.
- *Samples*: of a classifier of 9 hidden layers of x's width with dropout before each of them, or before the last three; 16
  samples at once.
- Dropout's rate is 0.1. *philox2x32* and *rbg* are other generators of jax, of which Flax can be given keys."""


def write(folder: Path, results: dict[str, Any]) -> None:
    """Prints the tables, and writes them, the pictures and the figures themselves into the folder.

    Raises:
      WriteError: if a file cannot be written; the others are.
    """
    files, cases, environment = Results(folder), results["cases"], results["environment"]
    files.write("results.json", lambda path: path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8"))
    tables = main_tables(cases, on_gpu=environment["backend"] != "cpu")
    title = finding(cases)
    pictures = save_pictures(files, cases, title=title, about=_machine(environment))
    parts = [f"# {_HEADING}", _introduction(results), f"{title}.", *(f"![{text}]({name})" for name, text in pictures.items())]
    for table in tables:
        parts += [f"## {table.title}", markdown_table(table)]
    parts.append("## All times")
    for table in time_tables(cases):
        parts += [f"### {table.title}", markdown_table(table)]
    files.write("RESULTS.md", lambda path: path.write_text("\n\n".join(parts) + "\n", encoding="utf-8"))
    print_tables(tables)
    for note in results["notes"]:
        print(f"Note: {note}")
    print(f"{title}.")
    print(files.summary())


def finding(cases: Sequence[dict[str, Any]]) -> str:
    """Returns in a line how fast our default contenders are beside Flax's layers, each in the first case of its row."""
    speeds = []
    for case, *_ in by_row(case for case in cases if case["headline"]):
        if speed := first_of(case, OURS)["speed_over_flax_linen"]:
            speeds.append(f"{case['row'].replace('_', ' ')} {speed:.1f}")
    return f"Times as fast as Flax: {', '.join(speeds)}" if speeds else _HEADING


def _introduction(results: dict[str, Any]) -> str:
    environment = results["environment"]
    options = "".join((" --quick" * results["quick"], *(f" --only {' '.join(only)}" for only in [results["only"]] if only)))
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    parts = [
        f"Written by `python -m jaxnorm bench{options}`, which repeats it on any machine with the libraries that are there "
        f"(`pip install 'jaxnorm[demo,peers]'` brings all).",
        f"{_machine(environment)}; {environment['system']}; Python {environment['python']}, {versions}; {environment['date']}.",
        _HOW_TO_READ,
        *(f"Note: {note}." for note in results["notes"]),
    ]
    return "\n\n".join(parts)


def _machine(environment: dict[str, Any]) -> str:
    host = f"{environment['processor']}, {environment['cores']} cores"
    return f"CPU: {host}" if environment["backend"] == "cpu" else f"GPU: {environment['device']}; CPU: {host}"
