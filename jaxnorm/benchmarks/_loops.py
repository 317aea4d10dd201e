"""A training loop written by hand in Flax and Optax, and `fit`, on the same network, data and optimizer."""

import resource
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm.benchmarks._measure import Program, Rounds, Timing, interleave
from jaxnorm.training import fit, init_train_state, linen_apply, make_train_step, shuffled_batches

CLASSES = 10
_LEARNING_RATE = 1e-3


class Size(NamedTuple):
    """A network and its batches.

    Attributes:
      width: of its convolutions.
      batch: examples in a batch.
      steps: steps that are timed together, an epoch.
    """

    width: int
    batch: int
    steps: int


LOOPS = ("by hand", "fit", "fit, with a progress bar", "fit, 8 steps a dispatch", "fit, with a checkpoint at the end")
SIZES = {"about 1.5 ms": Size(8, 128, 250), "about 50 ms": Size(32, 896, 8)}


class Net(nn.Module):
    """Two convolutions with batch norm, pooling, dropout, a dense layer; of Flax's own layers."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits."""
        for factor in (1, 2):
            x = nn.Conv(factor * self.width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = jnp.mean(x, (1, 2))
        return nn.Dense(CLASSES)(nn.Dropout(0.2, deterministic=not train)(x))


Epoch = Callable[[], float]
"""Trains for an epoch from the start, and returns its mean loss."""


def loops(size: Size) -> dict[str, Epoch]:
    """Returns the loops by their names, that by hand first."""
    net, optimizer = Net(size.width), optax.adam(_LEARNING_RATE)
    rng = np.random.default_rng(0)
    total = size.batch * size.steps
    x = rng.normal(size=(total, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, CLASSES, total).astype(np.int32)
    variables = net.init(jax.random.key(0), x[:2], train=False)
    batches = shuffled_batches(jax.random.key(1), x, labels, batch_size=size.batch, drop_remainder=True)

    @jax.jit
    def initial() -> tuple[Any, ...]:
        # New buffers for each run, since a step is donated them.
        params, stats = (jax.tree.map(jnp.copy, variables[name]) for name in ("params", "batch_stats"))
        return params, stats, optimizer.init(params), jnp.zeros((), jnp.int32)

    key = jax.random.key(2)

    def step(params: Any, stats: Any, opt_state: Any, number: jax.Array, x: jax.Array, labels: jax.Array) -> Any:
        def objective(params: Any) -> tuple[jax.Array, Any]:
            rngs = {"dropout": jax.random.fold_in(key, number)}
            logits, updates = net.apply(
                {"params": params, "batch_stats": stats}, x, train=True, rngs=rngs, mutable=["batch_stats"]
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, (logits, updates["batch_stats"])

        (loss, (logits, new_stats)), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        new = optax.apply_updates(params, updates), new_stats, opt_state, number + 1
        return new, {"loss": loss, "accuracy": accuracy}

    jitted = jax.jit(step, donate_argnums=(0, 1, 2, 3))

    def by_hand() -> float:
        state, metrics = initial(), []
        for batch in batches(0):
            state, found = jitted(*state, *batch)
            metrics.append(found)
        jax.block_until_ready(state)
        return float(np.mean([found["loss"] for found in jax.device_get(metrics)]))

    train_step = make_train_step(linen_apply(net), optimizer)

    def by_fit(progress: bool = False, **options: Any) -> float:
        params, stats, _, _ = initial()
        state, history = fit(
            init_train_state(key, params, stats, optimizer), train_step, batches, epochs=1, progress=progress, **options
        )
        jax.block_until_ready(state)
        return history[-1]["loss"]

    def with_checkpoint() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return by_fit(checkpoints=folder)

    ways = (
        by_hand,
        by_fit,
        lambda: by_fit(progress=True),
        lambda: by_fit(steps_per_dispatch=8),
        with_checkpoint,
    )
    return dict(zip(LOOPS, ways, strict=True))


def time_steps(size: Size, rounds: int) -> dict[str, Timing]:
    """Returns the seconds of a step of each loop, in as many rounds, after one that compiles."""
    programs = {name: Program(epoch, lambda _: None, {}) for name, epoch in loops(size).items()}
    found = interleave(programs, Rounds(1, rounds))
    return {name: timing._replace(samples=tuple(s / size.steps for s in timing.samples)) for name, timing in found.items()}


def peak_memory(size: Size, name: str) -> int:
    """Returns the most bytes that this process has had, once it has trained with one of the loops alone."""
    loops(size)[name]()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
