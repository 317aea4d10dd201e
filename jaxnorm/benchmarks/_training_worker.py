"""The process that measures training: reads what to measure as JSON from its argument, and writes what it found as JSON."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from jaxnorm.benchmarks._accumulation import accumulation
from jaxnorm.benchmarks._environment import worker_environment
from jaxnorm.benchmarks._loops import SIZES, peak_memory, time_steps
from jaxnorm.benchmarks._sharded_step import DEVICES, collectives_of_a_step

_ROUNDS, _ROUNDS_OF_LOOPS = 9, 21  # of loops that differ by percents


def _loops(size: str) -> Any:
    return {name: timing.samples for name, timing in time_steps(SIZES[size], _ROUNDS_OF_LOOPS).items()}


def _memory(size: str, name: str) -> Any:
    return peak_memory(SIZES[size], name)


def _accumulation(network: str) -> Any:
    return accumulation(network, _ROUNDS)


def _collectives(library: str, way: str) -> Any:
    return {devices: collectives_of_a_step(library, way, devices) for devices in DEVICES}


_MEASUREMENTS: dict[str, Callable[..., Any]] = {
    "loops": _loops,
    "memory": _memory,
    "accumulation": _accumulation,
    "collectives": _collectives,
}


def measured(name: str, *arguments: str, devices: int = 1) -> Any:
    """Returns what a new process finds, which has so many devices if they are CPUs.

    Raises:
      RuntimeError: if it fails.
    """
    command = [sys.executable, "-m", "jaxnorm.benchmarks._training_worker", json.dumps([name, *arguments])]
    done = subprocess.run(command, env=worker_environment(devices), capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures {name} of {', '.join(arguments)} failed: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    asked, *given = json.loads(sys.argv[1])
    print(json.dumps(_MEASUREMENTS[asked](*given)))
