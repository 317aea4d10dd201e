"""Where in a traced program the first NaN arises."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxnorm._equations import run_equation, value_of
from jaxnorm.diagnostics._lint import locating
from jaxnorm.diagnostics._lint.calls import program_of
from jaxnorm.diagnostics._lint.report import Where


def first_nan(closed: Any, args: Sequence[Any]) -> Where | None:
    """Runs a traced program equation by equation, and returns where a NaN arises of none, or None if that is nowhere.

    Infinities do not count: masks are made of them on purpose.
    """
    stack = _search(closed, args, ())
    return Where(locating.layer_path(stack), locating.user_line(stack)) if stack else None


def _search(program: Any, args: Sequence[Any], stack: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the equation that makes the first NaN, and those that it is within, or nothing."""
    jaxpr = getattr(program, "jaxpr", program)
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*getattr(program, "consts", ()), *args), strict=True))
    for eqn in jaxpr.eqns:
        given = [value_of(atom, values) for atom in eqn.invars]
        results = run_equation(eqn, given)
        if any(map(_has_nan, results)) and not any(map(_has_nan, given)):
            return _search_within(eqn, given, (eqn, *stack))
        values.update(zip(eqn.outvars, results, strict=True))
    return ()


def _search_within(eqn: Any, given: Sequence[Any], stack: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns where in the program of an equation it is, or the equation itself: loops and devices are not gone into."""
    name = eqn.primitive.name
    program = eqn.params["branches"][int(given[0])] if name == "cond" else program_of(eqn)
    if program is None or name in ("scan", "while", "shard_map"):
        return stack
    count = len(getattr(program, "jaxpr", program).invars)
    return _search(program, given[len(given) - count :], stack) or stack


def _has_nan(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact) and bool(jnp.isnan(value).any())
