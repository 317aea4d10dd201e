"""Folds the batch norms of a traced model into its parameters; what linen and nnx share."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._axes import match_sharding
from jaxnorm._types import AffineParams, RunningStats
from jaxnorm.folding._norms import Call, Recorder
from jaxnorm.folding._program import Program, enclosing, scan_inputs
from jaxnorm.folding._search import Match, NotLinear, Search, Shifted, mark, use_of
from jaxnorm.folding._weights import scale_and_shift, through
from jaxnorm.folding.affine import as_affine
from jaxnorm.folding.report import FoldReport, NormFold

_UNLIKE = "its parameters and statistics are not stacked alike, along their first axis, for the turns of a loop"


class Folded(NamedTuple):
    """A model's parameters after the fold.

    Attributes:
      leaves: all its arrays, in their order.
      shifts: by the path of a norm that is folded, what is added in its place, `[C]`, or None.
      report: what became of every norm.
    """

    leaves: Sequence[Any]
    shifts: Mapping[str, jax.Array | None]
    report: FoldReport


def fold_model(
    run: Callable[[Sequence[Any], Sequence[Any]], Any],
    recorder: Recorder,
    leaves: Sequence[Any],
    inputs: Sequence[Any],
    names: Sequence[str],
    constants: Callable[[str], tuple[AffineParams, RunningStats, Any]],
    paths: Sequence[str] | None,
) -> Folded:
    """Traces a model and folds its norms.

    Args:
      run: the model, as a function of its arrays and of its inputs, with the recorder in the place of its norms.
      recorder: that one.
      leaves: the model's arrays.
      inputs: its inputs, arrays or their shapes.
      names: the paths of its arrays, as "block/conv/kernel".
      constants: gives parameters, statistics and epsilon of a norm, by its path.
      paths: the norms that are to be folded; None for all that can be.

    Raises:
      ValueError: if the model calls no norm, or paths has one that it does not call or that cannot be folded; if a norm is in
        training, or its parameters or statistics are not such as `as_affine` takes.
      TypeError: if paths is a word.
    """
    if isinstance(paths, str):
        raise TypeError(f"paths must be a sequence of paths, or None, got {paths!r}")
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in (*leaves, *inputs)]
    closed = jax.make_jaxpr(lambda *given: run(given[: len(leaves)], given[len(leaves) :]))(*shapes)
    calls: dict[str, list[int]] = {}
    for number, call in enumerate(recorder.calls):
        calls.setdefault(call.path, []).append(number)
    if not calls:
        raise ValueError("the model calls no batch norm that could be folded")
    if paths is not None and (unknown := sorted(set(paths) - set(calls))):
        raise ValueError(f"paths must be of batch norms that the model calls, {', '.join(calls)}, got {', '.join(unknown)}")
    fold = _Fold(closed, recorder.calls, list(leaves), names)
    entries, shifts = [], {}
    for path, numbers in calls.items():
        if paths is not None and path not in paths:
            entries.append(NormFold(path, reason="it is not among the paths"))
            continue
        params, state, epsilon = constants(path)
        if len({part.shape for part in (*params, *state) if part is not None}) > 1:  # though they fit where the norm is called
            entries.append(NormFold(path, reason=_UNLIKE))
            continue
        try:
            factor, offset = as_affine(params, state, epsilon=epsilon)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the batch norm {path} cannot be folded: {error}") from error
        try:
            entry, shifts[path] = fold.fold(path, numbers, factor, offset)
        except NotLinear as reason:
            entry = NormFold(path, reason=str(reason))
        entries.append(entry)
    report = FoldReport(tuple(entries))
    if paths is not None and (left := [norm for norm in report.left if norm.norm in paths]):
        raise ValueError(f"the batch norm {left[0].norm} cannot be folded: {left[0].reason}")
    return Folded(fold.leaves, shifts, report)


class _Region(NamedTuple):
    """A program, or the body of a loop in it, and what of its inputs is a parameter of the model.

    Attributes:
      program: its steps.
      search: the search in it.
      leaves: for each input that is a parameter its number among the model's.
      stacked: the parameters of which every turn of the loop gets its own part, along their first axis.
    """

    program: Program
    search: Search
    leaves: Mapping[int, int]
    stacked: frozenset[int] = frozenset()

    def of_model(self, match: Match) -> Match:
        """Returns a match with the model's numbers of the parameters."""
        offset_to = match.offset_to
        if isinstance(offset_to, Shifted):
            offset_to = offset_to._replace(bias=self.leaves[offset_to.bias], kernel=self.leaves[offset_to.kernel])
        elif offset_to is not None:
            offset_to = self.leaves[offset_to]
        scaled = {self.leaves[value]: along for value, along in match.scaled.items()}
        return match._replace(kernel=self.leaves[match.kernel], scaled=scaled, offset_to=offset_to)


def _regions(closed: Any, parameters: int) -> Iterator[_Region]:
    """Yields the program whose first inputs are parameters, and the bodies of the loops that are steps of it."""
    program = Program(closed)
    own = range(parameters)
    yield _Region(program, Search(program, frozenset(own)), {value: value for value in own})
    for step in program.steps:
        if step.name != "scan":
            continue
        same, own_part = scan_inputs(step)
        leaves = {}
        for place in (*same, *own_part):
            value = step.inputs[place]
            if isinstance(value, int) and value < parameters and program.only_use(value) is not None:
                leaves[place] = value
        body = Program(step.params["jaxpr"])
        stacked = frozenset(value for place, value in leaves.items() if place in own_part)
        yield _Region(body, Search(body, frozenset(leaves)), leaves, stacked)


class _Fold:
    """The norms' layers in a program, and the parameters as they are folded."""

    def __init__(self, closed: Any, calls: Sequence[Call], leaves: list[Any], names: Sequence[str]):
        self.leaves = leaves
        self._closed, self._calls, self._names = closed, calls, names
        self._regions = list(_regions(closed, len(leaves)))

    def fold(self, path: str, numbers: Sequence[int], factor: jax.Array, offset: jax.Array) -> tuple[NormFold, jax.Array | None]:
        """Folds a norm into the layer that is before all its calls, or after, or raises NotLinear; nothing is changed then."""
        region, numbers = self._region(numbers)
        own = {leaf for leaf, name in enumerate(self._names) if name.startswith(f"{path}/")}
        if factor.ndim == 2 and region.stacked and not region.stacked.issuperset(own):
            raise NotLinear(_UNLIKE)
        self._check_unused(own)
        try:
            matches, order = self._matches(region, numbers, factor, Search.before), "after"
        except NotLinear as before:
            try:
                matches, order = self._matches(region, numbers, factor, Search.after), "before"
            except NotLinear as after:
                raise NotLinear(str(before) if str(before) == str(after) else f"{before}; {after}") from after
        folded, absorbed = _folded(matches, self.leaves, factor, offset)
        shift = None if absorbed or not np.any(np.asarray(offset)) else offset
        if shift is not None and order == "before":
            shift = _before_the_factor(offset, factor, [self._calls[number].dtype for number in numbers])
        for leaf, array in folded.items():
            if not bool(jnp.isfinite(array).all()):
                raise NotLinear(f"{self._names[leaf]} would not be finite in {array.dtype}")
        for leaf, array in folded.items():
            self.leaves[leaf] = array
        layers = dict.fromkeys(self._names[match.kernel].rpartition("/")[0] for match in matches)
        return NormFold(path, ", ".join(layers), order, adds=shift is not None), shift

    def _check_unused(self, own: Set[int]) -> None:
        """Raises if something but the norm, which is not in the program, uses its parameters or statistics."""
        for region in self._regions:
            uses = (use for value, leaf in region.leaves.items() if leaf in own for use in region.program.uses[value])
            if any(use.step is None or use.step.name != "scan" for use in uses):
                raise NotLinear("its parameters or statistics are used elsewhere too")

    def _region(self, numbers: Sequence[int]) -> tuple[_Region, Sequence[int]]:
        """Returns where the calls of a norm are, and those whose results matter, or raises NotLinear if these are in several."""
        found = {number: region for number in numbers for region in self._regions if region.search.step_of(number) is not None}
        for number in numbers:
            if number not in found and (inside := enclosing(self._closed.jaxpr, mark(number))) is not None:
                raise NotLinear(f"it is inside {inside}")
        if not found:
            raise NotLinear("no output of the model depends on it")
        first, *others = found.values()
        if any(other is not first for other in others):
            raise NotLinear("it is called inside a loop and outside")
        return first, list(found)

    def _matches(
        self, region: _Region, numbers: Sequence[int], factor: jax.Array, search: Callable[[Search, Any, int], Match]
    ) -> list[Match]:
        """Returns the layers of all calls of a norm, or raises NotLinear."""
        found = []
        for number in numbers:
            call, step = self._calls[number], region.search.step_of(number)
            assert step is not None
            if len(call.axes) != 1:
                raise NotLinear("it has several axes of channels")
            if region.program.shape(step.inputs[0]) != call.shape or factor.ndim > 1 + bool(region.stacked):
                raise NotLinear("it is mapped by vmap")
            if search == Search.after and not call.linear:
                raise NotLinear("an activation or a residual is within it")
            found.append(search(region.search, step, call.axes[0]))
        uses = frozenset().union(*(match.uses for match in found))
        for match in found:
            for value, along in match.scaled.items():
                name = self._names[region.leaves[value]]
                if any(other.scaled.get(value, along) != along for other in found):
                    raise NotLinear(f"{name} is used in two ways")
                if not along.fits(region.program.shapes[value], factor.shape[-1]):
                    raise NotLinear(f"{name} does not have its channels")
            shifted = (match.offset_to.bias,) if isinstance(match.offset_to, Shifted) else ()
            for value in (*match.scaled, *shifted):
                name = self._names[region.leaves[value]]
                if not uses.issuperset(map(use_of, region.program.uses[value])):
                    raise NotLinear(f"{name} is used elsewhere too")
                if (region.leaves[value] in region.stacked) != (factor.ndim == 2):
                    raise NotLinear(f"{name} and its own parameters are not both the same in all turns of a loop, or both not")
        return [region.of_model(match) for match in found]


def _folded(
    matches: Sequence[Match], leaves: Sequence[Any], factor: jax.Array, offset: jax.Array
) -> tuple[dict[int, jax.Array], bool]:
    """Returns the new parameters, and whether they take the offset too; all may be stacked, `[turns, ...]`."""
    scaled = {leaf: along for match in matches for leaf, along in match.scaled.items()}
    targets = {match.offset_to for match in matches}
    biases = [target.bias if isinstance(target, Shifted) else target for target in targets]
    absorbed = None not in targets and len(set(biases)) == len(biases)
    shifted = [target for target in targets if isinstance(target, Shifted)] if absorbed else []

    def fold(arrays: Mapping[int, jax.Array], factor: jax.Array, offset: jax.Array) -> dict[int, jax.Array]:
        new = {
            leaf: scale_and_shift(arrays[leaf], factor, along, offset if absorbed and leaf in targets else None)
            for leaf, along in scaled.items()
        }
        for bias, kernel, kept in shifted:
            moved = through(arrays[kernel], offset, scaled[kernel], kept)
            new[bias] = (arrays[bias].astype(moved.dtype) + match_sharding(moved, arrays[bias])).astype(arrays[bias].dtype)
        return new

    used = {leaf: jnp.asarray(leaves[leaf]) for leaf in (*scaled, *(target.bias for target in shifted))}
    return (jax.vmap(fold) if factor.ndim == 2 else fold)(used, factor, offset), absorbed


def _before_the_factor(offset: jax.Array, factor: jax.Array, dtypes: Sequence[np.dtype]) -> jax.Array:
    """Returns the s of `factor (x + s) = factor x + offset`, or raises NotLinear where there is none that these types hold."""
    moves = offset != 0
    shift = jnp.where(moves, offset / jnp.where(moves, factor, jnp.ones((), factor.dtype)), jnp.zeros((), offset.dtype))
    largest = min(float(jnp.finfo(dtype).max) for dtype in dtypes)
    too_large = np.argwhere(~(np.abs(np.asarray(shift)) < largest))
    if too_large.size:
        place = tuple(map(int, too_large[0]))
        raise NotLinear(
            f"the layer after it has no bias for the offset, which is {offset[place]:.3g} in channel {place[-1]}, where the "
            f"factor is {factor[place]:.3g}"
        )
    return shift
