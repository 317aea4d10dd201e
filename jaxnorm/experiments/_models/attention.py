"""Attention over the states of a recurrent encoder: dropout of its weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import dropout
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, classifier, dense, digits, init_dense

WIDTH, RATE = 32, 0.3


class Params(NamedTuple):
    """The encoder's inputs and states; what scores a state by a query; the classifier."""

    inputs: Dense
    recurrent: Dense
    query: Dense
    key: Dense
    score: Dense
    classifier: Dense


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters."""
    sizes = ((8, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 1), (2 * WIDTH, 10))
    keys = jax.random.split(key, len(sizes))
    return Params(*(init_dense(key, *size, gain=1.0) for key, size in zip(keys, sizes, strict=True))), ()


def weights(params: Params, states: jax.Array) -> jax.Array:
    """Returns how much the last state attends to each, `[B, T]`, by a perceptron of both (additive attention)."""
    query = dense(params.query, states[:, -1:])
    return jax.nn.softmax(dense(params.score, jnp.tanh(query + dense(params.key, states)))[..., 0])


def encode(params: Params, x: jax.Array) -> jax.Array:
    """Returns the states of a recurrent network, `[B, T, C]`."""

    def step(h: jax.Array, fed: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(fed + dense(params.recurrent, h))
        return h, h

    _, states = lax.scan(step, jnp.zeros((len(x), WIDTH)), jnp.swapaxes(dense(params.inputs, x), 0, 1))
    return jnp.swapaxes(states, 0, 1)


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits of the last state and of what it attends to."""
    states = encode(params, x)
    attended = weights(params, states)
    attended = dropout(key, attended, on[1] * RATE) if train else attended
    context = jnp.einsum("bt,btc->bc", attended, states)
    return dense(params.classifier, jnp.concatenate([context, states[:, -1]], -1)), stats


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far the weights of an example, which dropout leaves in expectation, do not sum to 1: of all masks' mean."""
    attended = weights(params, encode(params, x))
    return jnp.abs(jnp.mean(jnp.sum(dropout(key, jnp.broadcast_to(attended, (100, *attended.shape)), RATE), -1)) - 1)


MODEL = Model(
    layers={"noise": "dropout of weights"},
    role="dropout of the weights keeps an output from resting on one state; later work has it, the publication none",
    source=(
        'Bahdanau, Cho, Bengio, "Neural machine translation by jointly learning to align and translate", ICLR 2015, '
        "https://arxiv.org/abs/1409.0473"
    ),
    score="test accuracy",
    init=init,
    apply=apply,
    run=classifier(init, apply, lambda key: digits(key, 300, 8, 8), invariant),
    steps=500,
    runs={"with": (0, 1), "noise": (0, 0)},
)
