"""Fractional max-pooling: dropout whose rate rises with depth."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm import dropout
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, classifier, dense, digits, init_dense, largest, patches
from jaxnorm.schedules import linear_rates

SIZES, WIDTHS, RATE = (8, 6, 4, 3), (1, 16, 32, 48), 0.5
Params = list[Dense]


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters: convolutions of 2 x 2, and the classifier of the last map of 3 x 3."""
    keys = jax.random.split(key, len(WIDTHS))
    convolutions = [init_dense(keys[i], 4 * WIDTHS[i], WIDTHS[i + 1]) for i in range(len(WIDTHS) - 1)]
    return [*convolutions, init_dense(keys[-1], SIZES[-1] ** 2 * WIDTHS[-1], 10)], ()


def pool(key: jax.Array, x: jax.Array, size: int) -> jax.Array:
    """Returns maxima of overlapping regions of 2 x 2, of which as many as are wanted begin a step of 1 or 2 after another.

    The steps are in an order that the key draws, of rows and of columns: a map shrinks by a factor between 1 and 2.
    """
    for axis, own in zip((1, 2), jax.random.split(key), strict=True):
        twos, ones = x.shape[axis] - 1 - size, 2 * size - x.shape[axis]
        steps = jnp.array([2] * twos + [1] * ones)
        starts = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(jax.random.permutation(own, steps))])
        x = jnp.maximum(jnp.take(x, starts, axis), jnp.take(x, starts + 1, axis))
    return x


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits. Without training the regions are always the same."""
    for number, rate in enumerate(linear_rates(RATE, len(params))):
        dropout_key, pool_key = jax.random.split(jax.random.fold_in(key if train else jax.random.key(0), number))
        x = dropout(dropout_key, x, on[1] * rate) if train else x
        if number == len(params) - 1:
            return dense(params[-1], x.reshape(len(x), -1)), stats
        x = pool(pool_key, jax.nn.relu(dense(params[number], patches(x, 2))), SIZES[number + 1])
    raise AssertionError


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns by how much the share that dropout leaves misses what its rates, from none to the last one's, rise to."""
    rates = linear_rates(RATE, len(WIDTHS))
    keys = jax.random.split(key, len(rates))
    kept = jnp.stack([jnp.mean(dropout(own, jnp.ones(1_000_000), rate) > 0) for own, rate in zip(keys, rates, strict=True)])
    return largest(jnp.abs(kept - 1 + jnp.array(rates)))


MODEL = Model(
    layers={"noise": "rising dropout"},
    role="dropout regularizes a network whose maps shrink slowly, the more the deeper: 0 at the image, the whole rate at the end",
    source='Graham, "Fractional max-pooling", 2014, https://arxiv.org/abs/1412.6071',
    score="test accuracy",
    init=init,
    apply=apply,
    run=classifier(init, apply, lambda key: digits(key, 100, 8, 8, 1), invariant),
    steps=800,
    runs={"with": (0, 1), "noise": (0, 0)},
)
