"""SIGTERM as a question that is asked between two steps, instead of an end in the middle of one."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 128 + signal.SIGTERM
"""The exit status of a process that a SIGTERM ended, by convention."""


class Termination:
    """Takes SIGTERM while it is entered; a second one ends the process as if it were not.

    Several processes of jax agree, by jax's own service, which takes SIGTERM itself, on a step that all of them have reached.
    Outside of the main thread, where Python can't take signals, nothing is taken.
    """

    def __init__(self, saves: bool) -> None:
        """Has not heard of a SIGTERM; one process takes it only where there is something to be done, as to save."""
        self._heard = False
        self._previous: Any = None
        self._agrees = jax.process_count() > 1
        self._takes = saves and not self._agrees and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        """Begins to take SIGTERM."""
        if self._takes:
            self._previous = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        """Lets SIGTERM do what it did before."""
        if self._takes:
            self._give_back()

    def asked(self, number: int) -> bool:
        """Whether the run must end after this step; every process asks after each of its dispatches."""
        return multihost_utils.reached_preemption_sync_point(number) if self._agrees else self._heard

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = True
        self._give_back()

    def _give_back(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if self._previous is None else self._previous)
