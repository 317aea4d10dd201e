"""Goes through a traced program, and keeps what is known of each value."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.diagnostics._lint import locating
from jaxnorm.diagnostics._lint.axes import Moves, moves
from jaxnorm.diagnostics._lint.records import Draw, Maximum, Noise, Norm, Reduction
from jaxnorm.diagnostics._lint.report import Where
from jaxnorm.diagnostics._lint.values import Place, Spot, Value


class At(NamedTuple):
    """Where in a program the follower is: the place of an equation, and the equation and those around it, the innermost first."""

    place: Place
    stack: tuple[Any, ...]
    jaxpr: Any

    @property
    def eqn(self) -> Any:
        return self.stack[0]

    def spot(self, variable: Any) -> Spot:
        """Returns a variable of the program that the equation is of."""
        return Spot(self.place[:-1], variable)

    def producer(self) -> Any:
        """Returns the equation that the first operand comes from, or None if that is an argument."""
        operand = self.eqn.invars[0]
        return next((eqn for eqn in self.jaxpr.eqns if any(operand is made for made in eqn.outvars)), None)


Handler = Callable[["Follower", At, list[Value]], Sequence[Value]]
HANDLERS: dict[str, Handler] = {}
"""What follows an equation, by the name of its primitive."""


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Returns a decorator that makes a function the handler of primitives."""

    def add(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return add


@dataclass(frozen=True)
class Followed:
    """What following a program found.

    Attributes:
      norms: in the order of the program.
      noises: likewise.
      draws: likewise.
      maxima: likewise, those that noise reaches.
      mixes: where examples are mixed.
      values: what is known of the outputs.
      unknown: names of primitives that are not known.
      callbacks: names of primitives that call the host.
      paths: of the leaves of the arguments, by their numbers.
      updated_in_loops: of those that every step of a loop adds statistics of the batch to, with the place of the loop.
      averaged: paths of leaves that such are added to, whatever becomes of the sum, each with the place of a reduction.
    """

    norms: tuple[Norm, ...]
    noises: tuple[Noise, ...]
    draws: tuple[Draw, ...]
    maxima: tuple[Maximum, ...]
    mixes: Mapping[Place, Where]
    values: tuple[Value, ...]
    unknown: tuple[str, ...]
    callbacks: tuple[str, ...]
    paths: tuple[str, ...]
    updated_in_loops: frozenset[tuple[str, Place]]
    averaged: frozenset[tuple[str, Place]]

    def noise(self, place: Place) -> Noise:
        """Returns the noise of a place."""
        return next(noise for noise in self.noises if noise.place == place)

    def norm(self, place: Place) -> Norm:
        """Returns the norm of a place."""
        return next(norm for norm in self.norms if norm.place == place)


class Follower:
    """Goes through a program from its arguments to its results.

    Attributes:
      of: for "params", "stats", "x" and what else the paths of leaves begin with, the bits of these leaves.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self.of: dict[str, int] = {"x": 0, "params": 0, "stats": 0, "key": 0}
        for number, path in enumerate(paths):
            kind = path.partition("/")[0]
            self.of[kind] = self.of.get(kind, 0) | 1 << number
        self.reductions: dict[Place, Reduction] = {}
        self.parents: dict[int, tuple[int, ...]] = {}
        self.norms: dict[Hashable, dict[str, Any]] = {}
        self.noises: dict[Place, Noise] = {}
        self.draws: dict[Place, Draw] = {}
        self.maxima: dict[Place, Maximum] = {}
        self.mixes: dict[Place, Where] = {}
        self.drawn: dict[int, Place] = {}  # by the number of a key the place of its draw
        self.words: dict[int, int] = {}  # by the number of all words of a key the number of the key
        self.unknown: dict[str, None] = {}
        self.callbacks: dict[str, None] = {}
        self.sizes: dict[str, int] = {}  # of mesh axes
        self.updated_in_loops: set[tuple[int, Place]] = set()
        self.averaged: set[tuple[int, Place]] = set()
        self._numbers: dict[Hashable, int] = {}

    def number(self, *key: Hashable) -> int:
        """Returns a number that stands for what is computed so."""
        return self._numbers.setdefault(key, len(self._numbers))

    def argument(self, number: int, aval: Any) -> Value:
        """Returns what is known of a leaf of the arguments."""
        kind = self.paths[number].partition("/")[0]
        examples = frozenset({0}) if kind == "x" and aval.ndim else frozenset[int]()
        own = self.number("argument", number)
        of_layer = kind in ("params", "stats")
        return Value(
            own,
            inputs=1 << number,
            examples=examples,
            varies=varying_axes(aval),
            base=own,
            params=frozenset({number}) if of_layer else frozenset(),
            averages=frozenset({(number, False)}) if of_layer else frozenset(),
        )

    def literal(self, value: Any) -> Value:
        """Returns what is known of a constant of the program."""
        if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.extended):
            return Value(self.number("key", id(value)), varies=frozenset(range(np.ndim(value))))
        array = np.asarray(value)
        small = array.size <= 16
        number = self.number("literal", array.tobytes() if small else id(value), str(array.dtype), array.shape)
        one = float(array) if array.ndim == 0 and array.dtype.kind in "fiub" else None
        return Value(number, constant=one, varies=varying_axes(array), base=number)

    def run(
        self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value], scope: Place, stack: tuple[Any, ...]
    ) -> list[Value]:
        """Returns what is known of the outputs of a program."""
        known: dict[Any, Value] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def read(atom: Any) -> Value:
            return self.literal(atom.val) if hasattr(atom, "val") else known[atom]

        for index, eqn in enumerate(jaxpr.eqns):
            at = At((*scope, index), (eqn, *stack), jaxpr)
            results = self.follow(at, [read(atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def run_closed(self, closed: Any, args: Sequence[Value], at: At, which: int = 0) -> list[Value]:
        """Returns what is known of the outputs of a program within an equation; `which` of those that the equation has."""
        jaxpr = getattr(closed, "jaxpr", closed)
        consts = [self.literal(const) for const in getattr(closed, "consts", ())]
        return self.run(jaxpr, consts, args, (*at.place, which), at.stack)

    def follow(self, at: At, values: list[Value]) -> Sequence[Value]:
        """Returns what is known of the results of an equation."""
        handler = HANDLERS.get(at.eqn.primitive.name)
        if handler is None:
            handler = HANDLERS["elementwise"] if moves(at.eqn) is not None else HANDLERS["unknown"]
        return handler(self, at, values)

    def moved(self, at: At, values: Sequence[Value]) -> list[Value]:
        """Returns what is known of the operands, with their axes where the result has them."""
        every = moves(at.eqn) or []
        shape = at.eqn.outvars[0].aval.shape
        return [_moved(value, own, shape) for value, own in zip(values, every, strict=True)]

    def plain(self, at: At, values: Sequence[Value], result: int = 0) -> Value:
        """Returns what is known of anything that is computed from values whose axes are where the result has them."""
        eqn = at.eqn
        number = self.number(eqn.primitive.name, _hashable(eqn.params), result, *(value.number for value in values))
        inputs = 0
        for value in values:
            inputs |= value.inputs
        return Value(
            number,
            inputs=inputs,
            examples=_union(value.examples for value in values),
            varies=_union(value.varies for value in values),
            loops=_union(value.loops for value in values),
            over=_union(value.over for value in values),
            keys=_union(value.keys for value in values),
            draws=_union(value.draws for value in values),
            noise=_union(value.noise for value in values),
            mixes=_union(value.mixes for value in values),
            spread=_union(value.spread for value in values),
            base=number,
            tap=at.spot(eqn.outvars[result]),
            sure=all(value.sure for value in values),
        )

    def is_data(self, value: Value) -> bool:
        """Whether a value is computed from the examples."""
        return bool(value.inputs & self.of["x"])

    def numbers_of(self, kind: str) -> frozenset[int]:
        """Returns the numbers of the leaves of an argument."""
        return frozenset(number for number in range(len(self.paths)) if self.of[kind] >> number & 1)

    def leaves(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """Returns the paths of leaves of the arguments."""
        return tuple(self.paths[number] for number in sorted(numbers))

    def inputs_of(self, value: Value) -> tuple[str, ...]:
        """Returns the paths of the leaves of the arguments that a value is computed from."""
        return tuple(path for number, path in enumerate(self.paths) if value.inputs >> number & 1)

    def where(self, at: At, leaves: Sequence[str] = ()) -> Where:
        """Returns a place for users: the layer that leaves are of, or that its library names, and the line."""
        layer = next((locating.layer_of(leaf) for leaf in leaves if leaf.count("/") > 1), None)
        path = locating.layer_path(at.stack) if layer is None else layer
        return Where(path, locating.user_line(at.stack))

    def found(self, outputs: Sequence[Value]) -> Followed:
        """Returns what was found."""
        return Followed(
            norms=tuple(Norm(**fields) for fields in self.norms.values()),
            noises=tuple(self.noises.values()),
            draws=tuple(self.draws.values()),
            maxima=tuple(self.maxima.values()),
            mixes=self.mixes,
            values=tuple(outputs),
            unknown=tuple(self.unknown),
            callbacks=tuple(self.callbacks),
            paths=self.paths,
            updated_in_loops=frozenset((self.paths[leaf], place) for leaf, place in self.updated_in_loops),
            averaged=frozenset((self.paths[leaf], place) for leaf, place in self.averaged),
        )


def varying_axes(aval: Any) -> frozenset[int]:
    """Returns the axes along which an array of this shape may differ."""
    return frozenset(axis for axis, size in enumerate(aval.shape) if size != 1)


def _union(sets: Any) -> frozenset[Any]:
    return frozenset().union(*sets)


def _moved(value: Value, own: Moves, shape: Sequence[int]) -> Value:
    examples = {to for axis in value.examples if axis < len(own) for to in own[axis]}
    varies = {to for axis in value.varies if axis < len(own) for to in own[axis] if shape[to] != 1}
    return replace(value, examples=frozenset(examples), varies=frozenset(varies))


def _hashable(params: Mapping[str, Any]) -> Hashable:
    return tuple((name, value if _hashes(value) else str(value)) for name, value in params.items())


def _hashes(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
