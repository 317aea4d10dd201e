"""A training run for the tests that kill it: `python killed_run.py FOLDER RESULT KIND [MOMENT]`.

It trains with checkpoints in FOLDER, going on from the newest one, and writes everything it ends with to RESULT (NumPy). KIND is
that of its batches, `function` or `iterator`. MOMENT is when it kills itself with SIGKILL: `batch:N`, when it asks for the Nth
batch that this process takes; or `file:N` or `file:PATTERN:N`, just before the Nth of its operations on files in FOLDER (of those
that match).
"""

import itertools
import os
import re
import signal
import sys

import jax
import numpy as np
import optax

import jaxnorm
from jaxnorm.training import (
    fit,
    init_train_state,
    latest_step,
    make_eval_step,
    make_train_step,
    ordered_batches,
    shuffled_batches,
)

EPOCHS, STEPS, EVERY, KEEP = 4, 5, 3, 2
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_file(folder: str, pattern: str, number: int) -> None:
    """Kills this process just before an operation on a file in the folder."""
    counter = itertools.count(1)

    def watch(event: str, arguments: tuple) -> None:
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(folder + "/"):
            return
        if re.search(pattern, f"{event} {arguments[0]} {arguments[1]}") and next(counter) == number:
            die()

    sys.addaudithook(watch)


class Stream:
    """An iterator over batches that tells and takes its position."""

    def __init__(self, x, labels):
        self.x, self.labels, self.position = x, labels, 0

    def __iter__(self):
        return self

    def __next__(self):
        rows = np.random.default_rng(self.position).integers(len(self.x), size=18)
        self.position += 1
        return self.x[rows], self.labels[rows]

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def killed_at_batch(number: int):
    """Wraps batches so that asking for this one kills the process."""
    counter = itertools.count(1)

    def count(batch):
        if next(counter) == number:
            die()
        return batch

    return count


def apply(key, params, stats, x, *, train):
    hidden, stats = jaxnorm.batch_norm(params["norm"], stats, x @ params["w"], train=train, momentum=0.9)
    hidden = jax.nn.relu(hidden)
    return (jaxnorm.dropout(key, hidden, 0.3) if train else hidden) @ params["out"], stats


def main() -> None:
    folder, result, kind, *moment = sys.argv[1:]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 5)).astype(np.float32) + 2
    labels = np.argmax(x @ rng.normal(size=(5, 3)), axis=1)
    norm, stats = jaxnorm.init_batch_norm(7)
    w, out = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 7), (7, 3)))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, EPOCHS * STEPS))
    state = init_train_state(jax.random.key(3), {"norm": norm, "w": w, "out": out}, stats, optimizer)

    die_at_batch = killed_at_batch(0)
    if moment and moment[0].startswith("batch:"):
        die_at_batch = killed_at_batch(int(moment[0].split(":")[1]))
    elif moment:
        _, *pattern, number = moment[0].split(":")
        die_at_file(folder, *(pattern or [""]), int(number))

    if kind == "iterator":
        batches = Stream(x, labels)
        inner = Stream.__next__
        Stream.__next__ = lambda self: die_at_batch(inner(self))
    else:
        shuffled = shuffled_batches(jax.random.key(4), x, labels, batch_size=18, drop_remainder=True)
        batches = lambda epoch: (die_at_batch(batch) for batch in shuffled(epoch))  # noqa: E731

    state, history = fit(
        state,
        make_train_step(apply, optimizer),
        batches,
        epochs=EPOCHS,
        steps_per_epoch=STEPS,
        evaluate=make_eval_step(apply),
        eval_batches=ordered_batches(x, labels, batch_size=45),
        checkpoints=folder,
        checkpoint_every=EVERY,
        keep=KEEP,
        resume=latest_step(folder) is not None,
        progress=False,
    )
    leaves = jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))
    rows = np.array([[row[name] for name in sorted(row)] for row in history], np.float64)
    np.savez(result, *leaves, history=rows)


if __name__ == "__main__":
    main()
