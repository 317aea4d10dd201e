"""Table and picture of the experiment `mc_dropout`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnorm.experiments import _picture as picture
from jaxnorm.experiments._report import Results, Table, mean_and_spread, print_tables, spread, write_csv, write_markdown

EDGES = (1.0, 3.0)
"""Between which distances from 0 there are data."""
_COLORS = (picture.BLUE, picture.VERMILION)


class Measured(NamedTuple):
    """What was measured of an arm.

    Attributes:
      x: the grid, `[G]`.
      curve: the curve there.
      points: where the data are, `[seeds, N]`.
      targets: theirs.
      mean: of the samples, `[seeds, G]`.
      std: their standard deviation.
    """

    x: np.ndarray
    curve: np.ndarray
    points: np.ndarray
    targets: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def _regions(x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns which points of the grid are in each region."""
    away = np.abs(x)
    low, high = EDGES
    return {
        "data": (low <= away) & (away <= high),
        "gap": away < low,
        "up to 1 beyond": (high < away) & (away <= high + 1),
        "1 to 3 beyond": (high + 1 < away) & (away <= high + 3),
        "3 to 5 beyond": high + 3 < away,
    }


def of_regions(found: Measured) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns of every region the mean deviation of the samples, the error of their mean, and the share within two deviations.

    Each `[seeds]`; the error is the root of the mean square.
    """
    off = found.mean - found.curve
    parts = {}
    for name, where in _regions(found.x).items():
        inside = np.abs(off[:, where]) <= 2 * found.std[:, where]
        parts[name] = found.std[:, where].mean(1), np.sqrt(np.square(off[:, where]).mean(1)), inside.mean(1)
    return parts


def write(folder: Path, measured: Mapping[str, Measured], settings: Mapping[str, Any]) -> None:
    """Prints the table, and writes it and the picture into the folder.

    Raises:
      WriteError: if a file cannot be written; the others are.
    """
    table, title, results = _table(measured), _finding(measured), Results(folder)
    results.write("results.csv", lambda path: write_csv(path, *_rows(measured)))
    results.write("mc_dropout.png", lambda path: _save_picture(path, title, measured, settings))
    text = _explanation(settings)
    results.write("results.md", lambda path: write_markdown(path, title, text, [table], "mc_dropout.png"))
    print_tables([table])
    print(f"{title}.")
    print(results.summary())


def _finding(measured: Mapping[str, Measured]) -> str:
    def times(name: str) -> str:
        parts = of_regions(measured[name])
        return f"{parts['3 to 5 beyond'][0].mean() / parts['data'][0].mean():.1f}"

    first, second = measured
    return (
        f"MC dropout's deviation off the data is {times(first)} times that on them with {first} units, and {times(second)} "
        f"times with {second} units"
    )


def _explanation(settings: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"200 points of sin(1.5 x) with noise of deviation 0.1, at distances of {EDGES[0]:g} to {EDGES[1]:g} from 0; networks of "
        f"two hidden layers, each with dropout behind; {values}. Mean ± standard deviation over seeds.\n\n"
        "The deviation is that of the outputs over masks, the error that of their mean, without the noise of targets; the last "
        "number says where on the grid the curve is within two deviations of the mean."
    )


def _table(measured: Mapping[str, Measured]) -> Table:
    rows = []
    for name, found in measured.items():
        for region, (std, error, share) in of_regions(found).items():
            cells = mean_and_spread(std, 3), mean_and_spread(error, 3), mean_and_spread(100 * share, 0)
            rows.append((f"{name}, {region}", *cells))
    columns = "units, where", "deviation\nof samples", "error of\ntheir mean", "within two\ndeviations, %"
    return Table("What samples say on and off the data", columns, rows)


def _rows(measured: Mapping[str, Measured]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    rows = [
        (name, region, seed, *values)
        for name, found in measured.items()
        for region, parts in of_regions(found).items()
        for seed, values in enumerate(zip(*parts, strict=True))
    ]
    return ("units", "region", "seed", "std", "error", "within_two_std"), rows


def _save_picture(path: Path, title: str, measured: Mapping[str, Measured], settings: Mapping[str, Any]) -> None:
    picture.save_picture(path, lambda figure: _draw(figure, measured, settings), title=title, size=(13.33, 5.6))


def _draw(figure: Any, measured: Mapping[str, Measured], settings: Mapping[str, Any]) -> None:
    """Draws the prediction of the first seed of every arm, and at the right all deviations."""
    *each, right = figure.subplots(1, len(measured) + 1)
    for axes, color, (name, found) in zip(each, _COLORS, measured.items(), strict=True):
        mean, std = found.mean[0], found.std[0]
        axes.plot(found.x, found.curve, "--", color=picture.GRAY, linewidth=1.6, label="curve")
        axes.plot(found.points[0], found.targets[0], ".", color=picture.BLACK, markersize=3, label="data")
        axes.plot(found.x, mean, color=color, label="mean of samples")
        axes.fill_between(found.x, mean - 2 * std, mean + 2 * std, color=color, alpha=0.2, linewidth=0, label="± 2 deviations")
        axes.set(title=f"{name} units", xlabel="x", ylim=(-4, 4))
        axes.legend(loc="upper center", ncols=2, fontsize=10)
        right.plot(found.x, found.std.mean(0), color=color, label=name)
        low, high = (found.std.mean(0) + sign * spread(found.std) for sign in (-1, 1))
        right.fill_between(found.x, low, high, color=color, alpha=0.2, linewidth=0)
    for side in (-1, 1):
        right.axvspan(*sorted(side * edge for edge in EDGES), color=picture.GRAY, alpha=0.15, linewidth=0)
    right.set(title="Deviation of samples (gray: data)", xlabel="x")
    right.set_ylim(bottom=0)
    right.legend(loc="upper center")
    about = "sin(1.5 x); dropout rate {rate}, width {width}, {steps} steps, {samples} masks, {seeds} seeds (bands at the right: "
    figure.supxlabel((about + "± standard deviation)").format(**settings), fontsize=10.5, color=picture.GRAY, x=0.01, ha="left")
