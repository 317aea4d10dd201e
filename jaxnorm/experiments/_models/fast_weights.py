"""Fast weights: layer norm inside the recurrence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import init_layer_norm, layer_norm
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Draw, Model, classifier, dense, init_dense, largest, taken

SYMBOLS, PAIRS, WIDTH, DECAY, RATE = 10, 4, 32, 0.95, 0.5


class Params(NamedTuple):
    """What a pair adds, what the state adds, the norm, and the classifier."""

    inputs: Dense
    recurrent: jax.Array
    norm: Any
    classifier: Dense


def task(key: jax.Array) -> tuple[Draw, tuple[jax.Array, jax.Array]]:
    """Returns sequences of pairs of a letter and a digit, one pair a step, and then a letter: its digit is asked for."""

    def draw(key: jax.Array, size: int = 64) -> tuple[jax.Array, jax.Array]:
        letter_key, digit_key, query_key = jax.random.split(key, 3)
        letters = jax.vmap(lambda key: jax.random.permutation(key, SYMBOLS))(jax.random.split(letter_key, size))[:, :PAIRS]
        numbers = jax.random.randint(digit_key, (size, PAIRS), 0, SYMBOLS)
        asked = jax.random.randint(query_key, (size, 1), 0, PAIRS)
        pairs = jnp.concatenate([jax.nn.one_hot(letters, SYMBOLS), jax.nn.one_hot(numbers, SYMBOLS)], -1)
        query = jax.nn.one_hot(jnp.take_along_axis(letters, asked, 1), 2 * SYMBOLS)
        return jnp.concatenate([pairs, query], 1), jnp.take_along_axis(numbers, asked, 1)[:, 0]

    return draw, draw(key, 500)


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters, with the identity for the state as in the publication."""
    inputs, last = jax.random.split(key)
    dense_inputs = init_dense(inputs, 2 * SYMBOLS, WIDTH, gain=2.0 * SYMBOLS)  # of one or two ones
    return Params(dense_inputs, 0.5 * jnp.eye(WIDTH), init_layer_norm(WIDTH), init_dense(last, WIDTH, SYMBOLS)), ()


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits of the last state: `h = relu(norm(slow + A h))`, `A` a decaying sum of the past states' outer products."""

    def step(carry: tuple[jax.Array, jax.Array], fed: jax.Array) -> tuple[Any, None]:
        h, fast = carry
        slow = h @ params.recurrent + fed

        def normed(x: jax.Array) -> jax.Array:
            return jax.nn.relu(taken(on[0], layer_norm(params.norm, x), x))

        h = normed(slow)
        h = normed(slow + jnp.einsum("bij,bj->bi", fast, h))
        return (h, DECAY * fast + RATE * h[:, :, None] * h[:, None]), None

    start = jnp.zeros((len(x), WIDTH)), jnp.zeros((len(x), WIDTH, WIDTH))
    (h, _), _ = lax.scan(step, start, jnp.swapaxes(dense(params.inputs, x), 0, 1))
    return dense(params.classifier, h), stats


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far the norm's output moves as what it is given grows a hundredfold."""
    h = dense(params.inputs, x[:, 0])
    return largest(jnp.abs(layer_norm(params.norm, 100 * h) - layer_norm(params.norm, h)))


MODEL = Model(
    layers={"norm": "layer norm"},
    role="layer norm bounds states that multiply themselves through the fast weights",
    source=(
        'Ba, Hinton, Mnih, Leibo, Ionescu, "Using fast weights to attend to the recent past", NIPS 2016, '
        "https://arxiv.org/abs/1610.06258"
    ),
    score="recall",
    init=init,
    apply=apply,
    run=classifier(init, apply, task, invariant, learning_rate=1e-2),
    steps=1000,
    runs={"with": (1, 0), "norm": (0, 0)},
)
