"""A recurrent highway network: dropout whose masks stay the same over time, or zoneout."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import apply_mask, dropout_mask, locked_dropout, zoneout, zoneout_mean
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, classifier, dense, digits, init_dense, largest

DEPTH, WIDTH, RATE, ZONEOUT = 3, 32, 0.25, 0.15


class Params(NamedTuple):
    """What the input adds to candidate and gate, the dense layers of both in a step, stacked, and the classifier."""

    inputs: Dense
    layers: Dense
    classifier: Dense


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters, with gates that carry the state to begin with."""
    inputs, layers, last = jax.random.split(key, 3)
    stacked = jax.vmap(lambda key: init_dense(key, WIDTH, 2 * WIDTH, gain=1.0))(jax.random.split(layers, DEPTH))
    stacked = stacked._replace(bias=stacked.bias.at[:, WIDTH:].set(-2.0))
    return Params(init_dense(inputs, 8, 2 * WIDTH, gain=1.0), stacked, init_dense(last, WIDTH, 10)), ()


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits of the last state; x is `[B, T, C]`. A switch of 1 is locked dropout, one of 2 zoneout."""
    input_key, state_key, zoneout_key = jax.random.split(key, 3)
    rate, stay = RATE * (on[1] == 1), ZONEOUT * (on[1] == 2)
    x = locked_dropout(input_key, x, rate) if train else x
    masks = dropout_mask(state_key, (DEPTH, len(x), WIDTH), rate)

    def step(state: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        fed, key = given

        def layer(h: jax.Array, given: Any) -> tuple[jax.Array, None]:
            weights, mask, fed = given
            candidate, gate = jnp.split(dense(weights, apply_mask(mask, h, rate) if train else h) + fed, 2, -1)
            gate = jax.nn.sigmoid(gate)
            return gate * jnp.tanh(candidate) + (1 - gate) * h, None

        first = (jnp.arange(DEPTH) == 0)[:, None, None] * fed  # the input enters the first layer of a step alone
        new, _ = lax.scan(layer, state, (params.layers, masks, first))
        return zoneout(key, state, new, stay) if train else zoneout_mean(state, new, stay), None

    fed = jnp.swapaxes(dense(params.inputs, x), 0, 1)
    state, _ = lax.scan(step, jnp.zeros((len(x), WIDTH)), (fed, jax.random.split(zoneout_key, len(fed))))
    return dense(params.classifier, state), stats


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far a locked mask changes in time."""
    return largest(jnp.ptp(locked_dropout(key, jnp.ones_like(x), RATE), 1))


MODEL = Model(
    layers={"noise": "locked dropout"},
    role="dropout of inputs and states regularizes without erasing memory, as an element is dropped at all times or never",
    source=('Zilly, Srivastava, Koutnik, Schmidhuber, "Recurrent highway networks", ICML 2017, https://arxiv.org/abs/1607.03474'),
    score="test accuracy",
    init=init,
    apply=apply,
    run=classifier(init, apply, lambda key: digits(key, 300, 8, 8), invariant),
    steps=500,
    runs={"with": (0, 1), "noise": (0, 0), "zoneout": (0, 2)},
)
