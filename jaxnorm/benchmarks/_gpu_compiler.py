"""A compiler for the NVIDIA H200, which jax for the CPU does not hold: it lies where a variable says, and needs no GPU."""

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from jaxnorm.benchmarks._compiler_folder import find_folder
from jaxnorm.benchmarks._gpu_kernels import Program, parse_code, parse_kernels, parse_launches

VARIABLE = "JAXNORM_CUDA_COMPILER"

_OF_JAX = ("jax-cuda13-plugin", "jax-cuda13-pjrt")
_OF_CUDA = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt")


def find_compiler() -> Path:
    """Returns the folder of the compiler for NVIDIA GPUs, which `JAXNORM_CUDA_COMPILER` names.

    Raises:
      ValueError: if it names none, or one without all packages, or one for another version of jax.
    """
    version = importlib.metadata.version("jaxlib")
    return find_folder(VARIABLE, {**dict.fromkeys(_OF_JAX, version), **dict.fromkeys(_OF_CUDA, "")})


@cache
def connect_compiler() -> tuple[Path, NamedSharding]:
    """Makes jax find the compiler, before jax starts.

    Returns:
      Its folder, and the sharding of arrays on one H200 that is not there.

    Raises:
      ValueError: as `find_compiler`.
      RuntimeError: if jax has started without it.
    """
    folder = find_compiler()
    jax.config.update("jax_platforms", "cpu")  # or jax would look for the GPU
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    sys.path.insert(0, str(folder))
    description = (resources.files("jaxnorm.benchmarks") / "h200.txtpb").read_text()
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=description, topology="1x1x1")
    except NotImplementedError as error:
        raise RuntimeError("jax has already started without the compiler: connect it before any array is made") from error
    return folder, NamedSharding(topologies.make_mesh(topology, (1,), ("x",)), PartitionSpec())


def compile_for_h200(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compiles a function of arrays, or of `jax.ShapeDtypeStruct`s in their places, for one H200.

    Raises:
      ValueError: as `find_compiler`.
      RuntimeError: if jax has started before `connect_compiler` was called.
    """
    folder, sharding = connect_compiler()
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments)
    with tempfile.TemporaryDirectory() as dump:
        options = {
            "xla_gpu_cuda_data_dir": str(folder / "nvidia" / "cu13"),
            "xla_gpu_autotune_level": 0,  # it would need the GPU
            "xla_dump_to": dump,
            "xla_dump_emitter_re": "ptx",
        }
        compiled = jax.jit(function).lower(*shapes).compile(compiler_options=options)
        ptx, sequence, metadata = (_read(dump, f"*{part}") for part in (".ptx", "thunk_sequence.txt", "thunk_metadata.txt"))
    hlo, memory = compiled.as_text(), compiled.memory_analysis()
    assert hlo is not None
    assert memory is not None
    kernels = parse_kernels(hlo, parse_launches(sequence, metadata), parse_code(ptx))
    return Program(tuple(kernels), memory.temp_size_in_bytes)


def _read(folder: str, pattern: str) -> str:
    return "\n".join(path.read_text() for path in sorted(Path(folder).glob(pattern)))
