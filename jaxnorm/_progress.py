"""Bars of progress: drawn anew in a terminal, lines now and then in a log file."""

import contextlib
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

LOG_SECONDS = 30.0
"""The least time between two lines in a log."""


def progress_bar(**options: Any) -> tqdm:
    """Returns a bar on stderr, with the options of `tqdm`.

    Where stderr is no terminal, the bar is a line when it begins, one every half minute, and one when it ends.
    """
    file = None if _draws_anew(sys.stderr) else _Log(sys.stderr)
    return tqdm(file=file, dynamic_ncols=True, **options)


def _draws_anew(file: TextIO) -> bool:
    """Whether a file shows a line in place of the one before it, as a terminal does, and a notebook."""
    return file.isatty() or type(file).__module__.startswith("ipykernel")


class _Log:
    """Takes what tqdm writes to a terminal, and makes lines of some of it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._latest = ""
        self._written = ""
        self._due = -float("inf")

    def write(self, text: str) -> None:
        self._latest = text.strip("\r\n ") or self._latest
        ends = text == "\n"
        if self._latest != self._written and (ends or time.monotonic() >= self._due):
            self._due = time.monotonic() + LOG_SECONDS
            self._written = self._latest
            with contextlib.suppress(OSError):  # a log on a full disk is no reason to end the work
                print(self._latest, file=self._file, flush=True)

    def flush(self) -> None:
        """Does nothing: every line is flushed."""
