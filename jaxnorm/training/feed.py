"""Where batches come from, and how to find the place in them again."""

import base64
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from jaxnorm.training.data import Batch


@runtime_checkable
class StatefulIterator(Protocol):
    """An iterator that tells and takes its position, as Grain's do."""

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""
        ...

    def __next__(self) -> Batch:
        """Returns the next batch."""
        ...

    def get_state(self) -> Any:
        """Returns its position: JSON, or bytes."""
        ...

    def set_state(self, state: Any, /) -> None:
        """Goes to a position."""
        ...


BatchSource = Callable[[int], Iterable[Batch]] | StatefulIterator | Iterable[Batch]


class Feed:
    """Gives the batches of each epoch, and counts them.

    Attributes:
      batch: number of batches that the epoch has given so far.
      length: number of batches in an epoch, where it is known.
    """

    def __init__(self, batches: BatchSource, steps_per_epoch: int | None) -> None:
        """Takes batches, and how many of them make an epoch (all that an iterable gives, if None)."""
        if not callable(batches) and not hasattr(batches, "__iter__"):
            raise TypeError(
                f"batches must be a function of the epoch, an iterator or an iterable, got {batches!r} ({type(batches).__name__})"
            )
        self.batch = 0
        self.length = steps_per_epoch
        self._batches = batches
        self._steps = steps_per_epoch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Gives the batches of an epoch, from where it stands on."""
        if callable(self._batches):
            source = self._batches(epoch)
            iterator = iter(source)
            found = sum(1 for _ in islice(iterator, self.batch))
            if found < self.batch:
                raise ValueError(f"batches({epoch}) must give what it gave before the resume, {self.batch} batches, got {found}")
        else:
            source = self._batches
            iterator = iter(source)
        if self._steps is None and hasattr(source, "__len__"):
            self.length = len(source)  # pyright: ignore[reportArgumentType]
        for batch in islice(iterator, None if self._steps is None else self._steps - self.batch):
            self.batch += 1
            yield batch
        if self.batch == 0:
            raise ValueError(
                f"batches gave no batch in epoch {epoch} (from 0); an iterator that one pass uses up needs steps_per_epoch, or "
                "give a function batches(epoch) that returns an iterable"
            )

    def groups(self, epoch: int, size: int, divided: Callable[[int], bool]) -> Iterator[list[Batch]]:
        """Gives the batches of an epoch, so many at once where `divided(size)` does not say that something comes between them.

        A group begins at a multiple of its size, so that a run that is resumed has the groups of one that never stopped. Where
        one is divided its batches come one by one; the last of an epoch may have fewer.
        """
        batches = self.epoch(epoch)
        while group := list(islice(batches, size if self.batch % size == 0 and not divided(size) else 1)):
            yield group

    def rewind(self) -> None:
        """Goes to the beginning of the next epoch."""
        self.batch = 0

    def position(self) -> dict[str, Any]:
        """Returns the place in the epoch, and the iterator's state if it has one, as JSON."""
        state = self._batches.get_state() if isinstance(self._batches, StatefulIterator) else None
        return {
            "batch": self.batch,
            "iterator": {"base64": base64.b64encode(state).decode()} if isinstance(state, bytes) else state,
        }

    def seek(self, position: dict[str, Any]) -> None:
        """Goes to a place that `position` returned, or raises if these batches cannot be found again."""
        state = position["iterator"]
        if isinstance(self._batches, StatefulIterator):
            if state is None:
                raise ValueError(
                    "batches is an iterator with set_state, but the checkpoint was written with batches that had no state"
                )
            is_bytes = isinstance(state, dict) and set(state) == {"base64"}
            self._batches.set_state(base64.b64decode(state["base64"]) if is_bytes else state)
        elif not callable(self._batches):
            raise ValueError(
                "batches must be a function batches(epoch) that returns an iterable, or an iterator with get_state and "
                f"set_state, to resume: a plain {type(self._batches).__name__} cannot be put where the run was"
            )
        elif state is not None:
            raise ValueError(
                "batches is a function of the epoch, but the checkpoint was written with an iterator that had a state"
            )
        if self._steps is not None and position["batch"] > self._steps:
            raise ValueError(f"steps_per_epoch must be at least {position['batch']}, where the run was, got {self._steps}")
        self.batch = position["batch"]
