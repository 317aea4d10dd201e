"""Training of several networks of one kind at once, many steps in one compiled program."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm.training import TrainState, init_train_state, make_train_step
from jaxnorm.training.data import Batch

_CHUNKS = 10
"""Into how many parts training is divided where nothing is recorded, so that progress is seen."""


_COMPILER = {"xla_backend_optimization_level": 1}
"""Compiles in a third less time than the default, and what is compiled is as fast: its time is in products of matrices."""


def over_seeds(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of one seed as a compiled function of all: of arrays that are stacked along the first axis."""
    return jax.jit(jax.vmap(function), compiler_options=_COMPILER)


def grid(keys: jax.Array, values: Any) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values of a network for every seed and value; `ungrid` puts what they give into `[seeds, values, ...]`."""
    values = jnp.asarray(values)
    return jnp.repeat(keys, len(values), axis=0), jnp.tile(values, len(keys))


def ungrid(tree: Any, count: int) -> Any:
    """Returns arrays of networks from `grid`, `[seeds * count, ...]`, as `[seeds, count, ...]`."""
    return jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]), tree)


def train(
    apply: Callable[..., Any],
    optimizer: Any,
    keys: jax.Array,
    initial: tuple[Any, Any],
    data: Batch,
    *,
    steps: int,
    batch_size: int,
    progress: Callable[[float], None] = lambda share: None,
    share: float = 1.0,
    record: Callable[[TrainState], Mapping[str, jax.Array]] | None = None,
    every: int | None = None,
    each: Any = None,
    order: Callable[[int], np.ndarray] | None = None,
    **options: Any,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Trains networks, one for each key.

    Every network has its own noise and its own order of the examples, which depends on its number alone: two arms are trained
    on the same batches. An epoch's examples that fill no batch wait for another epoch.

    Args:
      apply: the model, as in `jaxnorm.training.make_train_step`; with `each`, a function that makes it of one network's part.
      optimizer: any Optax optimizer; with `each`, likewise.
      keys: of the runs.
      initial: `(params, stats)` of all networks, stacked along the first axis.
      data: `(x, labels)`, the training set.
      steps: number of steps.
      batch_size: number of examples a step.
      progress: called with the share of the work that is done since; in all, `share`.
      share: what this training is of the arm's work.
      record: what is measured of a network's state, `record(state)`, every so many steps.
      every: how many steps.
      each: what differs between the networks, as learning rates: a tree of arrays that are stacked along the first axis.
      order: `order(number)` gives the rows of every batch of a network, `[steps, batch_size]`; by default epochs that are
        shuffled anew.
      **options: of `make_train_step`: a loss, schedules.

    Returns:
      The last states; and what was recorded, stacked along the second axis, with each step's `loss`, `[networks, steps]`.
    """
    x, labels = (jnp.asarray(part) for part in data)
    of_network = (lambda given, _: given) if each is None else (lambda given, own: given(own))
    each = jnp.zeros(len(keys)) if each is None else each

    @over_seeds
    def init(key: jax.Array, params: Any, stats: Any, own: Any) -> TrainState:
        return init_train_state(key, params, stats, of_network(optimizer, own))

    take = order or (lambda number: shuffled(number, len(x), steps, batch_size))
    rows = np.stack([take(number) for number in range(len(keys))]).astype(np.int32)
    every = every or max(1, steps // _CHUNKS)

    @over_seeds
    def run(state: TrainState, rows: jax.Array, own: Any) -> tuple[TrainState, Any]:
        step = make_train_step(of_network(apply, own), of_network(optimizer, own), **options)

        def one(state: TrainState, rows: jax.Array) -> tuple[TrainState, jax.Array]:
            state, metrics = step(state, (x[rows], labels[rows]))
            return state, metrics["loss"]

        state, losses = jax.lax.scan(one, state, rows)
        return state, (losses, {} if record is None else dict(record(state)))

    state, losses, records = init(keys, *initial, each), [], []
    for start in range(0, steps, every):
        state, (loss, recorded) = run(state, rows[:, start : start + every], each)
        losses.append(loss)
        records.append(recorded)
        jax.block_until_ready(loss)
        progress(share * min(every, steps - start) / steps)
    history = jax.tree.map(lambda *parts: jnp.stack(parts, 1), *records)
    return state, {**history, "loss": jnp.concatenate(losses, 1)}


def accuracy(logits: jax.Array, labels: Any) -> jax.Array:
    """Returns the share of examples whose largest output is that of their label."""
    return jnp.mean(jnp.argmax(logits, -1) == labels, dtype=jnp.float32)


def recorded(steps: int, times: int) -> np.ndarray:
    """Returns the steps after which `train` records that does so every `steps // times` ones: about so many times."""
    every = max(1, steps // times)
    return np.minimum(np.arange(every, steps + every, every), steps)


def shuffled(number: int, length: int, steps: int, batch_size: int) -> np.ndarray:
    """Returns the rows of every batch of the network of this number, `[steps, batch_size]`, epoch after epoch."""
    random = np.random.default_rng(number)
    per_epoch = length // batch_size
    epochs = -(-steps // per_epoch)
    rows = [random.permutation(length)[: per_epoch * batch_size].reshape(-1, batch_size) for _ in range(epochs)]
    return np.concatenate(rows)[:steps]


def adam(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Returns Adam with a learning rate that ends at 0 along a cosine; flattened, as one array compiles faster than twelve."""
    return optax.flatten(optax.adam(optax.cosine_decay_schedule(learning_rate, steps)))
