"""Tables and the picture of the experiment `variance_shift`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnorm.experiments import _picture as picture
from jaxnorm.experiments._assessment import Assessment, NormAssessment
from jaxnorm.experiments._report import Results, Table, mean_and_spread, print_tables, spread, write_csv, write_markdown

_NORM, _BEFORE = "batch norm", "dropout before batch norm"
_COLORS = (
    picture.GRAY, picture.BLACK, picture.PURPLE, picture.VERMILION, picture.ORANGE, picture.BLUE, picture.GREEN,
)  # fmt: skip
_NONE = "-"


def write(folder: Path, measured: Mapping[str, Assessment], settings: Mapping[str, Any]) -> None:
    """Prints the tables, and writes them and the picture into the folder.

    Raises:
      WriteError: if a file cannot be written; the others are.
    """
    tables, title, results = (_summary(measured), _layers(measured)), _finding(measured), Results(folder)
    results.write("results.csv", lambda path: write_csv(path, *_results(measured)))
    results.write("layers.csv", lambda path: write_csv(path, *_layer_results(measured)))
    results.write("variance_shift.png", lambda path: _save_picture(path, title, measured, settings))
    text = _explanation(measured, settings)
    results.write("results.md", lambda path: write_markdown(path, title, text, tables, "variance_shift.png"))
    print_tables(tables)
    print(f"{title}.\n{_agreement(measured)}")
    print(results.summary())


def _finding(measured: Mapping[str, Assessment]) -> str:
    bad, good = measured[_BEFORE], measured[_NORM]
    largest = _norms(measured)[_BEFORE].shift.compounded.max(1).mean()
    accuracies = f"{_percent(bad.test_accuracy):.0f} % instead of {_percent(good.test_accuracy):.0f} %"
    return f"Dropout before batch norm: variances off by a factor of up to {largest:.1f}, test accuracy {accuracies}"


def _agreement(measured: Mapping[str, Assessment]) -> str:
    """Returns how well the closed form agrees with what it is the closed form of."""
    shifts = [norms.shift for norms in _norms(measured).values()]
    alone = max(np.abs(shift.alone / shift.closed_form - 1).max() for shift in shifts)
    first = max(np.abs(shift.compounded / shift.closed_form - 1)[:, 0].max() for shift in shifts)
    return (
        f"At every batch norm the closed form is within {100 * alone:.1f} % of the ratio measured with noise at that layer "
        f"alone; at the first one, which has no noise below it, within {100 * first:.1f} % of the shift ratio."
    )


def _explanation(measured: Mapping[str, Assessment], settings: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in settings.items())
    return (
        f"Scikit-learn's digits, 1,297 to train and 500 to test; {values}. Mean ± standard deviation over seeds.\n\n"
        "The shift ratio of a batch norm is the variance that it stored in training over the real one without noise, weights as "
        "they are, or its inverse, whichever is at least 1. The closed form is of noise at that layer alone; noise in the layers "
        "below compounds with it. Re-estimation replaces the stored statistics by those of the training set without noise.\n\n"
        + _agreement(measured)
    )


def _summary(measured: Mapping[str, Assessment]) -> Table:
    rows = []
    for name, a in measured.items():
        shift, closed_form, reestimated = _NONE, _NONE, _NONE
        if a.norms is not None:
            seeds, worst = np.arange(len(a.test_nll)), a.norms.shift.compounded.argmax(1)
            shift = mean_and_spread(a.norms.shift.compounded[seeds, worst], 2)
            closed_form = mean_and_spread(a.norms.shift.closed_form[seeds, worst], 2)
            reestimated = mean_and_spread(100 * a.norms.reestimated_accuracy, 1)
        accuracies = (mean_and_spread(100 * accuracy, 1) for accuracy in (a.train_accuracy, a.test_accuracy))
        rows.append((name, *accuracies, mean_and_spread(a.test_nll, 3), shift, closed_form, reestimated))
    columns = (
        "arm", "train\naccuracy, %", "test\naccuracy, %", "test NLL", "largest\nshift ratio", "closed form\nthere",
        "re-estimated: test\naccuracy, %",
    )  # fmt: skip
    return Table("What each arm reaches", columns, rows)


def _layers(measured: Mapping[str, Assessment]) -> Table:
    shifts = {name: norms.shift for name, norms in _norms(measured).items()}
    depth = len(next(iter(shifts.values())).compounded[0])

    def cell(shift: Any, layer: int) -> str:
        return f"{shift.compounded[:, layer].mean():.2f} ({shift.closed_form[:, layer].mean():.2f})"

    rows = [(str(layer + 1), *(cell(shift, layer) for shift in shifts.values())) for layer in range(depth)]
    title = "Shift ratio of every batch norm, and in parentheses the closed form for noise at that layer alone"
    return Table(title, ("batch norm", *shifts), rows)


def _results(measured: Mapping[str, Assessment]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    columns = ("arm", "seed", "train_accuracy", "test_accuracy", "test_nll", "max_shift", "reestimated_accuracy")
    rows = []
    for name, a in measured.items():
        max_shift = reestimated = np.full(len(a.test_nll), np.nan)
        if a.norms is not None:
            max_shift, reestimated = a.norms.shift.compounded.max(1), a.norms.reestimated_accuracy
        parts = (a.train_accuracy, a.test_accuracy, a.test_nll, max_shift, reestimated)
        rows += [(name, seed, *values) for seed, values in enumerate(zip(*parts, strict=True))]
    return columns, rows


def _layer_results(measured: Mapping[str, Assessment]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    columns = (
        "arm", "seed", "layer", "stored_variance", "real_variance", "shift", "shift_alone", "closed_form", "li_closed_form",
    )  # fmt: skip
    rows = []
    for name, norms in _norms(measured).items():
        parts = np.stack([norms.variances.stored, norms.variances.real, *norms.shift], -1)
        rows += [(name, seed, layer + 1, *parts[seed, layer]) for seed, layer in np.ndindex(parts.shape[:2])]
    return columns, rows


def _save_picture(path: Path, title: str, measured: Mapping[str, Assessment], settings: Mapping[str, Any]) -> None:
    picture.save_picture(path, lambda figure: _draw(figure, measured, settings), title=title, size=(13.33, 6.8))


def _draw(figure: Any, measured: Mapping[str, Assessment], settings: Mapping[str, Any]) -> None:
    """Draws the shift ratios on the left, the accuracies on the right; the arms' names there explain the colors of both."""
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    colors = dict(zip(measured, _COLORS, strict=True))
    _draw_shifts(left, measured, colors)
    _draw_accuracies(right, measured, colors)
    about = (
        "depth {depth}, width {width}, dropout rate {rate}, {epochs} epochs, {seeds} seeds (bands and bars: ± standard deviation)"
    )
    figure.supxlabel("scikit-learn digits; " + about.format(**settings), fontsize=10.5, color=picture.GRAY, x=0.01, ha="left")


def _draw_shifts(axes: Any, measured: Mapping[str, Assessment], colors: Mapping[str, str]) -> None:
    for name, norms in _norms(measured).items():
        shift = norms.shift
        layers = 1 + np.arange(shift.compounded.shape[1])
        mean, deviation = shift.compounded.mean(0), spread(shift.compounded)
        axes.plot(layers, mean, "o-", color=colors[name])
        axes.fill_between(layers, mean - deviation, mean + deviation, color=colors[name], alpha=0.2, linewidth=0)
        axes.set_xticks(layers)
        if not np.allclose(shift.closed_form, 1):
            axes.plot(layers, shift.closed_form.mean(0), "--", color=colors[name], linewidth=1.6)
    axes.plot([], [], "o-", color=picture.BLACK, label="measured, noise in all layers")
    axes.plot([], [], "--", color=picture.BLACK, linewidth=1.6, label="closed form, noise in that layer alone")
    axes.legend(loc="upper left")
    picture.plain_log_axis(axes.yaxis)
    axes.set_ylim(top=1.5 * axes.get_ylim()[1])  # room for the legend
    axes.set(xlabel="batch norm, from the input", title="Shift ratio: variance stored in training over the real one")


def _draw_accuracies(axes: Any, measured: Mapping[str, Assessment], colors: Mapping[str, str]) -> None:
    for row, (name, a) in enumerate(measured.items()):
        both = [(a.test_accuracy, colors[name])]
        if a.norms is not None:
            both.append((a.norms.reestimated_accuracy, picture.pale(colors[name])))
        height = 0.38
        for which, (accuracy, color) in enumerate(both):
            y = row + (which - (len(both) - 1) / 2) * height
            mean, deviation = _percent(accuracy), 100 * spread(accuracy)
            axes.barh(y, mean, height, color=color)
            axes.errorbar(mean, y, xerr=deviation, color=picture.BLACK, linewidth=1.2, capsize=2)
            axes.text(mean + deviation + 1.5, y, f"{mean:.1f}", va="center", fontsize=10.5)
    axes.set_yticks(range(len(measured)), list(measured))
    for label, color in zip(axes.get_yticklabels(), colors.values(), strict=True):
        label.set(color=color, fontweight="bold")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(0, 116), xticks=range(0, 101, 20), xlabel="%")
    axes.set_title("Test accuracy (pale: with re-estimated statistics)")


def _norms(measured: Mapping[str, Assessment]) -> dict[str, NormAssessment]:
    return {name: a.norms for name, a in measured.items() if a.norms is not None}


def _percent(accuracy: jax.Array | np.ndarray) -> float:
    return 100 * float(accuracy.mean())
