"""A run of `fit` in one process or in several, for the tests that end it.

`python killed_processes.py FOLDER RESULT PORT COUNT INDEX [MOMENT]` trains with checkpoints in FOLDER, going on from the newest
one, and writes everything it ends with to RESULT (NumPy). Of COUNT processes this is the one of number INDEX; each has one
device, the batch is shared among them, and so is one of the parameters. MOMENT is when it kills itself, as in `killed_run.py`, or
`term:N`: when it sends itself SIGTERM.
"""

import itertools
import os
import signal
import sys

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec
from killed_run import apply, die_at_file, killed_at_batch

import jaxnorm
from jaxnorm.training import (
    Layout,
    connect,
    fit,
    init_train_state,
    latest_step,
    make_eval_step,
    make_train_step,
    ordered_batches,
    shuffled_batches,
)

EPOCHS, EVERY, KEEP = 4, 3, 2


def main() -> None:
    folder, result, port, count, index, *moment = sys.argv[1:]
    with connect(f"127.0.0.1:{port}", int(count), int(index), timeout=120, heartbeat=10):
        train(folder, result, moment[0] if moment else "")


def train(folder: str, result: str, moment: str) -> None:
    watch = killed_at_batch(0)
    if moment.startswith("batch:"):
        watch = killed_at_batch(int(moment.split(":")[1]))
    elif moment.startswith("term:"):
        batches_given, number = itertools.count(1), int(moment.split(":")[1])

        def watch(batch):
            if next(batches_given) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return batch

    elif moment:
        _, *pattern, number = moment.split(":")
        die_at_file(folder, *(pattern or [""]), int(number))

    rng = np.random.default_rng(0)
    x = rng.normal(size=(76, 5)).astype(np.float32) + 2
    labels = np.argmax(x @ rng.normal(size=(5, 3)), axis=1)
    norm, stats = jaxnorm.init_batch_norm(8)
    w, out = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 8), (8, 3)))
    optimizer = optax.adam(0.05)
    state = init_train_state(jax.random.key(3), {"norm": norm, "w": w, "out": out}, stats, optimizer)
    batches = shuffled_batches(
        jax.random.key(4), x, labels, np.ones(len(x), np.float32), batch_size=16, drop_remainder=False, pad_remainder=True
    )
    state, history = fit(
        state,
        make_train_step(apply, optimizer),
        lambda epoch: map(watch, batches(epoch)),
        epochs=EPOCHS,
        layout=Layout(jax.make_mesh((jax.device_count(),), ("data",)), rules=[("params/out", PartitionSpec("data"))]),
        evaluate=make_eval_step(apply),
        eval_batches=ordered_batches(x[:64], labels[:64], batch_size=32),
        checkpoints=folder,
        checkpoint_every=EVERY,
        keep=KEEP,
        resume=latest_step(folder) is not None,
        progress=False,
    )
    state = state._replace(key=jax.random.key_data(state.key))
    leaves = multihost_utils.process_allgather(jax.tree.leaves(state), tiled=True)
    if jax.process_index() == 0:
        rows = np.array([[row[name] for name in sorted(row)] for row in history], np.float64)
        np.savez(result, *leaves, history=rows)


if __name__ == "__main__":
    main()
