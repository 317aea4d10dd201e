"""Folds the batch norms of a traced model into its parameters; what linen and nnx share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxnorm._axes import canonical_axes, match_sharding, other_axes
from jaxnorm._checks import check_shape
from jaxnorm._modules import output_dtype
from jaxnorm._types import AffineParams, RunningStats, wide_dtype
from jaxnorm.folding._program import Program
from jaxnorm.folding._search import MARK, Match, NotLinear, Search, Shifted
from jaxnorm.folding._weights import scale_and_shift, through
from jaxnorm.folding.affine import as_affine
from jaxnorm.folding.report import FoldReport, NormFold


class Norm(NamedTuple):
    """What is known of a batch norm before the model runs.

    Attributes:
      axis: its axis of channels, or several.
      dtype: the type that it gives y in, or None.
      param_dtype: to which its parameters promote; None if it has none.
      activation: what follows in it, or None.
    """

    axis: Any
    dtype: Any
    param_dtype: Any
    activation: Any = None

    def add(self, x: jax.Array, shift: jax.Array | None, residual: jax.Array | None = None) -> jax.Array:
        """Returns what a folded norm does: `activation(x + shift + residual)`, in the type that the norm gave y in."""
        promoted: tuple[Any, ...] = () if self.param_dtype is None else (self.param_dtype,)
        dtype = output_dtype(self.dtype, x, *promoted)
        if shift is None and residual is None and self.activation is None:
            return x.astype(dtype)
        wide = wide_dtype(np.promote_types(x.dtype, dtype))
        y = x.astype(wide)
        if shift is not None:
            (axis,) = canonical_axes("axis", self.axis, x.ndim)
            y = y + match_sharding(jnp.expand_dims(shift.astype(wide), other_axes((axis,), x.ndim)), y)
        y = y if residual is None else y + residual.astype(wide)
        y = y if self.activation is None else self.activation(y)
        return y.astype(dtype)


class _Call(NamedTuple):
    """A call of a norm while the model is traced."""

    path: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    linear: bool


class Recorder:
    """Stands in the place of the batch norms of a model that is traced, and notes their calls."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []

    def call(
        self, path: str, norm: Norm, x: jax.Array, *, mean: jax.Array, running: Any, residual: jax.Array | None = None
    ) -> jax.Array:
        """Notes a call, and returns x with the mark of the norm's place; raises unless running statistics that fit are used."""
        check_running(path, running)
        axes = canonical_axes("axis", norm.axis, x.ndim)
        check_shape(f"the running mean of the batch norm {path}", mean, tuple(x.shape[a] for a in axes), "the channels of x")
        y = norm.add(checkpoint_name(x, f"{MARK}{len(self.calls)}"), None, residual)
        self.calls.append(_Call(path, axes, x.shape, y.dtype, linear=residual is None and norm.activation is None))
        return y


def check_running(path: str, running: Any) -> None:
    """Raises unless a norm is in inference."""
    if not isinstance(running, bool | np.bool_) or not running:
        raise ValueError(
            f"the batch norm {path} must use its running statistics, got use_running_average={running!r}: a model is folded, and "
            "then run, in inference"
        )


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
    """
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in (*leaves, *inputs)]
    closed = jax.make_jaxpr(lambda *given: run(given[: len(leaves)], given[len(leaves) :]))(*shapes)
    calls: dict[str, list[int]] = {}
    for number, call in enumerate(recorder.calls):
        calls.setdefault(call.path, []).append(number)
    if not calls:
        raise ValueError("the model calls no batch norm that could be folded")
    if paths is not None and (unknown := sorted(set(paths) - set(calls))):
        raise ValueError(f"paths must be of batch norms that the model calls, {', '.join(calls)}, got {', '.join(unknown)}")
    fold = _Fold(Program(closed), closed.jaxpr, recorder.calls, list(leaves), names)
    entries, shifts = [], {}
    for path, numbers in calls.items():
        if paths is not None and path not in paths:
            entries.append(NormFold(path, reason="it is not among the paths"))
            continue
        params, state, epsilon = constants(path)
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


class _Fold:
    """The norms' layers in a program, and the parameters as they are folded."""

    def __init__(self, program: Program, jaxpr: Any, calls: Sequence[_Call], leaves: list[Any], names: Sequence[str]):
        self.leaves = leaves
        self._program, self._jaxpr, self._calls, self._names = program, jaxpr, calls, names
        self._search = Search(program, len(leaves))

    def fold(self, path: str, numbers: Sequence[int], factor: jax.Array, offset: jax.Array) -> tuple[NormFold, jax.Array | None]:
        """Folds a norm into the layer that is before all its calls, or after, or raises NotLinear; nothing is changed then."""
        try:
            matches, order = self._matches(path, numbers, factor.size, self._search.before), "after"
        except NotLinear as before:
            try:
                matches, order = self._matches(path, numbers, factor.size, self._search.after), "before"
            except NotLinear as after:
                raise NotLinear(str(before) if str(before) == str(after) else f"{before}; {after}") from after
        folded, absorbed = self._folded(matches, factor, offset)
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

    def _matches(self, path: str, numbers: Sequence[int], channels: int, search: Callable[..., Match]) -> list[Match]:
        """Returns the layers of all calls of a norm, or raises NotLinear."""
        found = []
        for number in numbers:
            call, step = self._calls[number], self._search.step_of(number)
            if step is None:
                raise NotLinear(_where(self._jaxpr, f"{MARK}{number}"))
            if len(call.axes) != 1:
                raise NotLinear("it has several axes of channels")
            if self._program.shape(step.inputs[0]) != call.shape:
                raise NotLinear("it is mapped by vmap")
            if call.shape[call.axes[0]] != channels:
                raise NotLinear(f"it has {channels} channels where its input has {call.shape[call.axes[0]]}")
            if search == self._search.after and not call.linear:
                raise NotLinear("an activation or a residual is within it")
            found.append(search(step, call.axes[0]))
        uses = frozenset().union(*(match.uses for match in found))
        for match in found:
            for leaf, along in match.scaled.items():
                if any(other.scaled.get(leaf, along) != along for other in found):
                    raise NotLinear(f"{self._names[leaf]} is used in two ways")
                self._check_own(leaf, uses)
                if not along.fits(np.shape(self.leaves[leaf]), channels):
                    raise NotLinear(f"{self._names[leaf]} does not have its channels")
            if isinstance(match.offset_to, Shifted):
                self._check_own(match.offset_to.bias, uses)
        return found

    def _check_own(self, leaf: int, uses: frozenset[tuple[int, int]]) -> None:
        """Raises if a parameter has uses that the norm's calls do not account for."""
        if {(id(use.step), use.place) for use in self._program.uses[leaf]} - uses:
            raise NotLinear(f"{self._names[leaf]} is used elsewhere too")

    def _folded(self, matches: Sequence[Match], factor: jax.Array, offset: jax.Array) -> tuple[dict[int, jax.Array], bool]:
        """Returns the new parameters, and whether they take the offset too."""
        absorbed = all(match.offset_to is not None for match in matches)
        scaled = {leaf: along for match in matches for leaf, along in match.scaled.items()}
        shifted = {match.offset_to for match in matches} if absorbed else set()
        folded = {
            leaf: scale_and_shift(self.leaves[leaf], factor, along, offset if leaf in shifted else None)
            for leaf, along in scaled.items()
        }
        for target in shifted:
            if isinstance(target, Shifted):
                bias = self.leaves[target.bias]
                moved = through(self.leaves[target.kernel], offset, scaled[target.kernel], target.kept)
                folded[target.bias] = (bias.astype(moved.dtype) + match_sharding(moved, bias)).astype(bias.dtype)
        return folded, absorbed


def _before_the_factor(offset: jax.Array, factor: jax.Array, dtypes: Sequence[np.dtype]) -> jax.Array:
    """Returns the s of `factor (x + s) = factor x + offset`, or raises NotLinear where there is none that these types hold."""
    moves = offset != 0
    shift = jnp.where(moves, offset / jnp.where(moves, factor, jnp.ones((), factor.dtype)), jnp.zeros((), offset.dtype))
    largest = min(float(jnp.finfo(dtype).max) for dtype in dtypes)
    too_large = np.flatnonzero(~(np.abs(np.asarray(shift)) < largest))
    if too_large.size:
        number = too_large[0]
        raise NotLinear(
            f"the layer after it has no bias for the offset, which is {offset[number]:.3g} in channel {number}, where the factor "
            f"is {factor[number]:.3g}"
        )
    return shift


def _where(jaxpr: Any, mark: str) -> str:
    """Returns why a norm's place is not among the steps of a program: which loop or branch it is in."""
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns") and mark in str(inner):
                deeper = _where(inner, mark)
                return deeper if eqn.primitive.name in ("jit", "remat2", "closed_call") else f"it is inside {eqn.primitive.name}"
    return "no output of the model depends on it"
