"""Table and picture of the experiment `concrete_dropout`, and what it measures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnorm.experiments import _picture as picture
from jaxnorm.experiments._report import Results, Table, mean_and_spread, print_tables, spread, write_csv, write_markdown


class Measured(NamedTuple):
    """What is measured, with the numbers of examples along the first axis and the seeds along the second.

    Attributes:
      rates: the learned rates of the layers, along the last axis.
      of_data: standard deviation of the noise that the network sees in the data.
      of_network: standard deviation of the network's mean over draws of its dropout.
      error: root mean square of the difference between that mean and the true one.
    """

    rates: jax.Array
    of_data: jax.Array
    of_network: jax.Array
    error: jax.Array


def write(folder: Path, sizes: Sequence[int], measured: Measured, settings: Mapping[str, Any]) -> None:
    """Prints the table, and writes it and the picture into the folder.

    Raises:
      WriteError: if a file cannot be written; the others are.
    """
    table, title, results = _table(sizes, measured), _finding(sizes, measured), Results(folder)
    results.write("results.csv", lambda path: write_csv(path, *_results(sizes, measured)))
    results.write("concrete_dropout.png", lambda path: _save_picture(path, title, sizes, measured, settings))
    text = _explanation(settings)
    results.write("results.md", lambda path: write_markdown(path, title, text, (table,), "concrete_dropout.png"))
    print_tables((table,))
    print(f"{title}.")
    print(results.summary())


def _finding(sizes: Sequence[int], measured: Measured) -> str:
    first, last = (float(measured.rates[i].mean()) for i in (0, -1))
    return f"The learned rate goes from {first:.2f} at {sizes[0]:,} examples to {last:.3f} at {sizes[-1]:,}"


def _explanation(settings: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"y = 2 x + 8 + e, with standard normal x and e; {values}. Mean ± standard deviation over seeds.\n\n"
        "The rates are those of the dropout of the hidden layers' activations, from the input. The noise of the data is what "
        "the network takes for the standard deviation of e, which is 1; that of the network is the standard deviation of its "
        "mean over draws of its dropout; the error is that of this mean, averaged over the draws."
    )


def _table(sizes: Sequence[int], measured: Measured) -> Table:
    layers = measured.rates.shape[-1]
    columns = (
        "examples", *(f"rate of\nlayer {i + 1}" for i in range(layers)), "mean rate", "noise of\nthe data",
        "noise of\nthe network", "error of\nthe mean",
    )  # fmt: skip
    rows = []
    for size, rates, *others in zip(sizes, *measured, strict=True):
        cells = [mean_and_spread(values, 3) for values in (*np.moveaxis(rates, -1, 0), rates.mean(-1))]
        rows.append((f"{size:,}", *cells, *(mean_and_spread(values, 2) for values in others)))
    return Table("What is learned from so many examples", columns, rows)


def _results(sizes: Sequence[int], measured: Measured) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    layers = measured.rates.shape[-1]
    columns = ("examples", "seed", *(f"rate_{i + 1}" for i in range(layers)), "noise_of_data", "noise_of_network", "error")
    rows = [
        (size, seed, *measured.rates[i, seed], *(part[i, seed] for part in measured[1:]))
        for i, size in enumerate(sizes)
        for seed in range(measured.rates.shape[1])
    ]
    return columns, rows


def _save_picture(path: Path, title: str, sizes: Sequence[int], measured: Measured, settings: Mapping[str, Any]) -> None:
    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        colors = (picture.SKY, picture.BLUE, picture.BLACK)
        for layer, color in enumerate(colors[: measured.rates.shape[-1]]):
            _line(left, sizes, measured.rates[..., layer], color, f"layer {layer + 1}")
        left.set(ylim=(0, None), title="Learned rate")
        _line(right, sizes, measured.of_data, picture.GRAY, "noise of the data (true: 1)")
        _line(right, sizes, measured.of_network, picture.VERMILION, "noise of the network")
        right.set(title="Standard deviation")
        picture.plain_log_axis(right.yaxis)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set(xlabel="examples")
            axes.legend()
        about = "y = 2 x + 8 + e; three hidden layers of {width}, {steps} steps, {seeds} seeds (bands: ± standard deviation)"
        figure.supxlabel(about.format(**settings), fontsize=10.5, color=picture.GRAY, x=0.01, ha="left")

    picture.save_picture(path, draw, title=title, size=(13.33, 5.6))


def _line(axes: Any, sizes: Sequence[int], values: Any, color: str, label: str) -> None:
    mean, deviation = values.mean(1), np.array([spread(of_size) for of_size in values])
    axes.plot(sizes, mean, "o-", color=color, label=label)
    axes.fill_between(sizes, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0)
