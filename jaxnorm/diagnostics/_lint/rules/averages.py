"""Rules about running averages."""

from collections.abc import Iterable, Iterator

import jax
import numpy as np

from jaxnorm.diagnostics._lint.averaging import Average
from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.records import Norm
from jaxnorm.diagnostics._lint.report import Finding
from jaxnorm.diagnostics._lint.rules._rule import library_of, rule
from jaxnorm.diagnostics._lint.values import Place

_TAKEN = {
    "jaxnorm": "y, state = batch_norm(..., momentum below 1), and return state",
    "linen": 'outputs, updates = model.apply(..., mutable=["batch_stats"]), keep updates["batch_stats"]; momentum below 1',
    "nnx": "nnx.update(module, state) of what changed in a copy; momentum below 1",
    "haiku": "outputs, state = f.apply(params, state, ...), and return state; decay_rate below 1",
    "equinox": "y, state = norm(x, state), and return state; momentum below 1",
    "": "return the new averages",
}
"""What keeps new averages, by library."""

_MOMENTUM = {
    "jaxnorm": "momentum={momentum:.3g}",
    "linen": "BatchNorm(momentum={momentum:.3g})",
    "nnx": "BatchNorm(momentum={momentum:.3g})",
    "haiku": "hk.BatchNorm(decay_rate={momentum:.3g})",
    "equinox": "eqx.nn.BatchNorm(momentum={momentum:.3g})",
    "": "new = {momentum:.3g} * old + {other:.3g} * batch",
}
"""What gives an old average a weight, by library."""


@rule
def averages_not_updated(look: Look) -> Iterator[Finding]:
    """Training takes the statistics of the batch, and inference averages that no step moves.

    The new averages are thrown away, or have no weight: inference normalizes by what the layer was made with.

    Sick: `y, _ = batch_norm(params, state, x, train=train)`, and `state` goes back as it came.
    Healed: `y, state = batch_norm(params, state, x, train=train)`.
    """
    for norm, averages in _each(look, look.inference.found.norms):
        if all(np.all(average.kept > 1 - 1e-6) for average in averages):
            why = "inference takes these averages, and a step of training leaves them as they are"
            yield Finding("averages-not-updated", "error", norm.where, why, _TAKEN[library_of(look, norm)], {"kept": 1.0})


@rule
def averages_updated_twice(look: Look) -> Iterator[Finding]:
    """The same averages are moved more than once in a step.

    A norm that two places share takes the statistics of both, one after the other: inference normalizes both by a mixture that
    is of neither, and the averages are of fewer batches than their momentum says.

    Sick: `y, state = batch_norm(params, state, x, train=train)`, then `z, state = batch_norm(params, state, y, train=train)`.
    Healed: a state for each place, or one call on all that shares it.
    """
    found = look.training.found
    for norm, _ in _each(look, found.norms):
        loops = [place for path, place in found.updated_in_loops if path in norm.averages]
        places = [one.place for one in found.norms if one.kind == "batch" and set(one.averages) & set(norm.averages)]
        if any(norm.place[: len(loop)] == loop for loop in loops):
            count, how = 2, "in every step of a loop"
        elif (count := _one_after_the_other(places)) > 1:
            how = f"{count} times"
        else:
            continue
        why = f"a step of training moves these averages {how}, each time by the statistics of other data"
        fix = "averages for each place where the norm is called, or one call on all that shares them"
        yield Finding("averages-updated-twice", "warning", norm.where, why, fix, {"updates": count})


def _one_after_the_other(places: list[Place]) -> int:
    """How many of some places a run of the program comes to, at least: of the branches of one choice it takes one."""
    taken: list[Place] = []
    for place in places:
        parts = (next((k for k, (a, b) in enumerate(zip(place, one, strict=False)) if a != b), 0) for one in taken)
        if all(part % 2 == 0 for part in parts):  # a place goes from the number of an equation to that of a program within it
            taken.append(place)
    return len(taken)


@rule
def averages_too_short(look: Look) -> Iterator[Finding]:
    """An old average keeps less than half of its weight in a step.

    The averages are then of the last `(1 + w) / (1 - w)` batches, not of the data. Mostly it is the other convention: PyTorch's
    momentum, 0.1, is the weight of the new statistics; the libraries of JAX ask for that of the old ones, 0.9.

    Sick: `batch_norm(..., momentum=0.1)`.
    Healed: `batch_norm(..., momentum=0.9)`.
    """
    for norm, averages in _each(look, (*look.inference.found.norms, *look.training.found.norms)):
        kept = min(float(np.min(average.kept)) for average in averages)
        if kept < 0.499:  # the mean of all batches gives a half to the first of two
            batches, momentum = (1 + kept) / (1 - kept), 1 - kept if kept > 1e-6 else 0.9
            why = f"an old average keeps {kept:.2g} of its weight in a step: it is a mean of about {batches:.2g} batches"
            fix = _MOMENTUM[library_of(look, norm)].format(momentum=momentum, other=1 - momentum)
            figures = {"kept": kept, "batches": batches} | _elements(look, norm)
            yield Finding("averages-too-short", "warning", norm.where, why, fix, figures)


def _elements(look: Look, norm: Norm) -> dict[str, float]:
    """How many elements of a batch its averages take, where training says it."""
    own = {id(average) for average in _known(look, norm.averages)}
    trained = (one for one in look.training.found.norms if own & {id(average) for average in _known(look, one.averages)})
    count = next((one.elements for one in trained), 0)
    return {"elements": count} if count else {}


@rule
def averages_stale(look: Look) -> Iterator[Finding]:
    """The averages differ from the statistics of x by more than sampling explains.

    They are of other data, of other weights, or of too few steps: inference normalizes by what is not there. Seen where, over the
    channels, variances are off by a factor of 1.25 or means by half a deviation, and by four times what n examples explain.

    Sick: parameters of the last checkpoint beside averages of another.
    Healed: `jaxnorm.statistics.precise_stats(update, stats, batches)`, which estimates them anew.
    """
    examples = max((len(leaf) for leaf in jax.tree.leaves(look.model.x) if np.ndim(leaf)), default=1)
    if look.model.made_up or examples < 2:
        return
    ratio_explained, shift_explained = np.exp((2 / (examples - 1)) ** 0.5), examples**-0.5
    for norm, spreads in _each(look, [norm for norm in look.inference.found.norms if norm.kind == "averages"]):
        means = _known(look, norm.means)
        if _are(0, means) and (_are(1, spreads) or _are(0, spreads)):
            continue  # as in a new layer
        given, batch = _deviations(look, norm, spreads[0])
        ratio = np.exp(2 * _root_mean_square(np.log(given / batch)))
        shift = max((_root_mean_square((mean.given - mean.batch) / batch) for mean in means), default=0.0)
        if ratio > max(1.25, ratio_explained**4) or shift > max(0.5, 4 * shift_explained):
            why = (
                f"the averages differ from the statistics of x: variances by a factor of {ratio:.3g}, means by {shift:.2g}"
                f" deviations, where {examples} examples explain {ratio_explained:.3g} and {shift_explained:.2g}"
            )
            fix = "jaxnorm.statistics.precise_stats(update, stats, batches)"
            yield Finding("averages-stale", "warning", norm.where, why, fix, {"ratio": ratio, "shift": shift})


def _each(look: Look, norms: Iterable[Norm]) -> Iterator[tuple[Norm, list[Average]]]:
    """The norms whose averages are known to move, or not to; each average once."""
    seen: set[int] = set()
    for norm in norms:
        averages, means = _known(look, norm.averages), _known(look, norm.means)
        if averages and not seen & {id(average) for average in averages}:
            seen |= {id(average) for average in averages + means}
            yield norm, averages


def _known(look: Look, paths: Iterable[str]) -> list[Average]:
    return [look.averages[path] for path in paths if path in look.averages]


def _are(number: float, averages: Iterable[Average]) -> bool:
    return all(np.all(average.given == number) for average in averages)


def _deviations(look: Look, norm: Norm, spread: Average) -> tuple[np.ndarray, np.ndarray]:
    """The averages and the statistics of x as deviations: they are, or are variances, whichever is nearer to what is measured."""
    tiny = norm.epsilon or 1e-12
    given, batch = (np.abs(numbers) + tiny for numbers in (spread.given, spread.batch))
    moments = look.inference.moments(norm)
    if moments is not None and moments.var.size == batch.size:
        real = np.sqrt(moments.var + tiny).reshape(batch.shape)
        if _root_mean_square(np.log(batch / real)) < _root_mean_square(np.log(batch / real**2)):
            return given, batch
    return np.sqrt(given), np.sqrt(batch)


def _root_mean_square(numbers: np.ndarray) -> float:
    """Over the channels that are finite; 0 of none."""
    return float(np.sqrt(np.mean(np.square(numbers), where=np.isfinite(numbers)))) if np.isfinite(numbers).any() else 0.0
