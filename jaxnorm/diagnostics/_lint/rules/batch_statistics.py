"""Rules about statistics of the batch."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.records import Norm
from jaxnorm.diagnostics._lint.report import Finding, Severity
from jaxnorm.diagnostics._lint.rules._rule import library_of, rule

_TRAIN = {
    "jaxnorm": "batch_norm(..., train=train)",
    "linen": "BatchNorm(use_running_average=not train), applied with train=False",
    "nnx": "call model.eval() before, and the norm without use_running_average",
    "haiku": "norm(x, is_training=train), without test_local_stats",
    "equinox": "eqx.nn.inference_mode(model)",
    "": "keep averages of the statistics in training, and normalize by these",
}
"""What normalizes by averages in inference, by library."""

_BATCH = {
    "jaxnorm": "batch_norm(..., train=train)",
    "linen": "BatchNorm(use_running_average=not train), and hand train on to this layer",
    "nnx": "call the norm without use_running_average, after model.train()",
    "haiku": "norm(x, is_training=train)",
    "equinox": "eqx.nn.inference_mode(model, value=not train), and the norm without inference=True",
    "": "normalize by the statistics of the batch in training",
}
"""What normalizes by the batch in training, by library."""

_POOLED = {
    "jaxnorm": "axis_name={axes}",
    "linen": "BatchNorm(axis_name={axes})",
    "nnx": "BatchNorm(axis_name={axes})",
    "haiku": "hk.BatchNorm(cross_replica_axis={axes})",
    "equinox": 'eqx.nn.BatchNorm(axis_name=("batch", {axes}))',
    "": "jax.lax.pmean of mean and mean square along {axes}",
}
"""What pools statistics over devices, by library."""


_ROUNDING = 1e-5
"""The share of the largest output by which one may differ from itself."""


@rule
def batch_statistics_in_inference(look: Look) -> Iterator[Finding]:
    """At `train=False` what comes out for an example depends on the others of its batch.

    The same example then gets another answer in other company, a single one perhaps none: averages of training take the place of
    the statistics of the batch. Examples that meet without a norm are noted, as this may be meant.

    Sick: `y, state = batch_norm(params, state, x, train=True)`, in inference too.
    Healed: `y, state = batch_norm(params, state, x, train=train)`.
    """
    mixes = frozenset().union(*(value.mixes for value in look.inference.outputs))
    change = _change_of_mates(look) if mixes else 0.0
    if change == 0:
        return
    seen = "" if change is None else f": as one example is changed, another's output changes by {change:.2g} of the largest"
    figures = {} if change is None else {"change": change}
    norms = [norm for norm in look.inference.found.norms if norm.kind == "batch" and norm.reductions & mixes]
    for norm in norms:
        why = f"in inference this norm takes the statistics of the batch{seen}"
        yield Finding("batch-statistics-in-inference", "error", norm.where, why, _TRAIN[library_of(look, norm)], figures)
    if not norms and change is not None:
        where = next(where for place, where in look.inference.found.mixes.items() if place in mixes)
        why = f"in inference the examples of the batch are mixed{seen}"
        yield Finding("batch-statistics-in-inference", "note", where, why, "nothing, if this is meant", figures)


@np.errstate(all="ignore")
def _change_of_mates(look: Look) -> float | None:
    """Returns by how much other outputs change with the first example, as a share of the largest; None if that can't be seen."""

    def changed(leaf: jax.Array) -> jax.Array:
        return leaf.at[0].set(2 * leaf[0] + 1 if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf[1])

    x = jax.tree.map(jnp.asarray, look.model.x)
    if any(leaf.ndim == 0 or len(leaf) < 2 for leaf in jax.tree.leaves(x)):
        return None
    runs = look.inference.usual, look.inference.run(x=jax.tree.map(changed, x))
    changes = []
    for value, *outputs in zip(look.inference.outputs, *(jax.tree.leaves(run.outputs) for run in runs), strict=True):
        if len(value.examples) == 1:
            (axis,) = value.examples
            mates, others = (np.moveaxis(np.asarray(output, np.float64), axis, 0)[1:] for output in outputs)
            change = np.max(np.abs(others - mates), initial=0) / (np.max(np.abs(mates), initial=0) or 1)
            changes.append(float(change) if change > _ROUNDING else 0.0)
    return max(changes, default=None)


@rule
def running_statistics_in_training(look: Look) -> Iterator[Finding]:
    """At `train=True` a norm takes its running averages, while others take the statistics of the batch.

    Its averages never move, and its layers train without what batch norm is for. If all norms do so, they may be frozen on
    purpose, and this is a note.

    Sick: `y, state = batch_norm(params, state, x, train=False)`, in training too.
    Healed: `y, state = batch_norm(params, state, x, train=train)`, or `frozen_batch_norm(params, state, x)`, which says so.
    """
    norms, stats = look.training.found.norms, look.training.stats.values()
    moved = {look.training.found.paths[leaf] for value in stats for leaf, updated in value.averages if updated}
    others = sum(norm.kind == "batch" for norm in norms)
    for norm in norms:
        if norm.kind != "averages" or moved & {*norm.averages} or not _is_of_layer(norm):
            continue
        company = (
            f"while {others} of {len(norms)} take the statistics of the batch" if others else "as all do: frozen on purpose?"
        )
        why = f"in training this norm takes its running averages, {company}"
        severity: Severity = "warning" if others else "note"
        yield Finding(
            "running-statistics-in-training", severity, norm.where, why, _BATCH[library_of(look, norm)], {"others": others}
        )


def _is_of_layer(norm: Norm) -> bool:
    """Whether a norm is of a layer that may train, rather than frozen by its name, or a division by numbers that are stored."""
    return norm.ours != "frozen_batch_norm" and (norm.library != "" or norm.epsilon is not None)


@rule
def few_elements(look: Look) -> Iterator[Finding]:
    """Statistics of the batch are of fewer than 16 elements a channel.

    The estimate of a variance of n elements has the deviation `sqrt(2 / (n - 1))` of it: that much noise is in training, and not
    in inference. One element is its own mean: all that it says is lost.

    Sick: `batch_norm` on a batch of `[4, C]`.
    Healed: `group_norm`, larger batches, or `axis_name`, which pools those of several devices.
    """
    for norm in look.training.found.norms:
        count = norm.elements
        if norm.kind != "batch" or not 1 <= count < 16:
            continue
        severity: Severity = "error" if count == 1 else "warning" if count < 8 else "note"
        spread = "they are 0 and 0" if count == 1 else f"the variance is off by {(2 / (count - 1)) ** 0.5:.0%}"
        what = "1 element" if count == 1 else f"{count} elements"
        why = f"the statistics of this norm are of {what} a channel: {spread}"
        fix = "larger batches, statistics pooled over devices, or a norm of the example, as group norm"
        yield Finding("few-elements", severity, norm.where, why, fix, {"elements": count})


@rule
def statistics_per_device(look: Look) -> Iterator[Finding]:
    """Statistics are of the examples of one device, while the batch is spread over several.

    Each device normalizes its part by itself: the statistics are of fewer elements, another number of devices trains another
    network, and averages that are not pooled either are those of one device.

    Sick: `batch_norm(params, state, x, train=train)` within `shard_map`.
    Healed: `batch_norm(params, state, x, train=train, axis_name="data")`.
    """
    for norm in look.training.found.norms:
        if norm.kind == "batch" and norm.spread:
            names, count = [f'"{name}"' for name in sorted(norm.spread)], norm.elements
            axes = names[0] if len(names) == 1 else f"({', '.join(names)})"
            why = f"the batch is spread along {axes} of the mesh, and statistics are of one device, of {count} elements"
            fix = _POOLED[library_of(look, norm)].format(axes=axes)
            yield Finding("statistics-per-device", "warning", norm.where, why, fix, {"elements": count})
