"""A gradient that does not know of the statistics makes parameters grow at constant loss (Ioffe, Szegedy, 2015, section 2)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import batch_norm, frozen_batch_norm, init_batch_norm
from jaxnorm.experiments._experiment import Axis, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, part_of
from jaxnorm.experiments._training import over_seeds

_THROUGH, _STOPPED = "batch norm", "statistics as constants"
_LEARNING_RATE = 0.5
_EPSILON = 1e-5
_SCALES = (0.1, 1.0, 10.0, 100.0)

Normalize = Callable[[jax.Array], jax.Array]


def _normalize(x: jax.Array) -> jax.Array:
    params, stats = init_batch_norm(x.shape[-1])
    return batch_norm(params, stats, x, train=True, epsilon=_EPSILON)[0]


def _naive(x: jax.Array) -> jax.Array:
    """Normalizes with the same numbers, of which the gradient does not know."""
    params, stats = init_batch_norm(x.shape[-1])
    _, stats = batch_norm(params, stats, x, train=True, momentum=0.0)
    return frozen_batch_norm(params, stats, x, epsilon=_EPSILON)


def measure(normalize: Normalize, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Descends the gradient of a bias before the norm, and compares gradients with formula and differences."""
    shape = (options.batch, options.channels)

    @over_seeds
    def descend(key: jax.Array) -> dict[str, jax.Array]:
        u, noise = jax.random.normal(key, (2, *shape))
        target = 1 + noise

        def loss(bias: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(normalize(u + bias) - target).sum(-1)) / 2

        def step(bias: jax.Array, _: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            value, gradient = jax.value_and_grad(loss)(bias)
            return bias - _LEARNING_RATE * gradient, (bias.mean(), value)

        _, (bias, losses) = jax.lax.scan(step, jnp.zeros(shape[1]), length=options.steps + 1)
        return {"bias": bias, "loss": losses, "drift": jnp.abs(losses - losses[0]).max() / losses[0]}

    @over_seeds
    def compare(key: jax.Array) -> dict[str, jax.Array]:
        x_key, g_key, w_key = jax.random.split(key, 3)
        x, g = 2 * jax.random.normal(x_key, shape) + 3, jax.random.normal(g_key, shape)

        def gradient(x: jax.Array) -> jax.Array:
            return jax.grad(lambda x: jnp.sum(g * normalize(x)))(x)

        dx = gradient(x)

        @jax.vmap
        def of_weights(scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            w = scale * jax.random.normal(w_key, (shape[1], shape[1]))
            y, pull = jax.vjp(lambda w: normalize(x @ w), w)
            (of_w,) = pull(g)
            along = jnp.abs(jnp.sum(w * of_w, 0)) / (jnp.linalg.norm(w, axis=0) * jnp.linalg.norm(of_w, axis=0))
            return jnp.max(jnp.abs(y.mean(0))), jnp.max(jnp.abs(y.var(0) - 1)), jnp.max(along)

        means, variances, along = of_weights(jnp.array(_SCALES))
        return {
            "x": x, "g": g, "dx": dx,
            "across": jnp.max(jnp.abs(dx.sum(0)) / (jnp.linalg.norm(dx, axis=0) * shape[0] ** 0.5)),
            "jit": jnp.max(jnp.abs(jax.jit(gradient)(x) - dx)),
            "mean": means.max(), "variance": variances.max(), "along": along.max(),
        }  # fmt: skip

    of_comparison, of_descent = jax.vmap(jax.random.split, out_axes=1)(keys)
    found = jax.device_get(compare(of_comparison))
    x, g, dx = (found.pop(name).astype(np.float64) for name in ("x", "g", "dx"))
    errors = [_errors(*each) for each in zip(x, g, dx, strict=True)]
    of_formula, of_difference = np.array(errors).T
    return descend(of_descent) | found | {"formula": of_formula, "difference": of_difference}


def _errors(x: np.ndarray, g: np.ndarray, dx: np.ndarray) -> tuple[float, float]:
    """Returns the errors of a gradient, against the closed form and against central differences, over its length."""

    def norm(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(0)) / np.sqrt(x.var(0) + _EPSILON)

    y = norm(x)
    closed = (g - g.mean(0) - y * (g * y).mean(0)) / np.sqrt(x.var(0) + _EPSILON)
    direction = np.random.default_rng(0).normal(size=x.shape)
    direction /= np.linalg.norm(direction)
    step = 1e-5
    difference = (g * (norm(x + step * direction) - norm(x - step * direction))).sum() / (2 * step)
    length = np.linalg.norm(closed)
    return float(np.abs(dx - closed).max() / np.abs(closed).max()), float(abs((dx * direction).sum() - difference) / length)


def _last(arm: str, name: str) -> Callable[[Found], np.ndarray]:
    return lambda found: np.abs(found[arm][name][:, -1])


def _straight(found: Found) -> np.ndarray:
    """Returns how far the bias is from a line of steps, over its end."""
    bias = found[_STOPPED]["bias"]
    line = np.linspace(0, 1, bias.shape[1]) * bias[:, -1:]
    return np.abs(bias - line).max(1) / np.abs(bias[:, -1])


_STEPS = Axis("step", lambda options: np.arange(options.steps + 1))
EXPERIMENT = Experiment(
    claim="A gradient that ignores the statistics lets a bias grow at constant loss",
    sources=(part_of(IOFFE_SZEGEDY, "section 2"),),
    options=(
        Option("steps", count, 200, 200, "steps of gradient descent"),
        Option("batch", count, 64, 64, "examples of a batch"),
        Option("channels", count, 16, 16, "channels"),
    ),
    arms={_THROUGH: _normalize, _STOPPED: _naive},
    measure=measure,
    quantities=(
        Quantity("formula", "error of the gradient against the formula", 7),
        Quantity("difference", "against differences", 7),
        Quantity("across", "cosine of the gradient and 1", 7),
        Quantity("along", "largest cosine of a unit's weights and their gradient", 5),
        Quantity("mean", "largest mean of an output, any weights", 6),
        Quantity("variance", "largest distance of its variance to 1", 5),
        Quantity("jit", "change of the gradient under jit", 7),
        Quantity("drift", "largest relative change of the loss", 7),
        Quantity("bias", "bias before the norm", 1, axis=_STEPS),
        Quantity("loss", "loss", 3, axis=_STEPS),
    ),
    parts=(
        Part(
            "0.2 4.7",
            "size of the bias at the end, with the gradient through the statistics",
            _last(_THROUGH, "bias"),
            at_most(1e-3),
            4,
        ),
        Part("4.7", "size of the bias at the end, statistics as constants", _last(_STOPPED, "bias"), at_least(10), 1),
        Part("4.7", "there, largest relative change of the loss", lambda found: found[_STOPPED]["drift"], at_most(1e-4), 6),
        Part("4.7", "there, largest distance of the bias to a line of steps, over its end", _straight, at_most(1e-3), 5),
        Part(
            "0.2", "largest error of the gradient against its formula", lambda found: found[_THROUGH]["formula"], at_most(1e-5), 7
        ),
        Part("0.2", "error against differences, over its length", lambda found: found[_THROUGH]["difference"], at_most(1e-5), 7),
        Part("0.2 4.8", "cosine of the gradient and 1", lambda found: found[_THROUGH]["across"], at_most(1e-5), 7),
        Part(
            "4.8",
            "largest cosine of a unit's weights and their gradient, weights of any size",
            lambda found: found[_THROUGH]["along"],
            at_most(1e-3),
            5,
        ),
        Part(
            "4.8 4.1",
            "largest distance of an output's mean to 0 or variance to 1, weights of any size",
            lambda found: np.maximum(found[_THROUGH]["mean"], found[_THROUGH]["variance"]),
            at_most(0.01),
            5,
        ),
        Part("4.1", "change of the gradient under jit", lambda found: found[_THROUGH]["jit"], at_most(1e-6), 7),
    ),
    panels=(Lines("bias"),),
    protocol=(
        f"A bias before the norm descends the gradient of a squared error at a learning rate of {_LEARNING_RATE}. Both arms "
        f"compute the same outputs. Weights are random, of standard deviation {', '.join(f'{scale:g}' for scale in _SCALES)}; "
        "the formula and the differences are in float64."
    ),
    note=(
        "So whoever normalizes by statistics that are held constant in the gradient, in code of their own, must keep an eye on "
        "what is before the norm; running statistics in inference or in fine-tuning are constants and do no harm there."
    ),
    control={_THROUGH: _STOPPED},
)
