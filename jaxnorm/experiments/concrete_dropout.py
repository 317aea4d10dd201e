"""Concrete dropout learns a rate that falls as there are more data, as what a network does not know does (Gal et al., 2017)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import ConcreteDropoutParams, concrete_dropout, init_concrete_dropout
from jaxnorm.experiments._experiment import (
    Axis,
    Bound,
    Experiment,
    Found,
    Lines,
    Options,
    Part,
    Quantity,
    at_least,
    at_most,
    measure_together,
    together,
)  # fmt: skip
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._training import adam, grid, over_seeds, train, ungrid

_LAYERS = "layer 1", "layer 2", "layer 3"
_DATA, _NETWORK, _ERROR = "noise of the data (true: 1)", "noise of the network", "error of its mean"
_LENGTH_SCALE, _DRAWS, _BATCH = 1e-4, 64, 64


def sizes(options: Options) -> np.ndarray:
    """Returns the numbers of examples, from 10 to the largest."""
    return np.geomspace(10, options.examples, 4).round().astype(int)


class Params(NamedTuple):
    """Kernels and biases of all dense layers, and the rates of the dropout before each but the first."""

    kernels: list[jax.Array]
    biases: list[jax.Array]
    rates: list[ConcreteDropoutParams]


def init(key: jax.Array, width: int) -> Params:
    """Returns initial parameters."""
    widths = [1, *[width] * len(_LAYERS), 2]
    he = jax.nn.initializers.he_normal()
    kernels = [he(key, shape) for key, *shape in zip(jax.random.split(key, len(widths) - 1), widths, widths[1:], strict=False)]
    return Params(kernels, [jnp.zeros(n) for n in widths[1:]], [init_concrete_dropout() for _ in _LAYERS])


def forward(key: jax.Array, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and logarithm of the variance of y, `[B, 2]`, for one draw, and the sum of the regularizers."""
    h, total = x @ params.kernels[0] + params.biases[0], jnp.zeros(())
    layers = zip(jax.random.split(key, len(_LAYERS)), params.rates, params.kernels[1:], params.biases[1:], strict=True)
    for layer_key, rate, kernel, bias in layers:
        h, regularizer = concrete_dropout(layer_key, rate, jax.nn.relu(h), kernel=kernel, length_scale=_LENGTH_SCALE)
        h, total = h @ kernel + bias, total + regularizer
    return h, total


def _network(own: tuple[jax.Array, jax.Array, jax.Array]) -> Callable[..., Any]:
    """Returns the network of one data set, given its examples by their numbers, with its loss for output."""
    x, y, size = own

    def apply(key: jax.Array, params: Params, stats: Any, rows: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        moments, regularizer = forward(key, params, x[rows])
        mean, log_var = jnp.split(moments, 2, 1)
        return ((y[rows] - mean) ** 2 * jnp.exp(-log_var) + log_var)[:, 0] / 2 + regularizer / size, stats

    return apply


def _points(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    x, noise = (jax.random.normal(key, (count, 1)) for key in jax.random.split(key))
    return x, 2 * x + 8 + noise


def measure(keys: jax.Array, options: Options, progress: Callable[[float], None]) -> dict[str, Mapping[str, Any]]:
    """Trains networks on every number of examples, and measures by arm."""
    numbers = sizes(options)
    init_keys, train_keys, measure_keys, data_keys = jax.vmap(lambda key: jax.random.split(key, 4), out_axes=1)(keys)
    (train_keys, of_network), (measure_keys, _) = grid(train_keys, numbers), grid(measure_keys, numbers)
    start = over_seeds(lambda one, two: (init(one, options.width), *_points(two, max(numbers))))
    params, x, y = start(grid(init_keys, numbers)[0], grid(data_keys, numbers)[0])

    rows = np.arange(max(numbers))  # instead of examples: every network has its own

    def order(number: int) -> np.ndarray:
        seen = numbers[number % len(numbers)]
        return np.random.default_rng(number).integers(0, seen, (options.steps, _BATCH))

    state, _ = train(
        _network, lambda _: adam(1e-2, options.steps), train_keys, (params, jnp.zeros((len(x), 0))),
        (rows, rows), steps=options.steps, batch_size=_BATCH, progress=progress, each=(x, y, of_network),
        order=order, loss=lambda loss, _: loss,
    )  # fmt: skip
    rates, *others = ungrid(over_seeds(_measure)(measure_keys, state.params), len(numbers))
    found: dict[str, Mapping[str, Any]] = {layer: {"rate": rates[..., number]} for number, layer in enumerate(_LAYERS)}
    return found | {arm: {"std": value} for arm, value in zip((_DATA, _NETWORK, _ERROR), others, strict=True)}


def _measure(key: jax.Array, params: Params) -> tuple[jax.Array, ...]:
    """Over x at the quantiles of its distribution, and draws of the dropout."""
    x = jax.scipy.stats.norm.ppf((jnp.arange(200) + 0.5) / 200)[:, None]
    outputs, _ = jax.vmap(forward, (0, None, None))(jax.random.split(key, _DRAWS), params, x)
    means, log_vars = outputs[..., 0], outputs[..., 1]
    rates = jnp.stack([jax.nn.sigmoid(rate.logit) for rate in params.rates])
    error = jnp.sqrt(jnp.mean((means.mean(0) - 2 * x[:, 0] - 8) ** 2))
    return rates, jnp.sqrt(jnp.mean(jnp.exp(log_vars))), jnp.sqrt(jnp.mean(jnp.var(means, 0))), error


def _rates(found: Found) -> np.ndarray:
    return np.mean([found[layer]["rate"] for layer in _LAYERS], axis=0)


def _steps(values: np.ndarray) -> np.ndarray:
    return np.diff(values, axis=1)


_EXAMPLES = Axis("examples", sizes, log=True)
EXPERIMENT = Experiment(
    claim="A dropout rate that is learned falls as there are more data",
    sources=('Gal, Hron, Kendall, "Concrete dropout", NIPS 2017, https://arxiv.org/abs/1705.07832',),
    options=(
        Option("examples", count, 10_000, 10_000, "largest number of examples; the smallest is 10"),
        Option("width", count, 48, 32, "units of a hidden layer"),
        Option("steps", count, 6000, 3000, "training steps, of 64 examples each"),
    ),
    arms=together((*_LAYERS, _DATA, _NETWORK, _ERROR), measure),
    measure=measure_together,
    quantities=(
        Quantity("rate", "learned rate", 3, axis=_EXAMPLES),
        Quantity("std", "standard deviation", 3, axis=_EXAMPLES, log=True),
    ),
    parts=(
        Part("4.12", "mean learned rate, fewest examples less most", lambda found: -_steps(_rates(found)).sum(1), at_least(0.3)),
        Part(
            "4.12",
            "smallest fall of the rate from one number to the next",
            lambda found: -_steps(_rates(found)).max(1),
            at_least(0),
        ),
        Part("4.12", "mean learned rate with most examples", lambda found: _rates(found)[:, -1], at_most(0.1)),
        Part(
            "4.12",
            "noise of the network, fewest examples over most",
            lambda found: found[_NETWORK]["std"][:, 0] / found[_NETWORK]["std"][:, -1],
            at_least(3),
            1,
        ),
        Part(
            "4.12", "noise of the data with most examples (true: 1)", lambda found: found[_DATA]["std"][:, -1], Bound(0.85, 1.15)
        ),
        Part("4.12", "error of the mean with most examples", lambda found: found[_ERROR]["std"][:, -1], at_most(0.15), 3),
    ),
    panels=(Lines("rate"), Lines("std")),
    protocol=(
        "y = 2 x + 8 + e, with standard normal x and e: the data of the authors' notebook. Networks of three hidden layers learn "
        "the mean of y and its variance for every x, with concrete dropout of each hidden layer's activations. The noise of the "
        "data is the deviation of e that a network sees; that of the network is the deviation of its mean over draws of its "
        "dropout; the error is that of this mean, averaged over the draws."
    ),
    note="A rate that is learned depends on the number of examples by its regularizer: give that number, and do not tune both.",
    control={"examples": 10},
)
