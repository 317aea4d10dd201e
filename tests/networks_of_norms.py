"""Deep networks of batch norms as functions, and their statistics in float64 NumPy, layer by layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm

WIDTH = 6


def network(depth: int, seed: int = 0) -> tuple[list[Any], list[jaxnorm.RunningStats]]:
    """Returns parameters of dense layers with batch norm, and their statistics, which are not those of any data."""
    keys = jax.random.split(jax.random.key(seed), depth)
    params = [
        (0.8 * jax.random.normal(key, (WIDTH, WIDTH)), jaxnorm.AffineParams(jnp.full(WIDTH, 1.2), jnp.full(WIDTH, 0.1)))
        for key in keys
    ]
    return params, [jaxnorm.RunningStats(jnp.full(WIDTH, 0.5), jnp.full(WIDTH, 3.0)) for _ in keys]


def update_of(params: list[Any], *, by_stats: bool = False, momentum: float = 0.0) -> Callable[..., Any]:
    """Returns an update of the network, which normalizes by the batch, or by the statistics that it is given."""

    def update(stats: list[jaxnorm.RunningStats], x: jax.Array) -> list[jaxnorm.RunningStats]:
        new = []
        for (kernel, norm), own in zip(params, stats, strict=True):
            x = x @ kernel
            y, _ = jaxnorm.batch_norm(norm, own, x, train=not by_stats, momentum=momentum)
            new.append(jaxnorm.batch_norm(norm, own, x, train=True, momentum=momentum)[1])
            x = jax.nn.relu(y)
        return new

    return update


def oracle(params: list[Any], x: Any, epsilon: float = 1e-5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns mean and variance of each layer's inputs, where those before it normalize by these, in float64."""
    h = np.asarray(x, np.float64).reshape(-1, WIDTH)
    found = []
    for kernel, norm in params:
        h = h @ np.asarray(kernel, np.float64)
        mean, var = h.mean(0), h.var(0)
        found.append((mean, var))
        h = (h - mean) / np.sqrt(var + epsilon) * np.asarray(norm.scale, np.float64) + np.asarray(norm.bias, np.float64)
        h = np.maximum(h, 0)
    return found


def data(batches: int = 5, size: int = 16, seed: int = 9) -> jax.Array:
    """Returns batches that differ from each other."""
    x = jax.random.normal(jax.random.key(seed), (batches, size, WIDTH))
    return x * (1 + jnp.arange(batches, dtype=x.dtype)[:, None, None]) + 2
