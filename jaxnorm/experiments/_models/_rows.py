"""Networks of a digit's rows, one after another: what comes before their blocks and after them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._models._model import dense, init_dense

STEPS = 8


class Params(NamedTuple):
    """The embedding of a row, that of its place, the blocks, stacked, and the classifier."""

    embedding: Dense
    places: jax.Array
    blocks: Any
    classifier: Dense


def init_params(key: jax.Array, block: Callable[[jax.Array], Any], blocks: int, width: int) -> Params:
    """Returns parameters, those of so many blocks by `block(key)`."""
    keys = jax.random.split(key, 4)
    places = jax.random.normal(keys[1], (STEPS, width))
    stacked = jax.vmap(block)(jax.random.split(keys[2], blocks))
    return Params(init_dense(keys[0], 8, width), places, stacked, init_dense(keys[3], width, 10))


def embed(params: Params, x: jax.Array) -> jax.Array:
    """Returns what the blocks are given, `[B, T, C]`."""
    return dense(params.embedding, x) + params.places


def classify(params: Params, h: jax.Array) -> jax.Array:
    """Returns logits of the mean over the places."""
    return dense(params.classifier, h.mean(1))
