"""Follows a traced program: where random numbers meet data, which norms there are, and what reaches them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxnorm.diagnostics._lint import calls, devices, elementwise, linear, random, reducing, structural  # noqa: F401 (they add handlers)
from jaxnorm.diagnostics._lint.follower import Followed, Follower
from jaxnorm.diagnostics._lint.locating import layer_of
from jaxnorm.diagnostics._lint.records import Norm
from jaxnorm.diagnostics._lint.report import Where
from jaxnorm.diagnostics._lint.values import Spot


def follow(closed: Any, paths: Sequence[str]) -> Followed:
    """Follows a traced program.

    Args:
      closed: the program, as `jax.make_jaxpr` returns it.
      paths: of the leaves of its arguments, each of which begins with what it is: "key", "params/...", "stats/..." or "x/...".
    """
    follower = Follower(paths)
    args = [replace(follower.argument(number, var.aval), tap=Spot((), var)) for number, var in enumerate(closed.jaxpr.invars)]
    consts = [follower.literal(const) for const in closed.consts]
    outputs = follower.run(closed.jaxpr, consts, args, (), ())
    found = follower.found(outputs)
    return replace(found, norms=tuple(_with_averages(norm, found) for norm in found.norms))


def _with_averages(norm: Norm, found: Followed) -> Norm:
    """A norm with the leaves that its statistics are averaged into, which the outputs show."""
    into = {
        found.paths[leaf]
        for value in found.values
        if value.reductions & norm.reductions
        for leaf, updated in value.averages
        if updated
    }
    paths = tuple(sorted({*norm.averages, *into}))
    layer = next((layer_of(path) for path in (*norm.params, *paths) if path.count("/") > 1), norm.where.path)
    where = Where(layer, norm.where.line)
    return replace(norm, averages=paths, where=where)
