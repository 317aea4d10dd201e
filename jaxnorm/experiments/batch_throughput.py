"""Examples a second of CPU time against the batch size: a batch as one product, and other ways of going through it."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.experiments._digits import load_digits
from jaxnorm.experiments._experiment import Axis, Experiment, Found, Lines, Options, Part, Quantity, at_least
from jaxnorm.experiments._mlp import MLP
from jaxnorm.experiments._options import Option, count
from jaxnorm.experiments._sources import IOFFE_SZEGEDY, part_of
from jaxnorm.training import cross_entropy

_BATCH, _VMAP, _SCAN, _CALLS = "one batch", "vmap of examples", "scan over examples", "a call for each example"
_SIZES = (1, 4, 16, 64, 256)
_SHORTEST = 0.01  # seconds of a measurement, of CPU time: other programs disturb it less

Gradient = Callable[..., Any]


def _one_batch(gradient: Gradient) -> Gradient:
    return jax.jit(gradient)


def _mean(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.mean(0), tree)


def _vmapped(gradient: Gradient) -> Gradient:
    one = jax.vmap(lambda params, x, label: gradient(params, x[None], label[None]), (None, 0, 0))
    return jax.jit(lambda params, x, labels: _mean(one(params, x, labels)))


def _scanned(gradient: Gradient) -> Gradient:
    def mean(params: Any, x: jax.Array, labels: jax.Array) -> Any:
        def add(total: Any, example: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *(part[None] for part in example))), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (x, labels))
        return jax.tree.map(lambda a: a / len(x), total)

    return jax.jit(mean)


def _called(gradient: Gradient) -> Gradient:
    one = jax.jit(gradient)

    def mean(params: Any, x: jax.Array, labels: jax.Array) -> Any:
        return [one(params, x[i : i + 1], labels[i : i + 1]) for i in range(len(x))]

    return mean


def measure(
    way: Callable[[Gradient], Gradient], keys: jax.Array, options: Options, progress: Callable[[float], None]
) -> Mapping[str, Any]:
    """Times the gradients of batches of every size, in turns with those of single examples."""
    (x, labels), _ = load_digits()
    model = MLP(depth=2, width=options.width)
    params, stats = jax.jit(model.init)(keys[0])

    def loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.mean(cross_entropy(model.forward(None, params, stats, x, train=True)[0], labels))

    of_batch, of_one = way(jax.grad(loss)), jax.jit(jax.grad(loss))
    # NumPy's rows: a slice of them is no call of jax.
    batches = [(x[:size], labels[:size]) for size in _SIZES]
    for batch in batches:
        jax.block_until_ready((of_batch(params, *batch), of_one(params, *batches[0])))

    def seconds(run: Gradient, batch: Any) -> float:
        begin, calls = time.process_time(), 0
        while calls == 0 or time.process_time() - begin < _SHORTEST:
            jax.block_until_ready(run(params, *batch))
            calls += 1
        return (time.process_time() - begin) / calls

    speeds = np.empty((len(keys), len(_SIZES)))
    for repeat in range(len(keys)):
        for place, (size, batch) in enumerate(zip(_SIZES, batches, strict=True)):
            pairs = [(seconds(of_one, batches[0]), seconds(of_batch, batch)) for _ in range(options.turns)]
            speeds[repeat, place] = size * statistics.median(one / all_ for one, all_ in pairs)
        progress(1 / len(keys))
    return {"speed": speeds, "largest": speeds[:, -1]}


def _rise(found: Found) -> np.ndarray:
    return (found[_BATCH]["speed"][:, 1:] / found[_BATCH]["speed"][:, :-1]).min(1)


EXPERIMENT = Experiment(
    claim="A batch is faster than its examples one by one, the more the larger it is",
    sources=(part_of(IOFFE_SZEGEDY, "section 1"),),
    options=(
        Option("width", count, 100, 100, "units of a hidden layer"),
        Option("turns", count, 7, 3, "measurements, of which the median counts"),
    ),
    arms={_BATCH: _one_batch, _VMAP: _vmapped, _SCAN: _scanned, _CALLS: _called},
    measure=measure,
    quantities=(
        Quantity("largest", f"examples a CPU second at m = {_SIZES[-1]}, over one by one", 1, log=True),
        Quantity(
            "speed",
            "examples a CPU second, over one by one",
            1,
            log=True,
            axis=Axis("batch size m", lambda options: _SIZES, log=True),
        ),
    ),
    parts=(
        Part(
            "4.5",
            f"examples a CPU second at m = {_SIZES[-1]}, over one by one",
            lambda found: found[_BATCH]["largest"],
            at_least(5),
            1,
        ),
        Part("4.5", "least factor in examples a CPU second, for a batch 4 times as large", _rise, at_least(1.1)),
        Part(
            "4.5",
            f"at m = {_SIZES[-1]}, one batch over a scan of its examples",
            lambda found: found[_BATCH]["largest"] / found[_SCAN]["largest"],
            at_least(2),
            1,
        ),
        Part(
            "4.5",
            f"at m = {_SIZES[-1]}, one batch over vmap of gradients of examples",
            lambda found: found[_BATCH]["largest"] / found[_VMAP]["largest"],
            at_least(1),
            1,
        ),
    ),
    panels=(Lines("speed"),),
    protocol=(
        "Gradients of a perceptron of two hidden layers on a CPU. A speed is the median, over some "
        "turns, of the CPU time of a call of one example over that of the batch, measured one after the other, times the batch "
        "size."
    ),
    note=(
        "vmap of a gradient has the gradients of all examples in memory before their mean. With batch norm a batch cannot be "
        "taken apart at all."
    ),
    control={_BATCH: _CALLS},
)
