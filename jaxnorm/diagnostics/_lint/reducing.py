"""Reductions: statistics of data, and maxima over windows."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jaxnorm.diagnostics._lint import locating
from jaxnorm.diagnostics._lint.elementwise import narrowest
from jaxnorm.diagnostics._lint.follower import At, Follower, handles
from jaxnorm.diagnostics._lint.records import Maximum, Reduction
from jaxnorm.diagnostics._lint.values import Arrival, Axes, Value


@handles("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin")
def reduced(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A reduction over axes."""
    value = f.plain(at, f.moved(at, values))
    source = values[0]
    if not f.is_data(source) or not at.eqn.params["axes"]:
        return [value if at.eqn.params["axes"] else replace(source, number=value.number)]
    axes = frozenset(axis % len(at.eqn.invars[0].aval.shape) for axis in at.eqn.params["axes"])
    value = replace(value, noise=frozenset(arrival._replace(whole=False) for arrival in value.noise))
    if at.eqn.primitive.name == "reduce_max" and _is_of_window(at):
        note_maximum(f, at, source, axes)
    return [reduction(f, at, source, axes, at.eqn.invars[0], value)]


def reduction(f: Follower, at: At, source: Value, axes: Axes, variable: Any, value: Value) -> Value:
    """Notes a reduction of data, and returns its result as a statistic."""
    shape = variable.aval.shape
    count, over = math.prod(shape[axis] for axis in axes), bool(axes & source.examples)
    elements = dict.fromkeys((source.base, *f.parents.get(source.base, ())), (count, over))
    for place in source.reductions:
        for base, (inner, of_batch) in f.reductions[place].elements.items():
            most, of_others = elements.get(base, (0, over))
            elements[base] = max(most, inner * count), of_others or of_batch
    dtype = variable.aval.dtype
    bits = narrowest(narrowest(source.bits, dtype), at.eqn.outvars[0].aval.dtype) if jnp.issubdtype(dtype, jnp.floating) else 0
    size = math.prod(at.eqn.outvars[0].aval.shape)
    f.reductions[at.place] = Reduction(at.place, source, elements, size, axes)
    value = replace(value, reductions=frozenset({at.place}), bits=bits, stopped=source.stopped)
    return _mixed(f, at, value) if over else value


def _mixed(f: Follower, at: At, value: Value) -> Value:
    """Notes that examples are mixed."""
    f.mixes[at.place] = f.where(at)
    return replace(value, mixes=value.mixes | {at.place})


def _is_of_window(at: At) -> bool:
    """Whether a maximum is over axes that were made of others for it, as of windows by hand."""
    producer = at.producer()
    if producer is None or producer.primitive.name != "reshape":
        return False
    return producer.outvars[0].aval.ndim > producer.invars[0].aval.ndim


def note_maximum(f: Follower, at: At, source: Value, axes: Axes) -> None:
    """Notes a maximum over a window of data that noise reaches, which is not the same in all of the window."""
    if noises := frozenset(arrival for arrival in source.noise if _differs(f, at, arrival, axes)):
        where, library = f.where(at), locating.library_of(at.stack)
        f.maxima[at.place] = Maximum(at.place, where, library, noises)


def _differs(f: Follower, at: At, arrival: Arrival, axes: Axes) -> bool:
    noise = f.noises[arrival.noise]
    moved = noise.mask.variable.aval.ndim != at.eqn.invars[0].aval.ndim
    return moved or arrival.linear or noise.kind == "added" or bool(noise.varies & axes)


@handles("reduce_window_max", "reduce_window", "select_and_gather_add")
def of_windows(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A reduction over windows."""
    value = f.plain(at, f.moved(at, values))
    if at.eqn.primitive.name == "reduce_window_max" and f.is_data(values[0]):
        windows = at.eqn.params["window_dimensions"]
        note_maximum(f, at, values[0], frozenset(axis for axis, size in enumerate(windows) if size > 1))
    return [value] * len(at.eqn.outvars)


@handles("sort", "top_k", "approx_top_k", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def along(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """What goes along an axis; along that of the examples it mixes them."""
    axis = at.eqn.params.get("dimension", at.eqn.params.get("axis"))
    moved = f.moved(at, values)
    results = []
    for number in range(len(at.eqn.outvars)):
        value = f.plain(at, moved, number)
        results.append(_mixed(f, at, value) if axis in value.examples else value)
    return results
