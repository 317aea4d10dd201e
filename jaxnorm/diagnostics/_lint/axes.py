"""How primitives of jax move the axes of what they are given to those of what they return."""

import math
from collections.abc import Callable, Sequence
from typing import Any

Moves = Sequence[Sequence[int]]
"""For each axis of an operand the axes of the result that it goes to: none if it is reduced, several if it is split."""


def moves(eqn: Any) -> list[Moves] | None:
    """Returns how an equation moves the axes of each of its operands, or None if its primitive is not known."""
    name = eqn.primitive.name
    if name in _SPECIAL:
        return _SPECIAL[name](eqn)
    if name in ELEMENTWISE or name in _IN_PLACE or name.startswith(("cum", "reduce_window", "scatter", "select_and_")):
        return [_onto(operand, eqn.outvars[0]) for operand in eqn.invars]
    if name.startswith(("reduce_", "arg")) and "axes" in eqn.params:
        return [_without(eqn.params["axes"], operand.aval.ndim) for operand in eqn.invars]
    return None


def _onto(operand: Any, result: Any) -> Moves:
    """Each axis stays where it is; what has other axes is a number, as an index or a bound."""
    stays = operand.aval.ndim == getattr(result.aval, "ndim", 0)
    return [(axis,) if stays else () for axis in range(operand.aval.ndim)]


def _without(axes: Sequence[int], ndim: int) -> Moves:
    rest = iter(range(ndim))
    gone = {axis % ndim for axis in axes}
    return [() if axis in gone else (next(rest),) for axis in range(ndim)]


def _reshape(eqn: Any) -> list[Moves]:
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    operands: list[Moves] = [_regrouped(old, new)]
    return [*operands, *([] for _ in eqn.invars[1:])]


def _regrouped(old: Sequence[int], new: Sequence[int]) -> Moves:
    """Axes go in groups of the same size, from the left: an axis of one shape, or several, become one or several of the other."""
    moved: list[list[int]] = [[] for _ in old]
    i = j = 0
    while i < len(old) and j < len(new):
        left, right = [i], [j]
        i, j = i + 1, j + 1
        while (a := math.prod(old[k] for k in left)) != (b := math.prod(new[k] for k in right)):
            if a < b and i < len(old):
                left.append(i)
                i += 1
            elif a > b and j < len(new):
                right.append(j)
                j += 1
            else:
                break
        for axis in left:
            if old[axis] != 1 or len(left) == len(right) == 1:
                moved[axis] = [to for to in right if new[to] != 1 or len(right) == 1]
    return moved


def _transpose(eqn: Any) -> list[Moves]:
    order = list(eqn.params["permutation"])
    return [[(order.index(axis),) for axis in range(len(order))]]


def _broadcast(eqn: Any) -> list[Moves]:
    first: Moves = [(axis,) for axis in eqn.params["broadcast_dimensions"]]
    return [first, *([] for _ in eqn.invars[1:])]


def _dot(eqn: Any) -> list[Moves]:
    (contracted, batch) = eqn.params["dimension_numbers"]
    results: list[Moves] = []
    start = len(batch[0])
    for side, operand in enumerate(eqn.invars):
        free = iter(range(start, eqn.outvars[0].aval.ndim))
        moved: list[Sequence[int]] = []
        for axis in range(operand.aval.ndim):
            if axis in batch[side]:
                moved.append((list(batch[side]).index(axis),))
            else:
                moved.append(() if axis in contracted[side] else (next(free),))
        results.append(moved)
        start += sum(bool(to) for axis, to in enumerate(moved) if axis not in batch[side])
    return results


def _convolution(eqn: Any) -> list[Moves]:
    numbers = eqn.params["dimension_numbers"]
    x, kernel = ([()] * operand.aval.ndim for operand in eqn.invars)
    for axis, to in zip(numbers.lhs_spec, numbers.out_spec, strict=True):
        x[axis] = (to,)
    channels = numbers.lhs_spec[1]
    if eqn.params["feature_group_count"] != eqn.invars[0].aval.shape[channels]:
        x[channels] = ()
    kernel[numbers.rhs_spec[0]] = (numbers.out_spec[1],)
    return [x, kernel]


def _gather(eqn: Any) -> list[Moves]:
    numbers = eqn.params["dimension_numbers"]
    operand, indices = eqn.invars
    kept = [to for to in range(eqn.outvars[0].aval.ndim) if to not in numbers.offset_dims]
    of_indices: list[Sequence[int]] = [*((to,) for to in kept), ()]
    whole = iter(numbers.offset_dims)
    of_operand: list[Sequence[int]] = []
    for axis in range(operand.aval.ndim):
        if axis in numbers.operand_batching_dims:
            of_operand.append(of_indices[numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(axis)]])
        elif axis in numbers.collapsed_slice_dims:
            of_operand.append(tuple(kept))
        else:
            of_operand.append((next(whole),))
    return [of_operand, of_indices[: indices.aval.ndim]]


def _squeeze(eqn: Any) -> list[Moves]:
    return [_without(eqn.params["dimensions"], eqn.invars[0].aval.ndim)]


def _unstack(eqn: Any) -> list[Moves]:
    return [_without((eqn.params["axis"],), eqn.invars[0].aval.ndim)]


def _stack(eqn: Any) -> list[Moves]:
    kept = [axis for axis in range(eqn.outvars[0].aval.ndim) if axis != eqn.params["axis"]]
    return [[(axis,) for axis in kept] for _ in eqn.invars]


def _dynamic_slice(eqn: Any) -> list[Moves]:
    first: Moves = [(axis,) for axis in range(eqn.invars[0].aval.ndim)]
    return [first, *([] for _ in eqn.invars[1:])]


def _appended(eqn: Any) -> list[Moves]:
    """The axes of the operands stay, and others follow: of keys, the words and the random numbers of each."""
    return [[(axis,) for axis in range(operand.aval.ndim)] for operand in eqn.invars]


def _wrapped(eqn: Any) -> list[Moves]:
    return [[*((axis,) for axis in range(eqn.outvars[0].aval.ndim)), ()]]


def _matrices(eqn: Any) -> list[Moves]:
    """The axes before the last two of matrices tell these apart, also of vectors beside them; within a matrix all goes to all."""
    results: list[Moves] = []
    out = eqn.outvars[0].aval.ndim
    lead = max(operand.aval.ndim for operand in eqn.invars) - 2
    last = tuple(range(lead, out))
    for operand in eqn.invars:
        results.append([*((axis,) for axis in range(lead)), *([last] * (operand.aval.ndim - lead))])
    return results


def _nothing(eqn: Any) -> list[Moves]:
    return [[() for _ in range(operand.aval.ndim)] for operand in eqn.invars]


_OF_MATRICES = ("cholesky", "qr", "lu", "eigh", "eig", "svd", "triangular_solve", "tridiagonal_solve", "householder_product")

_SPECIAL: dict[str, Callable[[Any], list[Moves]]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "squeeze": _squeeze,
    "stack": _stack,
    "unstack": _unstack,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_slice,
    "random_bits": _appended,
    "random_split": _appended,
    "random_unwrap": _appended,
    "random_seed": _appended,
    "random_wrap": _wrapped,
    "random_fold_in": _appended,
    **dict.fromkeys(("axis_index", "empty", "empty2", "iota", "platform_index"), _nothing),
    **dict.fromkeys(_OF_MATRICES, _matrices),
}

_ELEMENTWISE_NAMES = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil clamp clz
complex conj convert_element_type copy cos cosh device_put digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt
igamma igammac imag integer_pow is_finite layout_constraint le le_to lgamma log log1p log2 logistic lt lt_to max min mul name
ne neg nextafter not one_minus_square optimization_barrier or pbroadcast pcast polynomial population_count pow ppermute pvary
random_clone random_gamma real reduce_precision regularized_incomplete_beta relayout rem reshard round rsqrt select_n
sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
threefry2x32 xor zeta
"""
ELEMENTWISE = frozenset(_ELEMENTWISE_NAMES.split())
"""Primitives that give each element from the elements in its place."""

_IN_PLACE_NAMES = """
all_to_all approx_top_k concatenate fft pad rev slice sort split tile top_k
"""
_IN_PLACE = frozenset(_IN_PLACE_NAMES.split())
"""Primitives that move or combine elements along an axis, which stays where it is."""
