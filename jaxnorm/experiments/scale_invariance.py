"""Batch norm makes a network independent of the scale of its weights, and the gradient inverse to it (Ioffe, Szegedy, 2015)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bound, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, NO_NORM, Params, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._training import over_seeds
from jaxnorm.training import cross_entropy

_NORM, _NONE = "batch norm", "no norm"
_FACTORS = (0.001, 0.01, 0.1, 10.0, 100.0)
_MODEL = partial(MLP, depth=2)


def _scaled(params: Params, first: Any, second: Any = 1.0) -> Params:
    """Returns the network with the weights of its two hidden layers times these factors."""

    def times(layer: Any, factor: Any) -> Any:
        return layer._replace(dense=layer.dense._replace(kernel=factor * layer.dense.kernel))

    return params._replace(first=times(params.first, first), others=times(params.others, second))


def measure(model: MLP, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Scales the weights of an arm, and compares outputs and gradients."""
    (x, labels), _ = load_digits()
    x, labels = jnp.asarray(x[: options.batch]), jnp.asarray(labels[: options.batch])

    @over_seeds
    def of_seed(key: jax.Array) -> dict[str, jax.Array]:
        params, stats = model.init(key)

        def loss(params: Params) -> tuple[jax.Array, jax.Array]:
            logits, _, _ = model.forward(None, params, stats, x, train=True)
            return jnp.mean(cross_entropy(logits, labels)), logits

        @jax.vmap
        def at(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
            scaled = _scaled(params, first, second)
            (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(scaled)
            w, of_w, of_second = scaled.first.dense.kernel, gradient.first.dense.kernel, gradient.others.dense.kernel
            along = jnp.sum(w * of_w) / (jnp.linalg.norm(w) * jnp.linalg.norm(of_w))
            return logits, jnp.linalg.norm(of_w), jnp.linalg.norm(of_second), along

        # As it is; with W1 x 10 and W2 / 10; and with all factors of W1.
        logits, of_first, of_second, along = at(jnp.array([1.0, 10.0, *_FACTORS]), jnp.array([1.0, 0.1] + [1.0] * len(_FACTORS)))
        change = jnp.linalg.norm(logits - logits[0], axis=(1, 2)) / jnp.linalg.norm(logits[0])
        return {
            "change": change[2:],
            "gradient": of_first[2:] / of_first[0],
            "along": jnp.abs(along[0]),
            "compensated": change[1],
            "first gradient": of_first[1] / of_first[0],
            "second gradient": of_second[1] / of_second[0],
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
    sources=(
        'Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML '
        "2015, section 3.3, https://arxiv.org/abs/1502.03167",
    ),
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
