"""Primitives that move elements: to other axes, other places, other devices."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxnorm.diagnostics._lint.follower import At, Follower, handles, varying_axes
from jaxnorm.diagnostics._lint.noises import meet
from jaxnorm.diagnostics._lint.values import Value

_WHOLE = ("reshape", "transpose", "broadcast_in_dim", "squeeze", "rev", "tile")


@handles(*_WHOLE)
def moved(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """The same elements, in another shape."""
    value = f.moved(at, values)[0]
    return [replace(value, number=f.plain(at, values).number, tap=at.spot(at.eqn.outvars[0]))]


@handles("slice", "dynamic_slice", "gather", "pad", "concatenate", "dynamic_update_slice", "split", "stack", "unstack")
def taken(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """Some of the elements, or those of several arrays together."""
    moved_values = f.moved(at, values)
    results = []
    for number, variable in enumerate(at.eqn.outvars):
        plain = f.plain(at, moved_values, number)
        data = [value for value in moved_values if f.is_data(value)]
        if data and any(value.draws for value in moved_values if not f.is_data(value)):
            results.append(meet(f, at, moved_values, plain))
            continue
        f.parents[plain.base] = tuple(base for value in data for base in (value.base, *f.parents.get(value.base, ())))
        of = data or [value for value in moved_values if value.keys or value.params or value.rooted] or moved_values
        first = of[0]
        if len(of) > 1:
            averages = frozenset.intersection(*(value.averages for value in of))
            first = replace(plain, averages=averages, **_as_statistics(of))
        varies = plain.varies | _placed(at) & varying_axes(variable.aval)
        results.append(
            replace(
                first,
                number=plain.number,
                inputs=plain.inputs,
                examples=plain.examples,
                varies=varies,
                loops=plain.loops,
                base=plain.base,
                tap=plain.tap,
                constant=None,
                mixes=plain.mixes,
            )
        )
    return results


def _as_statistics(values: Sequence[Value]) -> dict[str, Any]:
    """What is known of statistics that are put together, as for one sum over devices; with other data they are none."""
    if not all(value.reductions for value in values):
        return {}
    return {
        "reductions": frozenset().union(*(value.reductions for value in values)),
        "bits": min((value.bits for value in values if value.bits), default=0),
        "stopped": any(value.stopped for value in values),
        "cancels": any(value.cancels for value in values),
    }


def _placed(at: At) -> frozenset[int]:
    """The axis along which arrays are put together, where each may be the same everywhere, but not all of them."""
    name = at.eqn.primitive.name
    if name in ("concatenate", "stack"):
        return frozenset({at.eqn.params["dimension" if name == "concatenate" else "axis"]})
    if name == "pad":
        padded = at.eqn.params["padding_config"]
        return frozenset(axis for axis, sizes in enumerate(padded) if any(sizes))
    return frozenset()


@handles("iota")
def counted(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """The numbers from 0 along an axis."""
    return [replace(f.plain(at, values), varies=frozenset({at.eqn.params["dimension"]}) & varying_axes(at.eqn.outvars[0].aval))]
