"""What a lint costs: time and memory beside one pass of the network in training. `python -m jaxnorm.benchmarks.lint`."""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import jax

from jaxnorm._tables import text_table
from jaxnorm.benchmarks._environment import worker_environment
from jaxnorm.benchmarks._lint_models import NETWORKS, batch_of, variables_of

_MIB = 2**10  # kilobytes, in which the system counts what a process has had


def _pass(name: str) -> dict[str, float]:
    """Compiles and runs the network in training, once."""
    network = NETWORKS[name]
    x = batch_of(network)
    variables = variables_of(network, x)

    @jax.jit
    def run(variables: Any, x: jax.Array) -> Any:
        rngs = {"dropout": jax.random.key(0)}
        return network.module.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])

    start = time.perf_counter()
    jax.block_until_ready(run(variables, x))
    return {"seconds": time.perf_counter() - start}


def _lint(name: str) -> dict[str, float]:
    """Lints the network; the time of following both of its programs counts alone too."""
    import jaxnorm.linen
    from jaxnorm.diagnostics._lint.following import follow
    from jaxnorm.diagnostics._lint.program import Program, paths_of
    from jaxnorm.linen.linting import as_model

    network = NETWORKS[name]
    x = batch_of(network)
    variables = variables_of(network, x)
    start = time.perf_counter()
    report = jaxnorm.linen.lint(network.module, variables, x)
    seconds = time.perf_counter() - start
    model = as_model(network.module, variables, x, key=jax.random.key(0))
    programs = [Program.of(model, train).closed for train in (True, False)]
    start = time.perf_counter()
    for closed in programs:
        follow(closed, paths_of(model.key, model.params, model.stats, model.x))
    return {"seconds": seconds, "following": time.perf_counter() - start, "norms": report.norms, "noises": report.noises}


_MEASUREMENTS = {"pass": _pass, "lint": _lint}


def measured(what: str, name: str) -> dict[str, float]:
    """Returns what a new process finds of a network, with the most memory that it has had, in MiB.

    Raises:
      RuntimeError: if it fails.
    """
    command = [sys.executable, "-m", "jaxnorm.benchmarks.lint", what, name]
    done = subprocess.run(command, env=worker_environment(1), capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"the {what} of {name} failed: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _rows() -> Any:
    for name in NETWORKS:
        alone, linted = (measured(what, name) for what in _MEASUREMENTS)
        yield (
            name,
            f"{linted['norms']:.0f}, {linted['noises']:.0f}",
            f"{linted['following']:.2g}",
            f"{linted['seconds']:.2g}",
            f"{alone['seconds']:.2g}",
            f"{linted['memory']:.0f}",
            f"{alone['memory']:.0f}",
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        found = _MEASUREMENTS[sys.argv[1]](sys.argv[2])
        print(json.dumps({**found, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB}))
    else:
        head = ("", "norms, noises", "following, s", "lint, s", "one pass, s", "most memory, MiB", "of one pass")
        print(text_table(head, _rows(), title="A lint beside one pass in training, compilation included"))
