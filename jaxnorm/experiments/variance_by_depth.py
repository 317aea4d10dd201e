"""Variances of initial weights that keep signals at their size through many layers, without dropout and with it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import alpha_dropout, batch_norm, dropout, init_batch_norm
from jaxnorm.experiments._experiment import Axis, Bars, Bound, Experiment, Found, Lines, Options, Part, Quantity, at_least
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._training import over_seeds
from jaxnorm.initializers import Initializer, he, lecun, xavier

_LINEAR, _TANH, _XAVIER, _HE = "Xavier, linear", "Xavier, tanh", "Xavier, ReLU", "He, ReLU"
_PLAIN, _KEEP, _SELU, _NORM = (
    "He, ReLU, dropout",
    "He x keep, ReLU, dropout",
    "LeCun, SELU, alpha dropout",
    "Xavier, ReLU, batch norm",
)
_ALPHA_RATE = 0.1

Map = Callable[[jax.Array], jax.Array]


class Arm(NamedTuple):
    """Weights of a rate, what follows each layer, and noise `draw(key, x, rate)`."""

    weights: Callable[[float], Initializer]
    activation: Map
    draw: Callable[[jax.Array, jax.Array, float], jax.Array] = lambda key, x, rate: x
    norm: Map = lambda x: x


def _normalized(x: jax.Array) -> jax.Array:
    params, stats = init_batch_norm(x.shape[-1])
    return batch_norm(params, stats, x, train=True)[0]


def measure(arm: Arm, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Passes examples through a deep untrained network."""

    @over_seeds
    def of_seed(key: jax.Array) -> dict[str, jax.Array]:
        x_key, layers_key = jax.random.split(key)

        def layer(x: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
            weights_key, noise_key = jax.random.split(jax.random.fold_in(layers_key, number))
            y = arm.draw(noise_key, x, options.rate) @ arm.weights(options.rate)(weights_key, (options.width, options.width))
            return arm.activation(arm.norm(y)), jnp.mean(jnp.square(y))

        x = arm.activation(jax.random.normal(x_key, (options.examples, options.width)))
        _, squares = jax.lax.scan(layer, x, jnp.arange(options.depth))
        return {"variance": squares / squares[0], "factor": (squares[-1] / squares[0]) ** (1 / (options.depth - 1))}

    return of_seed(keys)


def _factor(arm: str) -> Callable[[Found], np.ndarray]:
    return lambda found: found[arm]["factor"]


def _of_rate(found: Found) -> np.ndarray:
    """Returns the growth by dropout without the keep probability, over what the closed form says of the arm with it."""
    return found[_PLAIN]["factor"] / found[_KEEP]["factor"]


_SOURCES = (
    'Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010, '
    "https://proceedings.mlr.press/v9/glorot10a.html",
    'He, Zhang, Ren, Sun, "Delving deep into rectifiers: surpassing human-level performance on ImageNet classification", ICCV '
    "2015, https://arxiv.org/abs/1502.01852",
    'Hendrycks, Gimpel, "Adjusting for dropout variance in batch normalization and weight initialization", 2016, '
    "https://arxiv.org/abs/1607.02488",
    'Klambauer, Unterthiner, Mayr, Hochreiter, "Self-normalizing neural networks", NIPS 2017, https://arxiv.org/abs/1706.02515',
)
EXPERIMENT = Experiment(
    claim="He's weights keep the variance through ReLU layers, times keep with dropout",
    sources=_SOURCES,
    options=(
        Option("rate", rate_below_one, 0.5, 0.5, "probability of dropping before every layer"),
        Option("depth", count, 20, 20, "number of layers"),
        Option("width", count, 256, 256, "units of each"),
        Option("examples", count, 200, 100, "examples"),
    ),
    arms={
        _LINEAR: Arm(lambda rate: xavier(0.0), lambda x: x),
        _TANH: Arm(lambda rate: xavier(0.0), jnp.tanh),
        _XAVIER: Arm(lambda rate: xavier(0.0), jax.nn.relu),
        _HE: Arm(lambda rate: he(0.0), jax.nn.relu),
        _PLAIN: Arm(lambda rate: he(0.0), jax.nn.relu, dropout),
        _KEEP: Arm(he, jax.nn.relu, dropout),
        _SELU: Arm(lambda rate: lecun(0.0), jax.nn.selu, lambda key, x, rate: alpha_dropout(key, x, _ALPHA_RATE)),
        _NORM: Arm(lambda rate: xavier(0.0), jax.nn.relu, norm=_normalized),
    },
    measure=measure,
    quantities=(
        Quantity("factor", "variance of a layer over that of the one below", 3),
        Quantity(
            "variance",
            "variance of a layer's sums over that of the first",
            4,
            log=True,
            axis=Axis("layer", lambda options: np.arange(1, options.depth + 1)),
        ),
    ),
    parts=(
        Part("4.10", "variance of a layer over that below, He, ReLU", _factor(_HE), Bound(0.95, 1.05), 3),
        Part("4.10", "the same, Xavier, linear", _factor(_LINEAR), Bound(0.95, 1.05), 3),
        Part("4.10", "Xavier, tanh", _factor(_TANH), Bound(0.85, 1.05), 3),
        Part("4.10", "Xavier, ReLU: a half", _factor(_XAVIER), Bound(0.45, 0.55), 3),
        Part("4.10", "He x keep, ReLU, dropout", _factor(_KEEP), Bound(0.95, 1.05), 3),
        Part(
            "4.10",
            "growth by dropout without keep, over that with it",
            _of_rate,
            at_least(1.2),
            3,
        ),
        Part("4.10", "LeCun, SELU, alpha dropout", _factor(_SELU), Bound(0.95, 1.05), 3),
        Part("4.10", "Xavier, ReLU, batch norm", _factor(_NORM), Bound(0.95, 1.05), 3),
    ),
    panels=(Bars("factor"), Lines("variance")),
    protocol=(
        "Untrained perceptrons without biases; normal examples. Of each layer, the mean square of its sums over all examples "
        f"and units. Alpha dropout's rate is {_ALPHA_RATE}."
    ),
    note=(
        "tanh shrinks what is not near 0, so that its signals fade slowly. With dropout give the rate to "
        "`jaxnorm.initializers`, as `he(rate)`; with batch norm it does not matter."
    ),
    control={_HE: _XAVIER},
)
