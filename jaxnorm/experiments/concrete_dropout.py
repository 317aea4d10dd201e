"""Concrete dropout learns a rate that falls as there are more data, as what a network does not know does (Gal et al., 2017).

Networks of one shape learn y = 2 x + 8 + e, with standard normal x and e, from 10 to 10,000 examples: its mean and the variance
of e for every x, with concrete dropout of each hidden layer's activations. Compared are the rates that they end with, the
standard deviation of the noise that they see in the data, and that of their own means over draws of the dropout.

References:
  Gal, Hron, Kendall, "Concrete dropout", NIPS 2017, https://arxiv.org/abs/1705.07832. The data are those of the authors'
  notebook, which has layers of 1,024 units, and drops from x too.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm import ConcreteDropoutParams, concrete_dropout, init_concrete_dropout
from jaxnorm._progress import progress_bar
from jaxnorm.experiments import _concrete_dropout_report as report
from jaxnorm.experiments._concrete_dropout_report import Measured
from jaxnorm.experiments._networks import init_networks
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._report import make_folder
from jaxnorm.training import TrainState, make_train_step

OPTIONS = (
    Option("width", count, 48, 48, "units of a hidden layer"),
    Option("steps", count, 6000, 3000, "training steps, of 64 examples each"),
    Option("seeds", count, 3, 2, "number of initial keys and data sets, trained together"),
)

SIZES = (10, 100, 1000, 10_000)

_DEPTH = 3
_BATCH_SIZE = 64
_LEARNING_RATE = 1e-2  # at first; it ends at 0
_LENGTH_SCALE = 1e-4
_CHUNKS = 20  # of the steps, for the progress bar
_DRAWS = 64


class Params(NamedTuple):
    """Kernels and biases of all dense layers, and the rates of the dropout before each but the first."""

    kernels: list[jax.Array]
    biases: list[jax.Array]
    rates: list[ConcreteDropoutParams]


def run(*, out: str | Path, width: int = 48, steps: int = 6000, seeds: int = 3) -> Measured:
    """Trains networks on every number of examples, prints the table, and writes `results.csv`, `results.md` and a picture.

    Args:
      out: the folder to write to.
      width: units of a hidden layer.
      steps: training steps.
      seeds: number of initial keys and data sets.

    Returns:
      What was measured, with the numbers of examples along the first axis and the seeds along the second.

    Raises:
      ValueError: if the folder cannot be written to.
      WriteError: if a file cannot be written, as on a full disk; the table is printed and the other files written.
    """
    folder = make_folder(Path(out))
    sizes, numbers = (part.ravel() for part in np.meshgrid(SIZES, np.arange(seeds), indexing="ij"))

    @jax.jit
    @jax.vmap
    def start(seed: jax.Array) -> tuple[jax.Array, jax.Array, Params, tuple[jax.Array, jax.Array]]:
        init_key, train_key, measure_key, *data_keys = jax.random.split(jax.random.key(seed), 5)
        x, noise = (jax.random.normal(key, (max(SIZES), 1)) for key in data_keys)
        return train_key, measure_key, _init(init_key, width), (x, 2 * x + 8 + noise)

    train_keys, measure_keys, params, data = start(numbers)
    optimizer = optax.flatten(optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps)))
    networks = init_networks(train_keys, params, jnp.asarray(sizes), optimizer)
    step = make_train_step(_apply, optimizer, loss=_loss)

    @jax.jit
    @jax.vmap
    def train(state: TrainState, data: Any, numbers: jax.Array) -> TrainState:
        def one(state: TrainState, number: jax.Array) -> tuple[TrainState, None]:
            rows_key = jax.random.fold_in(jax.random.fold_in(state.key, number), 1)
            rows = jax.random.randint(rows_key, (_BATCH_SIZE,), 0, state.stats)  # of as many as this network may see
            return step(state, jax.tree.map(lambda a: a[rows], data))[0], None

        return jax.lax.scan(one, state, numbers)[0]

    with progress_bar(total=steps, unit="step") as bar:
        for part in np.array_split(np.arange(steps), min(_CHUNKS, steps)):
            networks = train(networks, data, np.broadcast_to(part, (len(sizes), len(part))))
            jax.block_until_ready(networks.params)
            bar.update(len(part))
    flat = jax.device_get(jax.jit(jax.vmap(_measure))(measure_keys, networks.params))
    measured = jax.tree.map(lambda a: a.reshape(len(SIZES), seeds, *a.shape[1:]), flat)
    report.write(folder, SIZES, measured, {"width": width, "steps": steps, "seeds": seeds})
    return measured


def _init(key: jax.Array, width: int) -> Params:
    widths = [1, *[width] * _DEPTH, 2]
    he = jax.nn.initializers.he_normal()
    kernels = [he(key, shape) for key, *shape in zip(jax.random.split(key, _DEPTH + 1), widths, widths[1:], strict=False)]
    return Params(kernels, [jnp.zeros(n) for n in widths[1:]], [init_concrete_dropout() for _ in range(_DEPTH)])


def forward(key: jax.Array, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and logarithm of the variance of y, `[B, 2]`, for one draw, and the sum of the regularizers."""
    h, total = x @ params.kernels[0] + params.biases[0], jnp.zeros(())
    layers = zip(jax.random.split(key, _DEPTH), params.rates, params.kernels[1:], params.biases[1:], strict=True)
    for layer_key, rate, kernel, bias in layers:
        h, regularizer = concrete_dropout(layer_key, rate, jax.nn.relu(h), kernel=kernel, length_scale=_LENGTH_SCALE)
        h, total = h @ kernel + bias, total + regularizer
    return h, total


def _apply(key: jax.Array, params: Params, size: jax.Array, x: jax.Array, *, train: bool) -> tuple[Any, jax.Array]:
    """The network as `jaxnorm.training` takes it; the number of examples is its state, and never changes."""
    outputs, regularizer = forward(key, params, x)
    return (outputs, regularizer / size), size


def _loss(outputs: tuple[jax.Array, jax.Array], y: jax.Array) -> jax.Array:
    """Minus the log-likelihood of each example, and the regularizers over the number of examples."""
    moments, regularizer = outputs
    mean, log_var = jnp.split(moments, 2, 1)
    return ((y - mean) ** 2 * jnp.exp(-log_var) + log_var)[:, 0] / 2 + regularizer


def _measure(key: jax.Array, params: Params) -> Measured:
    """Over x at the quantiles of its distribution, and draws of the dropout."""
    x = jax.scipy.stats.norm.ppf((jnp.arange(200) + 0.5) / 200)[:, None]
    outputs, _ = jax.vmap(forward, (0, None, None))(jax.random.split(key, _DRAWS), params, x)
    means, log_vars = outputs[..., 0], outputs[..., 1]
    rates = jnp.stack([jax.nn.sigmoid(rate.logit) for rate in params.rates])
    error = jnp.sqrt(jnp.mean((means.mean(0) - 2 * x[:, 0] - 8) ** 2))
    return Measured(rates, jnp.sqrt(jnp.mean(jnp.exp(log_vars))), jnp.sqrt(jnp.mean(jnp.var(means, 0))), error)
