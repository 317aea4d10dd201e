"""A network in network: dropout between its blocks, and a mean of each class's map at the end."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm import dropout
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, classifier, dense, digits, init_dense, largest, patches

WIDTH, RATE = 24, 0.5
Params = list[list[Dense]]


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters: of each block a convolution of 3 x 3 and one of 1 x 1, the perceptron that it slides over the image."""
    sizes = (((9, WIDTH), (WIDTH, WIDTH)), ((9 * WIDTH, WIDTH), (WIDTH, WIDTH)), ((9 * WIDTH, WIDTH), (WIDTH, 10)))
    keys = iter(jax.random.split(key, 6))
    return [[init_dense(next(keys), *size) for size in block] for block in sizes], ()


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits, the means of the last block's maps."""
    for number, (spatial, pointwise) in enumerate(params):
        if number:
            size = x.shape[1] // 2
            x = x.reshape(len(x), size, 2, size, 2, WIDTH).max((2, 4))
            x = dropout(jax.random.fold_in(key, number), x, on[1] * RATE) if train else x
        x = dense(pointwise, jax.nn.relu(dense(spatial, patches(x, 3))))
        x = jax.nn.relu(x) if number < 2 else x
    return x.mean((1, 2)), stats


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far dropout's output is from what it is given over the probability to keep, where it is not 0."""
    y = dropout(key, x, RATE)
    return largest(jnp.abs(jnp.where(y == 0, 0, (1 - RATE) * y - x)))


MODEL = Model(
    layers={"noise": "dropout"},
    role="dropout between the blocks of convolutions regularizes them; the means at the end have no weights that overfit",
    source='Lin, Chen, Yan, "Network in network", ICLR 2014, https://arxiv.org/abs/1312.4400',
    score="test accuracy",
    init=init,
    apply=apply,
    run=classifier(init, apply, lambda key: digits(key, 100, 8, 8, 1), invariant),
    steps=800,
    runs={"with": (0, 1), "noise": (0, 0)},
)
