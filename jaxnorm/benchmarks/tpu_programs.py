"""The layers and whole training steps compiled for TPUs, on a machine that needs none: estimated cycles, copies, collectives.

    python -m jaxnorm.benchmarks.tpu_programs [--only PART ...] [--chips CHIP ...] [--out DIR]

Nothing is run or timed: the compiler writes its own estimate of cycles beside every step of a program. It is not part of jax
for the CPU. The environment variable `JAXNORM_TPU_COMPILER` names the folder where it lies; where that is not so, the command
says how to install it.
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import jaxnorm
from jaxnorm.benchmarks._compiled_steps import STEPS
from jaxnorm.benchmarks._layer import Builder, Layer
from jaxnorm.benchmarks._peers import linen
from jaxnorm.benchmarks._program_report import Part, Report, Work
from jaxnorm.benchmarks._rows import layer_norm, norm, scaled
from jaxnorm.benchmarks._tpu_compiler import compile_for_tpu, mesh_of
from jaxnorm.benchmarks.gpu_programs import DTYPES, LAYERS, forward
from jaxnorm.experiments._report import Table

CHIPS = ("v5e", "v6e")
SMALLEST = {"v4": "v4:2x2x1", "v5p": "v5p:2x2x1", "v5e": "v5e:2x2", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
SHAPES = ((8192, 1024), (64, 32, 32, 64))
_IMAGES = (256, 32, 32, 256)

_WITH_WHERE = "batch norm with where"
_MESHES = (("v5e:4x4", (4, 4)), ("v5e:16x16", (16, 16)))
_SHARDED = {"batch": PartitionSpec("a"), "height": PartitionSpec(None, "a"), "channels": PartitionSpec(None, None, None, "a")}
_POOLED: Mapping[str, Builder] = {
    "batch norm: flax linen": linen.batch_norm,
    "batch norm: jaxnorm": norm(),
    **{f"{_WITH_WHERE}: {library}": build for library, build in LAYERS[_WITH_WHERE].items()},
    "batch renorm: jaxnorm": norm(jaxnorm.batch_renorm, jaxnorm.init_batch_renorm),
    "layer norm: jaxnorm": layer_norm,
}
_PLAIN = "x * c"
_OF_IMAGES = ("dropout of channels", "batch norm, channels first", "instance norm")
_ALL_LAYERS = {_PLAIN: {"": scaled}, **LAYERS}

_HOW_TO_READ = """\
All cycles are **estimates** of the compiler, which rank programs; nothing was run. *Passes*: the cycles of a layer, forward and
then backward, over those of `x * c`, which reads and writes arrays of x's size four times. *Of Flax's*: the cycles over those of
the same step with Flax's layer. *Copies*: arrays not much smaller than the largest that are brought from one layout to another.
Of a branch the cheaper side is counted: on the other one batch norm sums again where the running mean is far from the batch's."""


def forward_then_backward(build: Builder, x: jax.ShapeDtypeStruct) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the program of a layer and then its gradient, and its arguments or their shapes."""
    layer = build(x)
    assert isinstance(layer, Layer)

    def work(key: jax.Array, params: Any, state: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        y, pullback, state = jax.vjp(lambda params, x: layer.apply(key, params, state, x), params, x, has_aux=True)
        y, cotangent = lax.optimization_barrier((y, cotangent))
        return y, pullback(cotangent), state

    arguments = forward(layer, x)[1]
    return work, (*arguments, arguments[-1])


def _forward(build: Builder, x: jax.ShapeDtypeStruct) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    layer = build(x)
    assert isinstance(layer, Layer)
    return forward(layer, x)


def _compiled(
    program: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]], mesh: tuple[Any, ...], specs: Any = None
) -> dict[str, Any]:
    function, arguments = program()
    return compile_for_tpu(function, *arguments, mesh=mesh_of(*mesh), specs=specs)._asdict()


def _layers(options: argparse.Namespace) -> Iterator[Work]:
    for chip, shape, dtype in itertools.product(options.chips, SHAPES, DTYPES):
        x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        for name, library in _names():
            if len(shape) > 2 or name not in _OF_IMAGES:
                about = {"chip": chip, "x": "x".join(map(str, shape)), "dtype": dtype, "layer": name, "library": library}
                program = functools.partial(forward_then_backward, _ALL_LAYERS[name][library], x)
                yield Work(about, functools.partial(_compiled, program, (SMALLEST[chip], (1,))))


def _names() -> list[tuple[str, str]]:
    return [(name, library) for name, libraries in _ALL_LAYERS.items() for library in libraries]


def _steps(options: argparse.Namespace) -> Iterator[Work]:
    for chip, (name, step) in itertools.product(options.chips, STEPS.items()):
        for library in step.contenders:
            about = {"step": name, "chip": chip, "library": library}
            yield Work(about, functools.partial(_compiled, functools.partial(step.program, library), (SMALLEST[chip], (1,))))


def _collectives(_: argparse.Namespace) -> Iterator[Work]:
    x = jax.ShapeDtypeStruct(_IMAGES, jnp.bfloat16)
    for mesh, axis_type, (sharded, spec) in itertools.product(_MESHES, (AxisType.Auto, AxisType.Explicit), _SHARDED.items()):
        for name, build in _POOLED.items():
            if axis_type is AxisType.Explicit and "flax linen" in name:
                continue  # Flax's layers do not take arrays with explicit shardings
            about = {"layer": name, "mesh": mesh[0], "axes": axis_type.name.lower(), "sharded": sharded}
            where = PartitionSpec(*spec[:3])  # which is one number for all channels
            state = (PartitionSpec(), where) if name.startswith(_WITH_WHERE) else PartitionSpec()
            specs = (PartitionSpec(), PartitionSpec(), state, spec)
            for way, program, sharding in (("forward", _forward, specs), ("both", forward_then_backward, (*specs, spec))):
                figures = functools.partial(_compiled, functools.partial(program, build, x), (*mesh, axis_type), sharding)
                yield Work(about | {"way": way}, figures)


def _tables_of_layers(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    chips = dict.fromkeys(result["chip"] for result in results)
    return [_table_of_layers(chip, [result for result in results if result["chip"] == chip]) for chip in chips]


def _table_of_layers(chip: str, results: Sequence[Mapping[str, Any]]) -> Table:
    found = {(result["x"], result["dtype"], result["layer"], result["library"]): result for result in results}
    sizes = list(dict.fromkeys((x, dtype) for x, dtype, *_ in found))

    def shown(size: tuple[str, str], name: str, library: str) -> str:
        result = found.get((*size, name, library))
        if result is None:
            return "-"
        passes = f"{result['cycles'] / found[(*size, _PLAIN, '')]['cycles']:.2f}"
        return f"{passes}, {result['copies']} copies" if result["copies"] else passes

    lines = [(f"{name}: {library}", *(shown(size, name, library) for size in sizes)) for name, library in _names() if library]
    columns = ("passes, estimated", *(f"{x}\n{dtype}" for x, dtype in sizes))
    return Table(f"Layers on {chip}, forward and backward", columns, lines)


def _tables_of_steps(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    of_flax = {(result["step"], result["chip"]): result["cycles"] for result in results if result["library"] == "flax linen"}
    lines = []
    for result in results:
        numbers = (
            f"{result['cycles'] / 1e6:.2f}",
            f"{result['cycles'] / of_flax[(result['step'], result['chip'])]:.3f}",
            str(result["copies"]),
            f"{result['temporary_bytes'] / 1e6:,.0f}",
        )
        lines.append((f"{result['step']}: {result['library']}", result["chip"], *numbers))
    columns = ("", "chip", "cycles, 10^6,\nestimated", "of Flax's", "copies", "temporaries,\nMB")
    return [Table("Training steps", columns, lines)]


def _tables_of_collectives(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for result in results:
        counts = ", ".join(f"{n} {kind}" for kind, n in result["collectives"].items()) or "none"
        lines.setdefault(tuple(result[name] for name in ("layer", "mesh", "axes", "sharded")), {})[result["way"]] = counts
    columns = ("", "mesh", "axes", "sharded", "forward", "both")
    return [Table("Collectives", columns, [(*about, *(ways[way] for way in columns[-2:])) for about, ways in lines.items()])]


_REPORT = Report(
    name="tpu_programs",
    description="Compile the layers and whole training steps for TPUs, without running them, and show the compiler's estimates.",
    heading="Programs compiled for TPUs",
    how_to_read=_HOW_TO_READ,
    parts={
        "layers": Part(_layers, _tables_of_layers),
        "steps": Part(_steps, _tables_of_steps),
        "collectives": Part(_collectives, _tables_of_collectives),
    },
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
    parser.add_argument("--chips", nargs="+", choices=SMALLEST, default=list(CHIPS), help=f"default {' '.join(CHIPS)}")
    options = parser.parse_args(argv)
    try:
        for chip in options.chips:
            mesh_of(SMALLEST[chip])
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    _REPORT.publish(parser, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
