"""Measures a case: makes the same problem for all contenders, runs them in turns, and puts their figures together."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxnorm.benchmarks._layer import AXIS, Builder
from jaxnorm.benchmarks._measure import Program, Rounds, Timing, interleave
from jaxnorm.benchmarks._peers import peer_layers
from jaxnorm.benchmarks._programs import Problem
from jaxnorm.benchmarks._rows import Case, Row

FLAX = "flax linen"
OURS, PEER, BASELINE = "ours", "peer", "baseline"
COSTS = ("temporary_bytes", "residual_bytes", "residual_input", "trace_seconds", "compile_seconds")


def make_problem(row: Row, case: Case) -> Problem:
    """Returns random data, as nothing takes the same time on zeros, and on a GPU more of it along the first axis."""
    shape = case.shape
    if jax.default_backend() != "cpu":
        shape = (shape[0] * max(1, math.ceil(row.sizes.least_on_gpu / math.prod(shape))), *shape[1:])
    mesh = None
    if case.devices is not None:
        mesh = Mesh(np.asarray(jax.devices()[: case.devices]), (AXIS,))
    rng = np.random.default_rng(0)  # which needs no compilation
    x, cotangent = (jnp.asarray(rng.standard_normal(shape, np.float32), jnp.dtype(case.dtype)) for _ in range(2))
    return Problem(x, cotangent, mesh)


def contenders(row: Row) -> Iterator[tuple[str, str, Builder]]:
    """Yields name, role and builder of every contender of a row, the baseline first."""
    yield row.kind.baseline, BASELINE, row.kind.baseline_layer
    for name, build in row.ours.items():
        yield name, OURS, build
    for name, build in peer_layers(row.layer or row.name).items():
        if row.peers is None or name in row.peers:
            yield name, PEER, build


def measure(row: Row, case: Case, rounds: Rounds) -> dict[str, Any]:
    """Returns the figures of all contenders, as they are written to the results.

    A peer that fails is left out, and its error is noted; one of ours is not excused.
    """
    jax.clear_caches()  # so that compilation takes as long as when it is done first
    problem = make_problem(row, case)
    programs: dict[str, Program] = {}
    roles: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, role, build in contenders(row):
        try:
            program = row.kind.work(build, problem)
            if program is not None and not row.kind.once:
                program.wait(program.run())
        except Exception as error:
            if role != PEER:
                raise
            failed[name] = f"{type(error).__name__}: {error}"
            continue
        if program is not None:
            programs[name], roles[name] = program, role
    timings = interleave(programs, rounds)
    return {
        "row": row.name,
        "title": row.title,
        "kind": row.kind.title,
        "shape": list(problem.x.shape),
        "dtype": case.dtype,
        "devices": case.devices,
        "curve": row.curve,
        "headline": row.headline,
        "baseline": row.kind.baseline,
        "elements": problem.x.size,
        "bytes": problem.x.nbytes,
        "failed": failed,
        "contenders": _figures(row, problem.x.nbytes, programs, roles, timings),
    }


def _figures(
    row: Row, nbytes: int, programs: Mapping[str, Program], roles: Mapping[str, str], timings: Mapping[str, Timing]
) -> list[dict[str, Any]]:
    medians = {name: timing.median for name, timing in timings.items()}
    peers = [median for name, median in medians.items() if roles[name] == PEER]
    copied = row.kind.baseline_passes * nbytes / medians[row.kind.baseline]  # bytes a second of a copy

    def figures(name: str) -> dict[str, Any]:
        timing, seconds = timings[name], medians[name]
        lower, upper = timing.quartiles
        passes = row.passes if roles[name] != BASELINE else row.kind.baseline_passes
        achieved = passes * nbytes / seconds
        return {
            "name": name,
            "role": roles[name],
            "median_seconds": seconds,
            "lower_quartile_seconds": lower,
            "upper_quartile_seconds": upper,
            "seconds": list(timing.samples),
            "calls": timing.calls,
            "times_baseline": seconds / medians[row.kind.baseline],
            "speed_over_flax_linen": medians[FLAX] / seconds if FLAX in medians else None,
            "speed_over_best_peer": min(peers) / seconds if peers else None,
            "bytes_per_second": achieved or None,
            "share_of_copy": achieved / copied if achieved and copied else None,
            **{cost: programs[name].costs.get(cost) for cost in COSTS},
        }

    return [figures(name) for name in timings]
