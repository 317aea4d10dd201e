"""Uniform dropout shifts variances as dropout of equal variance does: it is gentle because it is little (Li et al., 2019)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import batch_norm, dropout, init_batch_norm, uniform_dropout
from jaxnorm.diagnostics import li_shift_ratio, uniform_noise_variance
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bound, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, Noise, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._shift import measure_shift
from jaxnorm.experiments._sources import LI
from jaxnorm.experiments._training import accuracy, adam, grid, over_seeds, train, ungrid
from jaxnorm.training import TrainState

BETAS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_UOUT, _EQUAL, _HALF = "Uout", "dropout of equal variance", "dropout, rate 0.5"


class Arm(NamedTuple):
    """Noise by its beta: how it is drawn, and its variance."""

    draw: Callable[[jax.Array, jax.Array, Any], jax.Array]
    variance: Callable[[Any], Any]


ARMS = {
    _UOUT: Arm(uniform_dropout, uniform_noise_variance),
    _EQUAL: Arm(lambda key, x, beta: dropout(key, x, beta**2 / (3 + beta**2)), uniform_noise_variance),
    _HALF: Arm(lambda key, x, beta: dropout(key, x, 0.5), jnp.ones_like),
}


def measure(arm: Arm, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains networks with noise of each beta before every batch norm, and measures shifts with the weights as they are."""
    data, test = load_digits()
    norm, x, steps = batch_norms(), jnp.asarray(data[0]), options.epochs * (len(data[0]) // 64)
    init_keys, train_keys, measure_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    (init_keys, _), (train_keys, betas), (measure_keys, _) = (grid(k, BETAS) for k in (init_keys, train_keys, measure_keys))

    def model(beta: Any) -> MLP:
        noise = Noise(lambda key, x: arm.draw(key, x, beta), arm.variance(beta), "before norm")
        return MLP(norm, noise, depth=options.depth)

    state, _ = train(
        lambda beta: model(beta).apply, lambda _: adam(4e-3, steps), train_keys, over_seeds(model(0.0).init)(init_keys), data,
        steps=steps, batch_size=64, progress=progress, each=betas,
    )  # fmt: skip

    @over_seeds
    def assess(key: jax.Array, state: TrainState, beta: jax.Array) -> dict[str, jax.Array]:
        shift_key, normal_key, noise_key = jax.random.split(key, 3)
        _, shift = measure_shift(model(beta), shift_key, state.params, state.stats, x)
        logits, _, _ = model(beta).forward(None, state.params, state.stats, jnp.asarray(test[0]), train=False)
        normal = jax.random.normal(normal_key, (100_000, 1))
        _, stored = batch_norm(*init_batch_norm(1), arm.draw(noise_key, normal, beta), train=True, momentum=0.0)
        return {
            "shift": jnp.max(shift.compounded),
            "alone": shift.alone[0],
            "ratio": jnp.var(normal) / stored.var[0],
            "accuracy": accuracy(logits, test[1]),
        }

    return ungrid(assess(measure_keys, state, betas), len(BETAS))


def _difference(name: str) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * np.max(np.abs(found[_UOUT][name] / found[_EQUAL][name] - 1), axis=1)


_CLOSED = np.array([li_shift_ratio(0.0, 1.0, uniform_noise_variance(beta)) for beta in BETAS])
_AXIS = Axis("beta", lambda _: BETAS)
EXPERIMENT = Experiment(
    claim="Uniform dropout (Uout) shifts variances as dropout of equal variance of noise does",
    sources=(LI,),
    options=(
        Option("depth", count, 6, 6, "number of hidden layers, of 100 units"),
        Option("epochs", count, 40, 10, "passes over the 1,297 training images, of 20 steps each"),
    ),
    arms=lambda _: ARMS,
    measure=measure,
    quantities=(
        Quantity("shift", "largest shift ratio of a batch norm", 2, axis=_AXIS),
        Quantity("accuracy", "test accuracy, %", 1, 100, axis=_AXIS),
        Quantity("alone", "shift ratio of the first batch norm, noise alone", 3, axis=_AXIS),
        Quantity("ratio", "variance without over with noise, at mean 0", 3, axis=_AXIS),
    ),
    parts=(
        Part(
            "1.13",
            "largest difference of the first batch norm's shift, Uout and dropout of equal variance, %",
            _difference("alone"),
            at_most(2),
        ),
        Part("1.13", "largest difference of the networks' largest shifts, %", _difference("shift"), at_most(10), 1),
        Part(
            "1.13",
            "test accuracy of Uout less that of dropout of equal variance, mean, points",
            lambda found: 100 * (found[_UOUT]["accuracy"] - found[_EQUAL]["accuracy"]).mean(1),
            Bound(-1, 1),
        ),
        Part(
            "1.13",
            "largest error of 3 / (3 + beta^2) at mean 0, %",
            lambda found: 100 * np.max(np.abs(found[_UOUT]["ratio"] / _CLOSED - 1), axis=1),
            at_most(2),
        ),
        Part(
            "1.13",
            "largest shift of dropout at rate 0.5 over that of Uout at beta 1",
            lambda found: found[_HALF]["shift"][:, -1] / found[_UOUT]["shift"][:, -1],
            at_least(1.3),
        ),
        Part(
            "1.13",
            "test accuracy lost by Uout at beta 0.5, points",
            lambda found: 100 * (found[_UOUT]["accuracy"][:, 0] - found[_UOUT]["accuracy"][:, 2]),
            at_most(1),
            1,
        ),
    ),
    panels=(Lines("shift"), Lines("accuracy"), Lines("ratio")),
    protocol=(
        "Perceptrons of scikit-learn's digits, 1,297 to train and 500 to test, with noise before every batch norm, with Adam in "
        "batches of 64. Uout of beta has the variance of noise of dropout at a rate of beta^2 / (3 + beta^2). The shift ratio of "
        "a batch norm is the variance that it stored in training over the real one without noise, or its inverse."
    ),
    note=(
        "Uout is not less sensitive: its noise is smaller, at most that of dropout at a rate of 0.25. A low rate of dropout does "
        "the same."
    ),
    control={_EQUAL: _HALF},
)
