"""Dilated convolutions that look back alone, as ByteNet's and SliceNet's: layer norm in every block."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm import init_layer_norm, layer_norm
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, classifier, dense, digits, init_dense, largest, taken

DILATIONS, WIDTH = (1, 2, 4, 8, 16, 32), 16


class Block(NamedTuple):
    """A convolution of two taps, a dense layer, and a norm before each."""

    convolution: Dense
    pointwise: Dense
    norms: tuple[Any, Any]


class Params(NamedTuple):
    """The embedding of a pixel, the blocks, and the classifier."""

    embedding: Dense
    blocks: list[Block]
    classifier: Dense


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters."""
    keys = iter(jax.random.split(key, 2 * len(DILATIONS) + 2))
    blocks = []
    for _ in DILATIONS:
        norms = init_layer_norm(WIDTH), init_layer_norm(WIDTH)
        blocks.append(Block(init_dense(next(keys), 2 * WIDTH, WIDTH), init_dense(next(keys), WIDTH, WIDTH), norms))
    return Params(init_dense(next(keys), 1, WIDTH), blocks, init_dense(next(keys), WIDTH, 10)), ()


def states(on: jax.Array, params: Params, x: jax.Array) -> jax.Array:
    """Returns what is said at every pixel, `[B, T, C]`, of it and those before."""
    h = dense(params.embedding, x)

    def normed(norm: Any, x: jax.Array) -> jax.Array:
        return jax.nn.relu(taken(on[0], layer_norm(norm, x), x))

    for block, dilation in zip(params.blocks, DILATIONS, strict=True):
        y = normed(block.norms[0], h)
        past = jnp.pad(y, ((0, 0), (dilation, 0), (0, 0)))[:, : y.shape[1]]
        h = h + dense(block.pointwise, normed(block.norms[1], dense(block.convolution, jnp.concatenate([past, y], -1))))
    return h


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits of the last pixel."""
    return dense(params.classifier, states(on, params, x)[:, -1]), stats


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far what is said of the first half moves as the second half is flipped: layer norm shares nothing in time."""
    half = x.shape[1] // 2
    flipped = x.at[:, half:].multiply(-1)
    first, second = (states(jnp.array([1, 0]), params, each)[:, :half] for each in (x, flipped))
    return largest(jnp.abs(first - second))


MODEL = Model(
    layers={"norm": "layer norm"},
    role="layer norm in every block keeps a deep stack in range, and unlike batch norm shares nothing between places in time",
    source=(
        'Kalchbrenner, Espeholt, Simonyan, van den Oord, Graves, Kavukcuoglu, "Neural machine translation in linear time", 2016, '
        "https://arxiv.org/abs/1610.10099"
    ),
    score="test accuracy",
    init=init,
    apply=apply,
    run=classifier(init, apply, lambda key: digits(key, 300, 64, 1), invariant, learning_rate=1e-2),
    steps=300,
    runs={"with": (1, 0), "norm": (0, 0)},
)
