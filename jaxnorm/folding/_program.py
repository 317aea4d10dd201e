"""A traced function as one list of steps, from which what follows what can be read."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

_CALLS = {  # primitives that run a program of their own once, and the parameter that holds it
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class Literal(NamedTuple):
    """A number that is written in the program."""

    value: Any


Atom = int | Literal
"""A value of the program by its number, or a number that is written in it."""


class Step(NamedTuple):
    """One operation.

    Attributes:
      name: of its primitive.
      params: of its primitive.
      inputs: what it takes.
      outputs: the numbers of what it gives.
      within: the name of the function with a derivative of its own that it is a part of, as "relu"; empty if that has none, and
        None if there is no such function.
    """

    name: str
    params: Any
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    within: str | None

    def __str__(self) -> str:
        return f"{self.within} ({self.name})" if self.within else self.name


class Use(NamedTuple):
    """A step that takes a value, and in which place; a step of None is the end of the program, which gives the value back."""

    step: Step | None
    place: int


class Program:
    """The steps of a jaxpr, with calls replaced by what they run, and those left out whose results nothing needs.

    Attributes:
      shapes: the shape of every value, by its number; the program's inputs are the first ones.
      dtypes: their types.
      makers: the step that a value is from, but for inputs and constants.
      uses: the uses of every value.
    """

    def __init__(self, jaxpr: Any):
        self.shapes: list[tuple[int, ...]] = []
        self.dtypes: list[Any] = []
        self.makers: dict[int, Step] = {}
        self.uses: dict[int, list[Use]] = defaultdict(list)
        self._steps: list[Step] = []
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # closed, or without constants
        inputs = [self._new(var) for var in (*jaxpr.invars, *jaxpr.constvars)]
        outputs = self._enter(jaxpr, inputs, None)
        self._keep(outputs)

    def shape(self, atom: Atom) -> tuple[int, ...]:
        """The shape of a value."""
        return () if isinstance(atom, Literal) else self.shapes[atom]

    def only_use(self, value: int) -> Use | None:
        """The one use of a value; None where there are several, or none."""
        uses = self.uses[value]
        return uses[0] if len(uses) == 1 else None

    @property
    def steps(self) -> Sequence[Step]:
        """The steps that something needs, in order."""
        return self._steps

    def _new(self, var: Any) -> int:
        self.shapes.append(tuple(var.aval.shape))
        self.dtypes.append(var.aval.dtype)
        return len(self.shapes) - 1

    def _enter(self, jaxpr: Any, inputs: Sequence[Atom], within: str | None) -> list[Atom]:
        """Adds the steps of a program, whose variables (then constants) are these, and returns its results."""
        values: dict[Any, Atom] = dict(zip((*jaxpr.invars, *jaxpr.constvars), inputs, strict=True))

        def read(atom: Any) -> Atom:
            return Literal(atom.val) if hasattr(atom, "val") else values[atom]

        for eqn in jaxpr.eqns:
            given = tuple(read(atom) for atom in eqn.invars)
            held = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
            if held is not None:
                inner = getattr(held, "jaxpr", held)
                constants = [self._new(var) for var in inner.constvars]
                if eqn.primitive.name.startswith("custom_"):
                    inside = within or ""
                else:
                    inside = eqn.params.get("name", "") if within == "" else within
                found: Sequence[Atom] = self._enter(inner, (*given, *constants), inside)
            else:
                found = tuple(self._new(var) for var in eqn.outvars)
                self._steps.append(Step(eqn.primitive.name, eqn.params, given, found, within))
            values.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _keep(self, outputs: Sequence[Atom]) -> None:
        """Leaves out the steps whose results nothing needs, and writes down who uses what."""
        needed = {atom for atom in outputs if isinstance(atom, int)}
        kept: list[Step] = []
        for step in reversed(self._steps):
            if needed.intersection(step.outputs):
                kept.append(step)
                needed.update(atom for atom in step.inputs if isinstance(atom, int))
        self._steps = kept[::-1]
        for step in self._steps:
            self.makers.update(dict.fromkeys(step.outputs, step))
            for place, atom in enumerate(step.inputs):
                if isinstance(atom, int):
                    self.uses[atom].append(Use(step, place))
        for place, atom in enumerate(outputs):
            if isinstance(atom, int):
                self.uses[atom].append(Use(None, place))


def scan_inputs(step: Step) -> tuple[range, range]:
    """Returns which inputs of a `scan` are the same in all turns, and of which every turn has its part; none if it is unknown."""
    params = step.params
    if "num_consts" in params:
        constants, carried = params["num_consts"], params["num_carry"]
    elif hasattr(params.get("ft_in"), "unpack"):  # as jax 0.12 says it
        constants, carried = (len(part) for part in params["ft_in"].unpack()[:2])
    else:
        return range(0), range(0)
    return range(constants), range(constants + carried, len(step.inputs))


def enclosing(jaxpr: Any, name: str) -> str | None:
    """Returns the primitive, as a loop or a branch, that a name in a program is inside of; None if it is not, or not there."""
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns") and name in str(inner):
                return enclosing(inner, name) if eqn.primitive.name in _CALLS else eqn.primitive.name
    return None
