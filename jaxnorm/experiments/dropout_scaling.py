"""Scaling by the probability of keeping, and what a mask does to outputs and gradients (Hinton et al., 2012)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm.linen
from jaxnorm import apply_mask, classic_dropout, dropout, dropout_mask, weight_scaled
from jaxnorm.experiments._experiment import Bars, Bound, Experiment, Options, Part, Quantity, at_least, at_most
from jaxnorm.experiments._options import Option, count, rate_below_one
from jaxnorm.experiments._sources import HINTON
from jaxnorm.experiments._training import over_seeds

_INVERTED, _CLASSIC, _UNSCALED = "divided in training", "multiplied at test", "not scaled"
_INPUTS = 6
_EXAMPLES = 3
_ROWS = 200


class Dropping(NamedTuple):
    """What a mask does in training, by itself and where it is drawn with a key, and what is done at test."""

    masked: Callable[[jax.Array, jax.Array, float], jax.Array]
    drawn: Callable[[jax.Array, jax.Array, float], jax.Array]
    test: Callable[[jax.Array, float], jax.Array]


def _masked(mask: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    return mask * x


def _as_it_is(x: jax.Array, rate: float) -> jax.Array:
    return x


def measure(arm: Dropping, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Runs all 2^6 masks of six inputs, and draws others."""
    rate, keep = options.rate, 1 - options.rate
    masks = (np.arange(2**_INPUTS)[:, None] >> np.arange(_INPUTS) & 1).astype(bool)
    kept = masks.sum(1)
    chance = (keep**kept * rate ** (_INPUTS - kept)).astype(np.float32)

    @over_seeds
    def of_seed(key: jax.Array) -> dict[str, jax.Array]:
        # Every call of a generator compiles for long: one for all numbers, one for two steps' noise, one for their masks.
        z_key, steps_key = jax.random.split(key)
        z = jax.random.normal(z_key, (_ROWS, options.units))
        x, w, bias, kernel, target = jnp.abs(z[0, :_INPUTS]), z[1 : 1 + _INPUTS], z[7], z[8:12].T, z[12:15, :4]
        train, test = jax.vmap(lambda mask: arm.masked(mask, x, rate))(masks), arm.test(x, rate)
        expected, at_test = chance @ (train @ w + bias), test @ w + bias
        through = chance @ jax.nn.relu(train @ w + bias)
        ratio = jnp.sum(chance * train.sum(1)) / test.sum()

        steps = jax.random.split(steps_key)
        noisy = jax.vmap(lambda key: arm.drawn(key, z, rate))(steps)
        drawn = jax.vmap(lambda key: dropout_mask(key, z.shape, rate))(jax.random.clone(steps))
        one, other = noisy != 0

        inputs, mask = z[:_EXAMPLES], drawn[1, :_EXAMPLES]

        def losses(kernel: jax.Array) -> jax.Array:
            return jnp.square(arm.masked(mask, inputs, rate) @ kernel - target).sum(1)

        each, batch = jax.jacobian(losses)(kernel), jax.grad(lambda kernel: losses(kernel).mean())(kernel)
        present = mask.sum(0)[:, None]
        partly = (present > 0) & (present < _EXAMPLES)
        over_present = each.sum(0) / jnp.maximum(present, 1)
        return {
            "ratio": ratio,
            "unscaled": ratio - keep,
            "error": jnp.max(jnp.abs(expected - at_test)),
            "relu gap": jnp.mean(jnp.abs(through - jax.nn.relu(at_test))) / jnp.mean(through),
            "kept": one.mean() - keep,
            "agreement of examples": (one[:-1] == one[1:]).mean() - (keep**2 + rate**2),
            "agreement of steps": (one == other).mean() - (keep**2 + rate**2),
            "formula": jnp.max(jnp.abs(noisy - jax.vmap(lambda mask: arm.masked(mask, z, rate))(drawn))),
            "absent gradient": jnp.max(jnp.where(mask[:, :, None], 0, jnp.abs(each))),
            "mean over all": jnp.max(jnp.abs(batch - each.sum(0) / _EXAMPLES)),
            "over present": jnp.sum(partly * jnp.abs(batch)) / jnp.sum(partly * jnp.abs(over_present)),
        }

    def as_in_the_source(key: jax.Array) -> float:
        """Returns what differs from the source's three lines, with the mask that the same random numbers give."""
        a = np.random.default_rng(0).normal(size=(50, 50)).astype(np.float32)
        d = np.asarray(jax.random.uniform(jax.random.clone(key), a.shape) < keep)
        own = np.asarray(dropout(key, jnp.asarray(a), rate, bits=32))
        return float(np.abs(own - a * d / np.float32(keep)).max())

    of_keys, source_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x = np.linspace(-1, 1, 99, dtype=np.float32)
    in_inference = np.asarray(jaxnorm.linen.Dropout(rate, deterministic=True).apply({}, x))
    return of_seed(of_keys) | {
        "source": np.array([as_in_the_source(key) for key in source_keys]),
        "inference": np.full(len(keys), np.abs(in_inference - x).max()),
    }


EXPERIMENT = Experiment(
    claim="Divided by the share kept, training sums on average to what the test does",
    sources=(
        HINTON,
        'Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from '
        'overfitting", JMLR 15, 2014, https://jmlr.org/papers/v15/srivastava14a.html',
    ),
    options=(
        Option("rate", rate_below_one, 0.5, 0.5, "probability of dropping"),
        Option("units", count, 100, 100, "units that six inputs are summed to, and that are dropped"),
    ),
    arms={
        _INVERTED: Dropping(apply_mask, dropout, _as_it_is),
        _CLASSIC: Dropping(_masked, classic_dropout, weight_scaled),
        _UNSCALED: Dropping(_masked, classic_dropout, _as_it_is),
    },
    measure=measure,
    quantities=(
        Quantity("ratio", "expected sum in training over that of the test", 4),
        Quantity("error", "largest error of a unit's expectation", 7),
        Quantity("relu gap", "error of the expected ReLU, %", 1, 100),
        Quantity("unscaled", "the same less 1 - rate", 6),
        Quantity("kept", "share kept, less 1 - rate", 3),
        Quantity("agreement of examples", "masks of two examples: agreement beyond chance", 3),
        Quantity("agreement of steps", "of two steps", 3),
        Quantity("formula", "largest error against the formula with the same mask", 7),
        Quantity("source", "largest error against the source's code", 7),
        Quantity("inference", "largest change by the layer in inference", 7),
        Quantity("absent gradient", "largest gradient of an absent unit, one example", 7),
        Quantity("mean over all", "largest error against the mean over all examples", 7),
        Quantity("over present", "gradient over the mean of examples where the unit is present", 3),
    ),
    parts=(
        Part(
            "1.9 3.6",
            "expected sum in training over that of the test, divided in training",
            lambda found: found[_INVERTED]["ratio"],
            Bound(1 - 1e-5, 1 + 1e-5),
            6,
        ),
        Part("1.9", "the same, not scaled, less 1 - rate", lambda found: found[_UNSCALED]["unscaled"], Bound(-1e-5, 1e-5), 6),
        Part(
            "3.6 3.4",
            "largest error of a unit's expectation, weights multiplied at test",
            lambda found: found[_CLASSIC]["error"],
            at_most(1e-5),
            7,
        ),
        Part("3.6", "error of the expected ReLU, %", lambda found: 100 * found[_INVERTED]["relu gap"], at_least(1), 1),
        Part("0.9", "share of units kept, less 1 - rate", lambda found: found[_INVERTED]["kept"], Bound(-0.01, 0.01), 4),
        Part(
            "0.9 3.5",
            "agreement of the masks of two examples, or steps, beyond chance",
            lambda found: np.maximum(*(np.abs(found[_INVERTED][f"agreement of {name}"]) for name in ("examples", "steps"))),
            at_most(0.02),
            4,
        ),
        Part(
            "3.4",
            "largest error against the formula, given the mask",
            lambda found: np.maximum(found[_CLASSIC]["formula"], found[_INVERTED]["formula"]),
            at_most(0),
            7,
        ),
        Part("1.14", "largest error against the source's code", lambda found: found[_INVERTED]["source"], at_most(0), 7),
        Part("1.8", "largest change by the layer in inference", lambda found: found[_INVERTED]["inference"], at_most(0), 7),
        Part(
            "2.3 3.5",
            "largest gradient of an absent unit, of one example",
            lambda found: found[_INVERTED]["absent gradient"],
            at_most(0),
            7,
        ),
        Part(
            "3.5",
            "largest error of the gradient against the sum over the examples by their number",
            lambda found: found[_INVERTED]["mean over all"],
            at_most(1e-4),
            7,
        ),
        Part(
            "3.5",
            "gradient over the mean of those examples where the unit is present",
            lambda found: found[_INVERTED]["over present"],
            at_most(0.67),
            3,
        ),
    ),
    panels=(Bars("ratio"), Bars("relu gap")),
    protocol=(
        "Expectations are over all 2^6 masks of six inputs, with random weights. Shares and agreement are of 200 examples; "
        "gradients are of the squared error of a batch of 3."
    ),
    note=(
        "That the expected output of a unit is that of the test holds for sums; through a ReLU it is off, and the mean of the "
        "network's outputs with it (`model_averaging`). This library divides in training, so that inference is the identity."
    ),
    control={_INVERTED: _UNSCALED},
)
