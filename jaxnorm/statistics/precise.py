"""Statistics of a whole data set, with all weights as they are."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import match_sharding, vary, varying
from jaxnorm._checks import check_known_flag, is_concrete
from jaxnorm._progress import progress_bar
from jaxnorm.statistics._layers import (
    Found,
    Layer,
    PyTree,
    check_layers,
    check_like,
    counts_of,
    first_part,
    layers_of,
    map_layers,
    measured,
    nothing_of,
    pooled,
    replaced,
    shown,
    size_of,
    unusable,
    with_layers,
)
from jaxnorm.statistics.adapters import FlaxUpdate
from jaxnorm.statistics.averages import reset_stats

Update = Callable[[Any, Any], Any]
"""`update(stats, batch) -> stats`."""

Count = Callable[[Any], Any]
"""`count(batch)`, of how many elements the statistics of a batch are."""

_SETTLED = 32
"""How many units in the last place statistics may differ, of two passes that agree."""


def precise_stats(
    update: Update,
    stats: PyTree,
    batches: Any,
    *,
    layer_by_layer: bool = False,
    count: Count | None = None,
    progress: bool = True,
) -> PyTree:
    """Returns running statistics estimated anew: those of all batches together, with all weights as they are and without noise.

    `mean = sum(n_b mean_b) / n` and `var = sum(n_b (var_b + |mean_b - mean|^2)) / n`, the variance of the population, for each
    layer and channel, where n_b counts the elements of batch b. The old statistics have no part in it.

    What a layer is given depends on how those before it normalize. By default, in batch mode, they normalize by the batch: one
    pass, exact for the first layer, and for all if the data are one batch. With `layer_by_layer` they normalize by the very
    statistics that are returned, as they will in inference: the passes are repeated until nothing changes any more, after the
    first of which the first layer is exact, after the second the second, and so on. That takes as many as the network is deep,
    whatever the order of the layers.

    One pass in which layers normalize by their old statistics would spoil deep networks: each layer would be estimated on inputs
    that it never meets again. So in batch mode `update` is handed statistics that nothing can be normalized by, and averaged
    with: it is an error if it does.

    Statistics that a layer averages over parts of a batch itself, as ghost batch norm, are averaged over the batches too.

    Args:
      update: `update(stats, batch) -> stats`, a pass in training mode with the noise off, which gives each layer's statistics of
        the batch alone: batch norms are called with `train=True, momentum=0.0`, and dropout is not. (`train=True` of a whole
        model is both: the two must be told apart.) `linen_update` and `nnx_update` make one of a Flax model. With
        `layer_by_layer` a function of one's own normalizes by `stats`, and gives the statistics of what it normalizes; those
        updates know. Where it gives `jaxnorm.Moments` for a layer, as `jaxnorm.reference_moments` makes them, their n counts.
      stats: the running statistics, any tree of `RunningStats` and the like, or of dicts with their names, or an `nnx.State`.
        Their numbers matter with `layer_by_layer`, for the first pass, or where no batch counts a channel; they may be NaN.
      batches: an array `[batches, B, ...]`, or a dict of them, which is gone through in one compiled program, also under
        `jax.jit`, `jax.vmap` and `jax.shard_map`; or an iterable of batches, whatever update takes, with a step that is compiled
        for each shape. Arrays may be sharded.
      layer_by_layer: whether layers normalize by the statistics that are returned.
      count: `count(batch)`, of how many elements the statistics of a batch are, as `lambda batch: batch["mask"].sum()`; None
        takes the number of examples, the size of the first axis. Flax models count for themselves.
      progress: whether to show a progress bar while an iterable is gone through.

    Returns:
      New statistics, of the tree, shapes and dtypes of stats. A channel that no batch counts, and what is no statistic of a norm
      that was met, stays as it was. A batch whose statistics of a channel are not finite is left out there.

    Raises:
      ValueError: if there is no batch, or one without examples; if no batch gives statistics of a layer, as all elements are
        masked or not finite, or as update normalizes by, or averages, the statistics it is given; if update gives statistics of
        another tree or shape; if layer_by_layer is asked for and batches can be gone through only once.
      TypeError: if update is no function, stats hold no arrays in float32 or wider, or batches can't be gone through.

    References:
      Wu, Johnson, "Rethinking 'batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576. Layer by layer is not in it.

    Example:
      >>> import jax, jaxnorm
      >>> from jaxnorm.statistics import precise_stats
      >>> params, stats = jaxnorm.init_batch_norm(2)
      >>> def update(stats, x):
      ...     return jaxnorm.batch_norm(params, stats, x, train=True, momentum=0.0)[1]
      >>> x = jax.random.normal(jax.random.key(0), (10, 32, 2))
      >>> stats = precise_stats(update, stats, x)
      >>> bool(abs(stats.var - x.reshape(320, 2).var(0)).max() < 1e-6)
      True
    """
    by_stats = check_known_flag("layer_by_layer", layer_by_layer)
    return replaced(stats, found_of(update, stats, batches, by_stats=by_stats, settle=by_stats, count=count, progress=progress))


def adapt_stats(
    update: Update,
    stats: PyTree,
    batches: Any,
    *,
    layer_by_layer: bool = False,
    count: Count | None = None,
    progress: bool = True,
) -> PyTree:
    """Returns the statistics of another domain in the place of those of the one that was trained on (AdaBN).

    `mean` and `var` of every norm become those of the target domain's examples, which need no labels; scale and bias stay. It is
    `precise_stats` of the target domain, exact over its batches, where each layer sees inputs that the layers before it have
    adapted already. `blend_stats` mixes both where the target's examples are few.

    Args:
      update: as in `precise_stats`.
      stats: the statistics of the source domain.
      batches: those of the target domain, as in `precise_stats`.
      layer_by_layer: as in `precise_stats`.
      count: as in `precise_stats`.
      progress: as in `precise_stats`.

    Returns:
      New statistics, of the tree, shapes and dtypes of stats.

    Raises:
      ValueError: as `precise_stats`.
      TypeError: as `precise_stats`.

    References:
      Li, Wang, Shi, Liu, Hou, "Revisiting batch normalization for practical domain adaptation", 2016,
      https://arxiv.org/abs/1603.04779. Statistics of batches are pooled by their counts, with what is between them.

    Example:
      >>> import jax, jaxnorm
      >>> from jaxnorm.statistics import adapt_stats
      >>> params, source = jaxnorm.init_batch_norm(2)
      >>> def update(stats, x):
      ...     return jaxnorm.batch_norm(params, stats, x, train=True, momentum=0.0)[1]
      >>> x = 3 * jax.random.normal(jax.random.key(0), (10, 32, 2)) + 5
      >>> target = adapt_stats(update, source, x)
      >>> print(target.mean.round(0))
      [5. 5.]
    """
    return precise_stats(update, stats, batches, layer_by_layer=layer_by_layer, count=count, progress=progress)


def found_of(
    update: Update, stats: PyTree, batches: Any, *, by_stats: bool, settle: bool, count: Count | None, progress: bool
) -> dict[str, Found]:
    """Returns what is found of each layer over all batches: `precise_stats` before it puts that into stats.

    Args:
      update: as there.
      stats: as there.
      batches: as there.
      by_stats: whether layers normalize by stats.
      settle: whether what is found takes the place of stats in another pass, until nothing changes any more.
      count: as there.
      progress: as there.
    """
    if not callable(update):
        raise TypeError(f"update must be a function of stats and a batch, got {shown(update)}")
    check_layers("stats", stats)
    progress = check_known_flag("progress", progress)
    measure = _measure(update, count)
    if _is_array(batches):
        _check_stacked(batches)
        found = _over_arrays(measure, _finite(stats), batches, by_stats=by_stats, settle=settle)
    else:
        found = _over_iterable(measure, _finite(stats), batches, by_stats, settle, progress)
    _check_found(found)
    return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Counted:
    """A user's update, as a pytree, with what counts the elements of a batch."""

    update: jax.tree_util.Partial
    count: Count | None = dataclasses.field(metadata={"static": True})

    def found(self, stats: PyTree, batch: Any, by_stats: bool) -> dict[str, Found]:
        """Returns what is found of each layer."""
        layers = layers_of(stats)
        given = stats if by_stats else with_layers(stats, {path: unusable(layer) for path, layer in layers.items()})
        got = self.update(given, batch)
        check_like("what update returns", got, stats, "the stats that it is given")
        counts, new = counts_of(got), layers_of(got)
        if missing := [path for path in layers if path not in counts]:
            counts |= dict.fromkeys(missing, _number_of(batch) if self.count is None else self.count(batch))
        return {path: measured({name: new[path][name] for name in layer}, counts[path]) for path, layer in layers.items()}


def _measure(update: Any, count: Count | None) -> Any:
    if isinstance(update, FlaxUpdate):
        if count is not None:
            raise ValueError(f"count must be None for a Flax model, which counts for itself, got {shown(count)}")
        return update
    if count is not None and not callable(count):
        raise TypeError(f"count must be a function of a batch, or None, got {shown(count)}")
    return _Counted(update if isinstance(update, jax.tree_util.Partial) else jax.tree_util.Partial(update), count)


def _is_array(batches: Any) -> bool:
    return hasattr(batches, "dtype") or isinstance(batches, Mapping)


def _check_stacked(batches: Any) -> None:
    """Raises unless arrays hold batches that hold examples."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batches)]
    if not shapes or not all(shapes) or max(map(len, shapes)) < 2 or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            "batches must be an array [batches, B, ...], a dict of arrays with as many batches, or an iterable of batches, "
            f"got shapes {[list(shape) for shape in shapes]}"
        )
    if max(map(len, shapes)) < 3 and all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(batches)):
        raise ValueError(f"batches must be an array [batches, B, ...] with features of examples, got shape {list(shapes[0])}")
    if any(0 in shape[:2] for shape in shapes):
        raise ValueError(f"batches must hold at least one example, got shapes {[list(shape) for shape in shapes]}")


def _number_of(batch: Any) -> int:
    """Returns the number of examples of a batch."""
    lengths = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if np.shape(leaf)}
    if len(lengths) != 1:
        raise ValueError(f"a batch must be arrays of one length unless count is given, got lengths {sorted(lengths)}")
    return lengths.pop()


def _finite(stats: PyTree) -> PyTree:
    """Returns statistics with new ones in the place of those that are not finite, and would spoil what they are averaged with."""

    def chosen(old: Layer, fresh: Layer) -> Layer:
        return {name: jnp.where(jnp.isfinite(part), part, fresh[name]) for name, part in old.items()}

    return map_layers(chosen, stats, reset_stats(stats))


def _start(stats: PyTree) -> dict[str, Found]:
    return {path: nothing_of(layer) for path, layer in layers_of(stats).items()}


def _and(so_far: dict[str, Found], found: dict[str, Found]) -> dict[str, Found]:
    """Returns what is found in two sets of batches; a layer that is in one alone stays."""
    both = {path: pooled(one, found[path]) if path in found else one for path, one in so_far.items()}
    return jax.tree.map(match_sharding, both, so_far)


def _varying_as(function: Callable[[Any], Any], start: Any) -> Any:
    """Returns what a loop begins with, varying over the mapped axes over which what its function returns varies."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return start
    axes: list[Any] = []
    jax.eval_shape(lambda start: axes.append(jax.tree.map(varying, function(start))), start)
    return jax.tree.map(lambda part, over: vary(part, over), start, axes[0])


def _scan(measure: Any, stats: PyTree, batches: Any, by_stats: bool) -> dict[str, Found]:
    def step(so_far: dict[str, Found], batch: Any) -> tuple[dict[str, Found], None]:
        return _and(so_far, measure.found(stats, batch, by_stats)), None

    start = _varying_as(lambda start: step(start, jax.tree.map(lambda leaf: leaf[0], batches))[0], _start(stats))
    return lax.scan(step, start, batches)[0]


def _changed(old: PyTree, new: PyTree) -> jax.Array:
    """Whether statistics differ by more than rounding."""

    def differs(old: Layer, new: Layer) -> jax.Array:
        size = sum(jnp.max(jnp.abs(part)) for part in old.values())
        eps = _SETTLED * jnp.finfo(first_part(old).dtype).eps
        return jnp.stack([jnp.any(~(jnp.abs(new[name] - part) <= eps * size)) for name, part in old.items()]).any()

    after = layers_of(new)
    return jnp.stack([differs(layer, after[path]) for path, layer in layers_of(old).items()]).any()


@functools.partial(jax.jit, static_argnames=("by_stats", "settle"))
def _over_arrays(measure: Any, stats: PyTree, batches: Any, *, by_stats: bool, settle: bool) -> dict[str, Found]:
    if not settle:
        return _scan(measure, stats, batches, by_stats)

    def again(carry: tuple[PyTree, dict[str, Found], jax.Array, jax.Array]) -> Any:
        stats, _, left, _ = carry
        found = _scan(measure, stats, batches, by_stats)
        new = replaced(stats, found)
        return new, found, left - 1, _changed(stats, new)

    start = _varying_as(again, (stats, _start(stats), jnp.int32(size_of(stats)), jnp.bool_(True)))
    return lax.while_loop(lambda carry: (carry[2] > 0) & carry[3], again, start)[1]


def _over_iterable(measure: Any, stats: PyTree, batches: Any, by_stats: bool, settle: bool, progress: bool) -> dict[str, Found]:
    if not isinstance(batches, Iterable) or isinstance(batches, str):
        raise TypeError(f"batches must be an array, a dict of arrays or an iterable of batches, got {shown(batches)}")
    if settle and isinstance(batches, Iterator):
        raise ValueError(
            "batches must be gone through again and again with layer_by_layer: a list or the like, got an iterator, "
            f"{type(batches).__name__}"
        )
    passes = size_of(stats) if settle else 1
    found = _start(stats)
    with progress_bar(disable=not progress, unit="batch", total=len(batches) if isinstance(batches, Sized) else None) as bar:
        for number in range(passes):
            if settle:
                bar.reset()
                bar.set_description(f"pass {number + 1} of at most {passes}")
            found, place = _start(stats), -1
            for place, batch in enumerate(batches):
                if any(0 in np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)):
                    raise ValueError(f"batches must hold at least one example each, got none in number {place}")
                found = _step(measure, stats, found, batch, by_stats=by_stats)
                bar.update()
            if place < 0:
                raise ValueError("batches must hold at least one batch, got none (an iterator gives them only once)")
            if settle:
                before, stats = stats, replaced(stats, found)
                changed = _changed(before, stats)
                if is_concrete(changed) and not changed:
                    break
    return found


@functools.partial(jax.jit, static_argnames=("by_stats",))
def _step(measure: Any, stats: PyTree, so_far: dict[str, Found], batch: Any, *, by_stats: bool) -> dict[str, Found]:
    return _and(so_far, measure.found(stats, batch, by_stats))


def _check_found(found: Mapping[str, Found]) -> None:
    """Raises where no batch gave statistics of a layer, unless that is not known yet."""
    counts = {path: one.n for path, one in found.items()}
    if not all(map(is_concrete, counts.values())):
        return
    most = {path: float(np.max(n)) for path, n in counts.items()}
    empty = [path or "the layer" for path, n in most.items() if n == 0]
    if all(n < 0 for n in most.values()):
        raise ValueError(
            f"update must meet a norm whose statistics are among stats, {', '.join(most)}, got none: no batch, or a norm without "
            "the field use_running_average"
        )
    if empty:
        raise ValueError(
            f"update must give statistics of the batch for each layer, got none of {', '.join(empty[:3])}"
            f"{' and others' if len(empty) > 3 else ''}: in all batches all elements are masked or not finite, or update "
            "normalizes by the stats that it is given (which layer_by_layer is for), or averages with them (momentum must be 0)"
        )
