"""The machine and the versions that figures are of, and what must be set before Python starts."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import jaxnorm
from jaxnorm.benchmarks._peers import PEERS

# Without these a new array of many megabytes costs more in page faults than in arithmetic: they keep memory that is freed. Only
# glibc's first arena can, so that all threads share it.
_REUSED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}
_DISTRIBUTIONS = dict.fromkeys(("jax", "jaxlib", "flax", "optax", *(peer.distribution for peer in PEERS)))


def worker_environment(devices: int) -> dict[str, str]:
    """Returns the environment of a process that measures, with so many devices if they are CPUs."""
    return {
        **os.environ,
        **_REUSED_MEMORY,
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # compilation is timed
        "JAX_NUM_CPU_DEVICES": str(devices),
        "OMP_WAIT_POLICY": "passive",  # else torch's idle threads spin while others are timed
        "PYTHONWARNINGS": "ignore",
    }


def describe_environment() -> dict[str, Any]:
    """Returns versions, machine, device and date."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "backend": jax.default_backend(),
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"jaxnorm": jaxnorm.__version__, **_versions()},
    }


def _versions() -> Mapping[str, str]:
    versions = {}
    for distribution in _DISTRIBUTIONS:
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    """Returns the processor's name, which Python itself does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
