"""What a run calls now and then, and how it is told to stop."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxnorm._checks import check_size
from jaxnorm.training.state import TrainState

History = list[dict[str, Any]]


class Status(NamedTuple):
    """Where a run is, as a hook is told.

    Attributes:
      state: the state. Its buffers are the next step's: what is to stay is copied.
      epoch: the epoch, from 1.
      step: the number of batches that were trained on so far.
      metrics: the metrics of the latest step.
      history: a row for each epoch that is over; after an epoch its own is the last.
    """

    state: TrainState
    epoch: int
    step: int
    metrics: dict[str, float]
    history: History


Hook = Callable[[Status], TrainState | None]
"""Is told where a run is; returns a state to go on with, or None for the one that it was told."""


class StopTraining(Exception):
    """Raised by a hook, ends the run: `fit` saves a checkpoint, if it writes any, and returns what it has."""


class Hooks:
    """The hooks of a run."""

    def __init__(self, after_epoch: Hook | Iterable[Hook], after_steps: Mapping[int, Hook | Iterable[Hook]]) -> None:
        """Takes hooks for after each epoch, and for after every so many steps."""
        self._after_epoch = _listed("after_epoch", after_epoch)
        self._after_steps = {
            check_size("after_steps", every): _listed(f"after_steps[{every}]", hooks) for every, hooks in after_steps.items()
        }

    def due(self, number: int) -> bool:
        """Whether any hook is called after this step."""
        return any(number % every == 0 for every in self._after_steps)

    def after_step(self, status: Status) -> TrainState:
        """Calls those that are due, each with the state that the one before it returned."""
        return _called(status, (hook for every, hooks in self._after_steps.items() if status.step % every == 0 for hook in hooks))

    def after_epoch(self, status: Status) -> TrainState:
        """Calls those of epochs, likewise."""
        return _called(status, self._after_epoch)


def _listed(name: str, hooks: Hook | Iterable[Hook]) -> tuple[Hook, ...]:
    listed: tuple[Any, ...] = (hooks,) if callable(hooks) else tuple(hooks)
    for hook in listed:
        if not callable(hook):
            raise TypeError(f"{name} must be a function of the status, or several, got {hook!r}")
    return listed


def _called(status: Status, hooks: Iterable[Hook]) -> TrainState:
    for hook in hooks:
        state = hook(status)
        if state is None:
            continue
        if not isinstance(state, TrainState):
            raise TypeError(f"a hook must return a TrainState or None, got {type(state).__name__} of {hook!r}")
        status = status._replace(state=state)
    return status.state
