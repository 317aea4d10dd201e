"""The picture of an experiment, of the panels that it asks for."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxnorm import _picture as picture
from jaxnorm.experiments._experiment import Bars, Experiment, Found, Lines, Options, Quantity, settings
from jaxnorm.experiments._report import spread
from jaxnorm.experiments._tables import places
from jaxnorm.experiments._verdict import Decision, verdict

_WIDTH = 13.33
_LETTERS = 110  # of the titles of all panels side by side


def save(path: Path, experiment: Experiment, found: Found, decisions: Sequence[Decision], options: Options) -> None:
    """Writes the picture: the claim, its verdict and figures above, the panels side by side, the options below."""
    quantities = {quantity.name: quantity for quantity in experiment.quantities}
    colors = {arm: picture.COLORS[number % len(picture.COLORS)] for number, arm in enumerate(found)}
    bars = max((len(found) for panel in experiment.panels if isinstance(panel, Bars)), default=0)

    def draw(figure: Any) -> None:
        letters = _LETTERS // len(experiment.panels)
        for axes, panel in zip(figure.subplots(1, len(experiment.panels), squeeze=False)[0], experiment.panels, strict=True):
            if isinstance(panel, Bars):
                _draw_bars(axes, quantities[panel.quantity], found, colors, letters)
            elif isinstance(panel, Lines):
                _draw_lines(axes, quantities[panel.quantity], found, colors, options, letters)
                if not bars:
                    axes.legend(loc="best", fontsize=10.5)
            else:
                panel.draw(axes, found, colors, options)
        first = decisions[0]
        decided = f"{first.text}: {first.figure}; the rule was {first.bound}"
        about = f"{decided}\n{settings(options)} (bars and bands: ± standard deviation)"
        figure.supxlabel(about, fontsize=10.5, color=picture.GRAY, x=0.01, ha="left")

    title = f"{experiment.claim}: {verdict(decisions)}"
    picture.save_picture(path, draw, title=title, size=(_WIDTH, max(5.2, 2.0 + 0.5 * bars)))


def _draw_bars(axes: Any, quantity: Quantity, found: Found, colors: dict[str, str], letters: int) -> None:
    """Draws bars; the arms' names beside them explain the colors of all panels."""
    shown = {arm: quantity.factor * parts[quantity.name] for arm, parts in found.items() if quantity.name in parts}
    most = max(float(np.mean(values) + spread(values)) for values in shown.values())
    for row, (arm, values) in enumerate(shown.items()):
        mean, deviation = float(np.mean(values)), float(spread(values))
        axes.barh(row, mean, 0.66, color=colors[arm])
        axes.errorbar(mean, row, xerr=deviation, color=picture.GRAY, linewidth=1.4, capsize=3)
        end = (mean + deviation) * 1.1 if quantity.log else mean + deviation + 0.015 * most
        axes.text(end, row, f"{mean:.{quantity.digits}f}", va="center", fontsize=11)
    axes.set_yticks(range(len(shown)), list(shown))
    for label, arm in zip(axes.get_yticklabels(), shown, strict=True):
        label.set(color=colors[arm], fontweight="bold")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    if quantity.log:
        picture.plain_log_axis(axes.xaxis)
    else:
        axes.set_xlim(right=1.14 * most if most > 0 else None)
    axes.set_title(textwrap.fill(quantity.title, letters))


def _draw_lines(axes: Any, quantity: Quantity, found: Found, colors: dict[str, str], options: Options, letters: int) -> None:
    from matplotlib.ticker import MaxNLocator

    assert quantity.axis is not None
    x = places(quantity, options)
    for number, (arm, parts) in enumerate(found.items()):
        if quantity.name not in parts:
            continue
        values = quantity.factor * parts[quantity.name]
        mean, deviation = values.mean(0), spread(values)
        low = mean - deviation
        if quantity.log:
            low = np.maximum(low, values.min(0))  # not below 0
        every = max(1, len(x) // 12)
        axes.plot(x, mean, color=colors[arm], marker=picture.MARKERS[number % len(picture.MARKERS)], markevery=every, label=arm)
        axes.fill_between(x, low, mean + deviation, color=colors[arm], alpha=0.2, linewidth=0)
    if quantity.axis.log:
        picture.plain_log_axis(axes.xaxis)
    elif np.all(x == np.round(x)):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if quantity.log:
        picture.plain_log_axis(axes.yaxis)
    axes.set(xlabel=quantity.axis.label)
    axes.set_title(textwrap.fill(quantity.title, letters))
