"""Batch norm and dropout together are not better than one of them, and in a deep network far worse (Li et al., 2019)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import dropout
from jaxnorm.diagnostics import dropout_noise_variance
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Bound, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._mlp import MLP, NO_NORM, Noise, Norm, Place, batch_norms
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, LI
from jaxnorm.experiments._training import accuracy, adam, grid, over_seeds, train, ungrid
from jaxnorm.training import TrainState

_NONE, _BOTH, _LAST = "no norm", "batch norm", "batch norm, dropout last"
ARMS: dict[str, tuple[Norm, Place]] = {
    _NONE: (NO_NORM, "after activation"),
    _BOTH: (batch_norms(), "after activation"),
    _LAST: (batch_norms(), "before classifier"),
}
_SHALLOW, _DEEP = "shallow", "deep"


def _rates(options: Options) -> np.ndarray:
    return options.rate * np.array([0, 0.5, 1])


def measure(arm: tuple[Norm, Place], keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains shallow and deep networks at each rate."""
    (norm, place), (data, test) = arm, load_digits()
    steps, found = options.epochs * (len(data[0]) // 64), {}
    init_keys, train_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    (init_keys, _), (train_keys, rates) = grid(init_keys, _rates(options)), grid(train_keys, _rates(options))
    for name, depth in ((_SHALLOW, 2), (_DEEP, options.depth)):

        def model(rate: Any, depth: int = depth) -> MLP:
            return MLP(norm, Noise(lambda key, x: dropout(key, x, rate), dropout_noise_variance(rate), place), depth=depth)

        quiet = model(0.0)
        state, _ = train(
            lambda rate, model=model: model(rate).apply, lambda _: adam(4e-3, steps), train_keys,
            over_seeds(quiet.init)(init_keys), data, steps=steps, batch_size=64, progress=progress, share=0.5, each=rates,
        )  # fmt: skip

        @over_seeds
        def error(state: TrainState, quiet: MLP = quiet) -> jax.Array:
            logits, _, _ = quiet.forward(None, state.params, state.stats, jnp.asarray(test[0]), train=False)
            return 1 - accuracy(logits, test[1])

        found[name] = ungrid(error(state), len(_rates(options)))
    return found


def _points(found: Found, arm: str, depth: str, rate: int) -> np.ndarray:
    return 100 * found[arm][depth][:, rate]


def _worse(depth: str) -> Callable[[Found], np.ndarray]:
    """The error of both less that of the better of each alone, on the mean over the seeds."""

    def figure(found: Found) -> np.ndarray:
        alone = _points(found, _BOTH, depth, 0), _points(found, _NONE, depth, -1)
        return _points(found, _BOTH, depth, -1) - min(alone, key=np.mean)

    return figure


def _spread(found: Found) -> np.ndarray:
    errors = (
        _points(found, _BOTH, _SHALLOW, 0), _points(found, _NONE, _SHALLOW, -1), _points(found, _BOTH, _SHALLOW, -1),
        _points(found, _LAST, _SHALLOW, -1),
    )  # fmt: skip
    return np.ptp(errors, axis=0)


_AXIS = Axis("rate of dropout", _rates)
EXPERIMENT = Experiment(
    claim="Batch norm and dropout together are not better than one alone, and may be worse",
    sources=(
        LI,
        IOFFE_SZEGEDY,
    ),
    options=(
        Option("rate", rate_below_one, 0.5, 0.5, "largest probability of dropping; also a half of it, and none"),
        Option("depth", count, 6, 6, "number of hidden layers of the deep networks; the shallow ones have two"),
        Option("epochs", count, 40, 10, "passes over the 1,297 training images, of 20 steps each"),
    ),
    arms=lambda _: ARMS,
    measure=measure,
    quantities=(
        Quantity(_SHALLOW, "two hidden layers: test error, %", 1, 100, axis=_AXIS),
        Quantity(_DEEP, "deep: test error, %", 1, 100, axis=_AXIS, log=True),
    ),
    parts=(
        Part("1.10", "deep: test error of both less the better of each alone, points", _worse(_DEEP), at_least(2), 1),
        Part("1.10 2.8", "shallow: test error of both less the better of each alone, points", _worse(_SHALLOW), at_least(0), 1),
        Part(
            "4.3 1.12",
            "deep: test error of batch norm alone less that with dropout last, points",
            lambda found: _points(found, _BOTH, _DEEP, 0) - _points(found, _LAST, _DEEP, -1),
            Bound(-1, 1),
            1,
        ),
        Part(
            "4.3",
            "shallow: test error of batch norm alone less that of both, points",
            lambda found: _points(found, _BOTH, _SHALLOW, 0) - _points(found, _BOTH, _SHALLOW, -1),
            at_most(1),
            1,
        ),
        Part(
            "2.4",
            "shallow: test error of batch norm alone less that of dropout alone, points",
            lambda found: _points(found, _BOTH, _SHALLOW, 0) - _points(found, _NONE, _SHALLOW, -1),
            at_most(1),
            1,
        ),
        Part(
            "2.8",
            "shallow: largest difference of test errors among either, both, and dropout last, points",
            _spread,
            at_most(2),
            1,
        ),
    ),
    panels=(Lines(_SHALLOW), Lines(_DEEP)),
    protocol=(
        "Perceptrons of scikit-learn's digits, 1,297 to train and 500 to test, with Adam in batches of 64. Dropout comes after "
        "the activation of every hidden layer, which is before the next dense layer and batch norm, or only after the last of "
        "them, before the classifier. At a rate of 0 there is none."
    ),
    note="Use either, or batch norm with dropout after the last batch norm only; where there is no batch norm, use dropout.",
    control={"rate": 0.0},
)
