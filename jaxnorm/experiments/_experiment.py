"""What an experiment says of itself: a claim, what is compared, what is measured, and what would decide it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnorm.experiments._options import Option

Options = SimpleNamespace
"""The options of a run, by their names; `seeds` is always one."""


def settings(options: Options) -> str:
    """Returns what the options of a run are, as `rate 0.5, seeds 5`."""
    return ", ".join(f"{name} {value}" for name, value in vars(options).items())


Found = Mapping[str, Mapping[str, np.ndarray]]
"""What was measured: arrays by arm and quantity, with the seeds along the first axis."""


class Axis(NamedTuple):
    """What a curve's points stand for: a label with its unit, and their places; `log` says how they are drawn."""

    label: str
    values: Callable[[Options], Sequence[float] | np.ndarray]
    log: bool = False


class Quantity(NamedTuple):
    """What an experiment measures.

    Attributes:
      name: its name in what `measure` returns, and in the CSV file.
      label: what tables and pictures call it, with its unit.
      digits: decimals that tables show.
      factor: what it is multiplied by there, as 100 for percent.
      axis: of a curve, `[seeds, points]`; None for a number, `[seeds]`.
      log: whether pictures have a logarithmic scale.
    """

    name: str
    label: str
    digits: int = 2
    factor: float = 1.0
    axis: Axis | None = None
    log: bool = False

    @property
    def title(self) -> str:
        """The label as the title of a table or a panel."""
        return self.label[:1].upper() + self.label[1:]


class Bound(NamedTuple):
    """Where a figure must be for a part of a claim to hold: from `low` to `high`."""

    low: float
    high: float

    def __str__(self) -> str:
        if self.high == np.inf:
            return f"at least {self.low:g}"
        if self.low == -np.inf:
            return f"at most {self.high:g}"
        return f"{self.low:g} to {self.high:g}"


def at_least(low: float) -> Bound:
    """Returns the bound of a figure that must not be below a number."""
    return Bound(low, np.inf)


def at_most(high: float) -> Bound:
    """Returns the bound of a figure that must not be above a number."""
    return Bound(-np.inf, high)


class Part(NamedTuple):
    """A part of a claim: it holds where a figure is within its bound.

    Attributes:
      claims: the numbers of the claims of the sources that it bears on, as `"0.8 4.2"`; see `_claims.py`.
      text: what the figure is, with its unit: `"largest usable learning rate, with over without"`.
      figure: takes what was measured and gives the figure of each seed.
      bound: where the mean over the seeds must be, with two standard errors to spare.
      digits: decimals that are shown.
    """

    claims: str
    text: str
    figure: Callable[[Found], Any]
    bound: Bound
    digits: int = 2


def once(quantity: str) -> Callable[[Found], np.ndarray]:
    """Returns the figure of a quantity that one arm alone has, whichever it is: `control` makes arms change places."""
    return lambda found: next(of[quantity] for of in found.values() if quantity in of)


class Bars(NamedTuple):
    """A panel of a picture: a number of each arm, as bars."""

    quantity: str


class Lines(NamedTuple):
    """A panel of a picture: a curve of each arm, the mean over the seeds in a band of a standard deviation."""

    quantity: str


class Drawing(NamedTuple):
    """A panel of a picture that an experiment draws itself: `draw(axes, found, colors, options)`, colors by arm."""

    draw: Callable[[Any, Found, Mapping[str, str], Options], None]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A claim, and how it is decided.

    Its verdict is "holds" if every part holds, "fails here" if the first does not, which is the heart of the claim, and else
    "holds in part". The frame trains nothing and knows no network: `measure` does, of one arm for all seeds at once.

    Attributes:
      claim: what the sources say, in a sentence without its full stop: the title of the picture.
      sources: the papers, as `Authors, "Title", where and when, address`.
      options: options of the command line, beside `seeds`.
      arms: what is compared: descriptions of any type by their names, or a function of the options that gives them.
      measure: `measure(arm, keys, options, progress)` gives what is measured of an arm, by the names of `quantities`. Keys are
        one for each seed, the same for every arm; `progress(share)` is called with the share of its work that is done since.
      quantities: what is measured.
      parts: what decides; the first is the heart of the claim.
      panels: what the picture shows.
      protocol: what is trained on what, and measured how, in a few sentences.
      note: what must be added to the claim, or corrected, whatever the verdict.
      control: what switches the effect off, so that the verdict must be "fails here": other values of options, or names of arms
        that change places.
      seeds: the number of seeds, and with `--quick`.
    """

    claim: str
    sources: Sequence[str]
    arms: Mapping[str, Any] | Callable[[Options], Mapping[str, Any]]
    measure: Callable[[Any, jax.Array, Options, Callable[[float], None]], Mapping[str, Any]]
    quantities: Sequence[Quantity]
    parts: Sequence[Part]
    panels: Sequence[Bars | Lines | Drawing]
    protocol: str
    options: Sequence[Option] = ()
    note: str = ""
    control: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, int] = (5, 2)

    def arms_of(self, options: Options) -> Mapping[str, Any]:
        """Returns the arms of a run."""
        return self.arms(options) if callable(self.arms) else self.arms


def together(
    names: Sequence[str], measure: Callable[[jax.Array, Options, Callable[[float], None]], Mapping[str, Mapping[str, Any]]]
) -> Callable[[Options], Mapping[str, Any]]:
    """Returns arms that are looked at on the same networks: one call, `measure(keys, options, progress)`, measures all of them.

    It gives what is measured by arm. An experiment with such arms has `measure=measure_together`.
    """

    def arms(options: Options) -> Mapping[str, Any]:
        found: dict[str, Mapping[str, Any]] = {}

        def of_arm(name: str, keys: jax.Array, progress: Callable[[float], None]) -> Mapping[str, Any]:
            if not found:
                found.update(measure(keys, options, progress))
            return found[name]

        return {name: partial(of_arm, name) for name in names}

    return arms


def measure_together(arm: Any, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Returns what is measured of one of the arms that `together` makes."""
    return arm(keys, progress)
