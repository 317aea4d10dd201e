"""Tables of what an experiment measured, for people; and its rows, for programs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxnorm.experiments._experiment import Experiment, Found, Lines, Options, Quantity
from jaxnorm.experiments._report import Table, mean_and_spread
from jaxnorm.experiments._verdict import Decision

CSV_COLUMNS = ("arm", "quantity", "place", "seed", "value")
_NONE = "-"
_MOST_COLUMNS = 10


def tables(experiment: Experiment, found: Found, decisions: Sequence[Decision], options: Options) -> Iterator[Table]:
    """Yields what decides, the numbers of all arms, and the curves that are drawn, at up to ten places each."""
    rows = [(each.text, each.figure, each.bound, "yes" if each.holds else "no") for each in decisions]
    yield Table("What decides", ("figure", "measured", "must be", "holds"), rows)
    numbers = [quantity for quantity in experiment.quantities if quantity.axis is None]
    if numbers:
        rows = [(arm, *(_cell(quantity, parts) for quantity in numbers)) for arm, parts in found.items()]
        yield Table("What each arm reaches", ("arm", *(quantity.label for quantity in numbers)), rows)
    drawn = {panel.quantity for panel in experiment.panels if isinstance(panel, Lines)}
    for quantity in experiment.quantities:
        if quantity.axis is not None and quantity.name in drawn:
            yield _curves(quantity, quantity.axis.label, places(quantity, options), found)


def places(quantity: Quantity, options: Options) -> np.ndarray:
    """Returns where a curve's points are."""
    assert quantity.axis is not None
    return np.asarray(quantity.axis.values(options))


def rows(experiment: Experiment, found: Found, options: Options) -> Iterator[tuple[Any, ...]]:
    """Yields all that was measured, a row for each number; those that are no point of a curve have no place."""
    for arm, parts in found.items():
        for quantity in experiment.quantities:
            if quantity.name not in parts:
                continue
            where = [""] if quantity.axis is None else places(quantity, options)
            for place, values in zip(where, _points(quantity, parts), strict=True):
                yield from ((arm, quantity.name, place, seed, value) for seed, value in enumerate(values))


def _points(quantity: Quantity, parts: Any) -> np.ndarray:
    values = parts[quantity.name]
    return values[None] if quantity.axis is None else values.T


def _cell(quantity: Quantity, parts: Any) -> str:
    return mean_and_spread(quantity.factor * parts[quantity.name], quantity.digits) if quantity.name in parts else _NONE


def _curves(quantity: Quantity, label: str, places: np.ndarray, found: Found) -> Table:
    shown = np.unique(np.linspace(0, len(places) - 1, min(len(places), _MOST_COLUMNS)).round().astype(int))
    columns = [f"{label}\n{places[shown[0]]:.4g}", *(f"{place:.4g}" for place in places[shown[1:]])]
    rows = [
        (arm, *(mean_and_spread(quantity.factor * parts[quantity.name][:, point], quantity.digits) for point in shown))
        for arm, parts in found.items()
        if quantity.name in parts
    ]
    return Table(quantity.title, ("arm", *columns), rows)
