"""Whether devices hold what they should: copies that are equal, keys that are not."""

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnorm.training.processes import gather
from jaxnorm.training.state import PyTree, is_key


def check_replicas(tree: PyTree) -> None:
    """Raises unless all devices that hold the same part of an array hold the same bits.

    What is replicated stays equal only as long as every device computes the same from the same. This looks at the bytes
    themselves, on all devices of all processes: call it now and then, or where a run has gone astray. In several processes all
    must call it. An array that a process has for itself is compared with that of the others.

    Args:
      tree: a pytree of arrays, as a `TrainState`.

    Raises:
      ValueError: in all processes, if an array differs: says which, where, and between which devices.

    Example:
      >>> import jax
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from jaxnorm.training import check_replicas
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> check_replicas({"w": jax.device_put(jax.numpy.ones(3), NamedSharding(mesh, PartitionSpec()))})
    """
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for copies in gather(_copies(tree)):
        for (name, part, digest), device in copies.items():
            other, expected = seen.setdefault((name, part), (device, digest))
            if digest != expected:
                raise ValueError(
                    f"{name} must be the same on all devices that hold the same part of it, got for [{part}] other bits on "
                    f"{other} than on {device}"
                )


def check_keys_differ(keys: jax.Array) -> None:
    """Raises unless all keys of an array are different, as those of devices that must not draw the same noise.

    In several processes all must call it, with a global array, or each with keys of its own: none may be another process's.

    Args:
      keys: keys, `[...]`, from `jax.random.split`, or of a `shard_map`, one for each device; legacy `uint32` ones are `[..., 2]`.

    Raises:
      ValueError: if two are equal: says which, counted through the array.
      TypeError: if keys are no keys.

    Example:
      >>> import jax
      >>> from jaxnorm.training import check_keys_differ
      >>> check_keys_differ(jax.random.split(jax.random.key(0), 8))
    """
    try:
        data = jax.random.key_data(keys)
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(f"keys must be an array of keys, got {keys!r}") from error
    if data.is_fully_addressable:
        parts = gather(np.asarray(data).reshape(-1, data.shape[-1]))
    else:
        parts = [np.asarray(multihost_utils.process_allgather(data, tiled=True)).reshape(-1, data.shape[-1])]
    rows = np.concatenate(parts)
    _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    equal = first[which.reshape(-1)]
    if (again := np.flatnonzero(equal != np.arange(len(rows)))).size:
        raise ValueError(
            f"keys must all differ, got the same as number {equal[again[0]]} and number {again[0]} (from 0) of {len(rows)}"
        )


def _copies(tree: PyTree) -> dict[tuple[str, str, str], str]:
    """Returns a device for each leaf, part of it and digest of what this process holds of that part."""
    found: dict[tuple[str, str, str], str] = {}
    for path, leaf in jax.tree.flatten_with_path(tree)[0]:
        name = f"tree{jax.tree_util.keystr(path)}"
        for part, device, value in _parts(leaf):
            digest = hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16).hexdigest()
            found.setdefault((name, part, f"{value.dtype}{value.shape}{digest}"), device)
    return found


def _parts(leaf: Any) -> list[tuple[str, str, np.ndarray]]:
    """Returns the parts of an array that this process holds: which part, where, and its value."""
    here = f"process {jax.process_index()}"
    if not isinstance(leaf, jax.Array):
        return [("...", here, np.asarray(leaf))]
    shape = leaf.shape
    data = jax.random.key_data(leaf) if is_key(leaf) else leaf
    return [
        (_show(shard.index[: len(shape)], shape), f"{shard.device} of {here}", np.asarray(shard.data))
        for shard in data.addressable_shards
    ]


def _show(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """Returns an index as it is written, `0:4, :`; all of an array is `...`, wherever it lies."""
    parts = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    whole = all(part == (0, size) for part, size in zip(parts, shape, strict=True))
    return "..." if whole else ", ".join(f"{start}:{stop}" for start, stop in parts)
