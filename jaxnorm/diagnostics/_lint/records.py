"""What following a traced program finds: draws of random numbers, where these meet data, reductions, norms, maxima."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxnorm.diagnostics._lint.report import Where
from jaxnorm.diagnostics._lint.values import Arrival, Axes, Place, Spot, Value


class Draw(NamedTuple):
    """A key that is used up.

    Attributes:
      place: of the equation.
      where: for users.
      library: whose code draws.
      key: a number, equal for equal keys.
      constant: whether the key comes from no argument of the function.
      inputs: paths of the leaves of the arguments that the key comes from.
      repeated_in_loop: whether every step of a loop around it draws the same.
      ours: the public function of jaxnorm that draws, or an empty string.
    """

    place: Place
    where: Where
    library: str
    key: int
    constant: bool
    inputs: tuple[str, ...]
    repeated_in_loop: bool
    ours: str


NoiseKind = Literal["factor", "choice", "added", "sampled"]


class Noise(NamedTuple):
    """A place where random numbers meet data.

    Attributes:
      place: of the equation.
      where: for users.
      library: whose layer it is: "jaxnorm", "linen", "nnx", "haiku", "equinox", or empty.
      kind: "factor" of the data, "choice" of what is kept, "added" to the data, or "sampled" otherwise.
      on: "data", or "weights" of a linear layer.
      shared: whether the examples of the batch have one mask, which varies along other axes.
      asked: what asks for a mask that is shared: a function of ours, Flax's attention, or an empty string.
      varies: axes along which the random numbers vary.
      draws: places of the draws that it is made of.
      ours: the public function of jaxnorm that asked for it, or an empty string.
      mask: the variable of the random numbers.
      sure: whether all primitives on the way are known.
      again: whether a loop that goes through the examples has the same numbers for all of its parts.
    """

    place: Place
    where: Where
    library: str
    kind: NoiseKind
    on: Literal["data", "weights"]
    shared: bool
    asked: str
    varies: Axes
    draws: frozenset[Place]
    ours: str
    mask: Spot
    sure: bool
    again: bool


class Maximum(NamedTuple):
    """A maximum over a window of data that noise reaches."""

    place: Place
    where: Where
    library: str
    noises: frozenset[Arrival]


class Reduction(NamedTuple):
    """A sum, or another reduction, of data.

    Attributes:
      place: of the equation.
      source: what is reduced.
      elements: how many elements there are in each result, and whether they are of several examples, by the number of the data:
        what is reduced, or what that is a statistic of.
      size: of the result.
      axes: of the source, that are reduced.
    """

    place: Place
    source: Value
    elements: Mapping[int, tuple[int, bool]]
    size: int
    axes: Axes


@dataclass(frozen=True)
class Norm:
    """A place where data is divided by a root of its own statistics, or of averages of them.

    Attributes:
      place: of the equation.
      where: for users.
      library: whose layer it is: "jaxnorm", "linen", "nnx", "haiku", "equinox", or empty.
      kind: "batch", statistics over several examples; "sample", within each; "averages", none of this data.
      elements: how many there are in a statistic.
      averages: paths of the leaves that are, or become, averages of its statistics; of averages alone, that of the variance.
      means: paths of the leaves that are taken from the data before.
      params: paths of the leaves that scale and shift what leaves it.
      before: paths of the leaves that scale and shift what enters it, with nothing but affine maps between.
      noises: the noise that reaches what enters it.
      bits: of the narrowest type of float that a statistic is in.
      cancelling: whether the variance is the mean of the squares less the square of the mean.
      stopped: whether its statistics have no gradient.
      spread: mesh axes over which the examples are spread, and whose statistics were not pooled.
      after: place of the norm whose output it norms, along the same axes, with nothing but an affine map between; or None.
      epsilon: the number added to the variance; None if it is not known.
      ours: the public function of jaxnorm that asked for it, or an empty string.
      reductions: places of the reductions of its statistics.
      input: the variable of what enters it.
      axes: of this variable, that are reduced.
      sure: whether all primitives on the way are known.
    """

    place: Place
    where: Where
    library: str
    kind: Literal["batch", "sample", "averages"]
    elements: int
    averages: tuple[str, ...]
    means: tuple[str, ...]
    params: tuple[str, ...]
    before: tuple[str, ...]
    noises: tuple[Arrival, ...]
    bits: int
    cancelling: bool
    stopped: bool
    spread: frozenset[str]
    after: Place | None
    epsilon: float | None
    ours: str
    reductions: frozenset[Any]
    input: Spot | None
    axes: Axes
    sure: bool
