"""Verdicts: what an experiment's figures say of its claim, by the rules that it was written with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnorm.experiments._experiment import Bound, Found, Part
from jaxnorm.experiments._report import spread

HOLDS, IN_PART, FAILS = "holds", "holds in part", "fails here"
_STANDARD_ERRORS = 2.0


class Decision(NamedTuple):
    """What a run says of a part of a claim.

    Attributes:
      claims: the numbers of the claims of the sources that it bears on.
      text: what the figure is.
      mean: the figure's mean over the seeds.
      spread: its standard deviation over the seeds.
      bound: where it had to be, in words.
      holds: whether it is there.
      digits: decimals that are shown.
    """

    claims: str
    text: str
    mean: float
    spread: float
    bound: str
    holds: bool
    digits: int

    @property
    def figure(self) -> str:
        """The figure with its spread."""
        return f"{self.mean:.{self.digits}f} ± {self.spread:.{self.digits}f}"


def decide(parts: Sequence[Part], found: Found) -> list[Decision]:
    """Returns what was measured says of every part of a claim."""
    return [_decide(part, np.asarray(part.figure(found), np.float64)) for part in parts]


def verdict(decisions: Sequence[Any]) -> str:
    """Returns the verdict: by the first, if that does not hold, and else by all.

    >>> verdict([Decision("", "", 1.0, 0.0, "", holds, 2) for holds in (True, False)])
    'holds in part'
    """
    if not decisions[0].holds:
        return FAILS
    return HOLDS if all(each.holds for each in decisions) else IN_PART


def _decide(part: Part, figures: np.ndarray) -> Decision:
    figures = np.atleast_1d(figures)
    mean, deviation = float(figures.mean()), float(spread(figures))
    holds = _within(part.bound, mean, deviation, len(figures))
    return Decision(part.claims, part.text, mean, deviation, str(part.bound), holds, part.digits)


def _within(bound: Bound, mean: float, spread: float, seeds: int) -> bool:
    slack = _STANDARD_ERRORS * spread / seeds**0.5
    return bool(bound.low <= mean - slack and mean + slack <= bound.high)  # False for NaN
