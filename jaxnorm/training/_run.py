"""A run of `fit`: what it has, and what happens between two steps."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax import lax
from tqdm import tqdm

from jaxnorm.training._agreement import meet
from jaxnorm.training._profile import Profile
from jaxnorm.training._termination import EXIT_STATUS, Termination
from jaxnorm.training.checkpoint_writer import CheckpointWriter
from jaxnorm.training.data import Batch, num_examples
from jaxnorm.training.feed import Feed
from jaxnorm.training.hooks import History, Hooks, Status
from jaxnorm.training.meter import Meter
from jaxnorm.training.state import TrainState, is_key
from jaxnorm.training.steps import Metrics, TrainStep

_SHOWN_SECONDS = 0.1  # between two changes of what the bar shows: as often as tqdm draws it

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Steps = Callable[[TrainState, tuple[Batch, ...]], tuple[TrainState, Metrics]]
"""Steps of states whose key is its data."""


def take_step(step: TrainStep, impl: Any, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Takes a step from a state whose key is its data, of such an implementation; None for a key that is nothing else.

    Typed keys that go into a program and come out of it take some 30 microseconds of a step.
    """
    state, metrics = step(typed(state, impl), batch)
    return untyped(state), metrics


def take_steps(step: TrainStep, impl: Any, state: TrainState, batches: tuple[Batch, ...]) -> tuple[TrainState, Metrics]:
    """Takes several such steps, one for each batch, as one program; its metrics are stacked."""
    # On a CPU XLA takes a hundred times as long for the gradient of a convolution that is in a loop.
    unroll = jax.default_backend() == "cpu"
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *batches)
    return lax.scan(functools.partial(take_step, step, impl), state, stacked, unroll=unroll)


def typed(state: TrainState, impl: Any) -> TrainState:
    """Returns the state with a typed key, of one whose key is its data."""
    return state if impl is None else state._replace(key=jax.random.wrap_key_data(state.key, impl=impl))


def untyped(state: TrainState) -> TrainState:
    """Returns the state with the data of its key."""
    return state._replace(key=jax.random.key_data(state.key)) if is_key(state.key) else state


@dataclasses.dataclass
class Run:
    """A run.

    Attributes:
      raw: the newest state, whose key is its data.
      impl: the implementation of the key; None if it is not typed.
      history: a row for each epoch that is over.
      number: the number of batches that were trained on.
      epoch: the epoch that it is in, from 0.
      meter: the metrics of the epoch so far.
      feed: where batches come from.
      place: puts a batch on its devices.
      step: a step, compiled.
      steps: several, likewise, and how many.
      epochs: the number of epochs in all.
      score: the columns of evaluation of an epoch's row.
      hooks: what is called now and then.
      writer: writes checkpoints; None writes none.
      saved: the step of the newest one.
      checkpoint_every: steps between them, if any.
      saves_epochs: whether there is one after each epoch.
      max_skipped: how many steps of an epoch may be skipped; None: all.
      termination: tells whether the process is to end.
      profile: traces some steps.
      bar: shows progress.
      look: is called with the state and the batch of the first step, before it; None once that was done.
    """

    raw: TrainState
    impl: Any
    history: History
    number: int
    epoch: int
    meter: Meter
    feed: Feed
    place: Callable[[Batch], Batch]
    step: Step
    steps: tuple[Steps, int]
    epochs: int
    score: Callable[[TrainState], dict[str, float]]
    hooks: Hooks
    writer: CheckpointWriter | None
    saved: int | None
    checkpoint_every: int | None
    saves_epochs: bool
    max_skipped: int | None
    termination: Termination
    profile: Profile
    bar: tqdm
    look: Callable[[TrainState, Batch], None] | None = None
    _shown_at: float = 0.0

    @property
    def state(self) -> TrainState:
        """The newest state."""
        return typed(self.raw, self.impl)

    @state.setter
    def state(self, state: TrainState) -> None:
        self.raw = untyped(state)

    def train(self) -> None:
        """Takes the steps of an epoch, from where it stands on."""
        self.bar.set_description(f"epoch {self.epoch + 1}/{self.epochs}", refresh=False)
        for group in self.feed.groups(self.epoch, self.steps[1], self._divided):
            batches = [self.place(batch) for batch in group]
            if self.look is not None:
                self.look(self.state, batches[0])
                self.look = None
            if self.bar.total is None and self.feed.length is not None:
                self.bar.total = self.number - self.feed.batch + len(batches) + self.feed.length * (self.epochs - self.epoch)
            self._take(batches)
            self._show()
            self._between()

    def finish(self) -> None:
        """Ends an epoch: its row, the hooks, a checkpoint."""
        meet(f"the end of epoch {self.epoch + 1} after {self.number} steps")
        row: dict[str, Any] = {"epoch": self.epoch + 1, "step": int(self.raw.step)}
        means = self.meter.means()
        self._check_skipped()
        for columns in (means, self.score(self.state)):
            if taken := row.keys() & columns:
                raise ValueError(f"columns of the history must have names of their own, got {sorted(taken)} twice")
            row |= columns
        self.history.append(row)
        status = self._status()
        self.meter = Meter("step")
        self.feed.rewind()
        self.epoch += 1
        self.state = self.hooks.after_epoch(status)
        if self.saves_epochs or self._saves(self.number) or self.epoch == self.epochs:
            self.save()

    def save(self) -> None:
        """Writes a checkpoint, unless the newest one is of this step."""
        step = int(self.raw.step)
        if self.writer is not None and self.saved != step:
            position = {"epoch": self.epoch, "number": self.number, "feed": self.feed.position(), "meter": self.meter.position()}
            self.writer.save(self.state, position=position, history=self.history)
            self.saved = step

    def show(self) -> None:
        """Brings the bar up to date, with the metrics of the latest step that is known, else of the last epoch."""
        known = {name: value for name, value in self.history[-1].items() if name not in ("epoch", "step")} if self.history else {}
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in (known | self.meter.latest).items()}, refresh=False)
        self.bar.update(self.number - self.bar.n)

    def _take(self, batches: list[Batch]) -> None:
        steps, size = self.steps
        lengths = [num_examples(batch) for batch in batches]
        if 1 < size == len(batches) and len({_shapes(batch) for batch in batches}) == 1:
            self.raw, metrics = steps(self.raw, tuple(batches))
            self.meter.add(metrics, lengths, self.number + 1)
            self.number += size
        else:
            for batch, length in zip(batches, lengths, strict=True):
                self.raw, metrics = self.step(self.raw, batch)
                self.number += 1
                self.meter.add(metrics, (length,), self.number)
        self.profile.add(len(batches), self.raw)

    def _check_skipped(self) -> None:
        if self.max_skipped is not None and (self.meter.skipped or 0) > self.max_skipped:
            self.save()
            raise FloatingPointError(
                f"{self.meter.skipped} steps of epoch {self.epoch + 1} were skipped by step {self.number}, since their loss or "
                f"gradients were not finite; max_skipped is {self.max_skipped}"
            )

    def _between(self) -> None:
        self._check_skipped()
        if self.hooks.due(self.number):
            self.meter.wait()
            self.state = self.hooks.after_step(self._status())
        if self._saves(self.number) and self.feed.batch != self.feed.length:
            self.save()
        if self.termination.asked(self.number):
            self.save()
            self._end()

    def _end(self) -> NoReturn:
        if self.writer is not None:
            self.writer.wait()
            if jax.process_index() == 0:
                print(f"SIGTERM: saved step {int(self.raw.step)} in {self.writer.folder}", file=sys.stderr)
        raise SystemExit(EXIT_STATUS)

    def _divided(self, size: int) -> bool:
        return any(self._saves(n) or self.hooks.due(n) for n in range(self.number + 1, self.number + size))

    def _saves(self, number: int) -> bool:
        return self.checkpoint_every is not None and number % self.checkpoint_every == 0

    def _status(self) -> Status:
        return Status(self.state, self.epoch + 1, self.number, dict(self.meter.latest), self.history)

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown_at >= _SHOWN_SECONDS:
            self._shown_at = now
            self.show()


def _shapes(batch: Batch) -> tuple[Any, ...]:
    return tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch))
