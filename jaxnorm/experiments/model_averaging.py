"""Dropout as an average of 2^h networks that share weights, and weight scaling as their geometric mean (Hinton et al., 2012)."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import _picture as picture
from jaxnorm import apply_mask, dropout, dropout_mask
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import (
    Axis,
    Bars,
    Bound,
    Drawing,
    Experiment,
    Found,
    Lines,
    Options,
    Part,
    Quantity,
    at_least,
    at_most,
)
from jaxnorm.experiments._mlp import Dense
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._sources import HINTON
from jaxnorm.experiments._training import adam, grid, over_seeds, train, ungrid
from jaxnorm.initializers import he
from jaxnorm.training import cross_entropy
from jaxnorm.uncertainty import exact_ensemble, mc_predict

_SOFTMAX, _RELU, _WIDE, _SEPARATE = "softmax after dropout", "ReLU after dropout", "dropout, 100 units", "5 networks, 100 units"
_ENUMERATED = 12
_SAMPLES = (1, 3, 10, 30, 100, 300)


@dataclass(frozen=True)
class Network:
    """A perceptron with dropout after its first hidden layer, or so many of them without."""

    hidden: tuple[int, ...]
    rate: float
    members: int = 1

    def init(self, key: jax.Array) -> tuple[Any, tuple[()]]:
        """Returns initial parameters, and no statistics."""
        sizes = (64, *self.hidden, 10)
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = itertools.pairwise(sizes)
        return tuple(Dense(he(0.0)(key, shape), jnp.zeros(shape[1])) for key, shape in zip(keys, shapes, strict=True)), ()

    def logits(self, params: Any, x: jax.Array, drop: Callable[[jax.Array], jax.Array] = lambda h: h) -> jax.Array:
        """Returns the outputs, with something done to the first hidden layer; nothing is weight scaling."""
        first, *others, classifier = params
        x = drop(jax.nn.relu(x @ first.kernel + first.bias))
        for layer in others:
            x = jax.nn.relu(x @ layer.kernel + layer.bias)
        return x @ classifier.kernel + classifier.bias

    def apply(self, key: jax.Array, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        """Runs the network as `jaxnorm.training` takes it."""
        return (self.sampled(key, params, x) if train else self.logits(params, x)), stats

    def sampled(self, key: jax.Array, params: Any, x: jax.Array) -> jax.Array:
        """Returns the outputs of a thinned network for each example."""
        return self.logits(params, x, lambda h: dropout(key, h, self.rate))


def arms(options: Options) -> Mapping[str, Network]:
    """Returns the networks."""
    return {
        _SOFTMAX: Network((_ENUMERATED,), options.rate),
        _RELU: Network((_ENUMERATED, 32), options.rate),
        _WIDE: Network((100,), options.rate),
        _SEPARATE: Network((100,), 0.0, members=5),
    }


def measure(model: Network, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Trains an arm, and compares the averages of its networks."""
    data, test = load_digits()
    data, (x, labels) = (data[0][: options.examples], data[1][: options.examples]), jax.tree.map(jnp.asarray, test)
    own, _ = grid(keys, jnp.arange(model.members))
    own = jax.vmap(jax.random.fold_in)(own, jnp.arange(len(own)))
    state, _ = train(
        model.apply, adam(5e-3, options.steps), own, over_seeds(model.init)(own), data,
        steps=options.steps, batch_size=50, progress=progress,
    )  # fmt: skip

    def of(p: jax.Array, kind: str) -> dict[str, jax.Array]:
        log_p = jnp.log(jnp.maximum(p, 1e-30))
        return {f"{kind} accuracy": jnp.mean(p.argmax(-1) == labels), f"{kind} nll": jnp.mean(cross_entropy(log_p, labels))}

    @over_seeds
    def of_members(params: Any) -> dict[str, jax.Array]:
        p = jax.nn.softmax(jax.vmap(lambda own: model.logits(own, x))(params))
        return of(p.mean(0), "average") | {"member accuracy": jnp.mean(p.argmax(-1) == labels)}

    @over_seeds
    def of_dropout(key: jax.Array, params: Any) -> dict[str, jax.Array]:
        samples = mc_predict(key, lambda key, x: model.sampled(key, params, x), x, _SAMPLES[-1])
        drawn = jax.nn.softmax(samples)
        scaled = jax.nn.softmax(model.logits(params, x))
        found = of(scaled, "scaled") | {"member accuracy": jnp.mean(drawn.argmax(-1) == labels)}
        moved = model.apply(key, params, (), x, train=False)[0] - model.apply(jax.random.key(1), params, (), x, train=False)[0]
        found["keys in inference"] = jnp.max(jnp.abs(moved))
        means = jnp.stack([drawn[:samples].mean(0) for samples in _SAMPLES])
        if model.hidden[0] != _ENUMERATED:
            return found | of(means[-1], "average")

        def thinned(mask: jax.Array) -> jax.Array:
            return model.logits(params, x, lambda h: apply_mask(mask[None], h, model.rate))

        exact = exact_ensemble(thinned, _ENUMERATED, model.rate)
        return found | of(exact.arithmetic, "average") | {
            "gap": jnp.max(jnp.abs(exact.geometric - scaled)),
            "distance": jnp.sqrt(jnp.mean(jnp.square(means - exact.arithmetic), (1, 2))),
        }  # fmt: skip

    params = ungrid(state.params, model.members)
    return of_members(params) if model.members > 1 else of_dropout(keys, jax.tree.map(lambda a: a[:, 0], params))


def _slope(found: Found) -> np.ndarray:
    return np.polyfit(np.log(_SAMPLES), np.log(found[_SOFTMAX]["distance"].T), 1)[0]


def _above(arm: str, kind: str, other_arm: str, other: str) -> Callable[[Found], np.ndarray]:
    return lambda found: 100 * (found[arm][f"{kind} accuracy"] - found[other_arm][f"{other} accuracy"])


def _draw_networks(axes: Any, found: Found, colors: Mapping[str, str], options: Options) -> None:
    """Draws a network, and two of the thinned ones that training samples of it; crosses are units that are dropped."""
    for number, title in enumerate(("all units", "example 1", "example 2")):
        mask = np.asarray(dropout_mask(jax.random.key(number), (8,), options.rate)) if number else np.ones(8, bool)
        layers = [
            (0.0, np.linspace(1, 6, 4), np.ones(4, bool)),
            (1.0, np.arange(8.0), mask),
            (2.0, np.linspace(2, 5, 3), np.ones(3, bool)),
        ]
        for (left, below, kept), (right, above, kept_above) in itertools.pairwise(layers):
            for y, on in zip(below, kept, strict=True):
                for y_above, on_above in zip(above, kept_above, strict=True):
                    if on and on_above:
                        at = [3 * number + left, 3 * number + right]
                        axes.plot(at, [y, y_above], color=picture.GRAY, linewidth=0.6, zorder=1)
        for place, heights, kept in layers:
            at = np.full(len(heights), 3 * number + place)
            axes.scatter(at[kept], heights[kept], s=70, color=picture.BLUE, zorder=2)
            axes.scatter(at[~kept], heights[~kept], s=60, color=picture.VERMILION, marker="x", zorder=2)
        axes.text(3 * number + 1, -1.2, title, ha="center", fontsize=11)
    axes.set(ylim=(-1.8, 7.6))
    axes.set_axis_off()
    axes.set_title("A network, and two thinned ones of it")


EXPERIMENT = Experiment(
    claim="Dropout averages 2^h networks, and weight scaling is their geometric mean",
    sources=(
        HINTON,
        'Baldi, Sadowski, "Understanding dropout", NIPS 2013, https://papers.nips.cc/paper/4878-understanding-dropout',
    ),
    options=(
        Option("rate", rate_below_one, 0.5, 0.5, "probability of dropping"),
        Option("examples", count, 300, 300, "training images"),
        Option("steps", count, 1200, 400, "training steps, of 50 images"),
    ),
    arms=arms,
    measure=measure,
    quantities=(
        Quantity("member accuracy", "one network of the average: test accuracy, %", 1, 100),
        Quantity("average accuracy", "mean of all: test accuracy, %", 1, 100),
        Quantity("scaled accuracy", "weight scaling: test accuracy, %", 1, 100),
        Quantity("average nll", "mean of all: test NLL", 3),
        Quantity("scaled nll", "weight scaling: test NLL", 3),
        Quantity("gap", "largest difference of scaling and geometric mean", 7),
        Quantity("keys in inference", "largest difference by the key in inference", 1),
        Quantity(
            "distance",
            "distance of the mean of k samples to the mean of all 4,096 networks",
            4,
            log=True,
            axis=Axis("samples k", lambda options: _SAMPLES, log=True),
        ),
    ),
    parts=(
        Part(
            "0.10 3.2 2.3",
            "largest difference of scaling and the geometric mean of 4,096 networks, softmax next",
            lambda found: found[_SOFTMAX]["gap"],
            at_most(1e-5),
            7,
        ),
        Part("3.2 3.6", "the same with a layer of ReLU between", lambda found: found[_RELU]["gap"], at_least(0.01), 3),
        Part("0.10 2.3", "slope of log distance to the exact mean over log samples", _slope, Bound(-0.55, -0.45), 3),
        Part(
            "0.10 3.2",
            "test accuracy, scaling less mean of all networks, points",
            _above(_SOFTMAX, "scaled", _SOFTMAX, "average"),
            at_least(-1),
            1,
        ),
        Part("3.2", "the same with a layer of ReLU between", _above(_RELU, "scaled", _RELU, "average"), at_least(-1), 1),
        Part(
            "0.10 2.3 3.3",
            "test accuracy, mean of all less one thinned network, points",
            _above(_SOFTMAX, "average", _SOFTMAX, "member"),
            at_least(10),
            1,
        ),
        Part(
            "0.10 1.7",
            "test accuracy, one dropout network less the mean of 5 networks, points",
            _above(_WIDE, "scaled", _SEPARATE, "average"),
            at_least(-1),
            1,
        ),
        Part(
            "1.7",
            "largest difference that the key makes in inference",
            lambda found: found[_WIDE]["keys in inference"],
            at_most(0),
            1,
        ),
    ),
    panels=(Bars("average accuracy"), Lines("distance"), Drawing(_draw_networks)),
    protocol=(
        "Perceptrons of some of scikit-learn's digits, tested on 500, with Adam and dropout after the first hidden layer. Where "
        "that has 12 units, all 2^12 networks are run; of 100 units 300 are sampled. The five networks are trained one by one "
        "without dropout, for five times the cost."
    ),
    note=(
        "That the scaled network is the mean is exact for sums, and in the geometric sense for one softmax or logistic layer; "
        "through further layers it is an approximation, which costs little accuracy. Use it, and samples where the "
        "probabilities themselves matter."
    ),
    control={_SOFTMAX: _RELU},
)
