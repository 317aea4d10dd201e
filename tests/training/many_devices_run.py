"""A training run that may be laid out over devices and processes in any way, and ends with the same numbers.

`python many_devices_run.py RESULT EPOCHS AXIS_TYPE COORDINATOR PROCESSES PROCESS DEVICES` is one of several processes, with so
many devices of its own; process 0 writes RESULT (NumPy): the losses, parameters, statistics, and the masks of dropout.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

import jaxnorm
from jaxnorm.experiments._digits import load_digits
from jaxnorm.training import (
    Layout,
    check_replicas,
    connect,
    fit,
    init_train_state,
    make_train_step,
    shard_batch,
    shuffled_batches,
)

BATCH_SIZE = 128


def forward(key: jax.Array, params: Any, stats: Any, x: Any, *, train: bool) -> tuple[jax.Array, Any, list[jax.Array]]:
    """Two convolutions with batch norm and dropout: outputs, statistics, and the masks."""
    hidden, counted = x
    counted, masks, new = counted.reshape(-1, 1, 1, 1), [], []
    for number, (kernel, norm) in enumerate(zip(params["conv"], params["norm"], strict=True)):
        shape = ("NHWC", "HWIO", "NHWC")
        hidden = jax.lax.conv_general_dilated(hidden, kernel, (number + 1,) * 2, "SAME", dimension_numbers=shape)
        hidden, moved = jaxnorm.batch_norm(norm, stats[number], hidden, train=train, where=counted)
        mask = jaxnorm.dropout(jax.random.fold_in(key, number), jnp.ones_like(hidden), 0.2)
        hidden = jax.nn.relu(hidden) * mask
        masks.append(mask)
        new.append(moved)
    return hidden.mean((1, 2)) @ params["out"], tuple(new), masks


def apply(key: jax.Array, params: Any, stats: Any, x: Any, *, train: bool) -> tuple[jax.Array, Any]:
    return forward(key, params, stats, x, train=train)[:2]


def run(mesh: Mesh, epochs: int, *, split_parameters: bool = False) -> dict[str, np.ndarray]:
    """Trains, in each process on its rows of every batch."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)  # noqa: E731
    norms, stats = zip(*(jaxnorm.init_batch_norm(channels) for channels in (8, 16)), strict=True)
    params = {"conv": [draw(3, 3, 1, 8), draw(3, 3, 8, 16)], "norm": norms, "out": draw(16, 10)}
    optimizer = optax.adam(0.01)
    rules = [("params/conv", jax.P(None, None, None, "data"))] if split_parameters else ()
    layout = Layout(mesh, rules=rules)
    (images, labels), _ = load_digits()
    ones = np.ones(len(images), np.float32)
    batches = shuffled_batches(
        jax.random.key(2),
        (images.reshape(-1, 8, 8, 1), ones > 0),
        labels,
        ones,
        batch_size=BATCH_SIZE,
        drop_remainder=False,
        pad_remainder=True,
    )
    losses = []
    state, _ = fit(
        init_train_state(jax.random.key(1), params, stats, optimizer),
        make_train_step(apply, optimizer),
        batches,
        epochs=epochs,
        layout=layout,
        after_steps={1: lambda status: losses.append(status.metrics["loss"])},
        progress=False,
    )
    check_replicas(state)
    *_, last = batches(0)
    (x, _, _), key = shard_batch(last, layout), jax.random.fold_in(state.key, state.step)
    masks = jax.jit(lambda state, key, x: forward(key, state.params, state.stats, x, train=True)[2])(state, key, x)
    whole = lambda tree: [multihost_utils.process_allgather(a, tiled=True) for a in jax.tree.leaves(tree)]  # noqa: E731
    found = {"losses": [np.array(losses)], "params": whole(state.params), "stats": whole(state.stats)}
    return {
        f"{name}/{i}": np.asarray(a) for name, parts in (found | {"masks": whole(masks)}).items() for i, a in enumerate(parts)
    }


def main() -> None:
    result, epochs, axis_type, devices, coordinator, processes, process = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    with connect(coordinator, int(processes), int(process), heartbeat=10):
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType[axis_type],))
        found = run(mesh, int(epochs))
        if jax.process_index() == 0:
            np.savez(result, **found)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
