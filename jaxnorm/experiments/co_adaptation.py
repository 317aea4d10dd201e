"""Dropout lets units be useful without particular others: networks lose less with units removed (Hinton et al., 2012)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import dropout
from jaxnorm.diagnostics import dropout_noise_variance, unit_redundancy
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import (
    Axis,
    Bars,
    Bound,
    Experiment,
    Found,
    Lines,
    Options,
    Part,
    Quantity,
    at_least,
    at_most,
)
from jaxnorm.experiments._mlp import MLP, Noise, Params, Stats, batch_norms
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._sources import HINTON, SRIVASTAVA
from jaxnorm.experiments._training import accuracy, adam, over_seeds, train
from jaxnorm.training import TrainState

SHARES = np.arange(10) / 10
INPUT_NOISE = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
_DRAWS = 10
_PLAIN, _DROPOUT, _NORM = "plain", "dropout", "batch norm"


def arms(options: Options) -> Mapping[str, MLP]:
    """Returns the networks, of two hidden layers."""
    plain = MLP(depth=2, width=options.width)
    noise = Noise(lambda key, x: dropout(key, x, options.rate), dropout_noise_variance(options.rate), "after activation")
    return {_PLAIN: plain, _DROPOUT: replace(plain, noise=noise), _NORM: replace(plain, norm=batch_norms())}


def measure(model: MLP, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains an arm, and measures it with units removed, spliced, and on inputs unlike those of its training."""
    data, (x, labels) = load_digits()
    init_keys, train_keys, measure_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    steps = options.epochs * (len(data[0]) // 64)
    state, history = train(
        model.apply, adam(1e-3, steps), train_keys, over_seeds(model.init)(init_keys), data, steps=steps, batch_size=64,
        progress=progress, record=lambda state: {"params": state.params, "stats": state.stats}, every=max(1, steps // 2),
    )  # fmt: skip
    younger = jax.tree.map(lambda a: a[:, 0], (history["params"], history["stats"]))
    floor = jnp.asarray(data[0].min(0))  # what is black
    shifted = jnp.roll((jnp.asarray(x) - floor).reshape(-1, 8, 8), 1, 2).at[:, :, 0].set(0).reshape(-1, 64) + floor

    def accuracy_of(params: Params, stats: Stats, x: Any, key: Any = None, share: Any = 0.0) -> jax.Array:
        """With a share of the units of both hidden layers removed at random, the same for all examples."""
        removed = Noise(lambda key, x: dropout(key, x, share, broadcast_dims=(0,)), np.nan, "after activation")
        logits, _, _ = replace(model, noise=removed).forward(key, params, stats, jnp.asarray(x), train=False)
        return accuracy(logits, labels)

    @over_seeds
    def assess(key: jax.Array, state: TrainState, younger: tuple[Params, Stats]) -> dict[str, jax.Array]:
        params, stats = state.params, state.stats
        of_draws, of_inputs, of_splices, of_mask = jax.random.split(key, 4)

        def subnet(given: Any) -> jax.Array:
            draw, share = given
            return accuracy_of(params, stats, x, jax.random.fold_in(of_draws, draw), share)

        def splice(draw: jax.Array) -> jax.Array:
            mixed = spliced(jax.random.fold_in(of_splices, draw), (params, stats), younger)
            return accuracy_of(*mixed, x)

        numbers = jnp.tile(jnp.arange(_DRAWS), len(SHARES)), jnp.repeat(jnp.asarray(SHARES), _DRAWS)
        removed = jax.lax.map(subnet, numbers).reshape(len(SHARES), _DRAWS).mean(1)
        noise = jax.random.normal(of_inputs, x.shape)
        unlike = jnp.stack([*(x + std * noise for std in INPUT_NOISE), shifted])
        on_unlike = jax.lax.map(lambda x: accuracy_of(params, stats, x), unlike)
        _, _, seen = replace(model, noise=None).forward(None, params, stats, jnp.asarray(x), train=False)
        hidden = jax.nn.relu(jnp.stack([seen[0].normalized, seen[1].normalized[0]]))
        alike = jax.vmap(unit_redundancy)(hidden)
        mask = model.draw("after activation", of_mask, jnp.ones((64, options.width))) > 0
        return {
            "removed": removed,
            "spliced": jax.lax.map(splice, jnp.arange(_DRAWS)).mean(),
            "noisy": on_unlike[:-1],
            "shifted": on_unlike[-1],
            "alike": alike.mean(),
            "most alike": alike.max(),
            "activation": hidden.mean(),
            "dead": jnp.mean(jnp.all(hidden <= 0, 1)),
            "kept": mask.mean(),
            "masks": jnp.mean(mask[1:] != mask[:-1]),
        }

    return assess(measure_keys, state, younger)


def spliced(key: jax.Array, one: tuple[Params, Stats], other: tuple[Params, Stats]) -> tuple[Params, Stats]:
    """Returns a network whose hidden units come from one or the other of two, each with all that leads into it, by a coin."""
    (params, stats), (other_params, other_stats) = one, other

    def mix(key: jax.Array, a: Any, b: Any) -> Any:
        first = jax.tree.leaves(a)[0]
        coin = jax.random.bernoulli(key, 0.5, first.shape[-1:])  # of a unit
        return jax.tree.map(lambda a, b: jnp.where(coin, a, b), a, b)

    keys = jax.random.split(key)
    first, first_stats = mix(keys[0], (params.first, stats.first), (other_params.first, other_stats.first))
    others, others_stats = mix(keys[1], (params.others, stats.others), (other_params.others, other_stats.others))
    return Params(first, others, params.classifier), Stats(first_stats, others_stats)


def _more(name: str, place: Any = ()) -> Callable[[Found], np.ndarray]:
    """Dropout less plain, in points; of a curve at a place."""
    return lambda found: 100 * (found[_DROPOUT][name] - found[_PLAIN][name])[(slice(None), *np.atleast_1d(place).astype(int))]


def _grows(name: str, high: int, low: int) -> Callable[[Found], np.ndarray]:
    return lambda found: _more(name, high)(found) - _more(name, low)(found)


EXPERIMENT = Experiment(
    claim="A network trained with dropout loses less when random units are removed",
    sources=(
        HINTON,
        SRIVASTAVA,
        'Morcos, Barrett, Rabinowitz, Botvinick, "On the importance of single directions for generalization", ICLR 2018, '
        "https://arxiv.org/abs/1803.06959",
    ),
    options=(
        Option("rate", rate_below_one, 0.5, 0.5, "probability of dropping"),
        Option("width", count, 128, 128, "units of the two hidden layers"),
        Option("epochs", count, 60, 20, "passes over the 1,297 training images, of 20 steps each"),
    ),
    arms=arms,
    measure=measure,
    quantities=(
        Quantity("removed", "test accuracy, %", 1, 100, axis=Axis("share of hidden units removed", lambda _: SHARES)),
        Quantity("noisy", "test accuracy, %", 1, 100, axis=Axis("deviation of noise on pixels", lambda _: INPUT_NOISE)),
        Quantity("spliced", "spliced, %", 1, 100),
        Quantity("shifted", "shifted digits, %", 1, 100),
        Quantity("alike", "mean correlation", 2),
        Quantity("most alike", "largest correlation", 3),
        Quantity("activation", "mean activation", 2),
        Quantity("dead", "dead units, %", 1, 100),
        Quantity("kept", "kept, %", 1, 100),
        Quantity("masks", "masks differ, %", 1, 100),
    ),
    parts=(
        Part("0.9 0.11 1.7", "accuracy of random half subnets, dropout less plain, points", _more("removed", 5), at_least(5), 1),
        Part(
            "0.12",
            "growth of that gap from a tenth to half of the units removed, points",
            _grows("removed", 5, 1),
            at_least(2),
            1,
        ),
        Part(
            "0.11",
            "accuracy of splices of a network with its younger self, dropout less plain, points",
            _more("spliced"),
            at_least(0),
            1,
        ),
        Part("0.11", "largest correlation of two units, dropout", lambda found: found[_DROPOUT]["most alike"], at_most(0.99), 3),
        Part(
            "0.12", "growth of the gap from clean inputs to noise of deviation 1, points", _grows("noisy", 2, 0), at_least(1), 1
        ),
        Part("0.12", "accuracy on digits shifted by a pixel, dropout less plain, points", _more("shifted"), at_least(0), 1),
        Part(
            "2.7",
            "mean activation, dropout over plain",
            lambda found: found[_DROPOUT]["activation"] / found[_PLAIN]["activation"],
            at_most(0.8),
        ),
        Part("2.7", "dead units, dropout less plain, points", _more("dead"), at_most(0), 1),
        Part("0.9", "units kept in training, %", lambda found: 100 * found[_DROPOUT]["kept"], Bound(49, 51), 1),
        Part(
            "0.9",
            "units for which the masks of two examples differ, %",
            lambda found: 100 * found[_DROPOUT]["masks"],
            Bound(48, 52),
            1,
        ),
    ),
    panels=(Lines("removed"), Lines("noisy"), Bars("activation")),
    protocol=(
        "Perceptrons of two hidden layers on scikit-learn's digits, 1,297 to train and 500 to test, with Adam in batches of 64; "
        "dropout after the activations. Removed units are 0, the others are scaled up as in dropout, without any training. A "
        "splice takes each hidden unit, with all that leads into it, from the network at the end or at half of its training. "
        "Correlations are of activations on the test set, of every unit the largest with another."
    ),
    note=(
        "That dropout removes dead or overactive units is an analogy: which units it removes is random, and so is that it were "
        "cross-validation."
    ),
    control={"rate": 0.0},
)
