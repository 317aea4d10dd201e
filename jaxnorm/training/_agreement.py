"""What the processes of a run must know of each other before they go on alike."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import orbax.checkpoint as ocp

from jaxnorm.training.processes import gather

PATIENCE = 600.0
"""Seconds in which all processes must come to a meeting: more than one may be behind, as by a compilation."""

_WRITING_SECONDS = 3600.0
_meetings: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


def agree(error: BaseException | None) -> BaseException | None:
    """Returns the error, or one that names the process that has one, or None if no process has; all processes must call it."""
    failed = [process for process, has in enumerate(gather(error is not None)) if has]
    if error is None and failed:
        return RuntimeError(f"process {failed[0]} has failed, and says why")
    return error


@contextmanager
def failing_together(kind: type[Exception], message: str) -> Iterator[None]:
    """Raises the same kind of error in all processes where one has failed; nothing within may need the others."""
    error: BaseException | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if (error := agree(error)) is not None:
        raise kind(f"{message}: {error}") from error


@contextmanager
def meeting_after() -> Iterator[None]:
    """Waits at the end, also after an error, until all processes are there; not for the thread that runs the steps alone.

    It uses no device, so it may run beside steps. A process that has died is noticed by jax, which then ends the others.
    """
    try:
        yield
    finally:
        _wait("a checkpoint", _WRITING_SECONDS)


def meet(what: str) -> None:
    """Waits until all processes have come to the same place, or raises if one does not, as it waits in another for this one.

    It uses no device, and costs a message or two.
    """
    try:
        _wait(what, PATIENCE)
    except Exception as error:
        raise RuntimeError(
            f"not all processes have come to {what} within {PATIENCE:.0f} s: they must all take the same steps, on as many "
            f"batches of the same sizes: {error}"
        ) from error


def _wait(what: str, seconds: float) -> None:
    if jax.process_count() > 1:
        wait = ocp.multihost.get_barrier_sync_fn()
        wait(key=f"jaxnorm: {what} ({next(_meetings[what])})", timeout_ms=int(1000 * seconds))
