"""Norms by what they do: data is divided by a root of its own statistics, or multiplied by the reciprocal of one."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from jaxnorm.diagnostics._lint import locating
from jaxnorm.diagnostics._lint.follower import At, Follower
from jaxnorm.diagnostics._lint.records import Reduction
from jaxnorm.diagnostics._lint.values import Place, Value


def own_statistic(f: Follower, data: Sequence[Value]) -> tuple[Value, Value] | None:
    """Returns of two values the one that is data, and the one that is a statistic of it, or None."""
    for value, statistic in (data, data[::-1]) if len(data) == 2 else ():
        bases = {base for place in statistic.reductions for base in f.reductions[place].elements}
        if bases & {value.base, *f.parents.get(value.base, ())} and not value.reductions & statistic.reductions:
            return value, statistic
    return None


def shift_of(data: Sequence[Value]) -> tuple[Value, Value] | None:
    """Returns of two values the one that is data, and the one that is a statistic of anything which shifts all of it alike."""
    for value, statistic in (data, data[::-1]) if len(data) == 2 else ():
        if statistic.reductions and not value.reductions and statistic.varies < value.varies:
            return value, statistic
    return None


def is_pooled(f: Follower, value: Value) -> bool:
    """Whether a value is a statistic over several examples."""
    return any(over for place in value.reductions for _, over in f.reductions[place].elements.values())


def cancels(f: Follower, data: Sequence[Value]) -> bool:
    """Whether a difference is the mean of squares less the square of the mean."""
    first, *others = data
    sources = [one.source for one in _of_data(f, first.reductions)]
    whole = any(source.squared and not source.centered for source in sources)
    return whole and not first.squared and any(other.squared for other in others)


def with_epsilon(name: str, values: Sequence[Value], value: Value) -> Value:
    """A statistic, or an average, that a small constant was added to."""
    constants = [one.constant for one in values if one.constant]
    if name in ("add", "max") and len(constants) == 1 and 0 < constants[0] < 1 and (value.reductions or value.averages):
        return replace(value, epsilon=constants[0] ** 2 if value.rooted else constants[0])
    return value


def root(f: Follower, at: At, values: Sequence[Value], value: Value) -> Value:
    """A statistic, or an average, whose root is taken here, or its reciprocal."""
    eqn = at.eqn
    name = eqn.primitive.name
    if name in ("sqrt", "rsqrt", "pow"):
        power = {"sqrt": 0.5, "rsqrt": -0.5}.get(name, values[-1].constant)
        if power is None or abs(power) >= 1:
            return value
        rooted = frozenset(values[0].reductions) or _leaves(values[0])
        return replace(value, rooted=rooted, reciprocal=power < 0, epsilon=values[0].epsilon, averages=frozenset())
    turned = (name == "integer_pow" and eqn.params["y"] == -1) or (name == "div" and not values[0].rooted)
    if turned and values[-1].rooted:
        return replace(value, reciprocal=not values[-1].reciprocal)
    if turned and not values[-1].reductions and (stored := deviations(f, values[-1])):
        return replace(value, rooted=stored, reciprocal=True, averages=frozenset())
    return value


def _leaves(value: Value) -> frozenset[Place]:
    return frozenset(("leaf", leaf) for leaf, _ in value.averages)


def _numbers(places: Iterable[Place]) -> frozenset[int]:
    """The numbers of the leaves that are among places."""
    return frozenset(one[1] for one in places if one[0] == "leaf" and isinstance(one[1], int))


def deviations(f: Follower, value: Value) -> frozenset[Place]:
    """The averages that a value is made of alone, which are deviations if data is divided by it."""
    return _leaves(value) if value.averages and not value.inputs & ~f.of["stats"] else frozenset()


def divides(name: str, statistic: Value) -> bool:
    """Whether this product or quotient with a root divides by it."""
    return (name == "mul" and statistic.reciprocal) or (name == "div" and not statistic.reciprocal)


def apply(f: Follower, at: At, values: list[Value], value: Value, statistic: Value, plain: Value) -> Value:
    """Data with a statistic of its own: centered by it, or normalized."""
    name = at.eqn.primitive.name
    noise = frozenset(arrival._replace(whole=False) for arrival in value.noise | statistic.noise)
    if name in ("sub", "add", "add_any"):
        return replace(
            plain,
            base=value.base,
            tap=value.tap,
            squared=False,
            centered=value.centered | statistic.reductions,
            normed=value.normed,
            params=value.params,
            reductions=value.reductions,
            noise=noise,
        )
    of_absolutes = is_pooled(f, statistic) and any(one.source.squared for one in _of_data(f, statistic.reductions))
    if statistic.rooted and divides(name, statistic):
        return replace(normalized(f, at, value, statistic, plain), noise=noise)
    if name == "div" and value.centered and of_absolutes and values[-1] is statistic:
        deviation = replace(statistic, rooted=frozenset(statistic.reductions))
        return replace(normalized(f, at, value, deviation, plain), noise=noise)
    if value.reductions:  # statistics of parts, which are weighed by what they count before they are pooled
        return replace(plain, noise=noise, reductions=value.reductions | statistic.reductions, bits=statistic.bits)
    return replace(plain, noise=noise)


def normalized(f: Follower, at: At, value: Value, statistic: Value, plain: Value) -> Value:
    """Data that leaves a norm: `statistic` is the root."""
    reductions = [f.reductions[place] for place in sorted(statistic.rooted & f.reductions.keys(), key=str)]
    leaves = _numbers(statistic.rooted)
    key = frozenset(statistic.rooted) if reductions else at.place
    counted = [_counted(reduction, value) for reduction in reductions]
    over = any(of_batch for _, of_batch in counted)
    of_data = _of_data(f, statistic.rooted & f.reductions.keys())
    of_data.sort(key=lambda one: value.base not in one.elements)  # what is counted, as by a mask, is reduced too
    source = of_data[0].source if of_data else value
    at_once = bool(of_data) and of_data[0] in reductions and source.base == value.base
    axes = of_data[0].axes if at_once else _axes_but(at, statistic)
    paths = f.leaves(leaves)
    params = f.leaves((statistic.params | (value.params - source.params)) - leaves)
    pooled = math.prod(f.sizes.get(axis, 1) for axis in source.spread - statistic.spread)
    first = f.norms.get(key, {"place": at.place, "params": ()})
    f.norms[key] = {
        "place": first["place"],
        "where": f.where(at, (*params, *paths)),
        "library": locating.library_of(at.stack),
        "kind": "averages" if not reductions else "batch" if over else "sample",
        "elements": min(max((count for count, _ in counted), default=0) * pooled, _elements_of_each(f, at, value, statistic)),
        "averages": paths,
        "means": f.leaves(_numbers(value.centered)),
        "params": tuple(sorted({*first["params"], *params})),
        "before": f.leaves((source if reductions else value).params - f.numbers_of("stats")),
        "noises": tuple(sorted(source.noise, key=str)),
        "bits": statistic.bits,
        "cancelling": statistic.cancels,
        "stopped": statistic.stopped,
        "spread": statistic.spread if over else frozenset(),
        "after": _after(f, value, axes) if reductions else None,
        "epsilon": statistic.epsilon,
        "ours": locating.function_of_ours(at.stack),
        "reductions": (statistic.rooted | value.centered) & f.reductions.keys(),
        "input": source.tap if at_once else value.tap,
        "axes": axes,
        "sure": value.sure and statistic.sure,
    }
    return replace(plain, normed=key, reductions=frozenset(), params=frozenset())


def _counted(reduction: Reduction, value: Value) -> tuple[int, bool]:
    """How many elements of the data there are in a statistic of it, and whether of several examples."""
    return reduction.elements.get(value.base, next(iter(reduction.elements.values())))


def _of_data(f: Follower, places: Iterable[Place]) -> list[Reduction]:
    """The reductions of data: of what is reduced in several steps, the first."""
    found: list[Reduction] = []
    left = sorted(places, key=str)
    seen = set(left)
    while left:
        reduction = f.reductions[left.pop(0)]
        before = reduction.source.reductions
        if not before:
            found.append(reduction)
        left += sorted(before - seen, key=str)  # in a loop a statistic may be one of itself
        seen |= before
    return found


def _elements_of_each(f: Follower, at: At, value: Value, statistic: Value) -> int:
    """How many elements of data there are for each statistic; of moments that are pooled by steps a count may be more."""
    shape = at.eqn.outvars[0].aval.shape
    size = min((f.reductions[place].size for place in statistic.rooted & f.reductions.keys()), default=1)
    where_it_differs = math.prod(shape[axis] for axis in statistic.varies)  # fewer, where moments are stacked and summed at once
    devices = math.prod(f.sizes.get(axis, 1) for axis in value.spread - statistic.spread)
    return math.prod(shape) // min(size, where_it_differs) * devices


def _after(f: Follower, value: Value, axes: frozenset[int]) -> Any:
    """The norm whose output this one norms along the same axes."""
    before = f.norms.get(value.normed) if value.normed is not None else None
    return None if before is None or before["axes"] != axes else before["place"]


def _axes_but(at: At, statistic: Value) -> frozenset[int]:
    """The axes of data along which the averages do not vary."""
    return frozenset(range(at.eqn.outvars[0].aval.ndim)) - statistic.varies
