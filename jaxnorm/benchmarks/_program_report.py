"""Programs that are compiled, or run, one after another, and the report of them: tables, a page, the figures themselves."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxnorm._progress import progress_bar
from jaxnorm.experiments._report import Results, Table, WriteError, make_folder, markdown_page, print_tables


class Work(NamedTuple):
    """A program to compile, or to run.

    Attributes:
      about: what it is of; no two programs of a part have the same.
      figures: does so and returns what was found.
    """

    about: Mapping[str, str]
    figures: Callable[[], Mapping[str, Any]]


class Part(NamedTuple):
    """A part of a report.

    Attributes:
      works: gives its programs, from the options of the command.
      tables: gives its tables, from what each program is of and was found of it.
    """

    works: Callable[[argparse.Namespace], Iterable[Work]]
    tables: Callable[[Sequence[Mapping[str, Any]]], Sequence[Table]]


class Report(NamedTuple):
    """What a command finds and shows.

    Attributes:
      name: of the command and, with a suffix, of its files.
      description: of the command.
      heading: of the page.
      how_to_read: what the page says before its tables.
      parts: by their names.
      made_on: in a sentence, on what the figures were taken.
    """

    name: str
    description: str
    heading: str
    how_to_read: str
    parts: Mapping[str, Part]
    made_on: Callable[[], str] = lambda: "Nothing was run."

    def parser(self) -> argparse.ArgumentParser:
        """Returns the parser of the command's arguments."""
        parser = argparse.ArgumentParser(prog=f"python -m jaxnorm.benchmarks.{self.name}", description=self.description)
        parser.add_argument("--only", nargs="+", choices=self.parts, default=list(self.parts), help="parts (default all)")
        parser.add_argument(
            "--out", type=Path, metavar="DIR", help=f"folder to write {self.name}.md and {self.name}.json to, after each program"
        )
        parser.add_argument(
            "--resume", action="store_true", help="take from DIR what it has of a run with the same code that was ended"
        )
        return parser

    def publish(self, parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
        """Does all works that the options name, prints the tables, and writes them if there is a folder to write to.

        The figures are written after each program, since it can be an hour until the last: nothing is lost if that is ended.

        Raises:
          SystemExit: after a line that says why: with status 2 if the options name no folder that can be written to, or, where
            they ask for it, read from; with 1 if a file cannot be written; the other is.
        """
        try:
            folder = None if options.out is None else make_folder(options.out)
            earlier = self._earlier(folder) if options.resume else []
        except ValueError as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
        results: list[Mapping[str, Any]] = []
        works = [(part, work) for part in options.only for work in self.parts[part].works(options)]
        for part, work in progress_bar(iterable=works, unit="program", leave=False):
            about = {"jax": jax.__version__, "part": part, **work.about}
            known = next((result for result in earlier if about.items() <= result.items()), None)
            results.append(known or {**about, **work.figures()})
            if folder is not None:
                self._write_figures(Results(folder), results)
        tables = []
        for name, part in self.parts.items():
            tables += part.tables([result for result in results if result["part"] == name])
        print_tables(tables)
        if folder is not None:
            made_with = f"`{parser.prog}`, jax {jax.__version__}. {self.made_on()}"
            files, page = Results(folder), markdown_page(self.heading, (made_with, self.how_to_read), tables)
            files.write(f"{self.name}.md", lambda path: path.write_text(page, encoding="utf-8"))
            self._write_figures(files, results)
            try:
                print(files.summary())
            except WriteError as error:
                parser.exit(1, f"{parser.prog}: {error}\n")

    def _write_figures(self, files: Results, results: Sequence[Mapping[str, Any]]) -> None:
        text = json.dumps(results, indent=1) + "\n"
        files.write(f"{self.name}.json", lambda path: path.write_text(text, encoding="utf-8"))

    def _earlier(self, folder: Path | None) -> list[Mapping[str, Any]]:
        """Returns what the folder has of an earlier run; nothing if that ended before its first program.

        Raises:
          ValueError: if there is no folder, or what it has cannot be read.
        """
        if folder is None:
            raise ValueError("--resume must come with --out, the folder of the run that was ended")
        path = folder / f"{self.name}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot resume from {str(path)!r}: {error}") from error
