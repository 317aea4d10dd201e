"""What training costs: `fit` beside a loop by hand, accumulation beside the whole batch, and what devices exchange."""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from jaxnorm.benchmarks._accumulation import MICROBATCHES, NETWORKS
from jaxnorm.benchmarks._environment import describe_environment
from jaxnorm.benchmarks._loops import LOOPS, SIZES
from jaxnorm.benchmarks._program_report import Part, Report, Work
from jaxnorm.benchmarks._sharded_step import DEVICES, NORMS, WAYS
from jaxnorm.benchmarks._training_worker import measured
from jaxnorm.experiments._report import Table

_SMALL = 4096  # bytes: above the sums of a norm on eight devices, below the gradients

_HOW_TO_READ = f"""\
- *Loops*: a small convolutional network of Flax's layers, with batch norm and dropout, trained by a loop written by hand in
  Flax and Optax, and by `fit`. All take their turn in each of 21 rounds; the ratio is the median over the rounds of a loop's
  time over that of the loop by hand in the same round. Memory is the most that a process has had that trained with this loop
  alone.
- *Accumulation*: a training step of {MICROBATCHES} microbatches beside that of the whole batch at once; *temporaries* are what
  the compiled program needs beside its arguments and results, the *difference* is the largest of parameters and running
  statistics after one step from those of the whole batch at once. On a CPU the gradient of a convolution within a loop takes XLA
  some fifteen times as long as outside of one, whatever the loop is.
- *Collectives*: a training step of two convolutions, each with a batch norm, on a batch that is divided over so many devices, as
  it is compiled: under `jit` of sharded arrays, and under `shard_map` with the norms' `axis_name`. *Small* are those of at most
  4 KiB: statistics, and their gradients."""


def _loops(_: argparse.Namespace) -> Iterator[Work]:
    for size in SIZES:

        def figures(size: str) -> dict[str, Any]:
            memory = {name: measured("memory", size, name) for name in LOOPS}
            return {"seconds": measured("loops", size), "memory": memory}

        yield Work({"steps": size}, partial(figures, size))


def _tables_of_loops(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    lines = []
    for result in results:
        hand, *_ = result["seconds"].values()
        for name, seconds in result["seconds"].items():
            ratio = statistics.median(a / b for a, b in zip(seconds, hand, strict=True))
            lines.append(
                (
                    f"steps of {result['steps']}: {name}",
                    f"{1e3 * statistics.median(seconds):.3g}",
                    f"{ratio:.3f}",
                    f"{result['memory'][name] / 2**20:.0f}",
                )
            )
    return [Table("Loops", ("", "ms\na step", "of that\nby hand", "most memory,\nMiB"), lines)] if lines else []


def _accumulation(_: argparse.Namespace) -> Iterator[Work]:
    for network in NETWORKS:
        yield Work({"network": network}, lambda network=network: {"choices": measured("accumulation", network)})


def _tables_of_accumulation(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    lines = []
    for result in results:
        whole, *_ = result["choices"].values()
        for name, found in result["choices"].items():
            lines.append(
                (
                    f"{result['network']} ({NETWORKS[result['network']][1]} batch norms): {name}",
                    f"{1e3 * found['seconds']:.3g}",
                    f"{found['seconds'] / whole['seconds']:.2f}",
                    f"{found['temporary_bytes'] / 2**20:.1f}",
                    f"{found['compile_seconds']:.1f}",
                    f"{found['difference']:.0e}",
                )
            )
    columns = ("", "ms\na step", "of the\nwhole", "temporaries,\nMiB", "compiled\nin s", "difference")
    return [Table("Accumulation", columns, lines)] if lines else []


def _collectives(_: argparse.Namespace) -> Iterator[Work]:
    for way in WAYS:
        for library in NORMS:
            yield Work({"way": way, "library": library}, partial(_collectives_of, way, library))


def _collectives_of(way: str, library: str) -> dict[str, Any]:
    return {"collectives": measured("collectives", library, way, devices=max(DEVICES))}


def _tables_of_collectives(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    lines = []
    for result in results:
        for devices, found in result["collectives"].items():
            sizes = [size for _, size in found]
            lines.append(
                (
                    f"{result['way']}, {result['library']}, {devices} devices",
                    ", ".join(sorted({operation for operation, _ in found})),
                    str(len(found)),
                    str(sum(size <= _SMALL for size in sizes)),
                    str(sum(size for size in sizes if size <= _SMALL)),
                    str(sum(sizes)),
                )
            )
    columns = ("", "which", "how many", "small", "bytes of\nthe small", "bytes\nof all")
    return [Table("Collectives", columns, lines)] if lines else []


def _made_on() -> str:
    found = describe_environment()
    return f"{found['cores']} cores, {found['processor']}, {found['date'][:10]}."


_REPORT = Report(
    name="training",
    description="Measure training: fit beside a loop by hand, gradient accumulation, collectives of a sharded step.",
    heading="What training costs",
    how_to_read=_HOW_TO_READ,
    parts={
        "loops": Part(_loops, _tables_of_loops),
        "accumulation": Part(_accumulation, _tables_of_accumulation),
        "collectives": Part(_collectives, _tables_of_collectives),
    },
    made_on=_made_on,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments say, prints the tables, writes them to a folder if they name one, and returns 0."""
    parser = _REPORT.parser()
    _REPORT.publish(parser, parser.parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
