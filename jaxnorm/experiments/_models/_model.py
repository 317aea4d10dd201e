"""What a small model says of itself, and what all of them share: dense layers, tasks, training."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._training import accuracy, adam
from jaxnorm.training import TrainState, init_train_state, make_train_step

Draw = Callable[[jax.Array], tuple[Any, Any]]
"""Gives the batch of a key."""


class Model(NamedTuple):
    """A model of the literature that is built on layers of the library.

    Its switches are traced, so that one program trains it with its layers and without. A switch of 0 takes the layer out, 1
    leaves it in, and what other numbers mean the model says.

    Attributes:
      layers: its layers' names, of the `"norm"` and the `"noise"`.
      role: what its layers are there for, and which the publication has.
      source: the publication.
      score: what it is judged by, a share.
      init: `init(key) -> (params, stats)`.
      apply: `apply(on, key, params, stats, x, *, train) -> (outputs, stats)`, with `on` the switches.
      run: `run(key, on, steps)` trains one network and gives its `score`, and by how much an `invariant` of its layers is off.
      steps: of training.
      runs: the switches `(norm, noise)` by what is done: nothing (`"with"`), the norm or the noise taken out or another one.
    """

    layers: Mapping[str, str]
    role: str
    source: str
    score: str
    init: Callable[[jax.Array], tuple[Any, Any]]
    apply: Callable[..., tuple[Any, Any]]
    run: Callable[[jax.Array, jax.Array, int], Mapping[str, jax.Array]]
    steps: int
    runs: Mapping[str, tuple[int, int]]


def taken(on: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Returns y, what a layer makes of x, or x where its switch is off."""
    return jnp.where(on > 0, y, x)


def init_dense(key: jax.Array, fan_in: int, fan_out: int, *, gain: float = 2.0, bias: float = 0.0) -> Dense:
    """Returns a dense layer whose kernel is normal, of variance `gain / fan_in`."""
    return Dense((gain / fan_in) ** 0.5 * jax.random.normal(key, (fan_in, fan_out)), jnp.full(fan_out, bias))


def dense(params: Dense, x: jax.Array) -> jax.Array:
    """Returns what a dense layer makes of x."""
    return x @ params.kernel + params.bias


def patches(x: jax.Array, size: int) -> jax.Array:
    """Returns the neighbourhood of every pixel, `[B, H, W, size^2 C]`, so that a convolution is a dense layer."""
    height, width = x.shape[1:3]
    low = (size - 1) // 2
    x = jnp.pad(x, ((0, 0), (low, size - 1 - low), (low, size - 1 - low), (0, 0)))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    return jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in shifts], -1)


def digits(key: jax.Array, count: int, *shape: int, batch_size: int = 32) -> tuple[Draw, tuple[jax.Array, jax.Array]]:
    """Returns batches of so many digits that the key chooses, of this shape; and all of the test set."""
    (images, labels), (test, test_labels) = load_digits()
    chosen = jax.random.permutation(key, len(images))[:count]
    x, y = jnp.asarray(images).reshape(-1, *shape)[chosen], jnp.asarray(labels)[chosen]

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jax.random.randint(key, (batch_size,), 0, count)
        return x[rows], y[rows]

    return draw, (jnp.asarray(test).reshape(-1, *shape), jnp.asarray(test_labels))


def fit(
    apply: Callable[..., Any],
    key: jax.Array,
    initial: tuple[Any, Any],
    draw: Draw,
    steps: int,
    learning_rate: float,
    **options: Any,
) -> TrainState:
    """Trains a network with Adam and returns its last state; the options are those of `make_train_step`."""
    optimizer = adam(learning_rate, steps)
    step = make_train_step(apply, optimizer, **options)
    train_key, draw_key = jax.random.split(key)
    state = init_train_state(train_key, *initial, optimizer)
    return jax.lax.scan(lambda state, key: (step(state, draw(key))[0], None), state, jax.random.split(draw_key, steps))[0]


def largest(x: jax.Array) -> jax.Array:
    """Returns the largest element; infinity where one is no number, which a maximum on CPUs passes over."""
    return jnp.max(jnp.where(jnp.isnan(x), jnp.inf, x))


def classifier(
    init: Callable[..., Any],
    apply: Callable[..., Any],
    task: Callable[[jax.Array], Any],
    invariant: Callable[..., jax.Array],
    learning_rate: float = 3e-3,
) -> Callable[..., Mapping[str, jax.Array]]:
    """Returns the `run` of a model that classifies; `task(key)` gives training batches and a test batch."""

    def run(key: jax.Array, on: jax.Array, steps: int) -> Mapping[str, jax.Array]:
        data_key, init_key, train_key, own_key = jax.random.split(key, 4)
        draw, (x, labels) = task(data_key)
        model = partial(apply, on)
        state = fit(model, train_key, init(init_key), draw, steps, learning_rate)
        logits, _ = model(state.key, state.params, state.stats, x, train=False)
        return {"score": accuracy(logits, labels), "invariant": invariant(own_key, state.params, state.stats, x)}

    return run
