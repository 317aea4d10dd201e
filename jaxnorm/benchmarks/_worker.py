"""The process that measures: reads what to measure as JSON from its argument, and writes a line of JSON for each result.

It is a process of its own because memory is managed, and devices are made, as it was decided before Python started.
"""

import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.benchmarks._cases import measure
from jaxnorm.benchmarks._environment import describe_environment
from jaxnorm.benchmarks._measure import Rounds
from jaxnorm.benchmarks._rows import Row, cases, row_named

_ROUNDS, _QUICK_ROUNDS = 9, 5
_ONCE, _QUICK_ONCE = 3, 1
_WARMUPS = 2
_ARRAYS_TOUCHED, _LEAST_TOUCHED = 8, 2**30
_SECONDS, _SECONDS_ON_GPU = 0.005, 0.05


def rounds_of(row: Row, *, quick: bool, on_gpu: bool) -> Rounds:
    """Returns how often the contenders of a row are timed."""
    if row.kind.once:
        return Rounds(0, _QUICK_ONCE if quick else _ONCE)
    return Rounds(_WARMUPS, _QUICK_ROUNDS if quick else _ROUNDS, _SECONDS_ON_GPU if on_gpu else _SECONDS, queued=on_gpu)


def work(names: list[str], *, quick: bool, tell: Callable[[dict[str, Any]], None]) -> None:
    """Measures the rows of these names, and tells what it does and finds in messages of one entry each.

    `environment` comes first, `row` before each row, `case` after each case, or `note` if it was left out.
    """
    tell({"environment": describe_environment()})
    for row in map(row_named, names):
        tell({"row": row.name})
        rounds = rounds_of(row, quick=quick, on_gpu=jax.default_backend() != "cpu")
        for case in cases(row, quick=quick):
            if (case.devices or 1) > jax.device_count():
                tell({"note": f"{row.name} on {case.devices} devices is left out: there is {jax.device_count()}"})
            else:
                if jax.default_backend() == "cpu":
                    _touch_memory(_ARRAYS_TOUCHED * math.prod(case.shape) * jnp.dtype(case.dtype).itemsize)
                tell({"case": measure(row, case, rounds)})


def _touch_memory(nbytes: int) -> None:
    """Makes the system give memory, which this process keeps: its first use is what costs."""
    np.ones(max(nbytes, _LEAST_TOUCHED), np.uint8)


def main() -> None:
    """Measures what the argument says."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print goes elsewhere

        def tell(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=out, flush=True)

        work(**json.loads(sys.argv[1]), tell=tell)


if __name__ == "__main__":
    main()
