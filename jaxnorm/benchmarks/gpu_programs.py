"""The layers and whole training steps compiled for an NVIDIA H200, on a machine that needs no GPU: kernels, traffic, temporaries.

    python -m jaxnorm.benchmarks.gpu_programs [--only PART ...] [--out DIR]

Nothing is run or timed: the compiled programs are read. The compiler is not part of jax for the CPU. The environment variable
`JAXNORM_CUDA_COMPILER` names the folder where it lies; where that is not so, the command says how to install it.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxnorm
from jaxnorm.benchmarks._compiled_steps import STEPS
from jaxnorm.benchmarks._gpu_compiler import compile_for_h200, connect_compiler
from jaxnorm.benchmarks._gpu_kernels import Program
from jaxnorm.benchmarks._layer import BETA, EPSILON, MOMENTUM, RATE, Layer, as_input, with_gradient, with_relu
from jaxnorm.benchmarks._peers import linen
from jaxnorm.benchmarks._program_report import Part, Report, Work
from jaxnorm.benchmarks._rows import ghost_norm, group_norm, instance_norm, layer_norm, noise, norm, rms_norm
from jaxnorm.experiments._report import Table

SHAPE = (64, 56, 56, 256)
DTYPES = ("float32", "bfloat16")

BANDWIDTH = 4.8e12
"""Bytes that an H200's memory moves a second."""
INTEGER_SPEED = 16.7e12
"""Operations on 32-bit integers that an H200 does a second: 64 a cycle on each of 132 processors, at 1.98 GHz."""

_SHARED = (1, 2)  # axes along which elements share a draw, as when whole channels are dropped
_HOW_TO_READ = f"""\
Without autotuning. x of the layers is {"x".join(map(str, SHAPE))}. *Main kernels* read or write at least a sixteenth as many
elements as the largest array has; *reductions* are those that sum, into one array or *into several* at once, the others work
element by element. *Tiny kernels* are the rest. *Passes*: what the main kernels read and write, in arrays of x's size.
*Rotations*: those in Threefry's rounds for each 4 elements of an output, in the kernel with most; a block of 64 bits takes 20
(Philox multiplies instead). *Temporaries*: what is allocated beside inputs and outputs. *Moved*: what all kernels read and write.
*Roofline*: of each kernel the longer of its bytes at {BANDWIDTH / 1e12:.1f} TB/s and its integer operations at
{INTEGER_SPEED / 1e12:.1f} T/s, summed; what products and convolutions compute is left out. What stands in a branch is not
counted: of our batch norm another sum, for steps whose running mean is far from the batch's."""


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
    "batch norm, channels first": {
        "jaxnorm": norm(channels_first=True),
        "flax linen": partial(linen.batch_norm, channels_first=True),
    },
    "batch renorm": {"jaxnorm": norm(jaxnorm.batch_renorm, jaxnorm.init_batch_renorm)},
    "ghost batch norm": {"jaxnorm": ghost_norm},
    "layer norm": {"jaxnorm": layer_norm, **linen.LAYERS["layer_norm"]},
    "RMS norm": {"jaxnorm": rms_norm, **linen.LAYERS["rms_norm"]},
    "group norm": {"jaxnorm": group_norm, **linen.LAYERS["group_norm"]},
    "instance norm": {"jaxnorm": instance_norm, **linen.LAYERS["instance_norm"]},
}
"""Makers of layers for an x of a shape and dtype, by what they are and whose they are."""


def forward(layer: Layer, x: jax.ShapeDtypeStruct) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the program of the layer alone, and its arguments or their shapes."""
    given = jax.eval_shape(partial(as_input, layer), x)
    return layer.apply, (jax.random.key(0, impl=layer.key_impl), layer.params, layer.state, given)


def forward_and_backward(layer: Layer, x: jax.ShapeDtypeStruct) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the program of the layer and its gradient for x and the parameters, and its arguments or their shapes."""
    arguments = forward(layer, x)[1]
    return with_gradient(layer.apply), (*arguments, jax.eval_shape(layer.apply, *arguments)[0])


DIRECTIONS = {"forward": forward, "forward and backward": forward_and_backward}


def figures(program: Program) -> dict[str, Any]:
    """Returns what the report shows of any program."""
    main = [kernel for kernel in program.kernels if kernel.main]
    return {
        "main_kernels": len(main),
        "reductions": sum(kernel.reductions > 0 for kernel in main),
        "multi_output_reductions": sum(kernel.reductions > 1 for kernel in main),
        "tiny_kernels": len(program.kernels) - len(main),
        "moved_by_main": sum(kernel.moved for kernel in main),
        "moved": program.moved,
        "rotations": max((kernel.rotations for kernel in main), default=0.0),
        "roofline_seconds": program.roofline(BANDWIDTH, INTEGER_SPEED),
        "temporary_bytes": program.temporary_bytes,
    }


def _compiled(program: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]) -> dict[str, Any]:
    function, arguments = program()
    return figures(compile_for_h200(function, *arguments))


def _layers(_: argparse.Namespace) -> Iterator[Work]:
    def program(build: Callable[..., Any], direction: str, dtype: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        x = jax.ShapeDtypeStruct(SHAPE, jnp.dtype(dtype))
        return DIRECTIONS[direction](build(x), x)

    layers = [(layer, library) for layer, libraries in LAYERS.items() for library in libraries]
    for direction, dtype, (layer, library) in itertools.product(DIRECTIONS, DTYPES, layers):
        about = {"layer": layer, "library": library, "direction": direction, "dtype": dtype}
        yield Work(about, partial(_compiled, partial(program, LAYERS[layer][library], direction, dtype)))


def _steps(_: argparse.Namespace) -> Iterator[Work]:
    for name, step in STEPS.items():
        for library in step.contenders:
            yield Work({"step": name, "library": library}, partial(_compiled, partial(step.program, library)))


def _tables_of_layers(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    return [_table(direction, dtype, results) for direction, dtype in itertools.product(DIRECTIONS, DTYPES)]


def _table(direction: str, dtype: str, results: Iterable[Mapping[str, Any]]) -> Table:
    lines = []
    elements = math.prod(SHAPE) * jnp.dtype(dtype).itemsize
    for result in results:
        if (result["direction"], result["dtype"]) == (direction, dtype):
            kernels = ("main_kernels", "reductions", "multi_output_reductions", "tiny_kernels")
            passes = f"{result['moved_by_main'] / elements:.1f}"
            numbers = (passes, f"{result['rotations']:.0f}", f"{result['temporary_bytes']:,}")
            lines.append((f"{result['layer']}: {result['library']}", *(str(result[name]) for name in kernels), *numbers))
    columns = ("", "main\nkernels", "reductions", "into\nseveral", "tiny\nkernels", "passes", "rotations", "temporaries,\nbytes")
    return Table(f"{direction}, {dtype}", columns, lines)


def _tables_of_steps(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    lines = []
    for result in results:
        numbers = (
            f"{result['moved'] / 1e9:.2f}",
            f"{result['roofline_seconds'] * 1e3:.2f}",
            f"{result['temporary_bytes'] / 1e6:,.0f}",
        )
        kernels = (str(result["main_kernels"]), str(result["tiny_kernels"]))
        lines.append((f"{result['step']}: {result['library']}", *kernels, *numbers))
    columns = ("", "main\nkernels", "tiny\nkernels", "moved,\nGB", "roofline,\nms", "temporaries,\nMB")
    return [Table("Training steps", columns, lines)]


_REPORT = Report(
    name="gpu_programs",
    description="Compile the layers and training steps for an H200, without running them, and show what they consist of.",
    heading="Programs compiled for an H200",
    how_to_read=_HOW_TO_READ,
    parts={"layers": Part(_layers, _tables_of_layers), "steps": Part(_steps, _tables_of_steps)},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles all layers and steps, prints the tables, and writes them if there is a folder to write to.

    Args:
      argv: the arguments; those of the process if None.

    Returns:
      The exit status, 0.

    Raises:
      SystemExit: after an error, said in one line, with status 2; with 1 if a file cannot be written.
    """
    parser = _REPORT.parser()
    options = parser.parse_args(argv)
    try:
        connect_compiler()
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    _REPORT.publish(parser, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
