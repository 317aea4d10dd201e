"""Gradient accumulation beside the whole batch at once: time and memory of each choice of statistics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxnorm
from jaxnorm.benchmarks._costs import compile_program
from jaxnorm.benchmarks._measure import Program, Rounds, interleave
from jaxnorm.training import TrainState, init_train_state, make_train_step

MICROBATCHES = 8
CHOICES = {
    "the whole batch at once": {},
    "micro": {"microbatches": MICROBATCHES, "microbatch_stats": "micro"},
    "pooled": {"microbatches": MICROBATCHES, "microbatch_stats": "pooled"},
    "exact": {"microbatches": MICROBATCHES, "microbatch_stats": "exact"},
}
_BATCH, _WIDTH, _CHANNELS, _SIDE, _CLASSES = 4096, 256, 16, 16, 10
NETWORKS = {"perceptron": ("dense", 3), "deep perceptron": ("dense", 8), "convolutions": ("conv", 3)}


def _layer(kind: str, kernel: jax.Array, x: jax.Array) -> jax.Array:
    if kind == "dense":
        return x @ kernel
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _apply(kind: str, key: jax.Array, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns the logits of layers with batch norm and ReLU."""
    new = []
    for kernel, norm, running in zip(params["kernels"], params["norms"], stats, strict=True):
        x, running = jaxnorm.batch_norm(norm, running, _layer(kind, kernel, x), train=train, activation=jax.nn.relu)
        new.append(running)
    return x.mean(tuple(range(1, x.ndim - 1))) @ params["out"], new


def _problem(network: str) -> tuple[Any, TrainState, tuple[jax.Array, jax.Array], optax.GradientTransformation]:
    kind, depth = NETWORKS[network]
    width, shape, window = (_WIDTH, (), ()) if kind == "dense" else (_CHANNELS, (_SIDE, _SIDE), (3, 3))
    batch = _BATCH if kind == "dense" else _BATCH // 16
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) * (2 / np.prod(shape[:-1])) ** 0.5, jnp.float32)

    norms, stats = zip(*(jaxnorm.init_batch_norm(width) for _ in range(depth)), strict=True)
    params = {"kernels": [weight(*window, width, width) for _ in norms], "norms": list(norms), "out": weight(width, _CLASSES)}
    optimizer = optax.sgd(0.1, 0.9)
    state = init_train_state(jax.random.key(0), params, list(stats), optimizer)
    x = jnp.asarray(rng.normal(size=(batch, *shape, width)), jnp.float32)
    return functools.partial(_apply, kind), state, (x, jnp.asarray(rng.integers(0, _CLASSES, batch), jnp.int32)), optimizer


def accumulation(network: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Returns seconds, temporary bytes and seconds of compilation of a training step, by how the batch is gone through.

    `difference` is the largest of parameters and statistics from those of the whole batch, after a step.
    """
    apply, state, batch, optimizer = _problem(network)
    steps = {
        name: compile_program(make_train_step(apply, optimizer, **options), state, batch) for name, options in CHOICES.items()
    }
    programs = {
        name: Program(functools.partial(step.run, state, batch), jax.block_until_ready, {}) for name, step in steps.items()
    }
    times = interleave(programs, Rounds(1, rounds))
    ends = {
        name: jax.tree.leaves((new := step.run(state, batch)[0]).params) + jax.tree.leaves(new.stats)
        for name, step in steps.items()
    }
    whole = ends["the whole batch at once"]
    return {
        name: step.costs
        | {
            "seconds": times[name].median,
            "difference": max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(ends[name], whole, strict=True)),
        }
        for name, step in steps.items()
    }
