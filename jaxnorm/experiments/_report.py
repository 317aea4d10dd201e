"""Tables: in the terminal, as Markdown, as CSV; and the folder that they are written to."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

_WIDTH_OF_NO_TERMINAL = 130


class Table(NamedTuple):
    """A table for people: a title, the columns' headings (in lines), and rows of texts of which the first names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def mean_and_spread(values: Iterable[float], digits: int) -> str:
    """Returns mean and standard deviation over seeds, as `1.50 ± 0.71`; the value alone if there is one seed.

    >>> mean_and_spread([1.0, 2.0], 2)
    '1.50 ± 0.71'
    """
    values = np.asarray(list(values), np.float64)
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {spread(values):.{digits}f}"


def spread(values: Any) -> np.ndarray:
    """Returns the standard deviation over seeds, the first axis; 0 if there is one seed."""
    with np.errstate(invalid="ignore"):  # of what is not finite there is none
        return np.std(values, axis=0, ddof=min(1, len(values) - 1))


def make_folder(path: Path) -> Path:
    """Returns a folder that can be written to, made if there is none.

    Raises:
      ValueError: if it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {str(path)!r}: {error.strerror or error}") from error
    return path


class WriteError(Exception):
    """Says in a line which files could not be written, and which were."""


class Results:
    """Files in a folder. Each takes the place of an older one when it is complete; one that fails keeps no other back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: list[str] = []
        self._failed: list[str] = []

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Writes a file: `write(path)` does, to a path with the same suffix."""
        path = self._folder / name
        unfinished = path.with_name(f".unfinished-{name}")
        try:
            write(unfinished)
            unfinished.replace(path)
            self._written.append(name)
        except OSError as error:
            self._failed.append(f"{str(path)!r}: {error.strerror or error}")
        finally:
            unfinished.unlink(missing_ok=True)

    def summary(self) -> str:
        """Returns in a line what was written.

        Raises:
          WriteError: if a file could not be written.
        """
        written = f"{self._folder}: {', '.join(self._written) or 'nothing'}"
        if self._failed:
            raise WriteError(f"cannot write {'; '.join(self._failed)}; written to {written}")
        return f"Written to {written}"


def make_console() -> Console:
    """Returns the terminal; a file or a pipe is as wide as tables are."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH_OF_NO_TERMINAL)
    return console


def print_tables(tables: Iterable[Table]) -> None:
    """Prints tables to the terminal."""
    console = make_console()
    for table in tables:
        rich = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for number, column in enumerate(table.columns):
            rich.add_column(column, justify="right" if number else "left")
        for name, *cells in table.rows:
            rich.add_row(name, *(Text(cell, no_wrap=True) for cell in cells))
        console.print(rich)


def markdown_page(heading: str, paragraphs: Iterable[str], tables: Iterable[Table]) -> str:
    """Returns a heading, paragraphs, and tables under headings of their own, in Markdown."""
    parts = [f"# {heading}", *paragraphs]
    for table in tables:
        parts += [f"## {table.title}", markdown_table(table)]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table, *, numbers: bool = True) -> str:
    """Returns a table, without its title, in Markdown; all columns but the first hold numbers, or none."""
    headings = [heading.replace("\n", " ") for heading in table.columns]
    align = ["---"] + ["---:" if numbers else "---"] * (len(headings) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, align, *table.rows))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows with full precision; a number that does not exist is `nan`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
