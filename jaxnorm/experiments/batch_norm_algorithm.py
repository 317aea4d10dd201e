"""Batch norm's two algorithms on a trained network: moments, stored statistics, folding (Ioffe, Szegedy, 2015)."""

import functools
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import RunningStats, batch_norm
from jaxnorm.experiments._convnet import patches
from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Experiment, Found, Lines, Options, Part, Quantity, at_least, at_most, once
from jaxnorm.experiments._mlp import MLP, Dense, Params, Stats, batch_norms
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, part_of
from jaxnorm.experiments._training import adam, over_seeds, train
from jaxnorm.folding import as_affine, fold_conv, fold_dense, identity_batch_norm
from jaxnorm.statistics import cumulative_momentum
from jaxnorm.training import TrainState, load_checkpoint, save_checkpoint

_STORED, _BATCH = "stored statistics", "those of the test batch"
_SIZES = (1, 2, 5, 20, 100, 500)
_MODEL = MLP(batch_norms(), depth=2, width=50)
_EPSILON = 1e-5
_TRAIN_BATCH = 64
_NUMBERS = np.random.default_rng(0).normal(size=(50 * 64, _MODEL.width)).astype(np.float32)


def _dense(layer: Dense, x: jax.Array) -> jax.Array:
    return jnp.matmul(x, layer.kernel, precision="highest") + layer.bias


def _folded(params: Params, stats: Stats, x: jax.Array) -> jax.Array:
    """Runs the network without its norms, which are folded into the dense layers before them."""
    second = jax.tree.map(lambda part: part[0], (params.others, stats.others))
    for layer, running in ((params.first, stats.first), second):
        x = jax.nn.relu(_dense(Dense(*fold_dense(layer.norm, running, *layer.dense)), x))
    return _dense(params.classifier, x)


def _algorithm_1(params: Any, running: RunningStats, h: jax.Array) -> dict[str, jax.Array]:
    """Returns errors of what the norm makes of a batch, against the paper's formulas."""
    y, _ = batch_norm(params, running, h, train=True)
    var = jnp.square(params.scale) * h.var(0) / (h.var(0) + _EPSILON)
    x_hat = (h - h.mean(0)) / jnp.sqrt(h.var(0) + _EPSILON)
    moments = jnp.maximum(jnp.max(jnp.abs(y.mean(0) - params.bias)), jnp.max(jnp.abs(y.var(0) - var)))
    return {"moments": moments, "largest": jnp.max(jnp.abs(x_hat)) / (len(h) - 1) ** 0.5}


def _stored(params: Any, running: RunningStats, h: jax.Array) -> jax.Array:
    """Returns the error of the variance that an epoch stores, against the mean of m / (m - 1) times the batches' own."""

    def step(running: RunningStats, given: Any) -> tuple[RunningStats, None]:
        number, h = given
        momentum = cumulative_momentum(number)
        return batch_norm(params, running, h, train=True, momentum=momentum, unbiased=True)[1], None

    m = h.shape[1]
    running, _ = jax.lax.scan(step, running, (jnp.arange(len(h)), h))
    return jnp.max(jnp.abs(running.var / (m / (m - 1) * h.var(1).mean(0)) - 1))


def _before_convolution(params: Any, running: RunningStats, images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the largest errors, inside and at the border, of a fold into a padded convolution as if nothing were padded."""
    y = patches(batch_norm(params, running, images, train=False)[0]) @ kernel.reshape(-1, kernel.shape[-1])
    kernel, bias = fold_conv(params, running, kernel, None, before=True, padding="VALID")
    error = jnp.abs(patches(images) @ kernel.reshape(-1, kernel.shape[-1]) + bias - y)
    inside = error[:, 1:-1, 1:-1]
    return inside.max(), error.max()


@functools.cache
def _trained(seeds: int, steps: int) -> TrainState:
    """Returns the networks, which both arms freeze."""
    init_keys, train_keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)), out_axes=1)(jnp.arange(seeds))
    initial, data = over_seeds(_MODEL.init)(init_keys), load_digits()[0]
    return train(_MODEL.apply, adam(4e-3, steps), train_keys, initial, data, steps=steps, batch_size=_TRAIN_BATCH)[0]


def _predict(state: TrainState, x: jax.Array, by_batch: Any) -> jax.Array:
    return _MODEL.forward(None, state.params, state.stats, x, train=by_batch)[0]


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def _of_arm(state: TrainState, by_batch: Any) -> dict[str, jax.Array]:
    """Returns what an arm's statistics do to the test images; which they are is traced, so that both arms compile once."""
    x, labels = (jnp.asarray(part) for part in load_digits()[1])
    logits = [
        jax.lax.map(lambda batch: _predict(state, batch, by_batch), x.reshape(-1, size, 64)).reshape(-1, 10) for size in _SIZES
    ]
    layer, running = state.params.first, state.stats.first
    h, change = _dense(layer.dense, x), jnp.asarray(_NUMBERS[: len(x), : _MODEL.width])
    factor, _ = as_affine(layer.norm, running)
    moved, plain = (batch_norm(layer.norm, running, h, train=by_batch)[0] for h in (h + change, h))
    top = jnp.max(jnp.abs(logits[-1]))
    return {
        "accuracy": jnp.stack([jnp.mean(each.argmax(-1) == labels) for each in logits]),
        "mates": jnp.max(jnp.abs(logits[0] - logits[-1])) / top,
        "affine": jnp.max(jnp.abs(moved - plain - factor * change)),
        "folded": jnp.max(jnp.abs(_folded(state.params, state.stats, x) - logits[-1])) / top,
    }


def measure(by_batch: bool, keys: jax.Array, options: Options, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """Predicts with an arm's statistics, and takes the trained network's norms apart."""
    state = _trained(len(keys), options.steps)
    found = _of_arm(state, jnp.array(by_batch))
    if by_batch:
        return found
    images, x = jnp.asarray(load_digits()[0][0]), jnp.asarray(load_digits()[1][0])

    @over_seeds
    def of_layer(state: Any) -> dict[str, jax.Array]:
        params, stats = state.params, state.stats
        layer, running = params.first, stats.first
        h = _dense(layer.dense, images)
        of_batches = h[: len(h) // _TRAIN_BATCH * _TRAIN_BATCH].reshape(-1, _TRAIN_BATCH, h.shape[-1])
        following = jax.tree.map(lambda part: part[0], params.others.dense)
        normalized = batch_norm(layer.norm, running, h, train=False)[0]
        into = Dense(*fold_dense(layer.norm, running, *following, before=True))
        whole = RunningStats(h.mean(0), h.var(0))
        recovered, _ = batch_norm(identity_batch_norm(whole), whole, h, train=False)
        maps = jnp.asarray(_NUMBERS[: 50 * 64]).reshape(50, 8, 8, -1) * jnp.sqrt(running.var) + running.mean
        kernel = jnp.asarray(_NUMBERS[: 9 * 4]).reshape(3, 3, -1, 4) / 20
        inside, border = _before_convolution(layer.norm, running, maps, kernel)
        return _algorithm_1(layer.norm, running, of_batches[0]) | {
            "stored": _stored(layer.norm, running, of_batches),
            "folded before": jnp.max(jnp.abs(_dense(into, h) - _dense(following, normalized))),
            "identity": jnp.max(jnp.abs(recovered - h)),
            "mean": jnp.sqrt(jnp.mean(jnp.square(running.mean - whole.mean) / whole.var)),
            "inside": inside, "border": border,
        }  # fmt: skip

    run = jax.jit(lambda state: _predict(state, x, False))
    differing = []
    for number in range(len(keys)):
        own = jax.tree.map(lambda part, number=number: part[number], state)
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(folder, own)
            reloaded = load_checkpoint(folder, own).state
        differing.append(np.sum(np.asarray(run(reloaded)) != np.asarray(run(own))))
    return found | of_layer(state) | {"reloaded": np.array(differing, np.float64)}


def _of(name: str) -> Callable[[Found], np.ndarray]:
    return lambda found: found[_STORED][name]


EXPERIMENT = Experiment(
    claim="In inference batch norm is one fixed linear map, whatever else is in the batch",
    sources=(part_of(IOFFE_SZEGEDY, "algorithms 1 and 2"),),
    options=(Option("steps", count, 300, 100, "training steps, of 64 images"),),
    arms={_STORED: False, _BATCH: True},
    measure=measure,
    quantities=(
        Quantity("mates", "change by the others of the batch, over the largest output", 6),
        Quantity("affine", "largest error of f(x + d) - f(x) = a d", 6),
        Quantity("folded", "largest change by folding, over the largest output", 6),
        Quantity("folded before", "largest change by folding into the layer after", 6),
        Quantity("inside", "into a padded convolution, inside", 6),
        Quantity("border", "into a padded convolution, at the border", 2),
        Quantity("moments", "largest error of a batch's moments", 6),
        Quantity("largest", "largest normalized value over sqrt(m - 1)", 2),
        Quantity("stored", "error of the stored variance", 7),
        Quantity("identity", "largest change by an identity", 6),
        Quantity("mean", "stored means off those of the set, standard deviations", 3),
        Quantity("reloaded", "outputs that differ after reloading", 0),
        Quantity("accuracy", "test accuracy, %", 1, 100, axis=Axis("images of a test batch", lambda options: _SIZES, log=True)),
    ),
    parts=(
        Part(
            "0.7 1.2",
            "largest change of an output by the others of its batch, over the largest output",
            _of("mates"),
            at_most(1e-5),
            7,
        ),
        Part(
            "0.7 1.2",
            "test accuracy lost by statistics of batches of 2, points",
            lambda found: 100 * (found[_STORED]["accuracy"] - found[_BATCH]["accuracy"])[:, _SIZES.index(2)],
            at_least(10),
            1,
        ),
        Part(
            "0.7 4.9",
            "test accuracy with stored statistics, %",
            lambda found: 100 * found[_STORED]["accuracy"][:, 0],
            at_least(90),
            1,
        ),
        Part("0.6", "largest error of f(x + d) - f(x) = a d", _of("affine"), at_most(1e-4), 6),
        Part("0.6", "largest change by folding, over the largest output", _of("folded"), at_most(1e-5), 7),
        Part("0.6", "largest change by folding into the layer after", once("folded before"), at_most(1e-4), 6),
        Part("0.6", "largest error of a fold into a padded convolution, inside", once("inside"), at_most(1e-4), 6),
        Part("0.6", "largest error of a fold into a padded convolution, at the border", once("border"), at_least(0.01)),
        Part("0.4 3.7 4.9", "largest error of a batch's mean or variance after the norm", once("moments"), at_most(1e-4), 6),
        Part("0.4", "largest normalized value over sqrt(m - 1)", once("largest"), at_most(1)),
        Part("0.7 4.9", "error of the stored variance against m / (m - 1) E[var of batches]", once("stored"), at_most(1e-5), 7),
        Part("1.2", "stored means off those of the training set, standard deviations", once("mean"), at_most(0.1), 3),
        Part("3.7", "largest change by a norm that is put in as an identity", once("identity"), at_most(1e-5), 6),
        Part("1.3", "outputs that differ after saving and reloading", once("reloaded"), at_most(0), 0),
    ),
    panels=(Lines("accuracy"),),
    protocol=(
        "A perceptron of two hidden layers of 50 units with batch norm, trained on scikit-learn's digits with Adam in batches "
        "of 64. Moments, folds and stored statistics are of its first norm; the convolution before which a norm is folded is a "
        "random one."
    ),
    note=(
        "Folding before a convolution that pads with zeros is off at the border, where the offset of the norm is missing: "
        "`fold_conv` refuses it, or makes the bias a map. Outputs alone and in a batch are equal to float32's rounding, as "
        "products of other sizes are summed in another order."
    ),
    control={_STORED: _BATCH},
)
