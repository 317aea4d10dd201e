"""Traced programs that also return what is measured of variables within them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax

from jaxnorm._equations import run_equation, value_of
from jaxnorm.diagnostics._lint.calls import platform_branch, program_of, scan_counts
from jaxnorm.diagnostics._lint.values import Place, Spot

Measure = Callable[[jax.Array], Any]


def tapped(closed: Any, measures: Mapping[Spot, Measure]) -> Callable[..., tuple[list[Any], dict[Spot, Any]]]:
    """Returns a program as a function of its arguments that gives its results, and a measure of each of these variables.

    What is within a loop is measured in each step, and stacked. What is on a branch, in a loop of unknown length or on one of
    several devices is left out.
    """
    scopes = {spot.scope[:depth] for spot in measures for depth in range(len(spot.scope) + 1)}

    def evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], scope: Place) -> tuple[list[Any], dict[Spot, Any]]:
        values: dict[Any, Any] = {}
        found: dict[Spot, Any] = {}

        def keep(variables: Sequence[Any], arrays: Sequence[Any]) -> None:
            values.update(zip(variables, arrays, strict=True))
            for variable, array in zip(variables, arrays, strict=True):
                if measure := measures.get(Spot(scope, variable)):
                    found[Spot(scope, variable)] = measure(array)

        keep((*jaxpr.constvars, *jaxpr.invars), (*consts, *args))
        for index, eqn in enumerate(jaxpr.eqns):
            given = [value_of(atom, values) for atom in eqn.invars]
            results, within = enter(eqn, given, (*scope, index))
            found.update(within)
            keep(eqn.outvars, results)
        return [value_of(atom, values) for atom in jaxpr.outvars], found

    def enter(eqn: Any, given: Sequence[Any], place: Place) -> tuple[list[Any], dict[Spot, Any]]:
        """Runs an equation; one in whose programs something is measured by what these do."""
        name = eqn.primitive.name
        inside = place in scopes
        if inside and name == "cond" and (which := platform_branch(eqn)) is not None:
            program = eqn.params["branches"][which]
            return evaluate(program.jaxpr, program.consts, given[1:], (*place, which))
        if inside and name == "scan":
            return stepwise(eqn, given, (*place, 0))
        program = program_of(eqn)
        if inside and program is not None and name != "shard_map":
            jaxpr = getattr(program, "jaxpr", program)
            return evaluate(jaxpr, getattr(program, "consts", ()), given[len(given) - len(jaxpr.invars) :], (*place, 0))
        return run_equation(eqn, given), {}

    def stepwise(eqn: Any, given: Sequence[Any], scope: Place) -> tuple[list[Any], dict[Spot, Any]]:
        params = eqn.params
        first, carried = scan_counts(eqn)
        last = first + carried
        program = params["jaxpr"]

        spots: list[Spot] = []  # no keys of a tree: they have no order

        def body(carry: Any, slices: Any) -> tuple[Any, Any]:
            results, found = evaluate(program.jaxpr, program.consts, [*given[:first], *carry, *slices], scope)
            spots[:] = found
            return results[: last - first], (results[last - first :], list(found.values()))

        carry, (stacked, found) = lax.scan(body, list(given[first:last]), list(given[last:]), params["length"], params["reverse"])
        return [*carry, *stacked], dict(zip(spots, found, strict=True))

    return lambda *args: evaluate(closed.jaxpr, closed.consts, args, ())
