"""A trace of a few steps of a run, for TensorBoard, Perfetto or XProf."""

from pathlib import Path
from typing import Self

import jax

_FIRST, _LAST = 10, 20  # after what is compiled and settles, and few enough for a trace that a browser shows


class Profile:
    """Traces the 10th to the 20th step of what this process runs, into a folder; without one it does nothing."""

    def __init__(self, folder: str | Path | None) -> None:
        """Takes the folder."""
        self._folder = folder
        self._steps = 0
        self._traces = False

    def __enter__(self) -> Self:
        """Waits for the first steps."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends a trace that a shorter run has left open."""
        self._stop()

    def add(self, steps: int, state: object) -> None:
        """Counts steps that were dispatched, and that end in this state."""
        if self._folder is None:
            return
        self._steps += steps
        if self._steps >= _LAST:
            jax.block_until_ready(state)
            self._stop()
            self._folder = None
        elif self._steps >= _FIRST and not self._traces:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._traces = True

    def _stop(self) -> None:
        if self._traces:
            self._traces = False
            jax.profiler.stop_trace()
