"""Checkpoints on disk, written by Orbax: a run that was killed goes on as if it had not been."""

import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxnorm.training._agreement import failing_together
from jaxnorm.training._checkpoint_files import (
    ARRAYS,
    Folder,
    arrays_handler,
    best_in,
    check_files,
    folder_path,
    named_arrays,
    read_record,
    set_aside,
    steps_in,
)
from jaxnorm.training._digests import digests, finish_sums, start_sums
from jaxnorm.training.checkpoint_writer import CheckpointWriter
from jaxnorm.training.processes import gather
from jaxnorm.training.state import TrainState, as_arrays, describe, differences, is_key


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      state: the state of the run.
      position: where the data were, as it was given to `save_checkpoint`.
      history: the metrics up to there.
    """

    state: TrainState
    position: Any
    history: list[dict[str, Any]]


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not as it was written."""


def save_checkpoint(
    folder: Folder, state: TrainState, *, position: Any = None, history: Sequence[dict[str, Any]] = (), keep: int = 3
) -> None:
    """Writes a checkpoint named by its step, and then removes all but the newest; `CheckpointWriter` does so in the background.

    A checkpoint appears in the folder when it is complete, and not before: a process killed at any moment leaves the
    older ones as they were, and at most the remains of an unfinished one, which the next save clears away.

    Args:
      folder: the folder of the run's checkpoints; created if it does not exist.
      state: the state.
      position: where the data are, and whatever else the run needs to go on: numbers, strings, lists and dicts (JSON).
      history: metrics up to here, a list of dicts, likewise.
      keep: number of the newest checkpoints that stay.

    Raises:
      ValueError: if the folder has a checkpoint of this step or of a later one, if keep is below 1, or if folder is a file.
      TypeError: if position or history are not JSON, or if keep is no int.
      OSError: if it cannot be written, as on a full disk; the older ones stay as they were.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tempfile
      >>> from jaxnorm.training import init_train_state, latest_step, load_checkpoint, save_checkpoint
      >>> state = init_train_state(jax.random.key(0), jnp.ones(3), (), optax.sgd(0.1))
      >>> folder = tempfile.mkdtemp()
      >>> save_checkpoint(folder, state, position={"epoch": 2})
      >>> latest_step(folder)
      0
      >>> load_checkpoint(folder, state).position
      {'epoch': 2}
    """
    with CheckpointWriter(folder, keep=keep) as writer:
        writer.save(state, position=position, history=history)


def load_checkpoint(folder: Folder, like: TrainState, *, step: int | None = None) -> Checkpoint:
    """Reads a checkpoint, the newest unless told otherwise.

    Every file is checked against a digest that was taken when the checkpoint was written, and so is every array once it is where
    it belongs. The devices and processes need not be those that wrote it: what was written by eight may be read by two. All
    processes of a run call it alike, and if one cannot read its part, all raise.

    Args:
      folder: the folder that `CheckpointWriter`, `save_checkpoint` or `fit` wrote to.
      like: a state of the same tree, shapes and dtypes, as from `init_train_state`; its values do not matter. The arrays come
        with its arrays' shardings.
      step: the step whose checkpoint to read, as `best_step(folder)`.

    Returns:
      `Checkpoint(state, position, history)`, bit for bit as saved.

    Raises:
      ValueError: if there is no such folder or no checkpoint in it, if it is damaged, or if it holds another tree, shape or dtype
        than `like`.
      OSError: if it is whole but cannot be read, as for want of memory.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tempfile
      >>> from jaxnorm.training import init_train_state, load_checkpoint, save_checkpoint
      >>> state = init_train_state(jax.random.key(0), jnp.ones(3), (), optax.sgd(0.1))
      >>> folder = tempfile.mkdtemp()
      >>> save_checkpoint(folder, state)
      >>> load_checkpoint(folder, state).state.params
      Array([1., 1., 1.], dtype=float32)
    """
    path, like = folder_path(folder), as_arrays("like", like)
    steps = _agreed_steps(path)
    if not steps:
        raise ValueError(f"folder {path} " + ("has no complete checkpoint" if path.is_dir() else "does not exist"))
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"step must be one of the checkpoints in {path}, {steps}, got {step}")
    place, blanks = path / str(step), named_arrays(like)
    damage = f"folder {place} is a damaged checkpoint; load_newest sets it aside and goes on from the one before"
    with failing_together(DamagedCheckpoint, damage):
        record = read_record(place)
        check_files(place / ARRAYS, record["files"])
    if wrong := differences(record["leaves"], describe(like), shown=20, between="\n  "):
        raise ValueError(f"folder {place} holds the checkpoint of another state than like:\n  {wrong}")
    with failing_together(OSError, f"checkpoint {place} could not be read"):
        arrays = _restore(place, blanks)
        sums = finish_sums(start_sums(arrays))
    found = digests(gather(sums))
    if changed := [name for name in found if found[name] != record["digests"][name]]:
        raise DamagedCheckpoint(f"{damage}: {', '.join(changed)} is not as it was written")
    return Checkpoint(_fill(like, arrays), record["position"], record["history"])


def load_newest(folder: Folder, like: TrainState) -> Checkpoint:
    """Reads the newest checkpoint that is whole.

    A newer one that is damaged is renamed, `12` to `12.damaged`, so that it is not found again, and a RuntimeWarning says so.

    Args:
      folder: the folder of the run's checkpoints.
      like: as for `load_checkpoint`.

    Returns:
      `Checkpoint(state, position, history)`, bit for bit as saved.

    Raises:
      ValueError: if there is no such folder or no whole checkpoint in it, or if the newest whole one holds another tree, shape or
        dtype than `like`.
      OSError: if one is whole but cannot be read, as for want of memory, or one that is damaged cannot be renamed.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tempfile
      >>> from jaxnorm.training import init_train_state, load_newest, save_checkpoint
      >>> state = init_train_state(jax.random.key(0), jnp.ones(3), (), optax.sgd(0.1))
      >>> folder = tempfile.mkdtemp()
      >>> save_checkpoint(folder, state)
      >>> load_newest(folder, state).state.step
      Array(0, dtype=int32)
    """
    path, like = folder_path(folder), as_arrays("like", like)
    while True:
        try:
            return load_checkpoint(path, like)
        except DamagedCheckpoint as error:
            step, reason = _agreed_steps(path)[-1], error.__cause__ or error
            with failing_together(OSError, f"checkpoint {path / str(step)} is damaged and could not be renamed"):
                if jax.process_index() == 0:
                    set_aside(path, step)
            warnings.warn(
                f"checkpoint {path / str(step)} is damaged and was set aside, with .damaged in its name: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )


def latest_step(folder: Folder) -> int | None:
    """Returns the step of the newest complete checkpoint in a folder, None if there is none.

    `fit(..., checkpoints=folder, resume=latest_step(folder) is not None)` starts a run or goes on with it.

    Args:
      folder: the folder of the run's checkpoints.

    Returns:
      The step, or None.

    Example:
      >>> from jaxnorm.training import latest_step
      >>> latest_step("no/such/folder") is None
      True
    """
    return max(steps_in(folder_path(folder)), default=None)


def best_step(folder: Folder) -> int | None:
    """Returns the step of the best checkpoint in a folder, None if none was written with a metric.

    `load_checkpoint(folder, like, step=best_step(folder))` reads it.

    Args:
      folder: the folder that `CheckpointWriter(folder, best=...)` or `fit(..., best=...)` wrote to.

    Returns:
      The step, or None.

    Example:
      >>> from jaxnorm.training import best_step
      >>> best_step("no/such/folder") is None
      True
    """
    return best_in(folder_path(folder))


def _agreed_steps(path: Path) -> list[int]:
    """Returns the steps of all complete checkpoints, or raises unless all processes see the same newest one."""
    steps = steps_in(path)
    newest = gather(max(steps, default=-1))
    if len(set(newest)) > 1:
        raise ValueError(f"folder {path} must be one that all processes share, got newest steps {newest} in the processes")
    return steps


def _restore(place: Path, blanks: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns a checkpoint's arrays, each process those parts that it holds; what is free to go to any device stays so."""
    kinds = {
        name: ocp.ArrayRestoreArgs(sharding=blank.sharding, global_shape=blank.shape, dtype=blank.dtype)
        if blank.committed
        else ocp.RestoreArgs(restore_type=np.ndarray)
        for name, blank in blanks.items()
    }
    with closing(arrays_handler()) as handler:
        return jax.tree.map(
            jnp.asarray, handler.restore(epath.Path(place / ARRAYS), args=ocp.args.PyTreeRestore(item=blanks, restore_args=kinds))
        )


def _fill(like: TrainState, arrays: dict[str, jax.Array]) -> TrainState:
    """Returns a state like `like` with the values of `arrays`."""

    def fill(name: str, leaf: jax.Array) -> jax.Array:
        if not leaf.size:
            return leaf
        if not is_key(leaf):
            return arrays[name]
        keys = jax.random.wrap_key_data(arrays[name], impl=jax.random.key_impl(leaf))
        return jax.device_put(keys, leaf.sharding) if leaf.committed else keys

    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [fill(name, leaf) for name, leaf in zip(describe(like), leaves, strict=True)])
