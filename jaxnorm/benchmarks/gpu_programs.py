"""The layers compiled for an NVIDIA H200, on a machine that needs no GPU: kernels, traffic, temporaries, cost of random bits.

    python -m jaxnorm.benchmarks.gpu_programs [--out DIR]

Nothing is run or timed: the compiled programs are read. The compiler is not part of jax for the CPU. The environment variable
`JAXNORM_CUDA_COMPILER` names the folder where it lies; where that is not so, the command says how to install it.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxnorm
from jaxnorm._progress import progress_bar
from jaxnorm.benchmarks._gpu_compiler import compile_for_h200, connect_compiler
from jaxnorm.benchmarks._gpu_kernels import Program
from jaxnorm.benchmarks._layer import BETA, EPSILON, MOMENTUM, RATE, Layer, with_gradient, with_relu
from jaxnorm.benchmarks._peers import linen
from jaxnorm.benchmarks._program_report import publish
from jaxnorm.benchmarks._rows import layer_norm, noise, norm
from jaxnorm.experiments._report import Table, make_folder

SHAPE = (64, 56, 56, 256)
DTYPES = ("float32", "bfloat16")

_SHARED = (1, 2)  # axes along which elements share a draw, as when whole channels are dropped
_DESCRIPTION = "Compile the layers for an NVIDIA H200, without running them, and show what the programs consist of."
_HOW_TO_READ = """\
x is {shape}. *Main kernels* read or write at least a sixteenth as many elements; *reductions* are those that sum, into one array
or *into several* at once, the others work element by element. *Tiny kernels* are the rest. *Passes*: what the main kernels read
and write, in arrays of x's size. *Rotations*: those in Threefry's rounds for each 4 elements of an output, in the kernel with
most; a block of 64 bits takes 20 (Philox multiplies instead). *Temporaries*: what is allocated beside inputs and outputs. What
stands in a branch is not counted: of our batch norm another sum, for steps whose running mean is far from the batch's."""


def _norm_where(x: jax.ShapeDtypeStruct) -> Layer:
    params, stats = jaxnorm.init_batch_norm(x.shape[-1])

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        stats, where = state
        return jaxnorm.batch_norm(params, stats, x, train=True, momentum=MOMENTUM, epsilon=EPSILON, where=where)

    return Layer(apply, params, (stats, _one_for_all_channels(x)))


def _linen_norm_where(x: jax.ShapeDtypeStruct) -> Layer:
    without = linen.batch_norm(x)
    layer = nn.BatchNorm(use_running_average=False, momentum=MOMENTUM, epsilon=EPSILON, dtype=x.dtype)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        stats, where = state
        y, updates = layer.apply({"params": params, "batch_stats": stats}, x, mask=where, mutable=["batch_stats"])
        return y, updates["batch_stats"]

    return without._replace(apply=apply, state=(without.state, _one_for_all_channels(x)))


def _one_for_all_channels(x: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.ones((*x.shape[:-1], 1), bool)


LAYERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "dropout": {
        **{f"jaxnorm, {bits} bits": noise(jaxnorm.dropout, RATE, bits=bits) for bits in (8, 16, 32)},
        **linen.LAYERS["dropout"],
    },
    "dropout of channels": {
        "jaxnorm": noise(jaxnorm.dropout, RATE, broadcast_dims=_SHARED),
        "flax linen": partial(linen.dropout, broadcast_dims=_SHARED),
    },
    "Gaussian dropout": {f"jaxnorm, {bits} bits": noise(jaxnorm.gaussian_dropout, RATE, bits=bits) for bits in (16, 32)},
    "uniform dropout": {f"jaxnorm, {bits} bits": noise(jaxnorm.uniform_dropout, BETA, bits=bits) for bits in (16, 32)},
    "batch norm": {"jaxnorm": norm(), "flax linen": linen.batch_norm},
    "batch norm, inference": {"jaxnorm": norm(train=False), "flax linen": partial(linen.batch_norm, train=False)},
    "batch norm and ReLU": {"jaxnorm": norm(activation=jax.nn.relu), "flax linen": with_relu(linen.batch_norm)},
    "batch norm with where": {"jaxnorm": _norm_where, "flax linen": _linen_norm_where},
    "layer norm": {"jaxnorm": layer_norm, **linen.LAYERS["layer_norm"]},
}
"""Makers of layers for an x of a shape and dtype, by what they are and whose they are."""


def forward(layer: Layer, x: jax.ShapeDtypeStruct) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the program of the layer alone, and its arguments or their shapes."""
    return layer.apply, (jax.random.key(0, impl=layer.key_impl), layer.params, layer.state, x)


def forward_and_backward(layer: Layer, x: jax.ShapeDtypeStruct) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the program of the layer and its gradient for x and the parameters, and its arguments or their shapes."""
    arguments = forward(layer, x)[1]
    return with_gradient(layer.apply), (*arguments, jax.eval_shape(layer.apply, *arguments)[0])


DIRECTIONS = {"forward": forward, "forward and backward": forward_and_backward}


def figures(program: Program, x: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Returns what the report shows of a program of a layer."""
    main = [kernel for kernel in program.kernels if kernel.main]
    return {
        "main_kernels": len(main),
        "reductions": sum(kernel.reductions > 0 for kernel in main),
        "multi_output_reductions": sum(kernel.reductions > 1 for kernel in main),
        "tiny_kernels": len(program.kernels) - len(main),
        "passes": sum(kernel.moved for kernel in main) / (math.prod(x.shape) * x.dtype.itemsize),
        "rotations": max((kernel.rotations for kernel in main), default=0.0),
        "temporary_bytes": program.temporary_bytes,
    }


def _table(direction: str, dtype: str, results: Iterable[Mapping[str, Any]]) -> Table:
    lines = []
    for result in results:
        if (result["direction"], result["dtype"]) == (direction, dtype):
            kernels = ("main_kernels", "reductions", "multi_output_reductions", "tiny_kernels")
            numbers = (f"{result['passes']:.1f}", f"{result['rotations']:.0f}", f"{result['temporary_bytes']:,}")
            lines.append((f"{result['layer']}: {result['library']}", *(str(result[name]) for name in kernels), *numbers))
    columns = ("", "main\nkernels", "reductions", "into\nseveral", "tiny\nkernels", "passes", "rotations", "temporaries,\nbytes")
    return Table(f"{direction}, {dtype}", columns, lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles all layers in both directions, prints the tables, and writes them if there is a folder to write to.

    Args:
      argv: the arguments; those of the process if None.

    Returns:
      The exit status, 0.

    Raises:
      SystemExit: after an error, said in one line, with status 2; with 1 if a file cannot be written.
    """
    parser = argparse.ArgumentParser(prog="python -m jaxnorm.benchmarks.gpu_programs", description=_DESCRIPTION)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write gpu_programs.md and gpu_programs.json to")
    out = parser.parse_args(argv).out
    try:
        connect_compiler()
        out = None if out is None else make_folder(out)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    results = []
    work = [(layer, library) for layer, libraries in LAYERS.items() for library in libraries]
    programs = list(itertools.product(DIRECTIONS, DTYPES, work))
    for direction, dtype, (layer, library) in progress_bar(iterable=programs, unit="program", leave=False):
        x = jax.ShapeDtypeStruct(SHAPE, jnp.dtype(dtype))
        function, arguments = DIRECTIONS[direction](LAYERS[layer][library](x), x)
        about = {"layer": layer, "library": library, "direction": direction, "dtype": dtype}
        results.append(about | figures(compile_for_h200(function, *arguments), x))
    tables = [_table(direction, dtype, results) for direction, dtype in itertools.product(DIRECTIONS, DTYPES)]
    made_with = f"`{parser.prog}`, jax {jax.__version__}, no autotuning. Nothing was run."
    how_to_read = _HOW_TO_READ.format(shape="x".join(map(str, SHAPE)))
    publish(parser, out, "gpu_programs", "Programs compiled for an H200", (made_with, how_to_read), tables, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
