"""Starts a script as several processes that find each other on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jaxnorm

_ROOT = Path(jaxnorm.__file__).parents[1]
_ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": f"{_ROOT}:{_ROOT / 'tests'}",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(script: Path, processes: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Starts `script ARGUMENTS COORDINATOR PROCESSES PROCESS` as so many processes."""
    place = f"127.0.0.1:{free_port()}", processes
    commands = [[sys.executable, script, *arguments, *place, own] for own in range(processes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen([str(part) for part in command], env=_ENVIRONMENT, **pipes) for command in commands]


def ends(processes: Sequence[subprocess.Popen[str]], seconds: float = 120) -> list[tuple[int, str]]:
    """Returns the exit status and the output of each process, or raises when one does not end."""
    try:
        return [(process.communicate(timeout=seconds)[0], process.returncode)[::-1] for process in processes]
    finally:
        for process in processes:
            process.kill()
