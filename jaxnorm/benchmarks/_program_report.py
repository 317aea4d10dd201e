"""The report of programs that were compiled and not run: tables in the terminal, a page, and the figures themselves."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxnorm.experiments._report import Results, Table, WriteError, markdown_page, print_tables


def publish(
    parser: argparse.ArgumentParser,
    folder: Path | None,
    name: str,
    heading: str,
    paragraphs: Sequence[str],
    tables: Sequence[Table],
    figures: Any,
) -> None:
    """Prints the tables, and writes `name.md` and `name.json` if there is a folder to write to.

    Raises:
      SystemExit: with status 1, after a line that says why, if a file cannot be written; the other is.
    """
    print_tables(tables)
    if folder is None:
        return
    files, page = Results(folder), markdown_page(heading, paragraphs, tables)
    files.write(f"{name}.md", lambda path: path.write_text(page, encoding="utf-8"))
    files.write(f"{name}.json", lambda path: path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8"))
    try:
        print(files.summary())
    except WriteError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
