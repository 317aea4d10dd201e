"""Programs within programs: calls, branches, loops, devices."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax

from jaxnorm.diagnostics._lint.follower import At, Follower, handles
from jaxnorm.diagnostics._lint.values import Spot, Value, joined

_PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


@handles("jit", "pjit", "closed_call", "core_call", "remat2", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call",
         "custom_vjp_call_jaxpr", "xla_metadata_call")  # fmt: skip
def call(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A program that runs once."""
    program = program_of(at.eqn)
    count = len(getattr(program, "jaxpr", program).invars)
    return f.run_closed(program, values[len(values) - count :], at)


def program_of(eqn: Any) -> Any:
    """Returns the program that an equation calls, or None."""
    return next((eqn.params[name] for name in _PROGRAMS if name in eqn.params), None)


@handles("cond")
def branch(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """One of several programs; the one that is chosen, where that is known. Those for several platforms compute the same."""
    index, *operands = values
    which = platform_branch(at.eqn)
    if which is None and index.constant is not None:
        which = min(max(int(index.constant), 0), len(at.eqn.params["branches"]) - 1)
    if which is not None:
        return f.run_closed(at.eqn.params["branches"][which], operands, at, which)
    ends = [f.run_closed(program, operands, at, number) for number, program in enumerate(at.eqn.params["branches"])]
    chosen = f.plain(at, [index])
    together = [joined(results, f.number("branch", at.place, k)) for k, results in enumerate(zip(*ends, strict=True))]
    return [
        replace(
            value,
            inputs=value.inputs | index.inputs,
            loops=value.loops | chosen.loops,
            mixes=value.mixes | index.mixes,
            tap=at.spot(variable),
        )
        for value, variable in zip(together, at.eqn.outvars, strict=True)
    ]


def platform_branch(eqn: Any) -> int | None:
    """Returns which branch of a `cond` is that of this platform, or None if they are not for platforms."""
    platforms = eqn.params.get("branches_platforms")
    if platforms is None:
        return None
    backend = jax.default_backend()
    names = {"gpu": ("gpu", "cuda", "rocm")}.get(backend, (backend,))
    found = [k for k, own in enumerate(platforms) if own is not None and set(own) & set(names)]
    return found[0] if found else list(platforms).index(None)


@handles("scan")
def scan(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A loop over slices, whose carry is followed until it stays the same."""
    params = at.eqn.params
    consts, carried = scan_counts(at.eqn)
    slices = [_slice(f, at, value) for value in values[consts + carried :]]

    variables = params["jaxpr"].jaxpr.invars[consts:]

    def step(carry: list[Value]) -> list[Value]:
        own = [
            replace(value, tap=Spot((*at.place, 0), variable))
            for value, variable in zip([*carry, *slices], variables, strict=True)
        ]
        return f.run_closed(params["jaxpr"], [*values[:consts], *own], at)

    carry, ends = settle(f, at, values[consts : consts + carried], step, params["length"])
    stacked = [_stack(at, value, aval) for value, aval in zip(ends[carried:], at.eqn.outvars[carried:], strict=True)]
    return [*(_left(at, value, variable) for value, variable in zip(carry, at.eqn.outvars, strict=False)), *stacked]


def scan_counts(eqn: Any) -> tuple[int, int]:
    """Returns how many operands of a `scan` are constants of its steps, and how many are carried."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carried, _ = eqn.params["ft_in"].unpack()  # of jax 0.12
    return len(list(consts)), len(list(carried))


@handles("while")
def loop(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A loop with a condition."""
    params = at.eqn.params
    of_condition, of_body = params["cond_nconsts"], params["body_nconsts"]
    consts = values[of_condition : of_condition + of_body]

    def step(carry: list[Value]) -> list[Value]:
        own = [replace(value, tap=None) for value in carry]  # of how many steps is not known
        f.run_closed(params["cond_jaxpr"], [*values[:of_condition], *own], at, 0)
        return f.run_closed(params["body_jaxpr"], [*consts, *own], at, 1)

    carry, _ = settle(f, at, values[of_condition + of_body :], step, 2)
    return [_left(at, value, variable) for value, variable in zip(carry, at.eqn.outvars, strict=True)]


def settle(f: Follower, at: At, first: list[Value], step: Any, length: int) -> tuple[list[Value], list[Value]]:
    """Returns what is known of the carry of a loop, and of all results of a step, when another step adds nothing."""
    carry = list(first)
    while True:
        ends = step(carry)
        if length == 1:
            return ends[: len(carry)], ends
        new = [_carried(f, at, k, before, after) for k, (before, after) in enumerate(zip(carry, ends, strict=False))]
        if new == carry or length == 0:
            return new, ends
        carry = new


def _carried(f: Follower, at: At, k: int, before: Value, after: Value) -> Value:
    if before == after:
        return before
    new = after.averages - before.averages
    f.updated_in_loops |= {(leaf, at.place) for leaf, updated in new if updated and (leaf, False) in before.averages}
    value = joined((before, after), f.number("carried", at.place, k))
    return replace(value, number=f.number("carried", at.place, k), loops=value.loops | {at.place})


def _slice(f: Follower, at: At, value: Value) -> Value:
    """A value of each step: of an array whose first axis the loop goes along."""
    number = f.number("slice", at.place, value.number)
    return replace(
        value,
        number=number,
        base=number,
        examples=frozenset(axis - 1 for axis in value.examples if axis),
        varies=frozenset(axis - 1 for axis in value.varies if axis),
        loops=value.loops | ({at.place} if 0 in value.varies else frozenset()),
        over=value.over | ({at.place} if 0 in value.examples else frozenset()),
    )


def _left(at: At, value: Value, variable: Any) -> Value:
    return replace(value, loops=value.loops - {at.place}, over=value.over - {at.place}, tap=at.spot(variable))


def _stack(at: At, value: Value, variable: Any) -> Value:
    """What a loop stacks, of each step."""
    first = frozenset({0})
    return replace(
        _left(at, value, variable),
        examples=frozenset(axis + 1 for axis in value.examples) | (first if at.place in value.over else frozenset()),
        varies=frozenset(axis + 1 for axis in value.varies) | (first if at.place in value.loops else frozenset()),
    )


@handles("shard_map")
def on_devices(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A program that each device runs on its part."""
    mesh = at.eqn.params["mesh"]
    f.sizes.update(dict(mesh.shape))
    specs = at.eqn.params["in_specs"]
    inside = []
    for value, spec, variable in zip(values, specs, at.eqn.params["jaxpr"].invars, strict=True):
        names = [name for axis in value.examples if axis < len(spec) for name in _names(spec[axis])]
        # Of an axis that has one element on each device, as of `pmap`, the next holds the examples of the device.
        next_axes = {
            axis + 1 for axis in value.examples if names and variable.aval.shape[axis] == 1 and axis + 1 < variable.aval.ndim
        }
        inside.append(replace(value, spread=value.spread | frozenset(names), examples=value.examples | next_axes))
    return [replace(value, spread=frozenset()) for value in f.run_closed(at.eqn.params["jaxpr"], inside, at)]


def _names(axis: Any) -> tuple[str, ...]:
    return () if axis is None else tuple(axis) if isinstance(axis, tuple) else (axis,)


@handles("unknown")
def unknown(f: Follower, at: At, values: list[Value]) -> Sequence[Value]:
    """A primitive that is not known: what comes from it comes from all that it is given, and nothing more is sure."""
    name = at.eqn.primitive.name
    (f.callbacks if "callback" in name or name == "debug_print" else f.unknown)[name] = None
    return [_from_all(f, at, values, number, variable) for number, variable in enumerate(at.eqn.outvars)]


def _from_all(f: Follower, at: At, values: list[Value], number: int, variable: Any) -> Value:
    value = f.plain(at, values, number)
    shape = getattr(variable.aval, "shape", ())
    return replace(
        value,
        examples=frozenset(axis for axis in value.examples if axis < len(shape)),
        varies=frozenset(range(len(shape))),
        noise=frozenset(arrival._replace(linear=True, whole=False) for arrival in value.noise),
        sure=False,
    )
