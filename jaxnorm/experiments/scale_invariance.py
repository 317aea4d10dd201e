"""Batch norm makes a network independent of the scale of its weights, and the gradient inverse to it (Ioffe, Szegedy, 2015)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.diagnostics import ScaleInvariance, scale_invariance
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bound, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, NO_NORM, Params, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, part_of
from jaxnorm.experiments._training import over_seeds

_NORM, _NONE = "batch norm", "no norm"
_FACTORS = (0.001, 0.01, 0.1, 10.0, 100.0)
_MODEL = partial(MLP, depth=2)
_FIRST, _SECOND = "first/dense/kernel", "others/dense/kernel"


def measure(model: MLP, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Scales the weights of an arm, and compares outputs and gradients."""
    (x, labels), _ = load_digits()
    x, labels = jnp.asarray(x[: options.batch]), jnp.asarray(labels[: options.batch])

    @over_seeds
    def of_seed(key: jax.Array) -> dict[str, jax.Array]:
        params, stats = model.init(key)

        def predict(params: Params, x: jax.Array) -> jax.Array:
            return model.forward(None, params, stats, x, train=True)[0]

        @jax.vmap
        def at(first: jax.Array, second: jax.Array) -> ScaleInvariance:
            return scale_invariance(predict, params, (x, labels), {_FIRST: first, _SECOND: second})

        # With W1 x 10 and W2 / 10; and with all factors of W1.
        found = at(jnp.array([10.0, *_FACTORS]), jnp.array([0.1] + [1.0] * len(_FACTORS)))
        return {
            "change": found.change[1:],
            "gradient": found.gradient_ratio[1:, 0],
            "along": jnp.abs(found.cosine[0, 0]),
            "compensated": found.change[0],
            "first gradient": found.gradient_ratio[0, 0],
            "second gradient": found.gradient_ratio[0, 1],
        }

    return of_seed(keys)


def _at(arm: str, name: str, factor: float) -> Callable[[Found], np.ndarray]:
    return lambda found: found[arm][name][:, _FACTORS.index(factor)]


def _slope(found: Found) -> np.ndarray:
    far = slice(_FACTORS.index(0.1), None)
    return np.polyfit(np.log(_FACTORS[far]), np.log(found[_NORM]["gradient"][:, far].T), 1)[0]


_AXIS = Axis("factor of the first layer's weights", lambda options: _FACTORS, log=True)
EXPERIMENT = Experiment(
    claim="Batch norm undoes the scale of weights: W x 10 changes no output",
    sources=(part_of(IOFFE_SZEGEDY, "section 3.3"),),
    options=(Option("batch", count, 256, 256, "training images"),),
    arms={_NORM: _MODEL(batch_norms()), _NONE: _MODEL(NO_NORM)},
    measure=measure,
    quantities=(
        Quantity("change", "relative change of the outputs", 6, axis=_AXIS, log=True),
        Quantity("gradient", "gradient of the first layer, over that at factor 1", 4, axis=_AXIS, log=True),
        Quantity("along", "cosine of weights and gradient", 5),
        Quantity("compensated", "W1 x 10, W2 / 10: relative change of the outputs", 6),
        Quantity("first gradient", "there, gradient of W1 over what it was", 3),
        Quantity("second gradient", "there, gradient of W2 over what it was", 3),
    ),
    parts=(
        Part("0.8 2.6", "relative change of the outputs, W1 x 10, batch norm", _at(_NORM, "change", 10.0), at_most(1e-3), 5),
        Part(
            "0.8 2.6",
            "gradient of W1 over what it was, W1 x 10, batch norm",
            _at(_NORM, "gradient", 10.0),
            Bound(0.099, 0.101),
            4,
        ),
        Part("0.8", "slope of log gradient over log factor from 0.1 on, batch norm", _slope, Bound(-1.02, -0.98), 4),
        Part("0.8 4.8", "cosine of weights and gradient, batch norm", lambda found: found[_NORM]["along"], at_most(1e-3), 5),
        Part("2.6", "relative change of the outputs, W1 x 10, no norm", _at(_NONE, "change", 10.0), at_least(1)),
        Part("2.6", "W1 x 10, W2 / 10, no norm: relative change", lambda found: found[_NONE]["compensated"], at_most(1e-5), 7),
        Part(
            "2.6",
            "there, gradient of W1 over what it was",
            lambda found: found[_NONE]["first gradient"],
            Bound(0.0999, 0.1001),
            4,
        ),
        Part(
            "2.6", "there, gradient of W2 over what it was", lambda found: found[_NONE]["second gradient"], Bound(9.99, 10.01), 3
        ),
        Part("2.6", "relative change of the outputs, W1 / 1,000, batch norm", _at(_NORM, "change", 0.001), at_least(0.1)),
    ),
    panels=(Lines("change"), Lines("gradient")),
    protocol=(
        "Untrained perceptrons of two hidden layers on scikit-learn's digits, in training mode. All weights of the first hidden "
        "layer are multiplied by a factor, those of the second divided by it where the text says so; the biases are 0."
    ),
    note=(
        "Exact but for epsilon: weights so small that the variance of their sums comes near epsilon (1e-5) do count. Without a "
        "norm W1 x 10, W2 / 10 is the same function too, but its gradients are a tenth and ten times as large: one learning "
        "rate no longer fits both. With weight decay the scale sets the effective learning rate, and nothing else."
    ),
    control={_NORM: _NONE},
)
