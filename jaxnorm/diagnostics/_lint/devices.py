"""Collectives: sums over devices, and what all of them have."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxnorm.diagnostics._lint.follower import At, Follower, handles, varying_axes
from jaxnorm.diagnostics._lint.reducing import reduction
from jaxnorm.diagnostics._lint.values import Value


@handles("psum", "psum_invariant", "pmax", "pmin", "all_gather", "all_gather_invariant", "reduce_scatter", "psum_scatter")
def pooled(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A sum over devices, or what all of them have. A sum over axes that `vmap` named is one over axes of the arrays."""
    names = at.eqn.params.get("axes", at.eqn.params.get("axis_name", ()))
    names = names if isinstance(names, tuple) else (names,)
    axes = frozenset(name for name in names if isinstance(name, int))
    return [_pooled(f, at, values, number, frozenset(names) - axes, axes) for number in range(len(values))]


def _pooled(f: Follower, at: At, values: list[Value], number: int, names: frozenset[Any], axes: frozenset[int]) -> Value:
    value, operand, result = values[number], at.eqn.invars[number], at.eqn.outvars[number]
    plain = f.plain(at, [value], number)
    if axes:
        kept = [axis for axis in range(operand.aval.ndim) if axis not in axes]
        examples = frozenset(kept.index(axis) for axis in value.examples - axes)
        varies = frozenset(kept.index(axis) for axis in value.varies - axes)
        summed = replace(plain, examples=examples, varies=varies)
        return reduction(f, at, value, axes, operand, summed) if f.is_data(value) else summed
    gathered = result.aval.ndim != operand.aval.ndim
    varies = varying_axes(result.aval) if gathered else value.varies
    return replace(value, number=plain.number, spread=value.spread - names, varies=varies, tap=at.spot(result))
