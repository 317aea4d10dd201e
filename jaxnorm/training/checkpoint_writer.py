"""Writing checkpoints beside the training: Orbax's arrays, a record of what they must be, and a name once all is there."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxnorm._checks import check_choice, check_size, check_type
from jaxnorm.training._agreement import agree, failing_together, meeting_after
from jaxnorm.training._checkpoint_files import (
    ARRAYS,
    Folder,
    arrays_handler,
    best_in,
    file_digests,
    files_in,
    folder_path,
    named_arrays,
    remove_checkpoint,
    remove_unfinished,
    steps_in,
    unfinished,
    write_record,
)
from jaxnorm.training._digests import digests, finish_sums, start_sums
from jaxnorm.training.state import TrainState, describe


class CheckpointWriter:
    """Writes the checkpoints of a run while the run goes on.

    `save` returns when the state is copied. A checkpoint gets its name when it is complete, and not before: a process killed at
    any moment leaves the older ones as they were, and at most the remains of an unfinished one, which the next writer clears
    away: a folder has one writer at a time, which writes one checkpoint at a time. What goes wrong in the background, as on a
    full disk, is raised by the next call.

    In several processes all make a writer and call its methods, each with the same global arrays; every process writes its
    own part of them, to a folder that all share. If one cannot write, all raise, and the older checkpoints stay as they were.

    As a context manager it is closed at the end; after an exception too, the write under way is waited for.

    Attributes:
      folder: the folder, its whole path.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tempfile
      >>> from jaxnorm.training import CheckpointWriter, best_step, init_train_state, latest_step
      >>> state = init_train_state(jax.random.key(0), jnp.ones(3), (), optax.sgd(0.1))
      >>> folder = tempfile.mkdtemp()
      >>> with CheckpointWriter(folder, keep=1, best="eval_accuracy") as writer:
      ...     for step, accuracy in enumerate([0.7, 0.9, 0.8]):
      ...         writer.save(state._replace(step=jnp.int32(step)), history=[{"eval_accuracy": accuracy}])
      >>> latest_step(folder), best_step(folder)
      (2, 1)
    """

    def __init__(self, folder: Folder, *, keep: int = 3, best: str | None = None, best_mode: str = "max") -> None:
        """Takes the folder, and what to keep.

        Args:
          folder: the folder of the run's checkpoints; created if it does not exist.
          keep: number of the newest checkpoints that stay.
          best: the name of a metric in the newest row of the history, as `"eval_accuracy"`. The checkpoint that has the best so
            far stays too, beside the newest. A row with a `step` counts for the state of that step alone.
          best_mode: whether the largest is the best, `"max"`, or the least, `"min"`.

        Raises:
          ValueError: if keep is below 1, best_mode is another word, or folder is a file.
          TypeError: if keep is no int, or best is no string.
          OSError: if what an earlier writer left unfinished cannot be removed.
        """
        self._keep = check_size("keep", keep)
        check_choice("best_mode", best_mode, ("max", "min"))
        if best is not None:
            check_type("best", best, str)
        self._best, self._best_mode = best, best_mode
        self.folder = folder_path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"folder must be a folder of checkpoints, got a file, {self.folder}")
        with failing_together(OSError, f"folder {self.folder} could not be cleared of unfinished checkpoints"):
            if jax.process_index() == 0:
                remove_unfinished(self.folder)
        self._handler = arrays_handler()
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[Path, Future[None]] | None = None

    def save(self, state: TrainState, *, position: Any = None, history: Sequence[dict[str, Any]] = ()) -> None:
        """Starts to write a checkpoint named by its step, and then removes those that are not kept.

        It waits for the write before this one, if that is still under way.

        Args:
          state: the state; a jitted step may be given its buffers right after.
          position: where the data are, and whatever else the run needs to go on: numbers, strings, lists and dicts (JSON); the
            same in all processes.
          history: metrics up to here, a list of dicts, likewise; that of the first process is written.

        Raises:
          ValueError: if the folder has a checkpoint of this step or of a later one, if the newest row of the history lacks the
            metric `best`, or, in several processes, if an array is of one process alone.
          TypeError: if position or history are not JSON.
          OSError: if the checkpoint before this one could not be written.
        """
        self.wait()
        step = int(state.step)
        if (steps := steps_in(self.folder)) and steps[-1] >= step:
            raise ValueError(f"folder {self.folder} already has a checkpoint of step {steps[-1]}, got one of step {step} to save")
        try:
            # As it will be read again: with lists for tuples, and strings as the keys of dicts.
            record = json.loads(json.dumps({"leaves": describe(state), "position": position, "history": list(history)}))
        except (TypeError, ValueError) as error:
            raise TypeError(f"position and history must be numbers, strings, lists and dicts: {error}") from error
        record["score"] = self._score(step, record["history"])
        arrays = named_arrays(state)
        sums, copied = start_sums(arrays), Event()
        self._writing = self.folder / str(step), self._pool.submit(self._write, step, arrays, sums, record, copied)
        copied.wait()

    def wait(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          OSError: if it could not be written, as on a full disk; the older ones stay as they were.
        """
        if self._writing is None:
            return
        place, writing = self._writing
        error = agree(writing.exception())
        self._writing = None
        if error is not None:
            raise OSError(f"checkpoint {place} could not be written: {error}") from error

    def close(self) -> None:
        """Waits as `wait` does, and ends the writer's thread; it then takes no more checkpoints.

        Raises:
          OSError: if the last checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            self._stop()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes the writer; after an exception, which other processes may not have, it waits without asking them."""
        if error is None:
            self.close()
            return
        self._stop()
        if self._writing is not None and (failure := self._writing[1].exception()) is not None:
            error.add_note(f"checkpoint {self._writing[0]} could not be written: {failure}")

    def _stop(self) -> None:
        self._pool.shutdown()
        self._handler.close()

    def _score(self, step: int, history: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Returns what tells whether a checkpoint is the best, None if no metric was taken of its state."""
        if self._best is None or not history or history[-1].get("step", step) != step:
            return None
        value = history[-1].get(self._best)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f"best must be the name of a number in the newest row of the history, got {self._best!r} for {history[-1]}"
            )
        return {"metric": self._best, "mode": self._best_mode, "value": value}

    def _write(self, step: int, arrays: dict[str, Any], sums: Any, record: dict[str, Any], copied: Event) -> None:
        """Writes a checkpoint, in the writer's thread: each process its part, and then the first one what makes it whole."""
        place = unfinished(self.folder, step)
        try:
            with meeting_after():
                try:
                    self._write_part(place, arrays, sums, record, copied)
                finally:
                    copied.set()
            if jax.process_index() == 0:
                self._complete(place, step, record)
        except BaseException:
            if jax.process_index() == 0:
                shutil.rmtree(place, ignore_errors=True)
            raise

    def _write_part(self, place: Path, arrays: dict[str, Any], sums: Any, record: dict[str, Any], copied: Event) -> None:
        folder = place / ARRAYS
        folder.mkdir(parents=True, exist_ok=True)
        copies = asyncio.run(self._handler.async_save(epath.Path(folder), args=ocp.args.PyTreeSave(arrays)))
        copied.set()
        for copy in copies or ():
            copy.result()
        own = [name for name in files_in(folder) if f"process_{jax.process_index()}/" in name]
        part = {
            "sums": {name: sums.tolist() for name, sums in finish_sums(sums).items()},
            "files": file_digests(folder, own),
            "position": record["position"],
        }
        _part(place, jax.process_index()).write_text(json.dumps(part))

    def _complete(self, place: Path, step: int, record: dict[str, Any]) -> None:
        """Makes one checkpoint of the parts, and gives it its name."""
        parts = []
        for process in range(jax.process_count()):
            if not _part(place, process).exists():
                raise RuntimeError(f"process {process} could not write its part")
            parts.append(json.loads(_part(place, process).read_text()))
            _part(place, process).unlink()
            if parts[-1]["position"] != record["position"]:
                raise ValueError(f"position must be the same in all processes, got {parts[-1]['position']} in process {process}")
        folder = place / ARRAYS
        self._handler.finalize(epath.Path(folder))
        files = {name: digest for part in parts for name, digest in part["files"].items()}
        files |= file_digests(folder, [name for name in files_in(folder) if name not in files])
        write_record(place, record | {"digests": digests([part["sums"] for part in parts]), "files": files})
        place.rename(self.folder / str(step))
        best = best_in(self.folder) if self._best is not None else None
        for old in steps_in(self.folder)[: -self._keep]:
            if old != best:
                remove_checkpoint(self.folder, old)


def _part(place: Path, process: int) -> Path:
    """Returns the file by which a process says that it has written its part, and what that is."""
    return place / f"part_{process}.json"
