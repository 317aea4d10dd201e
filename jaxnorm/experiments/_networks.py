"""Training of several networks of one kind at once, all steps of an epoch in one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm.training import TrainState, init_train_state, make_train_step
from jaxnorm.training.data import Batch
from jaxnorm.training.steps import Apply


def init_networks(keys: jax.Array, params: Any, stats: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the states of several networks before the first step, stacked along the first axis as all arguments are."""

    def init(key: jax.Array, params: Any, stats: Any) -> TrainState:
        return init_train_state(key, params, stats, optimizer)

    return jax.vmap(init)(keys, params, stats)


def make_epoch(
    apply: Apply, optimizer: optax.GradientTransformation, data: Batch, *, batch_size: int, **options: Any
) -> Callable[[TrainState, int], tuple[TrainState, jax.Array]]:
    """Returns a function `run_epoch(networks, epoch) -> (networks, mean loss)` that trains several networks together.

    Every network has its own noise and its own order of the examples. The order depends on the network's number and the epoch
    alone, so that two models are trained on the same batches. Examples that are left over when an epoch's batches are full wait
    for another epoch.

    Args:
      apply: the model, as in `jaxnorm.training.make_train_step`.
      optimizer: any Optax optimizer.
      data: `(x, labels)`, the training set.
      batch_size: number of examples a step.
      **options: of the step: a loss, and schedules.
    """
    x, labels = data
    train_step = make_train_step(apply, optimizer, **options)

    @jax.jit
    @jax.vmap
    def steps(state: TrainState, rows: jax.Array) -> tuple[TrainState, jax.Array]:
        def step(state: TrainState, rows: jax.Array) -> tuple[TrainState, jax.Array]:
            state, metrics = train_step(state, (jnp.asarray(x)[rows], jnp.asarray(labels)[rows]))
            return state, metrics["loss"]

        state, losses = jax.lax.scan(step, state, rows)
        return state, jnp.mean(losses)

    def run_epoch(networks: TrainState, epoch: int) -> tuple[TrainState, jax.Array]:
        rows = np.stack([_order(number, epoch, len(x), batch_size) for number in range(len(networks.step))])
        networks, losses = steps(networks, rows)
        return networks, jnp.mean(losses)

    return run_epoch


def _order(number: int, epoch: int, length: int, batch_size: int) -> np.ndarray:
    """Returns the rows of every batch of an epoch, `[steps, batch_size]`."""
    order = np.random.default_rng([number, epoch]).permutation(length)
    return order[: length // batch_size * batch_size].reshape(-1, batch_size)
