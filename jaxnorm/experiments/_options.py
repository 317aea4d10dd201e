"""Options of experiments, and the numbers that they take."""

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Option(NamedTuple):
    """An option of an experiment, `--name VALUE`.

    Attributes:
      name: its name, also that of the argument of `run`.
      parse: makes the value of a string, or raises `argparse.ArgumentTypeError`.
      default: the value where none is given.
      quick: the value where none is given but `--quick` is.
      help: what it is, in a line.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    quick: Any
    help: str


def count(text: str) -> int:
    """Returns an integer of at least 1."""
    return _integer(text, 1)


def index(text: str) -> int:
    """Returns an integer of at least 0."""
    return _integer(text, 0)


def _integer(text: str, low: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if number < low:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {low}, got {text!r}")
    return number


def rate_below_one(text: str) -> float:
    """Returns a number in [0, 1)."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1:  # also for NaN
        raise argparse.ArgumentTypeError(f"must be a number in [0, 1), got {text!r}")
    return number
