"""Random numbers: keys become draws, draws become what they are made into, and meet data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxnorm.diagnostics._lint import locating
from jaxnorm.diagnostics._lint.follower import At, Follower
from jaxnorm.diagnostics._lint.records import Draw, Noise, NoiseKind
from jaxnorm.diagnostics._lint.values import Arrival, Place, Value

_KINDS: dict[str, NoiseKind] = {"mul": "factor", "div": "factor", "and": "choice", "select_n": "choice"}
_KINDS |= dict.fromkeys(("add", "sub", "add_any"), "added")


def draw(f: Follower, at: At, key: Value) -> Place:
    """Notes that a key is used up here, and returns the place."""
    _note_draw(f, at, key, key.number)
    f.drawn[key.number] = at.place
    return at.place


def _note_draw(f: Follower, at: At, source: Value, key: int) -> None:
    """Notes a draw of random numbers: `source` is the key, or words of it, and `key` its number."""
    f.draws[at.place] = Draw(
        at.place,
        f.where(at),
        locating.library_of(at.stack),
        key,
        not source.inputs,
        f.inputs_of(source),
        bool(_loops_around(at) - source.loops),
        locating.function_of_ours(at.stack),
    )


def _loops_around(at: At) -> frozenset[Place]:
    """The loops of more than one step that an equation is in."""
    found = []
    for depth, eqn in enumerate(at.stack[1:], 1):
        if eqn.primitive.name == "while" or (eqn.primitive.name == "scan" and eqn.params["length"] > 1):
            found.append(at.place[: len(at.place) - 2 * depth])
    return frozenset(found)


def draws_of_keys(f: Follower, at: At, value: Value) -> Value:
    """What is computed of a key's words is random: drawn where the key was used up, or here."""
    if not value.keys:
        return value
    places = {f.drawn.get(key) for key in value.keys} - {None} or {at.place}
    if at.place in places and at.place not in f.draws:
        f.drawn.update(dict.fromkeys(value.keys, at.place))
        _note_draw(f, at, value, f.number("words", *sorted(value.keys)))
    return replace(value, keys=frozenset(), draws=value.draws | places)


def meet(f: Follower, at: At, values: Sequence[Value], plain: Value) -> Value:
    """Random numbers meet data here."""
    name = at.eqn.primitive.name
    data = [value for value in values if f.is_data(value)]
    random = [value for value in values if value.draws and not f.is_data(value)]
    kind = _KINDS.get(name, "sampled")
    if name == "select_n" and not (values[0].draws and any(not f.is_data(one) and not one.draws for one in values[1:])):
        kind = "sampled"
    note(f, at, kind, "data", random, data, values)
    own = Arrival(at.place, False, kind in ("factor", "choice"))
    earlier = frozenset(arrival for value in data for arrival in value.noise)
    if kind in ("added", "sampled"):
        earlier = frozenset(arrival._replace(whole=False) for arrival in earlier)
    return replace(plain, draws=frozenset(), noise=earlier | {own})


def note(
    f: Follower, at: At, kind: NoiseKind, on: Any, random: Sequence[Value], data: Sequence[Value], values: Sequence[Value]
) -> None:
    """Notes a place where random numbers meet data, or are the weights of a linear layer."""
    examples = frozenset(axis for value in data for axis in value.examples)
    over = frozenset(loop for value in data for loop in value.over)
    varies = frozenset(axis for value in random for axis in value.varies)
    loops = frozenset(loop for value in random for loop in value.loops)
    same = bool(examples - varies) if examples else bool(over - loops)
    ours = locating.function_of_ours(at.stack)
    asked = "" if locating.is_mapped(at.stack) else ours or locating.attention_of_flax(at.stack)
    mask = at.eqn.invars[next(number for number, value in enumerate(values) if value is random[0])]
    f.noises[at.place] = Noise(
        at.place,
        f.where(at),
        locating.library_of(at.stack),
        kind,
        on,
        on == "data" and same and bool(varies) and not examples & varies,
        asked,
        varies,
        frozenset(place for value in random for place in value.draws),
        ours,
        at.spot(mask),
        all(value.sure for value in values),
        bool(over - loops),
    )
