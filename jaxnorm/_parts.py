"""Statistics of a batch that comes in parts: what a program finds of its part, and is told of the whole.

Where a layer pools a statistic of the batch, a program that is traced by `Told` has marks, one for each array: what arrives there
is what was found of the part, and what goes on from there is that, or what the program is told instead. Other programs have none.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import partial_eval

from jaxnorm._equations import run_equation, value_of
from jaxnorm._moments import AxisName, from_devices

Statistic = TypeVar("Statistic", bound=tuple[Any, ...])  # a NamedTuple of arrays, of which the count is `n`

_CALLS = ("jit", "remat2")  # primitives that run a program once, whose equations may be gone into
_marking = jax.make_user_context(False)  # part of the key by which jit finds a program again


class _Mark(str):
    """The name of one array of a statistic; it knows of which statistic, and how its parts are combined."""

    kind: type[Any]
    combine: Callable[[Any], Any]
    place: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, kind: type[Any], combine: Callable[[Any], Any], place: int, shape: tuple[int, ...]) -> "_Mark":
        mark = cls(f"jaxnorm.{combine.__name__}.{kind._fields[place]}{list(shape)}")
        mark.kind, mark.combine, mark.place, mark.shape = kind, combine, place, shape
        return mark


def pooled(
    own: Statistic,
    combine: Callable[[Statistic], Statistic],
    axis_name: AxisName,
    axis_index_groups: Sequence[Sequence[int]] | None,
) -> Statistic:
    """Returns a statistic of the batches of all devices of `axis_name`; in a program that is told what, of all its parts too.

    Args:
      own: the statistic of this device's batch.
      combine: gives the statistic of the union of parts whose statistics are stacked along the first axis.
      axis_name: name or names of mapped axes.
      axis_index_groups: groups of indices along `axis_name` that are pooled separately.
    """
    whole = own if axis_name is None else combine(from_devices(own, axis_name, axis_index_groups))
    if not _marking.value:
        return whole
    marks = (_Mark.of(type(whole), combine, place, part.shape) for place, part in enumerate(whole))
    return type(whole)(*map(checkpoint_name, whole, marks))


class Told:
    """A traced function that gives the statistics of the batch that it finds, and uses others if it is told them.

    Attributes:
      count: how many statistics there are.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        """Traces the function with arguments like these; raises where layers are called within what can't be gone into."""
        with _marking(True):
            self._closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        self._out = jax.tree.structure(out)
        self._marks = [mark for mark in _marks_in(self._closed.jaxpr) if mark.place == 0]
        self.count = len(self._marks)

    def __call__(self, *args: Any, told: Sequence[Any] | None = None) -> tuple[Any, list[Any]]:
        """Returns what the function does, and the statistics that it finds, in the order of the layers' calls."""
        told = None if told is None else jax.tree.leaves(told)
        results, arrays = _evaluate(self._closed.jaxpr, self._closed.consts, jax.tree.leaves(args), told)
        rest = iter(arrays)
        found = [mark.kind(*islice(rest, len(mark.kind._fields))) for mark in self._marks]
        return jax.tree.unflatten(self._out, results), found

    def combine(self, stacked: Sequence[Any]) -> list[Any]:
        """Returns the statistics of the whole, of those of its parts stacked along the first axis."""
        return [mark.combine(statistic) for mark, statistic in zip(self._marks, stacked, strict=True)]


def dependent(function: Callable[[Any], Any], x: Any) -> list[str]:
    """Returns the paths of the outputs of a function that are computed from x."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(x)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.flatten_with_path(out)[0]]

    def is_used(outputs: list[bool]) -> bool:
        return any(partial_eval.dce_jaxpr(closed.jaxpr, outputs)[1])

    if not is_used([True] * len(paths)):
        return []
    return [path for path in paths if is_used([path == other for other in paths])]


def _mark_of(eqn: Any) -> _Mark | None:
    name = eqn.params.get("name") if eqn.primitive.name == "name" else None
    return name if isinstance(name, _Mark) else None


def _marks_in(jaxpr: Any) -> Iterator[_Mark]:
    """Gives the marks in a program, in their order; raises where they are in what can't be gone into."""
    for eqn in jaxpr.eqns:
        mark = _mark_of(eqn)
        if mark is None:
            yield from _marks_within(eqn)
            continue
        if eqn.outvars[0].aval.shape != mark.shape:
            raise ValueError(_REFUSED.format("jax.vmap (without its axis_name)"))
        yield mark


def _marks_within(eqn: Any) -> Iterator[_Mark]:
    """Gives the marks in the programs of an equation, in their order."""
    for inner in jax.tree.leaves(eqn.params, is_leaf=lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr")):
        program = getattr(inner, "jaxpr", inner)
        for mark in _marks_in(program) if hasattr(program, "eqns") else ():
            if eqn.primitive.name not in _CALLS:
                raise ValueError(_REFUSED.format(f"a {eqn.primitive.name}"))
            yield mark


_REFUSED = (
    "statistics of microbatches can't be pooled of a layer that is called within {}: call it outside, as in a Python loop over "
    "layers, or choose microbatch_stats='micro'"
)


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], told: Sequence[Any] | None) -> tuple[list[Any], list[Any]]:
    """Returns a program's outputs, and what arrives at its marks, from which what it is told goes on."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    found: list[Any] = []

    for eqn in jaxpr.eqns:
        given = [value_of(atom, values) for atom in eqn.invars]
        if _mark_of(eqn) is not None:
            results = given if told is None else [told[len(found)]]
            found += given
        elif any(True for _ in _marks_within(eqn)):
            results, within = _enter(eqn, given, None if told is None else told[len(found) :])
            found += within
        else:
            results = run_equation(eqn, given)
        values.update(zip(eqn.outvars, results, strict=True))
    return [value_of(atom, values) for atom in jaxpr.outvars], found


def _enter(eqn: Any, args: Sequence[Any], told: Sequence[Any] | None) -> tuple[list[Any], list[Any]]:
    """Returns what `_evaluate` does of the program that an equation calls; of a `jax.checkpoint` the gradient keeps no more."""
    inner = eqn.params["jaxpr"]  # closed, or without constants

    def run(*args: Any) -> tuple[list[Any], list[Any]]:
        return _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), args, told)

    if eqn.primitive.name == "remat2":
        run = jax.checkpoint(run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return run(*args)
