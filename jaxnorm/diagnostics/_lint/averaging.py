"""How running averages move in a step of training, as runs of it show."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.diagnostics._lint.program import Program

_NOISE = 1e-4  # of an average that rounding explains


class Average(NamedTuple):
    """A running average, element by element.

    Attributes:
      given: what inference reads.
      kept: the weight of the old average in the new one.
      batch: the statistic of the batch that has the rest of the weight; NaN where that is nothing.
    """

    given: np.ndarray
    kept: np.ndarray
    batch: np.ndarray


@np.errstate(all="ignore")
def averages_of(training: Program) -> Mapping[str, Average]:
    """Returns by their paths the running averages whose new value is `kept old + (1 - kept) batch`.

    Runs from different old ones tell both. Every other layer has them at a time, so that a layer whose statistics of the batch
    depend on the averages of others is seen, and left out. An average may be there twice, as it moves and as inference reads it,
    where its first value, which is of no batch, is taken out: it is then one, under both paths.
    """
    before = training.usual.stats  # a first step may set what the later ones move
    if _types(before) != _types(training.model.stats):
        return {}
    sources = _sources(training)
    layers = {layer: number for number, layer in enumerate(dict.fromkeys(map(_layer, sources.values())))}
    parity = {source: layers[_layer(source)] % 2 for source in sources.values()}
    given, old = (_by_path(training, stats) for stats in (training.model.stats, before))
    apart = {path: 1 + jnp.abs(leaf) for path, leaf in old.items() if path in parity}

    def new(moved: int | None) -> dict[str, Any]:
        leaves = [leaf + apart[path] if parity.get(path, -1) == moved else leaf for path, leaf in old.items()]
        return _by_path(training, training.run(stats=jax.tree.unflatten(jax.tree.structure(before), leaves)).stats)

    ends = {moved: new(moved) for moved in (None, 0, 1)}
    averages: dict[str, Average] = {}
    for path, source in sorted(sources.items(), key=lambda item: item[0] == item[1]):  # what is read goes before what moves
        start, step, end, far, other = (
            np.asarray(leaves[source], np.float64)
            for leaves in (old, apart, ends[None], ends[parity[source]], ends[1 - parity[source]])
        )
        if not np.all(np.abs(other - end) <= _NOISE * (1 + np.abs(end))):
            continue
        kept = (far - end) / step
        batch = (end - kept * start) / np.where(kept < 1 - 1e-6, 1 - kept, np.nan)
        averages[path] = averages.get(path, Average(np.asarray(given[path], np.float64), kept, batch))
        averages.setdefault(source, averages[path])
    return averages


def _sources(training: Program) -> dict[str, str]:
    """By the path of each average, but those that training reads, that of the average whose old value its new one is made of."""
    found, leaves = training.found, _by_path(training, training.model.stats)
    read = {path for norm in found.norms if norm.kind == "averages" for path in (*norm.averages, *norm.means)}
    floats = {path for path, leaf in leaves.items() if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)} - read
    sources = {}
    for path, value in training.stats.items():
        made_of = {found.paths[leaf] for leaf, _ in value.averages} & floats
        if path in floats and (path in made_of or len(made_of) == 1):
            sources[path] = path if path in made_of else made_of.pop()
    return sources


def _layer(path: str) -> str:
    return path.rpartition("/")[0]


def _by_path(training: Program, stats: Any) -> dict[str, Any]:
    return dict(zip(training.stats, jax.tree.leaves(stats), strict=True))


def _types(stats: Any) -> Any:
    return jax.tree.structure(stats), [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(stats)]
