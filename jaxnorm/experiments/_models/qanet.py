"""Blocks of QANet: layer norm before every sublayer, and dropout of whole sublayers, the more the deeper."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import drop_path, init_layer_norm, layer_norm
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, classifier, dense, digits, init_dense, largest, taken
from jaxnorm.experiments._models._rows import STEPS, Params, classify, embed, init_params
from jaxnorm.schedules import linear_rates

BLOCKS, SUBLAYERS, WIDTH, RATE = 3, 3, 32, 0.1


class Block(NamedTuple):
    """A convolution (a kernel along time for each channel, and a dense layer), attention, feed-forward; norms of all three."""

    taps: jax.Array
    pointwise: Dense
    attention: Dense
    feed_forward: Dense
    norms: Any


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters."""

    def block(key: jax.Array) -> Block:
        keys = jax.random.split(key, 4)
        norms = jax.tree.map(lambda a: jnp.broadcast_to(a, (SUBLAYERS, WIDTH)), init_layer_norm(WIDTH))
        taps = jax.random.normal(keys[0], (3, WIDTH)) / 3**0.5
        pointwise, attention, last = (init_dense(own, WIDTH, size * WIDTH) for own, size in zip(keys[1:], (1, 3, 1), strict=True))
        return Block(taps, pointwise, attention, last, norms)

    return init_params(key, block, BLOCKS, WIDTH), ()


def sublayers(layer: Block, number: int, x: jax.Array) -> jax.Array:
    """Returns what a sublayer makes of x, `[B, T, C]`."""
    if number == 0:
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        near = jnp.stack([padded[:, shift : shift + STEPS] for shift in range(3)])
        return jax.nn.relu(dense(layer.pointwise, jnp.einsum("kbtc,kc->btc", near, layer.taps)))
    if number == 1:
        q, k, v = jnp.split(dense(layer.attention, x), 3, -1)
        return jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / WIDTH**0.5) @ v
    return jax.nn.relu(dense(layer.feed_forward, x))


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits: `h + drop_path(sublayer(norm(h)))` again and again, and the mean over the places."""

    def block(h: jax.Array, given: Any) -> tuple[jax.Array, None]:
        layer, key, rates = given
        for number in range(SUBLAYERS):
            normed = layer_norm(jax.tree.map(lambda a, number=number: a[number], layer.norms), h)
            y = sublayers(layer, number, taken(on[0], normed, h))
            h = h + (drop_path(jax.random.fold_in(key, number), y, on[1] * rates[number]) if train else y)
        return h, None

    rates = jnp.asarray(linear_rates(RATE, BLOCKS * SUBLAYERS, first_is_zero=False)).reshape(BLOCKS, SUBLAYERS)
    h, _ = lax.scan(block, embed(params, x), (params.blocks, jax.random.split(key, BLOCKS), rates))
    return classify(params, h), stats


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far what drop path keeps or drops is not one and the same for a whole example."""
    kept = drop_path(key, jnp.ones((len(x), STEPS, WIDTH)), RATE)
    return largest(jnp.ptp(kept, (1, 2)))


MODEL = Model(
    layers={"norm": "layer norm", "noise": "drop path"},
    role="layer norm gives every sublayer inputs of one size; dropping sublayers, the last at a rate of 0.1, regularizes",
    source=(
        'Yu, Dohan, Luong, Zhao, Chen, Norouzi, Le, "QANet: combining local convolution with global self-attention for reading '
        'comprehension", ICLR 2018, https://arxiv.org/abs/1804.09541'
    ),
    score="test accuracy",
    init=init,
    apply=apply,
    run=classifier(init, apply, lambda key: digits(key, 300, STEPS, 8), invariant),
    steps=200,
    runs={"with": (1, 1), "norm": (0, 1), "noise": (1, 0)},
)
