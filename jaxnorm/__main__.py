"""The command line, `python -m jaxnorm` or `jaxnorm`: functions, experiments, benchmark, checkpoints, lint, what is installed."""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import jax
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import jaxnorm
from jaxnorm import _functions as functions
from jaxnorm import _lint_command as lint
from jaxnorm.experiments import describe, experiment_names, load_experiment
from jaxnorm.experiments._report import WriteError, make_console, make_folder

_FAILED = 1
_USAGE_ERROR = 2
_INTERRUPTED = 130
_TITLED: Any = {"box": box.SIMPLE_HEAD, "title_justify": "left", "title_style": "bold"}


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE_ERROR, f"{self.prog}: {' '.join(message.split())}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments; those of the process if None.

    Returns:
      The exit status, 0, or 1 where the lint finds something that is worse than a note.

    Raises:
      SystemExit: after `--help` or `--version` with status 0; after an error, said in one line, with status 2 if the command line
        is wrong, else 1.
    """
    parser = _make_parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 0
    with _ends_in_a_line(parser):
        return options.command(options)


@contextmanager
def _ends_in_a_line(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Says in a line why the work came to no end, and gives that its exit status."""
    try:
        yield
    except (WriteError, ConnectionError) as error:
        parser.exit(_FAILED, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt as error:
        parser.exit(_INTERRUPTED, f"{str(error) or 'interrupted'}\n")


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxnorm",
        description="Batch norm and dropout for JAX: the functions, and experiments that show what they do.",
        epilog="Start with: python -m jaxnorm run variance_shift --quick",
    )
    parser.add_argument("--version", action="version", version=f"jaxnorm {jaxnorm.__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    command = commands.add_parser("list", help="list the functions and the experiments")
    command.add_argument("--markdown", action="store_true", help="print the functions as a Markdown page instead")
    command.set_defaults(command=_list)

    command = commands.add_parser("run", help="run an experiment: train, print tables, write them and a picture")
    names = ", ".join(experiment_names())
    command.add_argument("experiment", metavar="NAME", type=_experiment, help=f"the experiment, or all: {names}")
    command.add_argument("rest", metavar="OPTIONS", nargs=argparse.REMAINDER, help="its options; NAME --help shows them")
    command.set_defaults(command=_run)

    command = commands.add_parser("claims", help="print the table of all claims, with the verdicts of runs, as Markdown")
    results = Path("results")
    command.add_argument(
        "folder", metavar="DIR", type=Path, nargs="?", default=results, help=f"the folder that runs wrote to (default {results})"
    )
    command.add_argument("--links", type=Path, metavar="DIR", help="the folder that the page will stand in (default the first)")
    command.set_defaults(command=_claims)

    command = commands.add_parser("bench", help="measure the layers beside other libraries': time, memory, compilation")
    command.add_argument("--quick", action="store_true", help="less of everything, for a first look")
    command.add_argument("--only", nargs="+", default=(), type=_row, metavar="NAME", help="what to measure (default all)")
    command.add_argument("--list", action="store_true", help="list the names, and measure nothing")
    out = Path("results", "bench")
    command.add_argument("--out", type=Path, default=out, metavar="DIR", help=f"folder to write to (default {out})")
    command.set_defaults(command=_bench)

    command = commands.add_parser("convert", help="write a torch model's weights and statistics in the layout of Flax")
    command.add_argument(
        "source", metavar="IN.safetensors", type=Path, help="a state_dict, as safetensors.torch.save_file writes it"
    )
    command.add_argument(
        "out", metavar="OUT", type=Path, help="a file, if it ends in .safetensors, else a folder for Orbax to write"
    )
    names = 'JSON file of names of torch modules, as regular expressions, and paths, as {"fc": "head/Dense_0"}; null leaves out'
    command.add_argument("--names", type=Path, metavar="FILE", help=f"{names} (default: dots become slashes)")
    command.add_argument(
        "--transposed", nargs="+", default=(), metavar="NAME", help="transposed convolutions, as regular expressions"
    )
    command.add_argument("--embeddings", nargs="+", default=(), metavar="NAME", help="embeddings, as regular expressions")
    command.set_defaults(command=_convert)

    command = commands.add_parser(
        "inspect", help="show the norm layers of a checkpoint: sizes, statistics, channels that are ill"
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a folder that Orbax wrote, or a safetensors file")
    command.set_defaults(command=_inspect)

    command = commands.add_parser("lint", help="say what is wrong with a model: its norms, its noise, its running statistics")
    command.add_argument(
        "model",
        metavar="PACKAGE.MODULE:FUNCTION",
        type=lint.factory,
        nargs="?",
        help="function without arguments that returns a linen or nnx model, or (apply, params, stats)",
    )
    command.add_argument(
        "--input",
        metavar="SIZES",
        type=lint.shape,
        action="append",
        help="shape of what the model is called with, as 8,32,32,3, with the batch of training; again for another argument",
    )
    command.add_argument(
        "--dtype", type=lint.dtype, default="float32", metavar="TYPE", help="its type (default float32); integers are 0 and 1"
    )
    command.add_argument(
        "--optimizer",
        metavar="PACKAGE.MODULE:FUNCTION",
        type=lint.factory,
        help="function without arguments that returns the Optax optimizer",
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--rules", action="store_true", help="list what is looked for, and look at nothing")
    command.set_defaults(command=_lint)

    command = commands.add_parser("info", help="show versions and devices")
    command.set_defaults(command=_info)
    return parser


def _list(options: argparse.Namespace) -> int:
    if options.markdown:
        print(functions.markdown(), end="")
        return 0
    console = make_console()
    for family in functions.families():
        table = Table("function", "what it does", title=family.title, leading=1, **_TITLED)
        for layer in family.layers:
            table.add_row("\n".join((*layer.functions, *layer.classes)), Text("\n").join(_description(layer)))
        console.print(table)
    table = Table("name", "what it shows", title="Experiments, for python -m jaxnorm run NAME", **_TITLED)
    for name in experiment_names():
        table.add_row(name, describe(name))
    console.print(table)
    return 0


def _description(layer: functions.Layer) -> Iterator[Text]:
    """Yields lines that describe a layer; what stands between backticks is colored instead."""
    lines = [layer.summary]
    lines += [f"{mode}: {said}." for mode, said in (("Training", layer.training), ("Inference", layer.inference)) if said]
    for line in lines:
        yield Text.assemble(*((part, "cyan" if number % 2 else "") for number, part in enumerate(line.split("`"))))
    for paper in layer.papers:
        yield Text(f"{paper.first_authors} {paper.year}, {paper.url}", "dim")


def _experiment(name: str) -> str:
    if name == "all":
        return name
    try:
        load_experiment(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def _run(options: argparse.Namespace) -> int:
    from jaxnorm.experiments._options import count, index
    from jaxnorm.experiments._run import missing_package, options_of, print_outcome, run_experiment
    from jaxnorm.experiments._run_all import run_all
    from jaxnorm.training.processes import VARIABLES, connect, place_among

    name = options.experiment
    experiment = None if name == "all" else load_experiment(name)
    known = () if experiment is None else options_of(experiment)
    parser = _Parser(prog=f"jaxnorm run {name}", description="Run all experiments." if experiment is None else describe(name))
    for option in known:
        text = f"{option.help} (default {option.default}, with --quick {option.quick})"
        parser.add_argument(f"--{option.name}", type=option.parse, metavar=option.name.upper(), help=text)
    parser.add_argument("--quick", action="store_true", help="a short run, for a first look")
    if experiment is None:
        parser.add_argument("--jobs", type=count, default=2, metavar="JOBS", help="how many run at a time (default 2)")
    else:
        parser.add_argument("--control", action="store_true", help="switch the effect off: the verdict must be 'fails here'")
        processes = parser.add_argument_group(
            "several processes, which share the arms", "All three, or their variables, or none."
        )
        variables = [f"(default {name})" for name in VARIABLES]
        processes.add_argument(
            "--coordinator", metavar="HOST:PORT", help=f"address of the first, with a free port {variables[0]}"
        )
        processes.add_argument("--processes", type=count, metavar="N", help=f"how many there are {variables[1]}")
        processes.add_argument("--process", type=index, metavar="I", help=f"the number of this one, from 0 {variables[2]}")
    out = Path("results") if experiment is None else Path("results", name)
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help=f"folder to write to (default {out})")
    given = parser.parse_args(options.rest)
    if package := missing_package():
        parser.error(f"the experiments need {package}, which is not installed: pip install 'jaxnorm[demo]'")
    if experiment is None:
        run_all(out=_folder(parser, given.out), quick=given.quick, jobs=given.jobs)
        return 0
    chosen = {option.name: value for option in known if (value := getattr(given, option.name)) is not None}
    try:
        place = place_among(given.coordinator, given.processes, given.process)
    except ValueError as error:
        parser.error(str(error))
    with connect(*place) if place else nullcontext(), _ends_in_a_line(parser):
        if jax.process_count() > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which jax takes, for programs that save before they end
        leads = jax.process_index() == 0
        folder = _folder(parser, given.out) if leads else given.out
        outcome = run_experiment(name, experiment, out=folder, quick=given.quick, control=given.control, **chosen)
        if leads:
            print_outcome(experiment, outcome)
    return 0


def _folder(parser: argparse.ArgumentParser, path: Path) -> Path:
    try:
        return make_folder(path)
    except ValueError as error:
        parser.error(f"argument --out: {error}")


def _claims(options: argparse.Namespace) -> int:
    from jaxnorm.experiments._claims_page import claims_page

    with _said_in_a_line("claims"):
        print(claims_page(options.folder, options.links), end="")
    return 0


def _row(name: str) -> str:
    from jaxnorm.benchmarks._rows import row_named  # brings Flax, which is slow to import

    try:
        return row_named(name).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _bench(options: argparse.Namespace) -> int:
    from jaxnorm.benchmarks._rows import ROWS, describe_row
    from jaxnorm.benchmarks._run import run

    if options.list:
        table = Table("row", "what it measures", box=box.SIMPLE_HEAD)
        for row in ROWS:
            table.add_row(row.name, describe_row(row))
        make_console().print(table)
        return 0
    parser = _Parser(prog="jaxnorm bench")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the benchmark needs matplotlib, which is not installed: pip install 'jaxnorm[demo]'")
    try:
        run(out=options.out, only=options.only, quick=options.quick)
    except ValueError as error:
        parser.error(f"argument --out: {error}")
    except RuntimeError as error:
        parser.exit(_FAILED, f"{parser.prog}: {error}\n")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from jaxnorm.interop import variables_from_torch
    from jaxnorm.interop._writing import write_variables

    with _said_in_a_line("convert"):
        names = None if options.names is None else _read_json(options.names)
        variables, report = variables_from_torch(
            options.source, names=names, transposed=options.transposed, embeddings=options.embeddings
        )
        write_variables(options.out, variables)
    print(report)
    print(f"Written to {options.out}")
    return 0


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} must be a JSON file: {error}") from error


def _inspect(options: argparse.Namespace) -> int:
    from jaxnorm.interop import inspect_checkpoint

    with _said_in_a_line("inspect"):
        layers = inspect_checkpoint(options.checkpoint)
    ills = ("dead", "not_finite", "never_updated")
    head = ("layer", "channels", "running mean", "running variance", "scale", *(ill.replace("_", " ") for ill in ills))
    table = Table(head[0], title=escape(f"Norm layers of {options.checkpoint}"), **_TITLED)
    for name in head[1:]:
        table.add_column(name, justify="right")
    for layer in layers:
        ranges = ("-" if found is None else "{:.3g} to {:.3g}".format(*found) for found in (layer.mean, layer.var, layer.scale))
        counts = (Text(str(count), "red" if count else "dim") for count in (getattr(layer, ill) for ill in ills))
        table.add_row(layer.path or "(outermost)", " x ".join(map(str, layer.shape)), *ranges, *counts)
    console = make_console()
    console.print(table)
    for ill, what in zip(
        ills, ("have a variance below 1e-7", "have NaN or infinite numbers", "are as in a new layer"), strict=True
    ):
        count = sum(getattr(layer, ill) for layer in layers)
        console.print(f"{ill.replace('_', ' ')}: {count} channels {what}")
    return 0


@contextmanager
def _said_in_a_line(command: str) -> Iterator[None]:
    """Ends the process with what was wrong with files that it read or wrote."""
    try:
        yield
    except (ImportError, OSError, TypeError, ValueError) as error:
        _Parser(prog=f"jaxnorm {command}").exit(_FAILED, f"jaxnorm {command}: {' '.join(str(error).split())}\n")


def _lint(options: argparse.Namespace) -> int:
    parser = _Parser(prog="jaxnorm lint")
    if options.rules:
        for title, rules in lint.rules().items():
            table = Table("rule", "seen when", title=title, **_TITLED)
            for name, when in rules.items():
                table.add_row(name, Text(when))
            make_console().print(table)
        return 0
    if options.model is None or options.input is None:
        parser.error("a model, PACKAGE.MODULE:FUNCTION, and its --input are required, or --rules")
    made = options.model()
    if not lint.is_model(made):
        parser.error(f"the function must return a linen or nnx model, or (apply, params, stats), got {made!r}")
    optimizer = None if options.optimizer is None else options.optimizer()
    report = lint.report_of(made, lint.made_up(options.input, options.dtype), optimizer)
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return _FAILED if report.at_least("warning") else 0


def _info(_: argparse.Namespace) -> int:
    table = Table("what", "version", box=box.SIMPLE_HEAD)
    table.add_row("jaxnorm", jaxnorm.__version__)
    for package in ("jax", "jaxlib", "flax", "optax"):
        table.add_row(package, importlib.metadata.version(package))
    table.add_row("Python", platform.python_version())
    for device in jax.devices():
        table.add_row(f"device {device.id}", f"{device.platform}, {device.device_kind}")
    make_console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
