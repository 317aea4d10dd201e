"""Table and picture of the experiment `sparse_variational_dropout`, and what it measures."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnorm.experiments import _picture as picture
from jaxnorm.experiments._report import Results, Table, mean_and_spread, print_tables, spread, write_csv, write_markdown

_COLORS = (picture.GRAY, picture.BLUE, picture.GREEN)


class Measured(NamedTuple):
    """What is measured on trained networks, with the seeds along the first axis.

    Attributes:
      accuracy: on the test set, without the weights that are pruned.
      unpruned_accuracy: with them.
      nll: of the test set, without them.
      left: the share of the weights that is left, of each layer along the last axis.
    """

    accuracy: jax.Array
    unpruned_accuracy: jax.Array
    nll: jax.Array
    left: jax.Array


def write(folder: Path, measured: Mapping[str, Measured], widths: Sequence[int], settings: Mapping[str, Any]) -> None:
    """Prints the table, and writes it and the picture into the folder.

    Raises:
      WriteError: if a file cannot be written; the others are.
    """
    table, title, results = _table(measured, widths), _finding(measured, widths), Results(folder)
    name = "sparse_variational_dropout.png"
    results.write("results.csv", lambda path: write_csv(path, *_results(measured, widths)))
    results.write(name, lambda path: _save_picture(path, title, measured, widths, settings))
    text = _explanation(settings)
    results.write("results.md", lambda path: write_markdown(path, title, text, (table,), name))
    print_tables((table,))
    print(f"{title}.")
    print(results.summary())


def share_left(measured: Measured, widths: Sequence[int]) -> np.ndarray:
    """Returns the share of all weights that is left, of each seed."""
    sizes = np.array([inputs * outputs for inputs, outputs in itertools.pairwise(widths)])
    return np.asarray(measured.left) @ sizes / sizes.sum()


def _finding(measured: Mapping[str, Measured], widths: Sequence[int]) -> str:
    dense, sparse, *_ = measured.values()
    left = 100 * share_left(sparse, widths).mean()
    accuracies = [100 * float(one.accuracy.mean()) for one in (sparse, dense)]
    return "Sparse variational dropout leaves {:.1f} % of the weights, at a test accuracy of {:.1f} % instead of {:.1f} %".format(
        left, *accuracies
    )


def _explanation(settings: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"Scikit-learn's digits, 1,297 to train and 500 to test; {values}. Mean ± standard deviation over seeds.\n\n"
        "A weight is pruned where log alpha is above 3. The divergence is computed by the paper's fit, or exactly."
    )


def _table(measured: Mapping[str, Measured], widths: Sequence[int]) -> Table:
    layers = [f"{inputs}-{outputs}\nleft, %" for inputs, outputs in itertools.pairwise(widths)]
    columns = ("network", "test\naccuracy, %", "unpruned\naccuracy, %", "test NLL", "weights\nleft, %", "fold", *layers)
    rows = []
    for name, one in measured.items():
        share = share_left(one, widths)
        accuracies = (mean_and_spread(100 * accuracy, 1) for accuracy in (one.accuracy, one.unpruned_accuracy))
        left = (mean_and_spread(100 * of_layer, 1) for of_layer in (share, *np.moveaxis(np.asarray(one.left), -1, 0)))
        total, *parts = left
        fold = mean_and_spread(1 / np.maximum(share, 1e-9), 0)
        rows.append((name, *accuracies, mean_and_spread(one.nll, 3), total, fold, *parts))
    return Table("What each network reaches, and what is left of it", columns, rows)


def _results(measured: Mapping[str, Measured], widths: Sequence[int]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    layers = tuple(f"left_{i + 1}" for i in range(len(widths) - 1))
    columns = ("network", "seed", "test_accuracy", "unpruned_accuracy", "test_nll", "left", *layers)
    rows = []
    for name, one in measured.items():
        parts = zip(one.accuracy, one.unpruned_accuracy, one.nll, share_left(one, widths), one.left, strict=True)
        rows += [(name, seed, *numbers, *left) for seed, (*numbers, left) in enumerate(parts)]
    return columns, rows


def _save_picture(
    path: Path, title: str, measured: Mapping[str, Measured], widths: Sequence[int], settings: Mapping[str, Any]
) -> None:
    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        shares = {name: np.concatenate([one.left, share_left(one, widths)[:, None]], 1) for name, one in measured.items()}
        names = [*(f"{a}-{b}" for a, b in itertools.pairwise(widths)), "all"]
        for number, (name, color) in enumerate(zip(measured, _COLORS, strict=True)):
            one = measured[name]
            places = np.arange(len(names)) + 0.27 * (number - 1)
            mean = 100 * shares[name].mean(0)
            left.bar(places, mean, 0.25, yerr=100 * spread(shares[name]), color=color, capsize=2)
            for x, y in zip(places, mean, strict=True):
                left.text(x, 1.15 * y, f"{y:.1f}" if y < 99 else "100", ha="center", fontsize=9)
            accuracy = 100 * one.accuracy.mean()
            right.barh(number, accuracy, 0.6, xerr=100 * spread(one.accuracy), color=color, capsize=2)
            right.text(accuracy + 2, number, f"{accuracy:.1f}", va="center", fontsize=10.5)
        left.set_xticks(range(len(names)), names)
        picture.plain_log_axis(left.yaxis)
        left.set(title="Weights that are left, %", ylim=(0.1, 200))
        right.set_yticks(range(len(measured)), list(measured))
        for label, color in zip(right.get_yticklabels(), _COLORS, strict=True):  # they explain the colors of both
            label.set(color=color, fontweight="bold")
        right.invert_yaxis()
        right.grid(axis="y", visible=False)
        right.set(title="Test accuracy, pruned, %", xlim=(0, 112), xticks=range(0, 101, 20))
        about = "scikit-learn digits; {epochs} epochs, {seeds} seeds (bars: ± standard deviation)"
        figure.supxlabel(about.format(**settings), fontsize=10.5, color=picture.GRAY, x=0.01, ha="left")

    picture.save_picture(path, draw, title=title, size=(13.33, 5.6))
