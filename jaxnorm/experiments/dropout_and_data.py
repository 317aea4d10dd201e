"""Dropout helps where examples are few, and costs where they are many and steps few (Srivastava et al., 2014)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm import dropout, gaussian_dropout
from jaxnorm.diagnostics import dropout_noise_variance
from jaxnorm.experiments._digits import NUM_TRAIN, load_digits
from jaxnorm.experiments._experiment import Axis, Bound, Experiment, Found, Lines, Options, Part, Quantity, at_least
from jaxnorm.experiments._mlp import MLP, Noise
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._sources import SRIVASTAVA
from jaxnorm.experiments._training import accuracy, grid, over_seeds, train, ungrid
from jaxnorm.training import TrainState

SIZES = np.array([50, 100, 300, NUM_TRAIN])
_NONE, _DROPOUT, _GAUSSIAN = "no dropout", "dropout", "Gaussian dropout"
_DRAW = {_NONE: None, _DROPOUT: dropout, _GAUSSIAN: gaussian_dropout}
_BATCH, _RECORDS = 50, 10


def measure(draw: Any, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains networks on each number of examples."""
    data, (x, labels) = load_digits()
    noise = Noise(lambda key, x: draw(key, x, options.rate), dropout_noise_variance(options.rate), "after activation")
    model = MLP(noise=noise if draw else None, depth=2, width=options.width)
    init_keys, train_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    (init_keys, sizes), (train_keys, _) = grid(init_keys, SIZES), grid(train_keys, SIZES)

    def order(number: int) -> np.ndarray:
        """Batches of the examples that a network may see, chosen by its seed, the same for all arms."""
        seed, place = divmod(number, len(SIZES))
        seen = np.random.default_rng(seed).permutation(NUM_TRAIN)[: SIZES[place]]
        batches = [np.random.default_rng([number, i]).permutation(seen)[:_BATCH] for i in range(options.steps)]
        return np.stack(batches)

    def record(state: TrainState) -> dict[str, jax.Array]:
        logits, _, _ = model.forward(None, state.params, state.stats, jnp.asarray(x), train=False)
        return {"error": 1 - accuracy(logits, labels)}

    state, history = train(
        model.apply, optax.flatten(optax.adam(1e-3)), train_keys, over_seeds(model.init)(init_keys), data, steps=options.steps,
        batch_size=_BATCH, progress=progress, order=order, record=record, every=max(1, options.steps // _RECORDS),
    )  # fmt: skip

    @over_seeds
    def on_seen(state: TrainState, rows: jax.Array, size: jax.Array) -> jax.Array:
        logits, _, _ = model.forward(None, state.params, state.stats, jnp.asarray(data[0])[rows], train=False)
        right = jnp.argmax(logits, 1) == jnp.asarray(data[1])[rows]
        return 1 - jnp.mean(right, where=jnp.arange(NUM_TRAIN) < size)

    rows = np.repeat([np.random.default_rng(seed).permutation(NUM_TRAIN) for seed in range(len(keys))], len(SIZES), 0)
    errors = ungrid(history["error"], len(SIZES))
    of_train = ungrid(on_seen(state, jnp.asarray(rows), sizes), len(SIZES))
    return {"error": errors[..., -1], "short": errors[..., 0], "train": of_train, "gap": errors[..., -1] - of_train}


def _gain(name: str, arm: str, places: Any, than: str = _NONE) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * (found[than][name] - found[arm][name])[:, places].mean(1)


_IMAGE = 0.2  # points: one of the 500 images of the test set
_EXAMPLES = Axis("training examples", lambda _: SIZES, log=True)
EXPERIMENT = Experiment(
    claim="Dropout lowers the test error where examples are few",
    sources=(SRIVASTAVA,),
    options=(
        Option("rate", rate_below_one, 0.5, 0.5, "probability of dropping, or as much Gaussian noise"),
        Option("width", count, 128, 128, "units of the two hidden layers"),
        Option("steps", count, 1500, 500, "training steps, of 50 examples each"),
    ),
    arms=lambda _: _DRAW,
    measure=measure,
    quantities=(
        Quantity("error", "test error, %", 1, 100, axis=_EXAMPLES, log=True),
        Quantity("short", "after a tenth of the steps: test error, %", 1, 100, axis=_EXAMPLES, log=True),
        Quantity("gap", "test error less that on the examples, points", 1, 100, axis=_EXAMPLES),
        Quantity("train", "error on the training examples, %", 2, 100, axis=_EXAMPLES),
    ),
    parts=(
        Part(
            "1.6 3.1",
            "test error that dropout takes away, of 100 and 300 examples, points",
            _gain("error", _DROPOUT, [1, 2]),
            at_least(_IMAGE),
            1,
        ),
        Part(
            "3.1",
            "generalization gap that dropout takes away, of 100 and 300 examples, points",
            _gain("gap", _DROPOUT, [1, 2]),
            at_least(_IMAGE),
            1,
        ),
        Part("1.6", "test error that dropout takes away, of 50 examples, points", _gain("error", _DROPOUT, [0]), at_least(0), 1),
        Part(
            "1.6",
            "test error that dropout adds, of all 1,297 examples and a tenth of the steps, points",
            _gain("short", _NONE, [3], _DROPOUT),
            at_least(0),
            1,
        ),
        Part(
            "1.6",
            "test error of Gaussian less that of Bernoulli dropout, mean, points",
            _gain("error", _DROPOUT, [0, 1, 2, 3], _GAUSSIAN),
            Bound(-1, 1),
        ),
    ),
    panels=(Lines("error"), Lines("short"), Lines("gap")),
    protocol=(
        "Perceptrons of two hidden layers on so many of scikit-learn's 1,297 training digits, chosen at random for every seed, "
        "500 to test, with Adam at a constant rate in batches of 50; dropout after the activations. All are trained for the same "
        "number of steps."
    ),
    note="Use dropout where a network overfits; with examples enough, or steps too few, it only slows training.",
    control={"rate": 0.0},
)
