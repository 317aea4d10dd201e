"""Dropout that draws at test time spreads where a network has seen no data (Gal and Ghahramani, 2016)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm import _picture as picture
from jaxnorm import dropout
from jaxnorm.experiments._experiment import Axis, Drawing, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._training import over_seeds, train
from jaxnorm.uncertainty import mc_predict

Activation = Callable[[jax.Array], jax.Array]
RELU, TANH, GP = "ReLU", "tanh", "exact Gaussian process"
ARMS: dict[str, Activation | None] = {RELU: jax.nn.relu, TANH: jnp.tanh, GP: None}
_EDGES = (1.0, 3.0)
"""Between which distances from 0 there are data."""
_POINTS, _NOISE = 200, 0.1
_GRID = np.linspace(-8, 8, 161, dtype=np.float32)
_LIMITS = {"gap": 0.0, "data": 1.0, "up to 1 beyond": 3.0, "1 to 3 beyond": 4.0, "3 to 5 beyond": 6.0, "": np.inf}
REGIONS = {
    name: (low <= away) & (away < high)
    for away in [np.abs(_GRID)]
    for (name, low), high in zip(_LIMITS.items(), [*_LIMITS.values()][1:], strict=False)
}


class Dense(NamedTuple):
    """A dense layer, `x @ kernel + bias`."""

    kernel: jax.Array
    bias: jax.Array


Params = tuple[Dense, Dense, Dense]


def curve(x: Any) -> jax.Array:
    """Returns what the targets are of, before their noise."""
    return jnp.sin(1.5 * jnp.asarray(x))


def points(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns points of the curve, on both sides of the gap, and their targets."""
    x_key, side_key, noise_key = jax.random.split(key, 3)
    x = jax.random.uniform(x_key, (_POINTS,), minval=_EDGES[0], maxval=_EDGES[1])
    x = jnp.where(jax.random.bernoulli(side_key, 0.5, x.shape), x, -x)
    return x, curve(x) + _NOISE * jax.random.normal(noise_key, x.shape)


def init(key: jax.Array, width: int) -> Params:
    """Returns parameters: weights of variance 2 over the number of inputs, and random biases, so that units bend at many x."""

    def dense(key: jax.Array, fan_in: int, fan_out: int) -> Dense:
        of_kernel, of_bias = jax.random.split(key)
        kernel = jnp.sqrt(2 / fan_in) * jax.random.normal(of_kernel, (fan_in, fan_out))
        return Dense(kernel, jax.random.normal(of_bias, (fan_out,)) if fan_in == 1 else jnp.zeros(fan_out))

    first, second, last = jax.random.split(key, 3)
    return dense(first, 1, width), dense(second, width, width), dense(last, width, 1)


def forward(activation: Activation, rate: float, key: jax.Array, params: Params, x: jax.Array, *, one_mask: bool) -> jax.Array:
    """Returns the outputs for `x[B]`, with noise on both hidden layers, one mask for all x or for each its own."""
    *hidden, last = params
    h = x[:, None]
    for layer, own in zip(hidden, jax.random.split(key), strict=True):
        h = dropout(own, activation(h @ layer.kernel + layer.bias), rate, broadcast_dims=(0,) if one_mask else ())
    return (h @ last.kernel + last.bias)[:, 0]


def gaussian_process(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and deviation on the grid given points: kernel `exp(-(x - x')^2 / 2)`, the points' noise as it is."""

    def kernel(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.exp(-((a[:, None] - b) ** 2) / 2)

    given, across = kernel(x, x) + _NOISE**2 * jnp.eye(len(x)), kernel(x, jnp.asarray(_GRID))
    solved = jnp.linalg.solve(given, across)
    return y @ solved, jnp.sqrt(jnp.maximum(1 - jnp.sum(across * solved, 0), 0))


def measure(
    activation: Activation | None, keys: jax.Array, options: Options, progress: Callable[[float], None]
) -> Mapping[str, Any]:
    """Trains networks, each on points of its own, and draws masks for the grid."""
    data_keys, init_keys, train_keys, test_keys = jax.vmap(lambda key: jax.random.split(key, 4), out_axes=1)(keys)
    data = over_seeds(points)(data_keys)
    if activation is None:
        mean, std = over_seeds(gaussian_process)(*data)
    else:

        def apply_of(data: tuple[jax.Array, jax.Array]) -> Callable[..., Any]:
            def apply(key: jax.Array, params: Params, stats: Any, rows: jax.Array, *, train: bool) -> Any:
                x, y = (part[rows] for part in data)
                return forward(activation, options.rate, key, params, x, one_mask=False) - y, stats

            return apply

        rows = np.arange(_POINTS)  # instead of points: every network has its own
        params = over_seeds(lambda key: init(key, options.width))(init_keys)
        schedule = optax.cosine_decay_schedule(3e-3, options.steps)
        optimizer = optax.flatten(optax.adamw(schedule, weight_decay=1e-4))
        state, _ = train(
            apply_of, lambda _: optimizer, train_keys, (params, jnp.zeros((len(keys), 0))), (rows, rows),
            steps=options.steps, batch_size=_POINTS, progress=progress, each=data, loss=lambda off, _: off**2 / 2,
        )  # fmt: skip

        @over_seeds
        def predict(key: jax.Array, params: Params) -> tuple[jax.Array, jax.Array]:
            def network(key: jax.Array, x: jax.Array) -> jax.Array:
                return forward(activation, options.rate, key, params, x, one_mask=True)

            y = mc_predict(key, network, jnp.asarray(_GRID), options.samples, batch_size=100)
            return jnp.mean(y, 0), jnp.std(y, 0)

        mean, std = predict(test_keys, state.params)
    off = jnp.abs(mean - curve(_GRID))
    found = {name: jnp.mean(std[:, where], 1) for name, where in REGIONS.items()}
    within = jnp.mean(off <= 2 * std, 1, where=jnp.asarray(REGIONS["data"]))
    return {**found, "mean": mean, "std": std, "error": jnp.sqrt(jnp.mean(off[:, REGIONS["data"]] ** 2, 1)), "within": within}


def _times(arm: str, region: str) -> Callable[[Found], np.ndarray]:
    return lambda found: found[arm][region] / np.maximum(found[arm]["data"], 1e-6)


def _steps(found: Found) -> np.ndarray:
    beyond = [found[RELU][region] for region in ("data", "up to 1 beyond", "1 to 3 beyond", "3 to 5 beyond")]
    return np.diff(beyond, axis=0).min(0)


def _correlation(found: Found) -> np.ndarray:
    logs = [np.log(np.maximum(found[arm]["std"], 1e-6)) for arm in (RELU, GP)]
    centered = [each - each.mean(1, keepdims=True) for each in logs]
    lengths = [np.linalg.norm(each, axis=1) for each in centered]
    return np.sum(centered[0] * centered[1], 1) / np.maximum(lengths[0] * lengths[1], 1e-9)  # 0 where nothing varies


def draw(axes: Any, found: Found, colors: Mapping[str, str], options: Options) -> None:
    """Draws the prediction of the first seed of the network of ReLU units, with its band."""
    mean, std = found[RELU]["mean"][0], found[RELU]["std"][0]
    for side in (-1, 1):
        axes.axvspan(*sorted(side * edge for edge in _EDGES), color=picture.GRAY, alpha=0.15, linewidth=0)
    axes.plot(_GRID, curve(_GRID), "--", color=picture.GRAY, linewidth=1.6, label="curve of the data")
    axes.plot(_GRID, mean, color=colors[RELU], label="mean of samples")
    axes.fill_between(_GRID, mean - 2 * std, mean + 2 * std, color=colors[RELU], alpha=0.2, linewidth=0, label="± 2 deviations")
    axes.set(title="ReLU units, first seed (gray: where data are)", xlabel="x", ylim=(-4, 4))
    axes.legend(loc="upper center", ncols=2, fontsize=10)


_X = Axis("x", lambda _: _GRID)
EXPERIMENT = Experiment(
    claim="With dropout on at test time, outputs spread where a network has seen no data",
    sources=(
        'Gal, Ghahramani, "Dropout as a Bayesian approximation: representing model uncertainty in deep learning", ICML 2016, '
        "https://arxiv.org/abs/1506.02142",
    ),
    options=(
        Option("rate", rate_below_one, 0.1, 0.1, "probability of dropping"),
        Option("width", count, 100, 100, "units of a hidden layer"),
        Option("steps", count, 4000, 1500, "steps of training, each with all points"),
        Option("samples", count, 500, 200, "masks that are drawn for a prediction"),
    ),
    arms=lambda _: ARMS,
    measure=measure,
    quantities=(
        *(Quantity(name, f"deviation, {name}", 3) for name in REGIONS),
        Quantity("error", "error of the mean, data", 3),
        Quantity("within", "curve in 2 deviations, data, %", 0, 100),
        Quantity("mean", "mean of samples", 2, axis=_X),
        Quantity("std", "deviation of samples", 3, axis=_X),
    ),
    parts=(
        Part("4.12", "deviation 3 to 5 beyond the data over that on them, ReLU", _times(RELU, "3 to 5 beyond"), at_least(3), 1),
        Part("4.12", "smallest step of ReLU's deviation, further and further beyond the data", _steps, at_least(0)),
        Part("4.12", "deviation in the gap over that on the data, ReLU", _times(RELU, "gap"), at_least(1)),
        Part("4.12", "deviation 3 to 5 beyond the data over that on them, tanh", _times(TANH, "3 to 5 beyond"), at_least(1), 1),
        Part(
            "4.12",
            "deviation 3 to 5 beyond the data, tanh over ReLU",
            lambda found: found[TANH]["3 to 5 beyond"] / np.maximum(found[RELU]["3 to 5 beyond"], 1e-6),
            at_most(1),
        ),
        Part("4.12", "correlation of log deviations over x, ReLU and Gaussian process", _correlation, at_least(0.5)),
    ),
    panels=(Drawing(draw), Lines("std")),
    protocol=(
        "200 points of sin(1.5 x) with noise of deviation 0.1, at distances of 1 to 3 from 0; networks of two hidden layers, "
        "each with dropout behind, with AdamW; masks are drawn anew for a grid of x, each mask for all of it. Beside them the "
        "exact posterior of a Gaussian process of kernel exp(-(x - x')^2 / 2). The error is that of the mean, without the noise "
        "of targets."
    ),
    note=(
        "How the deviation grows is the activation's doing: with tanh units, which saturate, it stays nearly what it is on the "
        "data. In a gap between data it grows less than beyond them: compare deviations, and do not take them for probabilities."
    ),
    control={"rate": 0.0},
)
