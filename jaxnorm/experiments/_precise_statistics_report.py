"""Tables and picture of the experiment `precise_statistics`, and what it measures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnorm.experiments import _picture as picture
from jaxnorm.experiments._report import Results, Table, mean_and_spread, print_tables, write_csv, write_markdown

_COLORS = {
    "as trained": picture.BLACK,
    "spoilt": picture.VERMILION,
    "corrected": picture.SKY,
    "stale pass": picture.GRAY,
    "debiased": picture.PURPLE,
    "by batches": picture.GREEN,
    "layer by layer": picture.BLUE,
}
_MOMENTUM = "momentum"


class Measured(NamedTuple):
    """Accuracy and mean negative log-likelihood on the test set, by seed."""

    accuracy: jax.Array
    nll: jax.Array


def write(folder: Path, measured: Mapping[str, Measured], settings: Mapping[str, Any]) -> None:
    """Prints the tables, and writes them and the picture into the folder.

    Raises:
      WriteError: if a file cannot be written; the others are.
    """
    groups, title, results = _grouped(measured), _finding(measured), Results(folder)
    spoilt = {name: row for name, row in groups.items() if not name.startswith(_MOMENTUM)}
    stale = {name: row for name, row in groups.items() if name.startswith(_MOMENTUM)}
    tables = (
        _table("Statistics taken with dropout on: test accuracy, %", spoilt, lambda value: 100 * value.accuracy, 1),
        _table("Statistics taken with dropout on: test NLL", spoilt, lambda value: value.nll, 2),
        _table("Statistics after 160 steps: test accuracy, %", stale, lambda value: 100 * value.accuracy, 1),
    )
    results.write("results.csv", lambda path: write_csv(path, *_results(groups)))
    results.write("precise_statistics.png", lambda path: _save_picture(path, title, (spoilt, stale), settings))
    text = _explanation(settings)
    results.write("results.md", lambda path: write_markdown(path, title, text, tables, "precise_statistics.png"))
    print_tables(tables)
    print(f"{title}.")
    print(results.summary())


def _grouped(measured: Mapping[str, Measured]) -> dict[str, dict[str, Measured]]:
    groups: dict[str, dict[str, Measured]] = {}
    for name, value in measured.items():
        row, statistics = name.split(": ")
        groups.setdefault(row, {})[statistics] = value
    return {row: {name: found[name] for name in _COLORS if name in found} for row, found in groups.items()}


def _finding(measured: Mapping[str, Measured]) -> str:
    row = "before batch norm, rate 0.7"
    spoilt, again = (100 * float(measured[f"{row}: {name}"].accuracy.mean()) for name in ("spoilt", "by batches"))
    return f"Statistics taken with dropout on: {spoilt:.1f} % right; estimated anew without: {again:.1f} %"


def _explanation(settings: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"Scikit-learn's digits; {values}. Mean ± standard deviation over seeds. All weights are those of training without "
        "noise, and stay.\n\n"
        "In the first two tables the statistics of all layers are taken with dropout on (spoilt). They are then corrected in "
        "closed form, of themselves alone; taken in one pass without noise in which each layer still normalizes by the spoilt "
        "ones; and estimated anew, with each layer normalizing by its batch, or by the very statistics that result. In the "
        "third, averages over 160 steps are read as they are, without what they began with, and estimated anew."
    )


def _table(title: str, groups: Mapping[str, Mapping[str, Measured]], value: Callable[[Measured], Any], digits: int) -> Table:
    columns = [name for name in _COLORS if any(name in row for row in groups.values())]
    rows = [
        (name, *(_cell(value(row[column]), digits) if column in row else "-" for column in columns))
        for name, row in groups.items()
    ]
    return Table(title, ("", *columns), rows)


def _cell(values: Any, digits: int) -> str:
    return mean_and_spread(values, digits) if np.mean(values) <= 100 else f"{np.mean(values):.0e}"


def _results(groups: Mapping[str, Mapping[str, Measured]]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    rows = [
        (row, name, seed, float(value.accuracy[seed]), float(value.nll[seed]))
        for row, found in groups.items()
        for name, value in found.items()
        for seed in range(len(value.accuracy))
    ]
    return ("row", "statistics", "seed", "test_accuracy", "test_nll"), rows


def _save_picture(path: Path, title: str, parts: Any, settings: Mapping[str, Any]) -> None:
    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
        for one, groups, heading in zip(axes, parts, ("Taken with dropout on", "Averaged over 160 steps"), strict=True):
            for place, row in enumerate(groups.values()):
                for number, (name, value) in enumerate(row.items()):
                    left = place + 0.8 * (number + 0.5) / len(row) - 0.4
                    one.bar(left, 100 * np.mean(value.accuracy), 0.8 / len(row), color=_COLORS[name], label=name)
            one.set_xticks(range(len(groups)), [name.replace(", ", ",\n").replace("before ", "before\n") for name in groups])
            one.tick_params(axis="x", labelsize=9.5)
            one.grid(axis="x", visible=False)
            one.set(title=heading, ylim=(0, 100))
        axes[0].set_ylabel("test accuracy, %")
        shown = {name: handle for one in axes for handle, name in zip(*one.get_legend_handles_labels(), strict=True)}
        figure.legend(
            [shown[name] for name in _COLORS],
            list(_COLORS),
            loc="outside lower right",
            ncols=len(_COLORS),
            fontsize=10.5,
            columnspacing=1.2,
            handlelength=1.2,
        )
        about = "scikit-learn's digits; {depth} hidden layers of {width}, {seeds} seeds"
        figure.supxlabel(about.format(**settings), fontsize=10.5, color=picture.GRAY, x=0.01, ha="left")

    picture.save_picture(path, draw, title=title, size=(13.33, 6.2))
