"""A residual network: batch norm in every branch, and drop path of the branches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import batch_norm, drop_path, init_batch_norm
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, classifier, dense, digits, init_dense, taken
from jaxnorm.schedules import linear_rates

BLOCKS, WIDTH, RATE = 16, 32, 0.5


class Block(NamedTuple):
    """A branch: two dense layers, each with its norm."""

    dense: tuple[Dense, Dense]
    norm: tuple[Any, Any]


class Params(NamedTuple):
    """The first layer, the blocks, stacked, and the classifier."""

    first: Dense
    blocks: Block
    classifier: Dense


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters and statistics."""
    keys = jax.random.split(key, 2 + 2 * BLOCKS)
    norm, stats = jax.tree.map(lambda a: jnp.broadcast_to(a, (BLOCKS, WIDTH)), init_batch_norm(WIDTH))
    layers = jax.vmap(jax.vmap(lambda key: init_dense(key, WIDTH, WIDTH)))(keys[2:].reshape(2, BLOCKS))
    blocks = Block(tuple(jax.tree.map(lambda a, i=i: a[i], layers) for i in range(2)), (norm, norm))
    return Params(init_dense(keys[0], 64, WIDTH), blocks, init_dense(keys[1], WIDTH, 10)), (stats, stats)


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits: `h + drop_path(norm(dense(relu(norm(dense(h))))))` again and again."""

    def block(h: jax.Array, given: Any) -> tuple[jax.Array, Any]:
        layer, (first, second), key, rate = given

        def normed(number: int, stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            x = dense(layer.dense[number], x)
            y, stats = batch_norm(layer.norm[number], stats, x, train=train, momentum=0.9)
            return taken(on[0], y, x), stats

        y, first = normed(0, first, h)
        y, second = normed(1, second, jax.nn.relu(y))
        return h + (drop_path(key, y, on[1] * rate) if train else y), (first, second)

    rates = jnp.asarray(linear_rates(RATE, BLOCKS, first_is_zero=False))
    h, stats = lax.scan(block, dense(params.first, x), (params.blocks, stats, jax.random.split(key, BLOCKS), rates))
    return dense(params.classifier, jax.nn.relu(h)), stats


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far logits of training move, of their size, as all kernels before a batch norm double."""
    on = jnp.array([1, 0])
    doubled = params._replace(blocks=params.blocks._replace(dense=jax.tree.map(lambda a: 2 * a, params.blocks.dense)))
    logits, moved = (apply(on, jax.random.clone(key), each, stats, x, train=True)[0] for each in (params, doubled))
    return jnp.linalg.norm(moved - logits) / jnp.linalg.norm(logits)


MODEL = Model(
    layers={"norm": "batch norm", "noise": "drop path"},
    role="batch norm lets the 32 layers train from any scale of the weights; drop path, of later work, regularizes them",
    source='He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, https://arxiv.org/abs/1512.03385',
    score="test accuracy",
    init=init,
    apply=apply,
    run=classifier(init, apply, lambda key: digits(key, 300, 64), invariant),
    steps=300,
    runs={"with": (1, 1), "norm": (0, 1), "noise": (1, 0)},
)
