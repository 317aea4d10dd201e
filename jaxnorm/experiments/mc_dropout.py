"""Dropout that draws at test time spreads where a network has seen no data (Gal and Ghahramani, 2016).

Networks of two hidden layers are trained with dropout on points of a curve, which leave out a gap and what lies beyond them. Then
masks are drawn for a grid that is wider than the data: the standard deviation of the outputs is compared with how far the grid's
points are from data, and with how far the mean is off the curve.

References:
  Gal, Ghahramani, "Dropout as a Bayesian approximation: representing model uncertainty in deep learning", ICML 2016,
  https://arxiv.org/abs/1506.02142.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm import dropout
from jaxnorm._progress import progress_bar
from jaxnorm.experiments import _mc_dropout_report as report
from jaxnorm.experiments._mc_dropout_report import EDGES, Measured
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._report import make_folder
from jaxnorm.uncertainty import mc_predict

OPTIONS = (
    Option("rate", rate_below_one, 0.1, 0.1, "probability of dropping"),
    Option("width", count, 100, 100, "units of a hidden layer"),
    Option("steps", count, 4000, 1500, "steps of training, each with all points"),
    Option("samples", count, 500, 200, "masks that are drawn for a prediction"),
    Option("seeds", count, 5, 2, "number of data sets and initial keys, trained together"),
)

_POINTS = 200
_NOISE = 0.1  # standard deviation of the targets
_REACH = 8.0  # of the grid, to both sides
_LEARNING_RATE = 3e-3  # at first; it ends at 0
_WEIGHT_DECAY = 1e-4
_CHUNKS = 10  # of the training, between which the bar moves

Activation = Callable[[jax.Array], jax.Array]
ARMS: dict[str, Activation] = {"ReLU": jax.nn.relu, "tanh": jnp.tanh}


class Dense(NamedTuple):
    """A dense layer, `x @ kernel + bias`."""

    kernel: jax.Array
    bias: jax.Array


Params = tuple[Dense, Dense, Dense]


def curve(x: jax.Array | np.ndarray) -> jax.Array:
    """Returns what the targets are of, before their noise."""
    return jnp.sin(1.5 * jnp.asarray(x))


def run(
    *, out: str | Path, rate: float = 0.1, width: int = 100, steps: int = 4000, samples: int = 500, seeds: int = 5
) -> dict[str, Measured]:
    """Trains both networks, prints the table, and writes `results.csv`, `results.md` and `mc_dropout.png`.

    Args:
      out: the folder to write to.
      rate: probability of dropping, in [0, 1).
      width: units of a hidden layer.
      steps: steps of training.
      samples: masks that are drawn for a prediction.
      seeds: number of data sets and initial keys.

    Returns:
      What was measured, by the name of the arm.

    Raises:
      ValueError: if the folder cannot be written to.
      WriteError: if a file cannot be written, as on a full disk; the table is printed and the other files written.
    """
    folder = make_folder(Path(out))
    data_keys, init_keys, train_keys, test_keys = (jax.random.split(key, seeds) for key in jax.random.split(jax.random.key(0), 4))
    data = jax.jit(jax.vmap(_points))(data_keys)
    params = jax.jit(jax.vmap(lambda key: _init(key, width)))(init_keys)  # the same for both arms
    grid = jnp.linspace(-_REACH, _REACH, 161)[:, None]
    optimizer = optax.adamw(optax.cosine_decay_schedule(_LEARNING_RATE, steps), weight_decay=_WEIGHT_DECAY)
    chunks = np.array_split(np.arange(steps, dtype=np.int32), min(_CHUNKS, steps))
    measured = {}
    with progress_bar(total=len(ARMS) * len(chunks), unit="chunk") as bar:
        for name, activation in ARMS.items():
            bar.set_description(name)
            train, predict = _make_training(activation, rate, optimizer), _make_prediction(activation, rate, samples, grid)
            state = params, jax.vmap(optimizer.init)(params)
            for chunk in chunks:
                state, loss = train(train_keys, state, data, jnp.asarray(chunk))
                bar.set_postfix(loss=f"{float(loss.mean()):.4f}", refresh=False)
                bar.update()
            mean, std = predict(test_keys, state[0])
            measured[name] = Measured(*jax.device_get((grid[:, 0], curve(grid[:, 0]), *data, mean, std)))
    report.write(folder, measured, {"rate": rate, "width": width, "steps": steps, "samples": samples, "seeds": seeds})
    return measured


def _points(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns points of the curve, on both sides of the gap, and their targets."""
    x_key, side_key, noise_key = jax.random.split(key, 3)
    x = jax.random.uniform(x_key, (_POINTS,), minval=EDGES[0], maxval=EDGES[1])
    x = jnp.where(jax.random.bernoulli(side_key, 0.5, x.shape), x, -x)
    return x, curve(x) + _NOISE * jax.random.normal(noise_key, x.shape)


def _init(key: jax.Array, width: int) -> Params:
    """Returns parameters: weights of variance 2 over the number of inputs, and random biases, so that units bend at many x."""

    def dense(key: jax.Array, fan_in: int, fan_out: int) -> Dense:
        of_kernel, of_bias = jax.random.split(key)
        kernel = jnp.sqrt(2 / fan_in) * jax.random.normal(of_kernel, (fan_in, fan_out))
        return Dense(kernel, jax.random.normal(of_bias, (fan_out,)) if fan_in == 1 else jnp.zeros(fan_out))

    first, second, last = jax.random.split(key, 3)
    return dense(first, 1, width), dense(second, width, width), dense(last, width, 1)


def _forward(activation: Activation, rate: float, key: jax.Array, params: Params, x: jax.Array, *, one_mask: bool) -> jax.Array:
    """Returns the outputs for `x[B, 1]`, `[B, 1]`, with noise on both hidden layers, one mask for all x or for each its own."""
    *hidden, last = params
    for layer, own in zip(hidden, jax.random.split(key), strict=True):
        x = dropout(own, activation(x @ layer.kernel + layer.bias), rate, broadcast_dims=(0,) if one_mask else ())
    return x @ last.kernel + last.bias


def _make_training(activation: Activation, rate: float, optimizer: optax.GradientTransformation) -> Callable:
    def loss(params: Params, key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        outputs = _forward(activation, rate, key, params, x[:, None], one_mask=False)
        return jnp.mean((outputs[:, 0] - y) ** 2) / 2

    @jax.jit
    @jax.vmap
    def chunk(key, state, data, numbers):
        def step(state, number):
            params, of_optimizer = state
            value, gradients = jax.value_and_grad(loss)(params, jax.random.fold_in(key, number), *data)
            updates, of_optimizer = optimizer.update(gradients, of_optimizer, params)
            return (optax.apply_updates(params, updates), of_optimizer), value

        return jax.lax.scan(step, state, numbers)

    return lambda keys, state, data, numbers: chunk(keys, state, data, jnp.broadcast_to(numbers, (keys.shape[0], *numbers.shape)))


def _make_prediction(activation: Activation, rate: float, samples: int, grid: jax.Array) -> Callable:
    @jax.jit
    @jax.vmap
    def predict(key: jax.Array, params: Params) -> tuple[jax.Array, jax.Array]:
        def network(key: jax.Array, x: jax.Array) -> jax.Array:
            return _forward(activation, rate, key, params, x, one_mask=True)[:, 0]

        y = mc_predict(key, network, grid, samples, batch_size=100)
        return jnp.mean(y, 0), jnp.std(y, 0)

    return predict
