"""Where the arrays of a run lie: a mesh of devices, rules for the state, and batches from each process's own rows."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxnorm._checks import check_type
from jaxnorm.training._agreement import meet
from jaxnorm.training.data import num_examples
from jaxnorm.training.processes import gather
from jaxnorm.training.replicas import check_replicas
from jaxnorm.training.state import PyTree, TrainState, is_key

Rule = tuple[str, PartitionSpec]
_rows: dict[NamedSharding, int] = {}  # of the latest batch, which all processes have agreed on


class Layout(NamedTuple):
    """How a run is laid out over devices: the batch is split, and the state replicated where no rule says otherwise.

    Attributes:
      mesh: the devices of all processes, as from `jax.make_mesh`, with axes of either type, automatic or explicit.
      batch_axes: the axis of the mesh, or the axes, that the examples are split over.
      rules: pairs of a regular expression and a `PartitionSpec`. A leaf of the parameters or the statistics takes the spec of
        the first rule that is found in its path, as `params/Dense_0/kernel` or `stats/BatchNorm_0/mean`; what the optimizer
        keeps of a parameter lies as the parameter does.

    Example:
      >>> import jax
      >>> from jax.sharding import PartitionSpec
      >>> from jaxnorm.training import Layout
      >>> layout = Layout(jax.make_mesh((1, 1), ("data", "model")), rules=[("Dense_.*/kernel", PartitionSpec(None, "model"))])
    """

    mesh: Mesh
    batch_axes: str | tuple[str, ...] = "data"
    rules: Sequence[Rule] = ()


def state_shardings(state: TrainState, layout: Layout) -> TrainState:
    """Returns the sharding of every leaf of a state, as `jax.jit` takes them.

    `jax.jit(step, donate_argnums=0, out_shardings=(state_shardings(state, layout), None))` keeps the state where it lies.

    Args:
      state: a state; only its tree and shapes matter.
      layout: the mesh and the rules.

    Returns:
      A `TrainState` of `NamedSharding`.

    Raises:
      ValueError: if the mesh has no such axis, if a spec does not fit the shape of its leaf, or if a rule is found in no path.
      TypeError: if state or layout are of another type.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jax.sharding import PartitionSpec
      >>> from jaxnorm.training import Layout, init_train_state, state_shardings
      >>> layout = Layout(jax.make_mesh((1,), ("data",)), rules=[("w", PartitionSpec("data"))])
      >>> state = init_train_state(jax.random.key(0), {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}, (), optax.adam(0.1))
      >>> shardings = state_shardings(state, layout)
      >>> shardings.params["w"].spec, shardings.opt_state[0].mu["w"].spec, shardings.params["b"].spec
      (P('data',), P('data',), P())
    """
    check_type("state", state, TrainState)
    _check_layout(layout)
    whole = NamedSharding(layout.mesh, PartitionSpec())
    used: set[str] = set()

    def by_rule(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in layout.rules:
            if re.search(pattern, name):
                used.add(pattern)
                return _fitting(name, leaf, layout.mesh, spec)
        return whole

    ruled = jax.tree.map_with_path(by_rule, {"params": state.params, "stats": state.stats})
    if unused := [pattern for pattern, _ in layout.rules if pattern not in used]:
        raise ValueError(f"rules must each be the first that is found in some path of the state, got {unused[0]!r}, which is not")
    leaves, _ = jax.tree.flatten_with_path(state.params)
    placed = jax.tree.leaves(ruled["params"])
    parameters = {path: (leaf.shape, sharding) for (path, leaf), sharding in zip(leaves, placed, strict=True)}

    def by_parameter(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        """As the parameter whose path this one ends with, if it has its shape, as moments and averages do."""
        for start in range(len(path) + 1):
            shape, sharding = parameters.get(path[start:], (None, whole))
            if shape == leaf.shape:
                return sharding
        return whole

    opt_state = jax.tree.map_with_path(by_parameter, state.opt_state)
    return TrainState(whole, whole, ruled["params"], ruled["stats"], opt_state)  # pyright: ignore[reportArgumentType]


def shard_state(state: TrainState, layout: Layout) -> TrainState:
    """Returns a state on the devices of a mesh, replicated or split as the rules say.

    The given state stays as it is, also where a step is given the buffers of the new one. In several processes, each of which has
    built the same state, all must call it.

    Args:
      state: a state, as from `init_train_state`, or one that lies on a mesh already.
      layout: the mesh and the rules.

    Returns:
      The state, of global arrays.

    Raises:
      ValueError: as in `state_shardings`; or in all processes, if theirs differ in a leaf.
      TypeError: as in `state_shardings`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxnorm.training import Layout, init_train_state, shard_state
      >>> state = init_train_state(jax.random.key(0), jnp.ones((3, 2)), (), optax.adam(0.1))
      >>> state = shard_state(state, Layout(jax.make_mesh((jax.device_count(),), ("data",))))
      >>> state.params.sharding.is_fully_replicated
      True
    """
    shardings = state_shardings(state, layout)
    if len(_processes(layout.mesh)) > 1:
        check_replicas(state)
    return jax.tree.map(_place, state, shardings)


def shard_batch(batch: PyTree, layout: Layout) -> PyTree:
    """Returns a batch on the devices of a mesh, its examples split over `batch_axes`.

    In several processes each gives its own rows: process p of P has rows `[p B / P, (p + 1) B / P)` of the batch of B.

    Args:
      batch: a pytree of arrays whose first axis is that of the examples, `[B, ...]`; in several processes `[B / P, ...]`.
      layout: the mesh.

    Returns:
      The batch, of global arrays `[B, ...]`.

    Raises:
      ValueError: if the devices do not divide the batch; if the mesh has no such axis; if, in several processes, their batches
        differ in size, or the mesh puts a process's devices elsewhere than its rows.

    Example:
      >>> import jax, numpy as np
      >>> from jaxnorm.training import Layout, shard_batch
      >>> layout = Layout(jax.make_mesh((jax.device_count(),), ("data",)))
      >>> x, labels = shard_batch((np.zeros((16, 3)), np.zeros(16, int)), layout)
      >>> x.sharding.spec
      P('data',)
    """
    _check_layout(layout)
    sharding = NamedSharding(layout.mesh, PartitionSpec(layout.batch_axes))
    processes, rows = _processes(layout.mesh), num_examples(batch)
    total = rows * len(processes)
    if len(processes) > 1:
        _check_rows(sharding, rows)
    parts = math.prod(layout.mesh.shape[axis] for axis in _names(layout.batch_axes))
    if total % parts:
        raise ValueError(
            f"batch must have a number of examples that the mesh divides, a multiple of the {parts} devices along "
            f"{layout.batch_axes!r}, got {total}: batches with pad_remainder=True or drop_remainder=True do"
        )
    if len(processes) == 1:
        return jax.device_put(batch, sharding)
    _check_devices(sharding, processes, rows)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a), (total, *a.shape[1:])), batch)


def _check_layout(layout: Layout) -> None:
    check_type("layout", layout, Layout)
    check_type("layout.mesh", layout.mesh, Mesh)
    for pattern, spec in layout.rules:
        if not isinstance(spec, PartitionSpec):
            raise TypeError(f"rules must be pairs of a regular expression and a PartitionSpec, got {spec!r} for {pattern!r}")
    for axis in _names(layout.batch_axes):
        if axis not in layout.mesh.shape:
            raise ValueError(f"batch_axes must be axes of the mesh, {_show(layout.mesh)}, got {axis!r}")


def _names(axes: str | tuple[str, ...]) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _show(mesh: Mesh) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())


def _processes(mesh: Mesh) -> tuple[int, ...]:
    return tuple(sorted({device.process_index for device in mesh.devices.flat}))


def _fitting(name: str, leaf: Any, mesh: Mesh, spec: PartitionSpec) -> NamedSharding:
    """Returns the sharding that a rule gives a leaf, or raises unless it fits; an empty leaf lies whole."""
    if not math.prod(leaf.shape):
        return NamedSharding(mesh, PartitionSpec())
    cause = None
    try:
        sharding = NamedSharding(mesh, spec)
        sharding.shard_shape(leaf.shape)
        if len(spec) <= len(leaf.shape):
            return sharding
    except Exception as error:  # jax's are of several types
        cause = error
    raise ValueError(
        f"rules must fit their leaves: {name} is {leaf.dtype}{list(leaf.shape)}, which {spec!r} cannot split over the mesh "
        f"({_show(mesh)})"
    ) from cause


def _place(leaf: jax.Array, sharding: Sharding) -> jax.Array:
    """Returns an array of its own in a sharding; in several processes, of values that all of them have."""
    if sharding.is_fully_addressable or not leaf.is_fully_addressable:
        return jax.device_put(jnp.copy(leaf), sharding)
    if is_key(leaf):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    value = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: value[index])


def _check_rows(sharding: NamedSharding, rows: int) -> None:
    """Raises unless all processes have as many rows; looked at where the number changes, as it does at the end of an epoch.

    A process whose number changes alone is not waited for for long: the others are in a step that waits for it.
    """
    if _rows.get(sharding) == rows:
        return
    if sharding in _rows:
        meet("a batch of another size than the one before")
    found = gather(rows)
    if len(set(found)) > 1:
        listed = ", ".join(f"{count} in process {number}" for number, count in enumerate(found))
        raise ValueError(f"batch must have as many rows in each process, got {listed}")
    _rows[sharding] = rows


@functools.cache
def _check_devices(sharding: NamedSharding, processes: tuple[int, ...], rows: int) -> None:
    """Raises unless this process has the devices that its rows go to."""
    own = jax.process_index()
    total, start = rows * len(processes), rows * processes.index(own)
    here = (index for device, index in sharding.devices_indices_map((total,)).items() if device.process_index == own)
    held = {row for (part,) in here for row in range(*part.indices(total))}
    if held != set(range(start, start + rows)):
        raise ValueError(
            f"mesh must put rows {start} to {start + rows - 1} of a batch of {total} on devices of process {own}, got rows "
            f"{min(held)} to {max(held)}: batch_axes must go through the processes in their order, as the first axis of "
            "jax.make_mesh does"
        )
