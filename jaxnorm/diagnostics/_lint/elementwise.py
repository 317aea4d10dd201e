"""Elementwise primitives: where noise meets data, statistics are made, roots taken, and data divided by them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.diagnostics._lint import norms
from jaxnorm.diagnostics._lint.axes import ELEMENTWISE
from jaxnorm.diagnostics._lint.follower import At, Follower, handles
from jaxnorm.diagnostics._lint.noises import draws_of_keys, meet
from jaxnorm.diagnostics._lint.values import Value, most_updated

_KEEPING_NAMES = """
convert_element_type copy device_put layout_constraint name neg optimization_barrier pcast pvary real reduce_precision
relayout reshard sharding_constraint stop_gradient
"""
KEEPING = frozenset(_KEEPING_NAMES.split())
"""Primitives that give what they are given, but for its type, its sign or where it is."""

_COMPUTED = ELEMENTWISE - frozenset(("pbroadcast", "ppermute", "threefry2x32"))
"""Primitives whose result is a number if all operands are numbers."""

_AFFINE = frozenset(("add", "sub", "mul", "div", "add_any"))
_CHOOSING = frozenset(("select_n", "max", "min", "clamp"))
_SATURATING = frozenset(("exp", "exp2", "log", "logistic", "cos", "cosh", "erfc"))  # that make something else of 0


@handles("elementwise")
def elementwise(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """Anything that gives each element from those in its place."""
    if at.eqn.primitive.name in KEEPING:
        return [_kept(f, at, value, number) for number, value in enumerate(values)]
    moved = f.moved(at, values)
    plain = f.plain(at, moved)
    if plain.keys:
        if at.eqn.primitive.name == "select_n" and not moved[0].keys:
            return [plain]
        moved = [draws_of_keys(f, at, value) for value in moved]
        plain = f.plain(at, moved)
    data = [value for value in moved if f.is_data(value)]
    rest = [value for value in moved if not f.is_data(value)]
    if not data:
        return [_without_data(f, at, plain, moved)]
    if any(value.draws for value in rest):
        return [meet(f, at, moved, plain)]
    return [_of_data(f, at, moved, data, rest, replace(plain, draws=frozenset()))]


def _kept(f: Follower, at: At, value: Value, number: int) -> Value:
    """A value in another type, or elsewhere."""
    eqn = at.eqn
    name, variable = eqn.primitive.name, eqn.outvars[number]
    own = f.number(name, str(variable.aval.dtype), value.number)
    if value.number in f.words:
        f.words[own] = f.words[value.number]
    stopped = value.stopped or (name == "stop_gradient" and norms.is_pooled(f, value))
    bits = narrowest(value.bits, variable.aval.dtype) if value.reductions else value.bits
    constant = -value.constant if name == "neg" and value.constant is not None else value.constant
    tap = at.spot(variable) if value.tap is None or name == "neg" else value.tap
    return replace(value, number=own, stopped=stopped, bits=bits, constant=constant, tap=tap)


def narrowest(bits: int, dtype: Any) -> int:
    """Returns the bits of the narrower type of float; 0 stands for none yet."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return bits
    own = jnp.finfo(dtype).bits
    return min(bits, own) if bits else own


def _without_data(f: Follower, at: At, plain: Value, values: Sequence[Value]) -> Value:
    """A function of parameters, averages, constants and random numbers."""
    name = at.eqn.primitive.name
    averages = _averages_of(name, values)
    if (one := _sure_number(at.eqn, values)) is not None:
        return replace(plain, inputs=0, varies=frozenset(), keys=frozenset(), draws=frozenset(), constant=one)
    value = replace(
        plain,
        params=frozenset().union(*(value.params for value in values)) if name in _AFFINE | _CHOOSING else frozenset(),
        averages=averages,
        least=_least(at.eqn, values),
        rooted=frozenset().union(*(value.rooted for value in values)),
        reciprocal=any(value.reciprocal for value in values),
        epsilon=next((value.epsilon for value in values if value.epsilon is not None), None),
    )
    return norms.root(f, at, values, norms.with_epsilon(name, values, value))


def _least(eqn: Any, values: Sequence[Value]) -> float | None:
    """A number that the result is nowhere below: bits are added to that of an unsigned integer."""
    constants = [value.constant for value in values if value.constant is not None]
    unsigned = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.unsignedinteger)
    return max(constants) if constants and ((eqn.primitive.name == "or" and unsigned) or eqn.primitive.name == "max") else None


def _sure_number(eqn: Any, values: Sequence[Value]) -> float | None:
    """The number that comes of constants, or of the smaller of one and what is nowhere below it."""
    constants = [value.constant for value in values if value.constant is not None]
    real = not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.complexfloating)
    if real and constants and len(constants) == len(values) and eqn.primitive.name in _COMPUTED:
        operands = [np.asarray(number, atom.aval.dtype) for number, atom in zip(constants, eqn.invars, strict=True)]
        with jax.ensure_compile_time_eval():
            return float(eqn.primitive.bind(*operands, **eqn.params))
    if eqn.primitive.name == "min" and len(constants) == 1:
        return constants[0] if any(value.least is not None and value.least >= constants[0] for value in values) else None
    return None


def _averages_of(name: str, values: Sequence[Value]) -> frozenset[tuple[int, bool]]:
    """The leaves that a sum or choice of values is an affine function of; the square of a deviation is a variance."""
    if name == "square":
        return values[0].averages
    if name not in _AFFINE | _CHOOSING or (name in ("mul", "div") and sum(bool(value.averages) for value in values) > 1):
        return frozenset()
    return most_updated(frozenset().union(*(value.averages for value in values)))


def _of_data(f: Follower, at: At, values: list[Value], data: list[Value], rest: list[Value], plain: Value) -> Value:
    """A function of data, and of what is not."""
    name = at.eqn.primitive.name
    if len(data) == 1 and not data[0].reductions:
        return _of_one(f, at, values, data[0], rest, plain)
    pair = norms.own_statistic(f, data)
    if pair is not None:
        return norms.apply(f, at, values, *pair, plain)
    if name in ("add", "sub", "add_any") and (shift := norms.shift_of(data)) is not None:
        return norms.apply(f, at, values, *shift, plain)
    if name == "select_n" and (kept := _kept_or_none(f, values)) is not None:
        return replace(plain, base=kept.base, squared=kept.squared, centered=kept.centered, reductions=kept.reductions)
    if all(value.reductions for value in data):
        value = _of_statistics(f, at, values, data, plain)
        return _of_features(f, at, values, data[0], rest, plain, value) if len(data) == 1 else value
    value = replace(plain, noise=_noise_of_many(name, values, data))
    if name in ("mul", "select_n"):
        f.parents[value.base] = tuple({base for one in data for base in (one.base, *f.parents.get(one.base, ()))})
        same = {one.base for one in data} if name == "mul" else set()
        if len(same) == 1 and len(data) == 2 and data[0].number == data[1].number:
            return _squared(data[0], plain)
    return value


def _kept_or_none(f: Follower, values: Sequence[Value]) -> Value | None:
    """The data that a choice that depends on data takes or leaves."""
    cases = [value for value in values[1:] if f.is_data(value)]
    return cases[0] if f.is_data(values[0]) and len(cases) == 1 and not values[0].reductions else None


def _noise_of_many(name: str, values: Sequence[Value], data: Sequence[Value]) -> frozenset[Any]:
    """Noise that is in all data of a sum is in the whole of it; a factor that is zero makes all of the product zero."""
    noise = frozenset().union(*(value.noise for value in data))
    if name == "mul":
        return noise
    everywhere = frozenset.intersection(*(value.noise for value in data))
    return frozenset(arrival if arrival in everywhere else arrival._replace(whole=False) for arrival in noise)


_OF_SQUARES = ("base", "tap", "centered", "params", "reductions", "bits", "stopped")


def _squared(value: Value, plain: Value) -> Value:
    kept: dict[str, Any] = {name: getattr(value, name) for name in _OF_SQUARES}
    return replace(plain, squared=True, **kept)


def _is_square(eqn: Any) -> bool:
    return eqn.primitive.name in ("square", "abs") or (eqn.primitive.name == "integer_pow" and eqn.params["y"] % 2 == 0)


def _of_one(f: Follower, at: At, values: list[Value], value: Value, rest: list[Value], plain: Value) -> Value:
    """A function of data and of what is none."""
    name = at.eqn.primitive.name
    if _is_square(at.eqn) or (value.squared and name in ("pow", "integer_pow")):
        return _squared(value, plain)
    if name in ("add", "sub", "add_any", "mul", "div") and (name != "div" or f.is_data(values[0])):
        return _affine(f, at, value, rest, plain)
    if name == "select_n" and not f.is_data(values[0]):
        return replace(plain, base=value.base, squared=value.squared, centered=value.centered, params=value.params)
    if name in _SATURATING:
        return replace(plain, noise=frozenset(arrival._replace(whole=False) for arrival in value.noise))
    return plain


def _affine(f: Follower, at: At, value: Value, rest: list[Value], plain: Value) -> Value:
    """Data that is scaled or shifted by what is none."""
    applied = next((one for one in rest if one.rooted), None)
    if applied is None and at.eqn.primitive.name == "div" and not value.squared and (stored := norms.deviations(f, rest[0])):
        applied = replace(rest[0], rooted=stored)
    if applied is not None and norms.divides(at.eqn.primitive.name, applied):
        return norms.normalized(f, at, value, applied, plain)
    met = frozenset().union(*(one.params for one in rest))
    if value.normed is not None:
        norm = f.norms[value.normed]
        norm["params"] = tuple(sorted({*norm["params"], *f.leaves(met)}))
    shifts = at.eqn.primitive.name in ("sub", "add")
    averaged = shifts and any(one.averages for one in rest)
    by = frozenset(("leaf", leaf) for leaf in _of_averages(rest) & f.numbers_of("stats")) if shifts else frozenset()
    return replace(
        plain,
        base=value.base,
        tap=value.tap if value.squared or (averaged and not met - _of_averages(rest)) else plain.tap,
        squared=value.squared,
        centered=value.centered | by,
        normed=value.normed,
        params=value.params | met,
        rooted=frozenset(),
    )


def _of_averages(rest: Sequence[Value]) -> frozenset[int]:
    return frozenset(leaf for one in rest for leaf, _ in one.averages)


def _of_features(
    f: Follower, at: At, values: list[Value], data: Value, rest: list[Value], plain: Value, statistic: Value
) -> Value:
    """A function of what is a statistic within each example: it may be data of its own, as the mean over an image is."""
    if norms.is_pooled(f, data):
        return statistic
    value = _of_one(f, at, values, data, rest, plain)
    if value.normed != data.normed:
        return value
    return replace(statistic, base=value.base, tap=value.tap, centered=value.centered, normed=value.normed, params=value.params)


def _of_statistics(f: Follower, at: At, values: list[Value], data: list[Value], plain: Value) -> Value:
    """A function of statistics, parameters, averages and constants is a statistic, unless it bends them."""
    name = at.eqn.primitive.name
    value = replace(
        plain,
        reductions=frozenset().union(*(one.reductions for one in data)),
        squared=_is_square(at.eqn) or (len(data) == 2 and name == "mul" and data[0].number == data[1].number),
        params=frozenset().union(*(one.params for one in values if one not in data)),
        bits=min((one.bits for one in data if one.bits), default=0),
        stopped=(all if name in ("mul", "div") else any)(one.stopped for one in data),  # a factor leaves the other its gradient
        cancels=any(one.cancels for one in data) or (name == "sub" and norms.cancels(f, data)),
        rooted=frozenset().union(*(one.rooted for one in data)),
        reciprocal=any(one.reciprocal for one in data),
        epsilon=next((one.epsilon for one in data if one.epsilon is not None), None),
        averages=_updated(f, name, values, data),
    )
    if value.squared and len(data) == 1:
        value = replace(value, base=data[0].base, tap=data[0].tap, centered=data[0].centered)
    value = replace(value, bits=narrowest(value.bits, at.eqn.outvars[0].aval.dtype))
    return norms.root(f, at, values, norms.with_epsilon(name, values, value))


def _updated(f: Follower, name: str, values: Sequence[Value], data: Sequence[Value]) -> frozenset[tuple[int, bool]]:
    """The leaves that a sum of averages and statistics is an affine function of; a statistic without its leaf updates it."""
    if name not in ("add", "sub", "add_any"):
        return _averages_of(name, values)
    updated = set()
    for leaf in {leaf for value in values for leaf, _ in value.averages}:
        news = [value for value in data if leaf not in dict(value.averages)]
        known = any((leaf, True) in value.averages for value in values)
        updated.add((leaf, known or any(norms.is_pooled(f, value) for value in news)))
    f.averaged.update((leaf, place) for leaf, one in updated if one for value in data for place in value.reductions)
    return frozenset(updated)
