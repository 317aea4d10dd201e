"""A highway network: batch norm of what each layer adds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import batch_norm, init_batch_norm
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import Model, classifier, dense, digits, init_dense, taken

DEPTH, WIDTH = 20, 32


class Params(NamedTuple):
    """The first layer; dense layers of candidate and gate, side by side, and their norms, stacked; the classifier."""

    first: Dense
    layers: Dense
    norms: Any
    classifier: Dense


def init(key: jax.Array) -> tuple[Params, Any]:
    """Returns parameters and statistics."""
    first, layers, last = jax.random.split(key, 3)
    kernels = jax.vmap(lambda key: init_dense(key, WIDTH, 2 * WIDTH))(jax.random.split(layers, DEPTH))
    kernels = kernels._replace(bias=kernels.bias.at[:, WIDTH:].set(-2.0))  # gates that carry, to begin with
    norms, stats = jax.tree.map(lambda a: jnp.broadcast_to(a, (DEPTH, WIDTH)), init_batch_norm(WIDTH))
    return Params(init_dense(first, 64, WIDTH), kernels, norms, init_dense(last, WIDTH, 10)), stats


def apply(on: jax.Array, key: jax.Array, params: Params, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns logits: `gate relu(candidate) + (1 - gate) h` again and again."""

    def layer(h: jax.Array, given: Any) -> tuple[jax.Array, Any]:
        kernel, norm, stats = given
        candidate, gate = jnp.split(dense(kernel, h), 2, -1)
        normed, stats = batch_norm(norm, stats, candidate, train=train, momentum=0.9)
        gate = jax.nn.sigmoid(gate)
        return gate * jax.nn.relu(taken(on[0], normed, candidate)) + (1 - gate) * h, stats

    h, stats = lax.scan(layer, dense(params.first, x), (params.layers, params.norms, stats))
    return dense(params.classifier, h), stats


def invariant(key: jax.Array, params: Params, stats: Any, x: jax.Array) -> jax.Array:
    """Returns how far the logits of training move, of their size, as the kernels of all candidates double."""
    on = jnp.array([1, 0])
    doubled = params._replace(layers=jax.tree.map(lambda a: a.at[..., :WIDTH].multiply(2), params.layers))
    logits, moved = (apply(on, key, each, stats, x, train=True)[0] for each in (params, doubled))
    return jnp.linalg.norm(moved - logits) / jnp.linalg.norm(logits)


MODEL = Model(
    layers={"norm": "batch norm"},
    role="batch norm keeps what 20 layers add at one size; the publication has none, as its gates alone carry signals",
    source='Srivastava, Greff, Schmidhuber, "Training very deep networks", NIPS 2015, https://arxiv.org/abs/1507.06228',
    score="test accuracy",
    init=init,
    apply=apply,
    run=classifier(init, apply, lambda key: digits(key, 300, 64), invariant),
    steps=300,
    runs={"with": (1, 0), "norm": (0, 0)},
)
