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
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import jaxnorm
from jaxnorm._progress import progress_bar
from jaxnorm.benchmarks._compiled_steps import STEPS
from jaxnorm.benchmarks._layer import Builder, Layer
from jaxnorm.benchmarks._peers import linen
from jaxnorm.benchmarks._program_report import publish
from jaxnorm.benchmarks._rows import layer_norm, norm, scaled
from jaxnorm.benchmarks._tpu_compiler import TpuProgram, compile_for_tpu, mesh_of
from jaxnorm.benchmarks.gpu_programs import DTYPES, LAYERS, forward
from jaxnorm.experiments._report import Table, make_folder

CHIPS = ("v5e", "v6e")
SMALLEST = {"v4": "v4:2x2x1", "v5p": "v5p:2x2x1", "v5e": "v5e:2x2", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
SHAPES = ((8192, 1024), (64, 32, 32, 64))
_IMAGES = (256, 32, 32, 256)

_MESHES = (("v5e:4x4", (4, 4)), ("v5e:16x16", (16, 16)))
_SHARDED = {"batch": PartitionSpec("a"), "height": PartitionSpec(None, "a"), "channels": PartitionSpec(None, None, None, "a")}
_POOLED: Mapping[str, Builder] = {
    "batch norm: flax linen": linen.batch_norm,
    "batch norm: jaxnorm": norm(),
    "batch renorm: jaxnorm": norm(jaxnorm.batch_renorm, jaxnorm.init_batch_renorm),
    "layer norm: jaxnorm": layer_norm,
}
_PLAIN = "x * c"
_OF_IMAGES = ("dropout of channels", "batch norm, channels first")
_ALL_LAYERS = {_PLAIN: {"": scaled}, **LAYERS}

_DESCRIPTION = "Compile the layers and whole training steps for TPUs, without running them, and show the compiler's estimates."
_HOW_TO_READ = """\
All cycles are **estimates** of the compiler, which rank programs; nothing was run. *Passes*: the cycles of a layer, forward and
then backward, over those of `x * c`, which reads and writes arrays of x's size four times. *Of Flax's*: the cycles over those of
the same step with Flax's layer. *Copies*: arrays not much smaller than the largest that are brought from one layout to another.
Of a branch the cheaper side is counted: on the other one batch norm sums again where the running mean is far from the batch's."""


class Work(NamedTuple):
    """A program to compile.

    Attributes:
      part: the part of the report that it belongs to.
      about: what it is of.
      mesh: arguments of `mesh_of`.
      program: gives the function and its arguments.
      specs: how these are sharded.
    """

    part: str
    about: dict[str, str]
    mesh: tuple[Any, ...]
    program: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
    specs: Any = None


class Result(NamedTuple):
    """What was found of a program: the part of the report, what it is of, and its numbers."""

    part: str
    about: dict[str, str]
    program: TpuProgram


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


def _layers(chips: Sequence[str]) -> Iterator[Work]:
    for chip, shape, dtype in itertools.product(chips, SHAPES, DTYPES):
        x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        for name, library in _names():
            if len(shape) > 2 or name not in _OF_IMAGES:
                about = {"chip": chip, "x": "x".join(map(str, shape)), "dtype": dtype, "layer": name, "library": library}
                program = functools.partial(forward_then_backward, _ALL_LAYERS[name][library], x)
                yield Work("layers", about, (SMALLEST[chip], (1,)), program)


def _names() -> list[tuple[str, str]]:
    return [(name, library) for name, libraries in _ALL_LAYERS.items() for library in libraries]


def _steps(chips: Sequence[str]) -> Iterator[Work]:
    for (name, step), chip in itertools.product(STEPS.items(), chips):
        for library in step.contenders:
            about = {"step": name, "chip": chip, "library": library}
            yield Work("steps", about, (SMALLEST[chip], (1,)), functools.partial(step.program, library))


def _collectives(_: Sequence[str]) -> Iterator[Work]:
    x = jax.ShapeDtypeStruct(_IMAGES, jnp.bfloat16)
    for mesh, axis_type, (sharded, spec) in itertools.product(_MESHES, (AxisType.Auto, AxisType.Explicit), _SHARDED.items()):
        for name, build in _POOLED.items():
            if axis_type is AxisType.Explicit and name.endswith("flax linen"):
                continue  # Flax's layers do not take arrays with explicit shardings
            about = {"layer": name, "mesh": mesh[0], "axes": axis_type.name.lower(), "sharded": sharded}
            specs = (*[PartitionSpec()] * 3, spec)
            yield Work(
                "collectives", about | {"way": "forward"}, (*mesh, axis_type), functools.partial(_forward, build, x), specs
            )
            program = functools.partial(forward_then_backward, build, x)
            yield Work("collectives", about | {"way": "both"}, (*mesh, axis_type), program, (*specs, spec))


_PARTS: Mapping[str, Callable[[Sequence[str]], Iterator[Work]]] = {
    "layers": _layers,
    "steps": _steps,
    "collectives": _collectives,
}


def _table_of_layers(chip: str, results: Sequence[Result]) -> Table:
    found = {tuple(result.about.values()): result.program for result in results}
    sizes = list(dict.fromkeys((result.about["x"], result.about["dtype"]) for result in results))

    def shown(size: tuple[str, str], name: str, library: str) -> str:
        program = found.get((chip, *size, name, library))
        if program is None:
            return "-"
        passes = f"{program.cycles / found[(chip, *size, _PLAIN, '')].cycles:.2f}"
        return f"{passes}, {program.copies} copies" if program.copies else passes

    lines = [(f"{name}: {library}", *(shown(size, name, library) for size in sizes)) for name, library in _names() if library]
    columns = ("passes, estimated", *(f"{x}\n{dtype}" for x, dtype in sizes))
    return Table(f"Layers on {chip}, forward and backward", columns, lines)


def _table_of_steps(results: Sequence[Result]) -> Table:
    cycles = {tuple(result.about.values()): result.program.cycles for result in results}
    lines = []
    for (step, chip, library), program in ((result.about.values(), result.program) for result in results):
        of_flax = program.cycles / cycles[(step, chip, "flax linen")]
        numbers = (f"{program.cycles / 1e6:.2f}", f"{of_flax:.3f}", str(program.copies), f"{program.temporary_bytes / 1e6:,.0f}")
        lines.append((f"{step}: {library}", chip, *numbers))
    columns = ("", "chip", "cycles, 10^6,\nestimated", "of Flax's", "copies", "temporaries,\nMB")
    return Table("Training steps", columns, lines)


def _table_of_collectives(results: Sequence[Result]) -> Table:
    found = {tuple(result.about.values()): result.program.collectives for result in results}
    lines = []
    for about in dict.fromkeys(key[:-1] for key in found):
        counts = (found[(*about, way)] for way in ("forward", "both"))
        lines.append((*about, *(", ".join(f"{n} {kind}" for kind, n in count.items()) or "none" for count in counts)))
    return Table("Collectives", ("", "mesh", "axes", "sharded", "forward", "both"), lines)


def _tables(results: Sequence[Result]) -> list[Table]:
    parts = {part: [result for result in results if result.part == part] for part in _PARTS}
    tables = []
    for chip in dict.fromkeys(result.about["chip"] for result in parts["layers"]):
        tables.append(_table_of_layers(chip, [result for result in parts["layers"] if result.about["chip"] == chip]))
    for part, table in (("steps", _table_of_steps), ("collectives", _table_of_collectives)):
        if parts[part]:
            tables.append(table(parts[part]))
    return tables


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles all layers and steps, prints the tables, and writes them if there is a folder to write to.

    Args:
      argv: the arguments; those of the process if None.

    Returns:
      The exit status, 0.

    Raises:
      SystemExit: after an error, said in one line, with status 2; with 1 if a file cannot be written.
    """
    parser = argparse.ArgumentParser(prog="python -m jaxnorm.benchmarks.tpu_programs", description=_DESCRIPTION)
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS), help="parts of the report (default all)")
    parser.add_argument("--chips", nargs="+", choices=SMALLEST, default=list(CHIPS), help=f"default {' '.join(CHIPS)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write tpu_programs.md and tpu_programs.json to")
    options = parser.parse_args(argv)
    try:
        for chip in options.chips:
            mesh_of(SMALLEST[chip])
        folder = None if options.out is None else make_folder(options.out)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    results = []
    for work in progress_bar(
        iterable=[w for part in options.only for w in _PARTS[part](options.chips)], unit="program", leave=False
    ):
        function, arguments = work.program()
        program = compile_for_tpu(function, *arguments, mesh=mesh_of(*work.mesh), specs=work.specs)
        results.append(Result(work.part, work.about, program))
    made_with = f"`{parser.prog}`, jax {jax.__version__}. Nothing was run."
    figures = [{"part": result.part, **result.about, **result.program._asdict()} for result in results]
    publish(parser, folder, "tpu_programs", "Programs compiled for TPUs", (made_with, _HOW_TO_READ), _tables(results), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
