"""How the gradient of a batch varies, and where it is off, with the batch size (Ioffe, Szegedy, 2015, section 1)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxnorm import init_layer_norm, layer_norm
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bound, Experiment, Found, Lines, Options, Part, Quantity, at_least
from jaxnorm.experiments._mlp import MLP, NO_NORM, Norm, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, part_of
from jaxnorm.experiments._training import over_seeds
from jaxnorm.training import cross_entropy

_NONE, _BATCH, _LAYER, _CLASS = "no norm", "batch norm", "layer norm", "no norm, one class a batch"
_SIZES = (8, 16, 32, 64, 128)


def _layer_norms(where: jax.Array) -> Norm:
    def apply(params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        return layer_norm(params, x), stats

    return Norm(lambda size: (init_layer_norm(size), ()), apply)


class Arm(NamedTuple):
    """The norm, of which examples count; and whether all examples of a batch are of one class."""

    norm: Callable[[jax.Array], Norm]
    one_class: bool = False


def measure(arm: Arm, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Takes gradients of many batches of every size, and of the whole set."""
    (x, labels), _ = load_digits()
    of_class = jnp.asarray(np.stack([np.resize(np.flatnonzero(labels == label), _SIZES[-1]) for label in range(10)]))
    x, labels = jnp.asarray(x), jnp.asarray(labels)

    @over_seeds
    def of_seed(key: jax.Array) -> dict[str, jax.Array]:
        init_key, batches_key = jax.random.split(key)
        params, stats = MLP(arm.norm(jnp.array(True)), depth=2, width=options.width).init(init_key)

        def gradient(rows: jax.Array, counted: jax.Array) -> jax.Array:
            model = MLP(arm.norm(counted[:, None]), depth=2, width=options.width)

            def loss(params: Any) -> jax.Array:
                losses = cross_entropy(model.forward(None, params, stats, x[rows], train=True)[0], labels[rows])
                return jnp.sum(losses * counted) / jnp.sum(counted)

            return ravel_pytree(jax.grad(loss)(params))[0]

        def of_batch(key: jax.Array, size: jax.Array) -> jax.Array:
            draw, which = jax.random.split(key)
            rows = jax.random.randint(draw, (_SIZES[-1],), 0, len(x))
            if arm.one_class:
                rows = of_class[jax.random.randint(which, (), 0, 10), rows % _SIZES[-1]]
            return gradient(rows, jnp.arange(_SIZES[-1]) < size)

        whole = gradient(jnp.arange(len(x)), jnp.ones(len(x), bool))

        def of_size(size: jax.Array) -> tuple[jax.Array, jax.Array]:
            def draw(number: jax.Array) -> jax.Array:
                return of_batch(jax.random.fold_in(batches_key, number), size)

            gradients = jax.lax.map(draw, jnp.arange(options.batches), batch_size=20)
            variance = jnp.sum(jnp.var(gradients, 0, ddof=1))
            off = jnp.sum(jnp.square(gradients.mean(0) - whole)) - variance / options.batches  # without what chance puts there
            return variance / jnp.sum(whole**2), off / jnp.sum(whole**2)

        variance, bias = jax.lax.map(of_size, jnp.array(_SIZES))
        return {"variance": variance, "bias": jnp.sqrt(jnp.maximum(bias, 0)), "squared": bias[0]}

    return of_seed(keys)


def _slope(arm: str) -> Callable[[Found], np.ndarray]:
    return lambda found: np.polyfit(np.log(_SIZES), np.log(found[arm]["variance"].T), 1)[0]


def _squared(arm: str) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * found[arm]["squared"]


_AXIS = Axis("batch size m", lambda options: _SIZES, log=True)
EXPERIMENT = Experiment(
    claim="The gradient of a batch estimates that of the whole set, with variance 1 / m",
    sources=(part_of(IOFFE_SZEGEDY, "section 1"),),
    options=(
        Option("batches", count, 200, 100, "batches of every size"),
        Option("width", count, 32, 32, "units of a hidden layer"),
    ),
    arms={
        _NONE: Arm(lambda where: NO_NORM),
        _BATCH: Arm(lambda where: batch_norms(where=where)),
        _LAYER: Arm(_layer_norms),
        _CLASS: Arm(lambda where: NO_NORM, one_class=True),
    },
    measure=measure,
    quantities=(
        Quantity("squared", "square of the bias at m = 8 over the gradient's, %", 2, 100),
        Quantity("variance", "variance of the gradient over its square", 3, axis=_AXIS, log=True),
        Quantity("bias", "distance of its mean to that of the whole set, %", 1, 100, axis=_AXIS),
    ),
    parts=(
        Part("4.4", "slope of log variance over log m, no norm", _slope(_NONE), Bound(-1.1, -0.9)),
        Part("4.4", "slope of log variance over log m, batch norm", _slope(_BATCH), Bound(-1.3, -0.9)),
        Part("4.4", "square of the bias at m = 8 over the gradient's, no norm, %", _squared(_NONE), Bound(-1, 1), 2),
        Part("4.4", "square of the bias at m = 8 over the gradient's, batch norm, %", _squared(_BATCH), at_least(1), 2),
        Part(
            "4.4",
            "bias at m = 8 over that at m = 64, batch norm",
            lambda found: found[_BATCH]["bias"][:, 0] / found[_BATCH]["bias"][:, _SIZES.index(64)],
            at_least(2),
            1,
        ),
    ),
    panels=(Lines("variance"), Lines("bias")),
    protocol=(
        "Untrained perceptrons of two hidden layers on scikit-learn's digits; batches are drawn with replacement, and compared "
        "with the gradient of all 1,297 images as one batch. Of the distance of the mean, what so many batches leave to chance "
        "is subtracted."
    ),
    note=(
        "With batch norm the loss of an example depends on its batch: the gradient of small batches is off in the mean too, "
        "which more of them do not cure. Accumulating gradients over small batches is not the same as a large batch there."
    ),
    control={_NONE: _CLASS},
)
