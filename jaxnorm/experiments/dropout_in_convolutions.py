"""Dropout in a convolutional network: before pooling or after, and what it gains there and in a perceptron."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import dropout, spatial_dropout
from jaxnorm.experiments._convnet import ConvNet, max_pool
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Bars, Bound, Experiment, Found, Options, Part, Quantity, at_least
from jaxnorm.experiments._mlp import MLP, NO_NORM, Noise
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, part_of
from jaxnorm.experiments._training import adam, grid, over_seeds, train, ungrid
from jaxnorm.training import make_eval_step

_CONV, _BEFORE, _AFTER, _MAPS, _DENSE = (
    "conv",
    "conv, before pooling",
    "conv, after pooling",
    "conv, whole maps",
    "conv, dense layer",
)
_MLP, _DROPPED = "MLP", "MLP, hidden layers"


class Rates(NamedTuple):
    """The probabilities of dropping, by place, over that of the options; `hidden` is a perceptron's."""

    before_pooling: float = 0.0
    after_pooling: float = 0.0
    maps: float = 0.0
    dense: float = 0.0
    hidden: float | None = None


_ARMS = {
    _CONV: Rates(),
    _BEFORE: Rates(before_pooling=1.0),
    _AFTER: Rates(after_pooling=1.0),
    _MAPS: Rates(maps=1.0),
    _DENSE: Rates(dense=1.0),
    _MLP: Rates(hidden=0.0),
    _DROPPED: Rates(hidden=1.0),
}


def _network(rates: Rates) -> ConvNet | MLP:
    """Returns the network, with rates that may be traced."""
    if rates.hidden is not None:
        return MLP(NO_NORM, Noise(lambda key, x: dropout(key, x, rates.hidden), np.nan, "after activation"), depth=2)

    def after_pooling(key: jax.Array, x: jax.Array) -> jax.Array:
        of_maps, of_places = jax.random.split(key)
        return spatial_dropout(of_maps, dropout(of_places, x, rates.after_pooling), rates.maps)

    return ConvNet(
        before_pooling=lambda key, x: dropout(key, x, rates.before_pooling),
        after_pooling=after_pooling,
        dense=lambda key, x: dropout(key, x, rates.dense),
        maps=(6, 12),
        units=48,
    )


@functools.cache
def _trained(perceptrons: bool, seeds: int, rate: float, examples: int, steps: int) -> Mapping[Rates, Mapping[str, np.ndarray]]:
    """Trains all arms that are perceptrons, or all others, as one axis of networks: they differ in numbers alone."""
    kinds = [rates for rates in _ARMS.values() if (rates.hidden is not None) == perceptrons]
    (x, labels), test = load_digits()
    data = x[:examples], labels[:examples]
    keys, which = grid(jax.vmap(jax.random.key)(jnp.arange(seeds)), jnp.arange(len(kinds)))
    init_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    table = jax.tree.map(lambda *values: rate * jnp.array(values), *kinds)
    own = jax.tree.map(lambda values: values[which], table)
    order = functools.cache(lambda number: np.random.default_rng(number).integers(0, examples, (steps, 50)))
    initial = over_seeds(_network(kinds[0]).init)(init_keys)
    state, _ = train(
        lambda rates: _network(rates).apply,
        lambda rates: adam(5e-3, steps),
        keys,
        initial,
        data,
        steps=steps,
        batch_size=50,
        each=own,
        order=lambda number: order(number // len(kinds)),
    )
    evaluate = make_eval_step(_network(kinds[0]).apply)

    @over_seeds
    def assess(state: Any) -> dict[str, jax.Array]:
        return {"train accuracy": evaluate(state, data)["accuracy"], "accuracy": evaluate(state, test)["accuracy"]}

    found = jax.device_get(ungrid(assess(state), len(kinds)))
    return {rates: {name: values[:, number] for name, values in found.items()} for number, rates in enumerate(kinds)}


def measure(rates: Rates, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Looks up an arm's accuracies; drops around pooling by itself."""
    found = dict(_trained(rates.hidden is not None, len(keys), options.rate, options.examples, options.steps)[rates])
    if not rates.before_pooling and not rates.after_pooling:
        return found

    @over_seeds
    def zeros(key: jax.Array) -> jax.Array:
        x_key, first, second = jax.random.split(key, 3)
        x = jax.random.uniform(x_key, (100, 8, 8, 8), minval=0.1)
        before, after = options.rate * rates.before_pooling, options.rate * rates.after_pooling
        return jnp.mean(dropout(second, max_pool(dropout(first, x, before)), after) == 0)

    share = zeros(keys)
    return found | {"zeros": share - options.rate**4, "zeros after": share - options.rate}


def _more(arm: str, other: str, name: str = "accuracy") -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * (found[arm][name] - found[other][name])


def _gain(found: Found) -> np.ndarray:
    return _more(_DROPPED, _MLP)(found) - np.max([_more(arm, _CONV)(found) for arm in (_BEFORE, _AFTER, _MAPS, _DENSE)], axis=0)


def _gap(found: Found) -> np.ndarray:
    of_mlp, of_conv = (found[arm]["train accuracy"] - found[arm]["accuracy"] for arm in (_MLP, _CONV))
    return 100 * (of_mlp - of_conv)


EXPERIMENT = Experiment(
    claim="Max pooling undoes dropout before it, and convolutions gain less by dropout",
    sources=(
        'Wu, Gu, "Towards dropout training for convolutional neural networks", Neural Networks 71, 2015, '
        "https://arxiv.org/abs/1512.00242",
        part_of(IOFFE_SZEGEDY, "section 4.2"),
    ),
    options=(
        Option("rate", rate_below_one, 0.5, 0.5, "probability of dropping"),
        Option("examples", count, 300, 300, "training images"),
        Option("steps", count, 300, 60, "training steps, of 50 images"),
    ),
    arms=_ARMS,
    measure=measure,
    quantities=(
        Quantity("train accuracy", "train accuracy, %", 1, 100),
        Quantity("accuracy", "test accuracy, %", 1, 100),
        Quantity("zeros", "share of 0 after pooling, less rate^4", 3),
        Quantity("zeros after", "share of 0 after pooling, less rate", 3),
    ),
    parts=(
        Part(
            "2.2",
            "share of 0 after pooling, dropout before it, less rate^4",
            lambda found: found[_BEFORE]["zeros"],
            Bound(-0.01, 0.01),
            4,
        ),
        Part("2.2", "the same, dropout after it, less rate", lambda found: found[_AFTER]["zeros after"], Bound(-0.01, 0.01), 4),
        Part("2.2", "test accuracy, after pooling less before, points", _more(_AFTER, _BEFORE), at_least(0), 1),
        Part("2.5", "gain of dropout in test accuracy, MLP less the best in the conv net, points", _gain, at_least(0), 1),
        Part("2.2", "train less test accuracy without dropout, MLP less conv net, points", _gap, at_least(0), 1),
    ),
    panels=(Bars("accuracy"), Bars("train accuracy")),
    protocol=(
        "Two convolutions of 3 x 3, 6 and 12 maps, with ReLU and pooling of 2 x 2, a dense layer of 48 units and a classifier; "
        "and perceptrons of two hidden layers of 100. All are trained on some of scikit-learn's digits with Adam. Shares are of "
        "positive maps."
    ),
    note=(
        "Before pooling the largest of a window takes the place of what is dropped: an output is 0 only if all four are, and is "
        "smaller on average; `max_pool_dropout` and its mean treat that exactly. At the same rate dropout after pooling is the "
        "stronger noise, which few maps do not stand: try `--rate 0.2`. Inception's authors went from 40 % dropout to 5-10 % "
        "or none with batch norm; such figures of large networks are not to be had at this scale."
    ),
    control={_BEFORE: _AFTER},
    seeds=(6, 2),
)
