"""What the training steps that the lint is judged by share."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

Fault = Literal["", "averages", "parameter", "key", "constant", "repeated", "optimizer", "type", "finite"]

BATCH, INPUTS, HIDDEN, CLASSES = 32, 4, 8, 3


def batch_of_steps() -> tuple[jax.Array, jax.Array]:
    x = np.random.default_rng(0).normal(size=(BATCH, INPUTS)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray((x.sum(1) > 0).astype(np.int32))


def mean_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def random_weights(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.normal(key, shape) / np.sqrt(shape[0])
