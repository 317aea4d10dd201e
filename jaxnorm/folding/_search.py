"""Finds in a program the layer that a batch norm's factor can go into: what is between must let a factor of each channel pass.

From the norm's input back, and from its output on, every value must be used once, and every step must be a layer with weights,
an addition of a bias, or one that a factor passes: `f(factor x) = factor f(x)`. Such a step may move or leave out elements, or
it may sum over other axes, pad with zeros or multiply, and then a constant does not pass it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnorm.folding._program import Atom, Literal, Program, Step, Use
from jaxnorm.folding._weights import Along

_MARK = "jaxnorm.folding"

_SAME = ("convert_element_type", "copy", "copy_p", "name", "reduce_precision", "sharding_constraint", "reshard")
_MOVES = (*_SAME, "transpose", "reshape", "squeeze", "broadcast_in_dim", "rev", "slice")


class NotLinear(Exception):
    """Why a norm cannot be folded; caught where the norms are gone through."""


class Weights(NamedTuple):
    """A parameter that a step takes, through nothing but moves and multiplications.

    Attributes:
      leaf: its number among the parameters.
      axes: its axes that those are that were asked for; None for one that it does not have.
      use: which use of the parameter this is.
      moved: whether it is only moved, and not multiplied.
    """

    leaf: int
    axes: tuple[int | None, ...]
    use: tuple[int, int]
    moved: bool


class Shifted(NamedTuple):
    """How an offset before a layer moves the bias of that layer: by what the layer makes of it.

    Attributes:
      bias: the bias's number among the parameters.
      kernel: the kernel's.
      kept: the axes of the kernel that the bias has, in its order.
    """

    bias: int
    kernel: int
    kept: tuple[int, ...]


class Match(NamedTuple):
    """A layer that a norm can go into.

    Attributes:
      kernel: the number of its kernel among the parameters.
      scaled: which parameters the factor multiplies, and where these have the channels.
      offset_to: the bias, after which comes the norm, that takes the offset; or how the bias of the layer after the norm does;
        None if no bias can.
      uses: the uses of parameters that are all accounted for.
    """

    kernel: int
    scaled: dict[int, Along]
    offset_to: int | Shifted | None
    uses: frozenset[tuple[int, int]]


def mark(number: int) -> str:
    """Returns the name of the place in a program of the norm's call with this number."""
    return f"{_MARK} {number};"


def use_of(use: Use) -> tuple[int, int]:
    """Returns what tells a use from others."""
    return id(use.step), use.place


class Search:
    """A search in a program some of whose inputs are parameters."""

    def __init__(self, program: Program, parameters: frozenset[int]):
        self._program = program
        self._parameters = parameters
        self._places = {step.params["name"]: step for step in program.steps if _is_norm(step)}

    def step_of(self, number: int) -> Step | None:
        """Returns the place of a norm, or None if it is elsewhere, or its output is not used."""
        return self._places.get(mark(number))

    def before(self, norm: Step, axis: int) -> Match:
        """Returns the layer before a norm, or raises NotLinear; `axis` is that of the channels."""
        value, constant = norm.inputs[0], True
        scaled: dict[int, Along] = {}
        uses: set[tuple[int, int]] = set()
        offset_to: int | None = None
        while True:
            if isinstance(value, Literal) or (step := self._program.makers.get(value)) is None:
                raise NotLinear("no layer is before it")
            if self._program.only_use(value) is None:
                raise NotLinear("what comes before it is used elsewhere too")
            if _is_norm(step):
                raise NotLinear("a batch norm is before it")
            if (found := self._kernel_of_output(step, axis)) is not None:
                if found.leaf in scaled:
                    raise NotLinear("the layer before it has a kernel that is its bias too")
                scaled[found.leaf] = Along(_known(found.axes[0]))
                return Match(found.leaf, scaled, offset_to, frozenset(uses | {found.use}))
            if step.name in ("add", "add_any"):
                bias, value = self._bias(step, axis)
                if bias.leaf in scaled:
                    raise NotLinear("a bias is added twice")
                scaled[bias.leaf] = Along(_known(bias.axes[0]))
                uses.add(bias.use)
                if offset_to is None and constant and bias.moved:
                    offset_to = bias.leaf
                continue
            place = next((i for i, atom in enumerate(step.inputs) if not isinstance(atom, Literal)), 0)
            source = self._axis_before(step, axis)
            if source is None:
                raise NotLinear(f"{step} is between it and the layer before")
            value, axis, constant = step.inputs[place], source, constant and step.name in _MOVES

    def after(self, norm: Step, axis: int) -> Match:
        """Returns the layer after a norm, or raises NotLinear."""
        value, constant = norm.outputs[0], True
        while True:
            use = self._program.only_use(value)
            if use is None:
                raise NotLinear("what it gives is used more than once")
            if use.step is None:
                raise NotLinear("no layer is after it")
            step = use.step
            if _is_norm(step):
                raise NotLinear("a batch norm is after it")
            if step.name == "dot_general":
                return self._dot_after(step, use.place, axis, constant)
            if step.name == "conv_general_dilated":
                return self._conv_after(step, use.place, axis, constant)
            target = self._axis_after(step, axis)
            if target is None or (use.place and step.name != "mul"):
                raise NotLinear(f"{step} is between it and the layer after")
            value, axis, constant = step.outputs[0], target, constant and step.name in _MOVES

    def _kernel_of_output(self, step: Step, axis: int) -> Weights | None:
        """Returns the weights of a step that have this axis of its output, or None if it is no layer."""
        if step.name == "conv_general_dilated":
            numbers = step.params["dimension_numbers"]
            if numbers.out_spec[1] != axis:
                raise NotLinear("its channels are not the features of the convolution before it")
            found = self._weights(step.inputs[1], (numbers.rhs_spec[0],), Use(step, 1))
        elif step.name == "dot_general":
            choices = (self._weights(step.inputs[side], (own,), Use(step, side)) for side, own in self._operand_axes(step, axis))
            found = next((choice for choice in choices if choice is not None), None)
        else:
            return None
        if found is None:
            raise NotLinear("the layer before it has no kernel of its own with an output for each channel")
        return found

    def _operand_axes(self, step: Step, axis: int) -> list[tuple[int, int]]:
        """Returns which operands of a product have an axis of its output, and as which axis."""
        (_, batch), free = _dot_axes(self._program, step)
        if axis < len(batch[0]):
            return [(side, batch[side][axis]) for side in (1, 0)]
        axis -= len(batch[0])
        return [(0, free[0][axis])] if axis < len(free[0]) else [(1, free[1][axis - len(free[0])])]

    def _bias(self, step: Step, axis: int) -> tuple[Weights, Atom]:
        """Returns the bias that a sum adds, and what to."""
        for place in (1, 0):
            if (found := self._weights(step.inputs[place], (axis,), Use(step, place))) is not None:
                return found, step.inputs[1 - place]
        raise NotLinear("a sum that adds no bias is between it and the layer before")

    def _dot_after(self, step: Step, place: int, axis: int, constant: bool) -> Match:
        (contracted, batch), free = _dot_axes(self._program, step)
        other = 1 - place
        pairs = dict(zip((*contracted[place], *batch[place]), (*contracted[other], *batch[other]), strict=True))
        if axis not in pairs:
            raise NotLinear("the layer after it does not sum over its channels")
        first = len(batch[0]) + (len(free[0]) if other else 0)
        kept = {own: first + i for i, own in enumerate(free[other])}
        return self._layer_after(step, other, pairs[axis], kept, constant=constant and not batch[0])

    def _conv_after(self, step: Step, place: int, axis: int, constant: bool) -> Match:
        numbers, groups = step.params["dimension_numbers"], step.params["feature_group_count"]
        if place or numbers.lhs_spec[1] != axis or step.params["batch_group_count"] != 1:
            raise NotLinear("its channels are not the features that the convolution after it takes")
        own, outputs = numbers.rhs_spec[1], numbers.rhs_spec[0]
        adds_zeros = any(map(any, step.params["padding"])) or any(size != 1 for size in step.params["lhs_dilation"])
        kept = {outputs: numbers.out_spec[1]}
        return self._layer_after(step, 1, own, kept, other=outputs, groups=groups, constant=constant and not adds_zeros)

    def _layer_after(
        self, step: Step, place: int, own: int, kept: dict[int, int], *, other: int | None = None, groups: int = 1, constant: bool
    ) -> Match:
        """Returns a layer whose kernel has the channels on the axis `own`, and on those kept its outputs, by their axes."""
        shape = self._program.shape(step.inputs[place])
        axes = (own, own if other is None else other, *kept, *range(len(shape)))
        found = self._weights(step.inputs[place], axes, Use(step, place))
        if found is None or (groups > 1 and found.axes[1] is None):
            raise NotLinear("the layer after it has no kernel of its own with an input for each channel")
        along = Along(_known(found.axes[0]), _known(found.axes[1]) if groups > 1 else 0, groups)
        kernel = Match(found.leaf, {found.leaf: along}, None, frozenset({found.use}))
        whole = all(axis is not None or size == 1 for axis, size in zip(found.axes[2 + len(kept) :], shape, strict=True))
        bias = self._bias_after(step.outputs[0], tuple(kept.values())) if constant and found.moved and whole else None
        if bias is None:
            return kernel
        own_axes = [_known(axis) for axis in found.axes[2 : 2 + len(kept)]]
        order = [own_axes[bias.axes.index(axis)] for axis in range(len(own_axes))]
        return kernel._replace(offset_to=Shifted(bias.leaf, found.leaf, tuple(order)), uses=kernel.uses | {bias.use})

    def _bias_after(self, value: int, axes: tuple[int, ...]) -> Weights | None:
        """Returns the bias that is added to a layer's output and has these axes of it and no others, or None."""
        while (use := self._program.only_use(value)) is not None and use.step is not None:
            step = use.step
            if step.name == "add":
                place = 1 - use.place
                found = self._weights(step.inputs[place], axes, Use(step, place))
                if found is None or not found.moved or None in found.axes:
                    return None
                return found if len(self._program.shapes[found.leaf]) == len(axes) else None
            moved = [self._axis_after(step, axis) for axis in axes]
            if step.name not in _MOVES or _is_norm(step) or None in moved:
                return None
            value, axes = step.outputs[0], tuple(_known(axis) for axis in moved)
        return None

    def _weights(self, atom: Atom, axes: Sequence[int | None], use: Use) -> Weights | None:
        """Returns the parameter that a step takes, with these axes of what it takes, or None if there is none with the first."""
        if isinstance(atom, Literal) or axes[0] is None:
            return None
        if atom in self._parameters:
            floats = jnp.issubdtype(self._program.dtypes[atom], jnp.inexact)
            return Weights(atom, tuple(axes), use_of(use), moved=True) if floats else None
        step = self._program.makers.get(atom)
        if step is None or _is_norm(step) or self._program.only_use(atom) is None:
            return None
        before = [None if axis is None else self._axis_before(step, axis) for axis in axes]
        if step.name in _MOVES:
            return self._weights(step.inputs[0], before, Use(step, 0))
        if step.name in ("mul", "div"):
            places = (0, 1) if step.name == "mul" else (0,)
            found = [self._weights(step.inputs[place], before, Use(step, place)) for place in places]
            choices = [choice for choice in found if choice is not None]
            # Of a kernel that is normalized, which has other uses, and its gain, the gain.
            choice = min(choices, key=lambda choice: len(self._program.uses[choice.leaf]), default=None)
            return None if choice is None else choice._replace(moved=False)
        return None

    def _axis_before(self, step: Step, axis: int) -> int | None:
        """Returns which axis of what a step takes an axis of its output is, if a factor along it passes the step; else None."""
        if not step.inputs:  # as iota
            return None
        given = self._program.shape(step.inputs[0])
        params, size = step.params, self._program.shapes[step.outputs[0]][axis]
        match step.name:
            case "convert_element_type":
                dtypes = (self._program.dtypes[value] for value in (step.inputs[0], step.outputs[0]) if isinstance(value, int))
                return axis if all(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes) else None
            case "transpose":
                return params["permutation"][axis]
            case "reshape" | "squeeze":
                return _axis_before_reshape(given, self._program.shapes[step.outputs[0]], axis)
            case "broadcast_in_dim":
                dims = tuple(params["broadcast_dimensions"])
                return dims.index(axis) if axis in dims and given[dims.index(axis)] == size else None
            case "rev":
                return None if axis in params["dimensions"] else axis
            case "slice":
                return axis if given[axis] == size else None
            case "pad":
                return axis if self._is_zero(step.inputs[1]) and not any(params["padding_config"][axis]) else None
            case "reduce_window_sum":
                return axis if params["window_dimensions"][axis] == 1 and given[axis] == size else None
            case "reduce_sum":
                return [a for a in range(len(given)) if a not in params["axes"]][axis]
            case "mul" | "div" if not isinstance(step.inputs[0], Literal) or step.name == "mul":
                return axis
            case "neg":
                return axis
            case name if name in _SAME:
                return axis
        return None

    def _is_zero(self, atom: Atom) -> bool:
        if isinstance(atom, Literal):
            return not np.any(atom.value)
        step = self._program.makers.get(atom)
        return step is not None and step.name in ("convert_element_type", "broadcast_in_dim") and self._is_zero(step.inputs[0])

    def _axis_after(self, step: Step, axis: int) -> int | None:
        """Returns which axis of a step's output an axis of what it takes first is, likewise."""
        if len(step.outputs) != 1:
            return None
        axes = range(len(self._program.shapes[step.outputs[0]]))
        return next((own for own in axes if self._axis_before(step, own) == axis), None)


def _is_norm(step: Step) -> bool:
    return step.name == "name" and str(step.params["name"]).startswith(_MARK)


def _known(axis: int | None) -> int:
    assert axis is not None
    return axis


def _dot_axes(program: Program, step: Step) -> Any:
    """Returns the contracted and the batch axes of a product's operands, and of each the axes that are neither."""
    contracted, batch = step.params["dimension_numbers"]
    free = [
        [a for a in range(len(program.shape(atom))) if a not in (*contracted[side], *batch[side])]
        for side, atom in enumerate(step.inputs)
    ]
    return (contracted, batch), free


def _axis_before_reshape(given: Sequence[int], new: Sequence[int], axis: int) -> int | None:
    """Returns the axis with the same size and as many elements before it; of several, the one in the same place from the end."""

    def before(shape: Sequence[int], axis: int) -> int:
        return int(np.prod(shape[:axis], dtype=np.int64))

    same = [a for a in range(len(given)) if given[a] == new[axis] and before(given, a) == before(new, axis)]
    near = len(given) - len(new) + axis
    return near if near in same else next(iter(same), None)
