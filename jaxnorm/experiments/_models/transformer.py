"""A transformer: a norm after every sublayer, and dropout of attention and residual branches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import dropout, dynamic_tanh, init_dynamic_tanh, init_layer_norm, layer_norm, rms_norm
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, classifier, dense, digits, init_dense, largest
from jaxnorm.experiments._models._rows import STEPS, Params, classify, embed, init_params

BLOCKS, WIDTH, HEADS, RATE = 4, 32, 2, 0.1


class Block(NamedTuple):
    """The dense layers of attention and of the feed-forward sublayer; the norm of each sublayer."""

    attention: tuple[Dense, Dense]
    feed_forward: tuple[Dense, Dense]
    norms: Any


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters."""

    def block(key: jax.Array) -> Block:
        sizes = ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH))
        layers = [init_dense(key, *size, gain=1.0) for key, size in zip(jax.random.split(key, 4), sizes, strict=True)]
        norm = init_layer_norm(WIDTH), init_dynamic_tanh(WIDTH).alpha
        return Block((layers[0], layers[1]), (layers[2], layers[3]), jax.tree.map(lambda a: jnp.stack([a, a]), norm))

    return init_params(key, block, BLOCKS, WIDTH), ()


def normed(on: jax.Array, params: Any, x: jax.Array) -> jax.Array:
    """Returns x, or x after layer norm (1), RMS norm (2) or dynamic tanh (3), by the switch."""
    affine, alpha = params
    bounded = dynamic_tanh(init_dynamic_tanh(WIDTH)._replace(alpha=alpha, scale=affine.scale, bias=affine.bias), x)
    return jnp.stack([x, layer_norm(affine, x), rms_norm(affine, x), bounded])[on]


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits of the mean over the places."""

    def drop(key: jax.Array, x: jax.Array) -> jax.Array:
        return dropout(key, x, on[1] * RATE) if train else x

    def block(h: jax.Array, given: tuple[Block, jax.Array]) -> tuple[jax.Array, None]:
        layer, keys = given[0], jax.random.split(given[1], 3)
        first, second = (jax.tree.map(lambda a, i=i: a[i], layer.norms) for i in range(2))
        q, k, v = jnp.split(dense(layer.attention[0], h).reshape(*h.shape[:2], HEADS, -1), 3, -1)
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5)
        y = jnp.einsum("bhts,bshd->bthd", drop(keys[0], weights), v).reshape(h.shape)
        h = normed(on[0], first, h + drop(keys[1], dense(layer.attention[1], y)))
        y = dense(layer.feed_forward[1], jax.nn.relu(dense(layer.feed_forward[0], h)))
        return normed(on[0], second, h + drop(keys[2], y)), None

    h, _ = lax.scan(block, embed(params, x), (params.blocks, jax.random.split(key, BLOCKS)))
    return classify(params, h), stats


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far the layer norms' outputs move as what they are given is doubled and 1 is added."""
    affine, _ = jax.tree.map(lambda a: a[-1, -1], params.blocks.norms)
    h = embed(params, x)
    return largest(jnp.abs(layer_norm(affine, 2 * h + 1) - layer_norm(affine, h)))


MODEL = Model(
    layers={"norm": "layer norm", "noise": "dropout"},
    role="layer norm keeps the stream of the blocks at one size; dropout of 0.1 of weights and of branches regularizes",
    source=(
        'Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, "Attention is all you need", NIPS 2017, '
        "https://arxiv.org/abs/1706.03762"
    ),
    score="test accuracy",
    init=init,
    apply=apply,
    run=classifier(init, apply, lambda key: digits(key, 300, STEPS, 8), invariant),
    steps=200,
    runs={"with": (1, 1), "norm": (0, 1), "noise": (1, 0), "RMS norm": (2, 1), "dynamic tanh": (3, 1)},
)
