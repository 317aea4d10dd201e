"""Running statistics that do not fit the weights cost accuracy, and estimating them anew gives it back (Wu and Johnson, 2021)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import RunningStats, batch_norm, dropout, init_batch_norm, reference_moments
from jaxnorm.experiments._digits import load_digits
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
)
from jaxnorm.experiments._mlp import MLP, Noise, Params, Place, Stats, batch_norms
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, LI
from jaxnorm.experiments._training import accuracy, adam, grid, over_seeds, train, ungrid
from jaxnorm.statistics import correct_variance_shift, cumulative_momentum, debias_stats, precise_stats
from jaxnorm.training import TrainState, cross_entropy

PLACES: dict[str, Place] = {"before batch norm": "before norm", "before the dense layer": "before dense"}
MOMENTA = (0.9, 0.99, 0.999)
_CLEAN, _STORED, _CORRECTED, _DEBIASED, _STALE, _BATCHES, _LAYERS = ARMS = (
    "as trained", "as stored", "corrected in closed form", "without their beginning", "one pass, still by the old",
    "anew, by batches", "anew, layer by layer",
)  # fmt: skip
_CASES = {
    _STORED: (*PLACES, "few"),
    _CORRECTED: ("before batch norm",),
    _DEBIASED: ("few",),
    _STALE: tuple(PLACES),
    _BATCHES: (*PLACES, "few"),
    _LAYERS: (*PLACES, "few"),
}
"""What is measured with each kind of statistics: spoilt ones by the dropout's place, and those after few steps."""
RECORDS = 10
_MOMENTUM, _SHORT = 0.95, 8 * 20


def _rates(options: Options) -> np.ndarray:
    return options.rate * np.array([3, 5, 7]) / 7


def _update(
    params: Params, noise: Noise | None = None, key: jax.Array | None = None, *, by_stats: bool = False
) -> Callable[[Stats, Any], Any]:
    """Returns an update, with noise where there is a key, which normalizes by the batch, or by the statistics it is given."""
    first = params.first.dense.kernel
    model = MLP(batch_norms(momentum=0.0), noise, depth=1 + len(params.others.dense.bias), width=first.shape[1])

    def update(stats: Stats, batch: dict[str, jax.Array]) -> Any:
        own = None if key is None else jax.random.fold_in(key, batch["number"])
        _, _, seen = model.forward(own, params, stats, batch["x"], train=not by_stats)
        first, others = (part.preactivation for part in seen)
        return {"first": reference_moments(first), "others": jax.vmap(reference_moments)(others)}

    return update


def measure(keys: jax.Array, options: Options, progress: Callable[[float], None]) -> dict[str, dict[str, Any]]:
    """Trains, spoils and restores, and returns what is measured by arm."""
    (x, y), (test_x, labels) = load_digits()
    perceptron = partial(MLP, depth=options.depth, width=options.width)
    model = perceptron(batch_norms(_MOMENTUM))
    init_keys, train_keys, noise_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    initial = over_seeds(model.init)(init_keys)
    mixed = np.random.default_rng(0).permutation(x)
    batches = {"x": jnp.asarray(mixed[: len(x) // 64 * 64].reshape(-1, 64, x.shape[1]))}

    def assess(params: Params, *kinds: Stats) -> tuple[jax.Array, jax.Array]:
        """Accuracy and NLL with each kind of statistics."""

        def one(stats: Stats) -> tuple[jax.Array, jax.Array]:
            logits, _, _ = model.forward(None, params, stats, jnp.asarray(test_x), train=False)
            return accuracy(logits, labels), cross_entropy(logits, jnp.asarray(labels)).mean()

        return jax.vmap(one)(jax.tree.map(lambda *parts: jnp.stack(parts), *kinds))

    def record(state: TrainState) -> dict[str, jax.Array]:
        anew = precise_stats(_update(state.params), state.stats, batches)
        return {"both": assess(state.params, state.stats, anew)[0], "ratio": jnp.mean(state.stats.others.var / anew.others.var)}

    steps = options.epochs * (len(x) // 64)
    state, history = train(
        model.apply, adam(4e-3, steps), train_keys, initial, (x, y), steps=steps, batch_size=64, progress=progress, share=0.6,
        record=record, every=max(1, steps // RECORDS),
    )  # fmt: skip
    few_keys, momenta = grid(jax.random.clone(train_keys), MOMENTA)
    few, _ = train(
        lambda momentum: perceptron(batch_norms(momentum)).apply, lambda _: adam(4e-3, _SHORT), few_keys,
        _repeated(initial, len(MOMENTA)), (x, y), steps=_SHORT, batch_size=64, each=momenta, progress=progress, share=0.2,
    )  # fmt: skip

    @jax.jit
    def restored(params: Params, stored: Stats, rates: jax.Array, momenta: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(given: Any) -> tuple[jax.Array, jax.Array]:
            params, stored, rate, momentum = given
            stale = _update(params, by_stats=True)(stored, {"x": jnp.asarray(x)})
            return assess(
                params,
                stored,
                correct_variance_shift(stored, rate),
                debias_stats(stored, momentum, _SHORT),
                Stats(**{name: RunningStats(part.mean, part.var) for name, part in stale.items()}),
                precise_stats(_update(params), stored, batches),
                precise_stats(_update(params, by_stats=True), stored, batches, layer_by_layer=True),
            )

        return ungrid(jax.lax.map(one, (params, stored, rates, momenta)), 3)

    noisy_keys, rates = grid(noise_keys, _rates(options))
    params, stats = _repeated((state.params, state.stats), 3)
    of_case = {"few": restored(few.params, few.stats, jnp.zeros_like(momenta), momenta)}
    for place, where in PLACES.items():

        @over_seeds
        def spoilt(key: jax.Array, params: Params, stats: Stats, rate: jax.Array, where: Place = where) -> Stats:
            noise = Noise(lambda key, x: dropout(key, x, rate), np.nan, where)
            return precise_stats(_update(params, noise, key), stats, {**batches, "number": jnp.arange(len(batches["x"]))})

        of_case[place] = restored(
            params, spoilt(jax.random.clone(noisy_keys), params, stats, rates), rates, jnp.full_like(rates, _MOMENTUM)
        )
        progress(0.1)
    first = next(iter(PLACES))
    clean = jnp.broadcast_to(history["both"][:, -1, :1], (len(keys), 3))
    found: dict[str, dict[str, Any]] = {_CLEAN: dict.fromkeys(PLACES, clean)}
    for number, (arm, cases) in enumerate(_CASES.items()):
        found[arm] = {case: of_case[case][0][..., number] for case in cases}
        if first in cases:
            found[arm]["nll"] = of_case[first][1][..., number]
    alone = over_seeds(lambda state: _alone(model, state, jnp.asarray(test_x)))(state)
    error = over_seeds(lambda params: _error(jnp.asarray(x) @ params.first.dense.kernel))(state.params)
    found[_STORED] |= {"tracking": history["both"][..., 0], "alone": alone, "error": error, "ratio": history["ratio"][:, -1]}
    found[_BATCHES] |= {"tracking": history["both"][..., 1]}
    return found


def _repeated(tree: Any, times: int) -> Any:
    return jax.tree.map(lambda a: jnp.repeat(a, times, 0), tree)


def _alone(model: MLP, state: TrainState, x: jax.Array) -> jax.Array:
    """How far the logits of examples by themselves are from those of the same examples in a batch."""

    def logits(x: jax.Array) -> jax.Array:
        return model.forward(None, state.params, state.stats, x, train=False)[0]

    return jnp.max(jnp.abs(jax.lax.map(lambda one: logits(one[None])[0], x) - logits(x)))


def _error(h: jax.Array) -> jax.Array:
    """How far averages of batch norm are from their closed forms: of one batch again and again, and cumulative, of many."""
    params, start = init_batch_norm(h.shape[1])

    def average(momentum: Callable[[jax.Array], Any], batches: jax.Array) -> jax.Array:
        def step(stats: RunningStats, given: Any) -> tuple[RunningStats, None]:
            number, h = given
            return batch_norm(params, stats, h, train=True, momentum=momentum(number))[1], None

        return jnp.stack(jax.lax.scan(step, start, (jnp.arange(len(batches)), batches))[0])

    batches = h[: len(h) // 64 * 64].reshape(-1, 64, h.shape[1])
    of_batches, left = jnp.stack([batches.mean(1), batches.var(1)]), _MOMENTUM ** len(batches)
    again = average(lambda _: _MOMENTUM, jnp.broadcast_to(batches[0], batches.shape))
    closed = left * jnp.stack(start) + (1 - left) * of_batches[:, 0]
    cumulative = average(cumulative_momentum, batches)
    return jnp.maximum(*(jnp.max(jnp.abs(a - b)) for a, b in ((again, closed), (cumulative, of_batches.mean(1)))))


def _points(arm: str, than: str, case: str, place: int = -1) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * (found[arm][case][:, place] - found[than][case][:, place])


def _off(found: Found) -> np.ndarray:
    return 100 * np.max(
        [np.abs(found[arm][place] - found[_CLEAN][place]).max(1) for arm in (_BATCHES, _LAYERS) for place in PLACES], axis=0
    )


def _steps(found: Found) -> np.ndarray:
    return -100 * np.max([np.diff(found[_STORED][place]).max(1) for place in PLACES], axis=0)


_RATES = Axis("rate of dropout", _rates)
_BEFORE, _DENSE = PLACES
EXPERIMENT = Experiment(
    claim="Statistics that do not fit the weights cost accuracy; estimated anew they give it back",
    sources=(
        "Wu, Johnson, \"Rethinking 'batch' in BatchNorm\", 2021, https://arxiv.org/abs/2105.07576",
        LI,
        IOFFE_SZEGEDY,
    ),
    options=(
        Option("rate", rate_below_one, 0.7, 0.7, "largest rate of the dropout that spoils statistics; also 3/7 and 5/7 of it"),
        Option("depth", count, 8, 8, "number of hidden layers"),
        Option("width", count, 100, 64, "units of a hidden layer"),
        Option("epochs", count, 75, 20, "passes over the 1,297 training images, of 20 steps each, before statistics are spoilt"),
    ),
    arms=together(ARMS, measure),
    measure=measure_together,
    quantities=(
        Quantity(_BEFORE, "dropout before batch norm: test accuracy, %", 1, 100, axis=_RATES),
        Quantity(_DENSE, "dropout before the dense layer: test accuracy, %", 1, 100, axis=_RATES),
        Quantity("nll", "dropout before batch norm: test NLL", 2, axis=_RATES, log=True),
        Quantity(
            "few", "after 160 steps: test accuracy, %", 1, 100, axis=Axis("1 - momentum", lambda _: 1 - np.array(MOMENTA), True)
        ),
        Quantity(
            "tracking",
            "while training: test accuracy, %",
            1,
            100,
            axis=Axis("tenth of training", lambda _: np.arange(1, RECORDS + 1)),
        ),
        Quantity("ratio", "averaged over whole-set variance", 3),
        Quantity("error", "error of closed forms, millionths", 2, 1e6),
        Quantity("alone", "logits alone - in a batch, millionths", 1, 1e6),
    ),
    parts=(
        Part(
            "1.13b",
            "test accuracy that estimating anew gives back at the largest rate, points",
            _points(_BATCHES, _STORED, _BEFORE),
            at_least(20),
            1,
        ),
        Part("1.13b", "largest distance of any estimated anew from as trained, points", _off, at_most(1)),
        Part("1.13b 1.11", "smallest loss of stored statistics from one rate to the next, points", _steps, at_least(0.5), 1),
        Part(
            "1.13b",
            "test accuracy that the closed form gives back at the largest rate, points",
            _points(_CORRECTED, _STORED, _BEFORE),
            at_least(30),
            1,
        ),
        Part(
            "1.13b",
            "test accuracy after one pass by the old, less that as trained, points",
            _points(_STALE, _CLEAN, _BEFORE),
            at_most(-10),
            1,
        ),
        Part(
            "0.5",
            "test accuracy lost by averages while training, mean, points",
            lambda found: 100 * (found[_BATCHES]["tracking"] - found[_STORED]["tracking"]).mean(1),
            at_most(1),
        ),
        Part(
            "0.5 1.2",
            "test accuracy lost by averages of momentum 0.999 after 160 steps, points",
            _points(_BATCHES, _STORED, "few"),
            at_least(5),
            1,
        ),
        Part(
            "0.5",
            "test accuracy that averages give back without their beginning, points",
            _points(_DEBIASED, _STORED, "few"),
            at_least(5),
            1,
        ),
        Part(
            "0.5",
            "largest error of averages beside their closed forms, millionths",
            lambda found: 1e6 * found[_STORED]["error"],
            at_most(100),
        ),
        Part("1.2", "averaged over whole-set variance, at the end", lambda found: found[_STORED]["ratio"], Bound(0.95, 1.05), 3),
        Part(
            "1.2",
            "logits of an example alone less those in a batch, largest, millionths",
            lambda found: 1e6 * found[_STORED]["alone"],
            at_most(100),
        ),
    ),
    panels=(Lines(_BEFORE), Lines(_DENSE), Lines("few")),
    protocol=(
        "Perceptrons of scikit-learn's digits, 1,297 to train and 500 to test, trained without noise with Adam in batches of 64. "
        "Then, with the weights as they are, the statistics of all layers are taken with dropout on, as a network stores them "
        "that is trained with it. They are corrected in closed form, each layer by itself; taken in one pass without noise in "
        "which layers still normalize by the old ones; and estimated anew without noise, by batches and layer by layer. Last, "
        "networks are trained for 160 steps with averages of several momenta."
    ),
    note=(
        "Estimate statistics anew whenever they were taken with noise, with other weights, or over too few steps. In one pass by "
        "the old statistics each layer is estimated on inputs that it never meets again, which at small rates is worse than "
        "nothing."
    ),
    control={"rate": 0.0},
)
