"""Checkpoints on disk, written by Orbax: a run that was killed goes on as if it had not been."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxnorm._checks import check_size
from jaxnorm.training.state import PyTree, TrainState, as_arrays, describe, differences

Folder = str | Path


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


def save_checkpoint(
    folder: Folder, state: TrainState, *, position: Any = None, history: Sequence[dict[str, Any]] = (), keep: int = 3
) -> None:
    """Writes a checkpoint named by its step, and then removes all but the newest.

    A checkpoint appears in the folder when it is complete, and not before: a process killed at any moment leaves the
    older ones as they were, and at most the remains of an unfinished one, which the next save clears away.

    Args:
      folder: the folder of the run's checkpoints; created if it does not exist.
      state: the state; a jitted step may be given its buffers right after.
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
    check_size("keep", keep)
    path = _path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder must be a folder of checkpoints, got a file, {path}")
    step, arrays = int(state.step), _arrays(state)
    newest = latest_step(path)
    if newest is not None and newest >= step:
        raise ValueError(f"folder {path} already has a checkpoint of step {newest}, got one of step {step} to save")
    try:
        # As it will be read again: with lists for tuples, and strings as the keys of dicts.
        record = json.loads(json.dumps({"leaves": describe(state), "position": position, "history": list(history)}))
        record["arrays"] = _digest(arrays)
    except (TypeError, ValueError) as error:
        raise TypeError(f"position and history must be numbers, strings, lists and dicts: {error}") from error
    with _writing(path / str(step)), _manager(path, max_to_keep=keep, cleanup_tmp_directories=True) as manager:
        checked = {"record": record, "digest": _digest_record(record)}
        manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(checked)), force=True
        )


def load_checkpoint(folder: Folder, like: TrainState, *, step: int | None = None) -> Checkpoint:
    """Reads a checkpoint, the newest unless told otherwise.

    Every bit is checked against a digest that was taken when the checkpoint was written.

    Args:
      folder: the folder that `save_checkpoint` or `fit` wrote to.
      like: a state of the same tree, shapes and dtypes, as from `init_train_state`; its values do not matter. The arrays come
        with its arrays' shardings.
      step: the step whose checkpoint to read.

    Returns:
      `Checkpoint(state, position, history)`, bit for bit as saved.

    Raises:
      ValueError: if there is no such folder or no checkpoint in it, if it is damaged, or if it holds another tree, shape or dtype
        than `like`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, tempfile
      >>> from jaxnorm.training import init_train_state, load_checkpoint, save_checkpoint
      >>> state = init_train_state(jax.random.key(0), jnp.ones(3), (), optax.sgd(0.1))
      >>> folder = tempfile.mkdtemp()
      >>> save_checkpoint(folder, state)
      >>> load_checkpoint(folder, state).state.params
      Array([1., 1., 1.], dtype=float32)
    """
    path, like = _path(folder), as_arrays("like", like)
    steps = _steps(path)
    if not steps:
        raise ValueError(f"folder {path} " + ("has no complete checkpoint" if path.is_dir() else "does not exist"))
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"step must be one of the checkpoints in {path}, {steps}, got {step}")
    place = path / str(step)
    with _manager(path) as manager, _named(place):
        checked = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        record = checked["record"]
        _check_digest(_digest_record(record), checked["digest"])
    if wrong := differences(record["leaves"], describe(like)):
        raise ValueError(f"folder {place} holds the checkpoint of another state than like: {wrong}")
    with _manager(path) as manager, _named(place):
        arrays = {name: _restore(manager, step, name, blank) for name, blank in _arrays(like).items()}
        _check_digest(_digest(arrays), record["arrays"])
    return Checkpoint(_fill(like, arrays), record["position"], record["history"])


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
    return max(_steps(_path(folder)), default=None)


def _path(folder: Folder) -> Path:
    return Path(folder).expanduser().resolve()


def _steps(path: Path) -> list[int]:
    """Returns the steps of all complete checkpoints, in order; an unfinished one has another name until it is complete."""
    return sorted(int(p.name) for p in path.iterdir() if p.name.isdigit() and p.is_dir()) if path.is_dir() else []


def _manager(path: Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **options))


def _arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Returns the leaves as NumPy arrays by their paths: keys as their data, and no empty arrays, which Orbax does not take."""
    leaves = jax.device_get([_data(leaf) for leaf in jax.tree.leaves(state)])
    return {name: a for name, a in zip(describe(state), leaves, strict=True) if a.size}


def _restore(manager: ocp.CheckpointManager, step: int, name: str, blank: np.ndarray) -> np.ndarray:
    """Returns one array of a checkpoint.

    Arrays are read one after the other, and as NumPy arrays: of a broken file, Orbax else leaves the errors of all the other
    arrays behind, which Python reports at some later time.
    """
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
    args = ocp.args.PyTreeRestore(item={name: blank}, restore_args=as_numpy, partial_restore=True)
    return manager.restore(step, args=ocp.args.Composite(state=args))["state"][name]


def _fill(like: TrainState, arrays: dict[str, np.ndarray]) -> TrainState:
    """Returns a state like `like` with the values of `arrays`, on its devices; what is free to go to any device stays so."""

    def fill(name: str, leaf: jax.Array) -> jax.Array:
        if not leaf.size:
            return leaf
        value = jnp.asarray(arrays[name])
        if _is_key(leaf):
            value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
        return jax.device_put(value, leaf.sharding) if leaf.committed else value

    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [fill(name, leaf) for name, leaf in zip(describe(like), leaves, strict=True)])


def _data(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: PyTree) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Turns whatever Orbax or TensorStore (a ValueError on a full disk) raise into an error that names the checkpoint."""
    try:
        yield
    except Exception as error:
        raise OSError(f"checkpoint {place} could not be written: {error}") from error


@contextmanager
def _named(place: Path) -> Iterator[None]:
    """Turns whatever Orbax, TensorStore or JSON raise over a broken file into an error that names the checkpoint."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"folder {place} is a damaged checkpoint; remove it to go on from an older one") from error


def _check_digest(found: str, written: str) -> None:
    if found != written:
        raise ValueError(f"the digest of the contents is {found}, and was {written} when they were written")


def _digest_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()
