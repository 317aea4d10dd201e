"""A compiler for TPUs, which jax for the CPU does not hold: it lies where a variable says, needs no TPU, and estimates cycles."""

import importlib.metadata
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnorm.benchmarks._compiler_folder import find_folder
from jaxnorm.benchmarks._gpu_kernels import parse_computations, parse_kernels

VARIABLE = "JAXNORM_TPU_COMPILER"

_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",  # nobody is to be asked over the network what machine this is
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no TPU that two processes could want
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n.*?^\}", re.MULTILINE | re.DOTALL)
_SIDES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


class TpuProgram(NamedTuple):
    """A program compiled for a TPU. Of a branch the cheaper side is counted, and in nothing but the cycles.

    Attributes:
      cycles: the compiler's own estimate, of all fusions and copies.
      copies: how many arrays not much smaller than the largest are copied from one layout to another.
      temporary_bytes: what is allocated beside inputs and outputs.
      collectives: how many there are of each kind.
    """

    cycles: int
    copies: int
    temporary_bytes: int
    collectives: Mapping[str, int]


def find_compiler() -> Path:
    """Returns the folder of libtpu, which `JAXNORM_TPU_COMPILER` names.

    Raises:
      ValueError: if it names none, or one without libtpu, or with one for another version of jax.
    """
    requirements = "\n".join(importlib.metadata.requires("jax") or ())
    version = re.search(r"^libtpu==([\w.*]+)", requirements, re.MULTILINE)
    return find_folder(VARIABLE, {"libtpu": version[1] if version else ""})


@cache
def connect_compiler() -> None:
    """Makes jax find libtpu.

    Raises:
      ValueError: as `find_compiler`.
    """
    sys.path.insert(0, str(find_compiler()))
    os.environ.update(_ALONE)


@cache
def mesh_of(topology: str, shape: tuple[int, ...] = (), axis_type: AxisType = AxisType.Auto) -> Mesh:
    """Returns a mesh of chips that are not there, with axes named "a", "b", ...

    Args:
      topology: as `v5e:4x4`.
      shape: numbers of chips along the axes; all along one if it is empty.
      axis_type: of all axes.

    Raises:
      ValueError: as `find_compiler`, and if libtpu does not know the topology.
    """
    connect_compiler()
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"topology {topology!r} is none that libtpu knows, as v5e:2x2 or v6e:4x4: {reason}") from error
    shape = shape or (len(devices),)
    chosen = np.array(devices[: int(np.prod(shape))]).reshape(shape)
    return Mesh(chosen, tuple("abcdef"[: len(shape)]), axis_types=(axis_type,) * len(shape))


def compile_for_tpu(function: Callable[..., Any], *arguments: Any, mesh: Mesh, specs: Any = None) -> TpuProgram:
    """Compiles a function of arrays, or of `jax.ShapeDtypeStruct`s in their places, for the chips of a mesh.

    Args:
      function: the function.
      arguments: its arguments.
      mesh: from `mesh_of`.
      specs: how the arguments are sharded, a tree prefix of the tuple of them; None where they are not.
    """

    def placed(spec: PartitionSpec, part: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec)), part)

    shapes = jax.tree.map(
        placed, PartitionSpec() if specs is None else specs, arguments, is_leaf=lambda node: isinstance(node, PartitionSpec)
    )
    with jax.set_mesh(mesh), _without_cache():
        compiled = jax.jit(function).lower(*shapes).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None
    assert memory is not None
    return read_program(text, memory.temp_size_in_bytes)


@contextmanager
def _without_cache() -> Iterator[None]:
    """Leaves jax's compilation cache aside: it could not read again what it keeps of a chip that is not there."""
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def read_program(text: str, temporary_bytes: int = 0) -> TpuProgram:
    """Returns what a program's HLO says of it."""
    computations, entry = parse_computations(text)
    bodies = {match[1]: match[0] for match in _COMPUTATION.finditer(text)}

    def cycles(name: str) -> int:
        branches = [re.findall(r"[\w.-]+", sides) for sides in _SIDES.findall(bodies[name])]
        return sum(map(int, _CYCLES.findall(bodies[name]))) + sum(min(map(cycles, sides)) for sides in branches)

    opcodes = Counter(instruction.opcode.removesuffix("-start") for instruction in computations[entry])
    large = {kernel.name for kernel in parse_kernels(text, {}, {}) if kernel.main}
    return TpuProgram(
        cycles=cycles(entry),
        copies=sum(instruction.opcode == "copy" and instruction.name in large for instruction in computations[entry]),
        temporary_bytes=temporary_bytes,
        collectives={kind: opcodes[kind] for kind in _COLLECTIVES if opcodes[kind]},
    )
