"""What is known of a value in a traced program: where it comes from, and what it is."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

Place = tuple[Hashable, ...]
"""An equation of a traced program: its number, within those of the equations that it is in, each followed by which program."""

Axes = frozenset[int]
_NONE: frozenset[Any] = frozenset()


class Spot(NamedTuple):
    """A variable of a program: the place of the program, and the variable."""

    scope: Place
    variable: Any


class Arrival(NamedTuple):
    """Noise in a value.

    Attributes:
      noise: the place where random numbers met data.
      linear: whether a linear layer was passed since then.
      whole: whether all of the value is still what the noise was multiplied by, with nothing of other examples or layers added.
    """

    noise: Place
    linear: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a value.

    Attributes:
      number: equal for values that are computed alike from the same.
      inputs: the leaves of the arguments that it is computed from, as bits.
      examples: axes that hold the examples of the batch.
      varies: axes along which it may differ.
      loops: places of the loops in whose steps it may differ.
      over: places of the loops that go through the examples.
      constant: the number that it is everywhere, where it is a constant.
      least: a number that it is nowhere below.
      keys: numbers of the keys whose words it holds.
      draws: places of the draws that it is made of, of what has not met data.
      noise: the noise that reaches it.
      mixes: places where examples were mixed.
      reductions: places of the reductions that it is a statistic of.
      base: number of the data that it is, but for affine maps; `tap` is the variable of that data in this shape.
      squared: whether it is the square of its base, or its absolute value.
      centered: places of the reductions whose means, or leaves whose averages, were taken from it.
      rooted: what it is the root of: the places of reductions, or `("leaf", number)` of averages.
      reciprocal: whether it is the reciprocal of a root.
      epsilon: the number that was added before a root.
      normed: place of the norm that it leaves, with nothing but affine maps between.
      params: leaves that it met in affine maps.
      averages: leaves that it is an affine function of, each with whether a statistic of the batch was added.
      bits: of the narrowest type of float that a statistic was in; 0 if it is none.
      stopped: whether a statistic has no gradient.
      cancels: whether a statistic is the mean of squares less the square of the mean.
      spread: mesh axes that the examples are spread over.
      sure: whether all primitives on the way are known.
    """

    number: int
    inputs: int = 0
    examples: Axes = _NONE
    varies: Axes = _NONE
    loops: frozenset[Place] = _NONE
    over: frozenset[Place] = _NONE
    constant: float | None = None
    least: float | None = None
    keys: frozenset[int] = _NONE
    draws: frozenset[Place] = _NONE
    noise: frozenset[Arrival] = _NONE
    mixes: frozenset[Place] = _NONE
    reductions: frozenset[Place] = _NONE
    base: int = -1
    tap: Spot | None = field(default=None, compare=False)
    squared: bool = False
    centered: frozenset[Place] = _NONE
    rooted: frozenset[Place] = _NONE
    reciprocal: bool = False
    epsilon: float | None = None
    normed: Place | None = None
    params: frozenset[int] = _NONE
    averages: frozenset[tuple[int, bool]] = _NONE
    bits: int = 0
    stopped: bool = False
    cancels: bool = False
    spread: frozenset[str] = _NONE
    sure: bool = True


_UNITED = (
    "examples", "varies", "loops", "over", "keys", "draws", "noise", "mixes", "reductions", "centered", "params", "spread"
)  # fmt: skip
_SAME = ("constant", "least", "base", "squared", "reciprocal", "epsilon", "normed")


def joined(values: Iterable[Value], number: int) -> Value:
    """Returns what is known of a value that is one of several, as after a branch or a step of a loop."""
    first, *others = values
    for other in others:
        if other != first:
            first = _both(first, other, number)
    return first


def _both(a: Value, b: Value, number: int) -> Value:
    united: dict[str, Any] = {name: getattr(a, name) | getattr(b, name) for name in _UNITED}
    same = {name: getattr(a, name) if getattr(a, name) == getattr(b, name) else _EMPTY[name] for name in _SAME}
    return replace(
        a,
        number=a.number if a.number == b.number else number,
        inputs=a.inputs | b.inputs,
        averages=most_updated(a.averages | b.averages),
        rooted=a.rooted | b.rooted,
        bits=min(a.bits, b.bits) or max(a.bits, b.bits),
        stopped=a.stopped or b.stopped,
        cancels=a.cancels or b.cancels,
        sure=a.sure and b.sure,
        **united,
        **same,
    )


def most_updated(averages: Iterable[tuple[int, bool]]) -> frozenset[tuple[int, bool]]:
    """Returns each leaf once, as updated if it was anywhere."""
    updated: dict[int, bool] = {}
    for leaf, one in averages:
        updated[leaf] = one or updated.get(leaf, False)
    return frozenset(updated.items())


_EMPTY = {one.name: one.default for one in fields(Value)}
