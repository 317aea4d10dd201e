"""Joins of branches: swapout and FractalNet's drop path, where what is dropped is an input of a sum or a mean.

The decisions are taken per element (swapout) or per example, independently for each branch; nothing is scaled up.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import canonical_axes, noise_shape, shared_axes
from jaxnorm._checks import (
    Scalar,
    check_amount_shape,
    check_choice,
    check_decision_bits,
    check_float,
    check_key,
    check_like,
    check_number,
    check_size,
)
from jaxnorm._noise import Draw, NoiseKind, draw_again, draw_size, keep_probability, keep_unscaled
from jaxnorm._types import widest_dtype


def swapout(
    key: jax.Array,
    x: jax.Array,
    branch: jax.Array,
    rate: Scalar,
    *,
    branch_rate: Scalar | None = None,
    broadcast_dims: Sequence[int] = (),
    bits: int = 16,
) -> jax.Array:
    """Adds shortcut and branch of a residual block, each with elements of its own set to zero.

    Training: `y = m1 x + m2 branch`, with `m1 = 1` with probability `1 - rate` and `m2 = 1` with probability `1 - branch_rate`,
    else 0, independently for every element of both. Inference: `swapout_mean`, or better the mean of several draws.

    Nothing is scaled up: `E[y]` is `swapout_mean`, and `Var[y] = rate (1 - rate) x^2 + branch_rate (1 - branch_rate) branch^2`.
    A block is thus an identity, a plain layer, a residual sum or nothing, unit by unit. With `rate=0` and a draw per example
    it is stochastic depth, with `rate=1` (classic) dropout of the branch. Rates that grow with the depth from 0 to 0.5 did best
    in the paper (`jaxnorm.schedules.linear_rates`).

    An element that is dropped is 0 whatever it was, NaN and infinity too. Only the key is kept for the gradient.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, any shape: the shortcut.
      branch: array of x's shape: what the block computes of it.
      rate: the probability of dropping an element of x, as in `dropout`.
      branch_rate: the probability of dropping an element of the branch; None for that of x.
      broadcast_dims: axes along which all elements share one draw (one of x, and one of the branch).
      bits: random bits an element that decide: 8, 16 or 32, as in `dropout`. Few bits realise a probability that differs by less
        than 2^-16 with 16, by less than 2^-8 with 8.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if branch has another shape than x; else as `dropout`, of both rates.
      TypeError: as `dropout`, of x and the branch, and of both rates.

    References:
      Singh, Hoiem, Forsyth, "Swapout: learning an ensemble of deep architectures", NIPS 2016, https://arxiv.org/abs/1605.06465.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> x, branch = jnp.ones(6), jnp.full(6, 10.0)
      >>> jaxnorm.swapout(jax.random.key(0), x, branch, 0.5)
      Array([ 0., 10.,  1., 11.,  0.,  1.], dtype=float32)
    """
    key = check_key(key)
    x = check_float("x", x)
    branch = check_like("branch", branch, x)
    rates = _checked_rates(rate, branch_rate)
    shared = canonical_axes("broadcast_dims", broadcast_dims, x.ndim)
    for name, one in rates.items():
        check_amount_shape(name, one, noise_shape(x.shape, shared))
    keep = tuple(keep_probability(one, widest_dtype(x, branch)) for one in rates.values())
    bits = max(check_decision_bits(bits, one) for one in rates.values())
    return _swapout(key, x, branch, keep, shared=shared, bits=bits)


def swapout_mean(x: jax.Array, branch: jax.Array, rate: Scalar, *, branch_rate: Scalar | None = None) -> jax.Array:
    """Adds shortcut and branch of a residual block, each scaled by the probability of having been kept.

    Inference with `swapout`: `y = (1 - rate) x + (1 - branch_rate) branch`, the expectation of its output in training.

    What follows is not linear, so that the mean of several draws of `swapout` predicts better, as the paper found; batch norms
    in particular have met other variances in training.

    Args:
      x: array of floating point numbers, any shape: the shortcut.
      branch: array of x's shape.
      rate: the probability of dropping in training, in [0, 1]; a number or a traced scalar, or an array of x's rank that
        broadcasts to x. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      branch_rate: that of the branch; None for the same.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or does not broadcast to x; if branch has another shape than x.
      TypeError: if x or branch does not hold floating point numbers, or if a rate is no number.

    References:
      Singh, Hoiem, Forsyth, "Swapout: learning an ensemble of deep architectures", NIPS 2016, https://arxiv.org/abs/1605.06465.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.swapout_mean(jnp.ones(2), jnp.full(2, 10.0), 0.0, branch_rate=0.5)
      Array([6., 6.], dtype=float32)
    """
    x = check_float("x", x)
    branch = check_like("branch", branch, x)
    rates = _checked_rates(rate, branch_rate)
    for name, one in rates.items():
        check_amount_shape(name, one, x.shape)
    wide = widest_dtype(x, branch)
    keep = [lax.stop_gradient(jnp.asarray(keep_probability(one, wide))) for one in rates.values()]
    return _sum([factor * array.astype(wide) for factor, array in zip(keep, (x, branch), strict=True)]).astype(x.dtype)


def fractal_join(
    key: jax.Array,
    branches: Sequence[jax.Array],
    rate: Scalar,
    *,
    mode: Literal["local", "global"] = "local",
    per: Literal["example", "batch"] = "example",
    columns: int | None = None,
    bits: int = 16,
) -> jax.Array:
    """Takes the mean of those branches that are not dropped, of which one at least is kept (FractalNet's drop path).

    Training: `y = sum(m_j branch_j) / sum(m_j)`. Local: `m_j = 1` with probability `1 - rate`, else 0, independently for each
    branch; where all are 0, one of them, drawn evenly, is 1. Global: one is 1, drawn evenly, whatever the rate. Inference:
    `fractal_join_mean`.

    Every branch has the same weight on average, `1 / k` of k branches, so that `E[y]` is the mean of all of them.

    Globally a whole column of the network is trained alone. The column depends on the key, `per` and `columns` alone: give all
    joins the same key (under `jax_debug_key_reuse` by `jax.random.clone`), and each join a key of its own where it is local. A
    join of fewer branches than there are columns is taken to have the last ones, the deepest, and gives its first where the drawn
    column is none of them: a later join then drops what it gives. The paper draws locally for one half of the batches and
    globally for the other.

    A dropped branch adds nothing whatever it holds, NaN and infinity too. Only the key is kept for the gradient.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      branches: arrays of floating point numbers, of one shape, `[B, ...]`.
      rate: the probability of dropping a branch, in [0, 1]; a number or a traced scalar, or an array of the branches' rank with
        one entry for each draw. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      mode: "local" or "global".
      per: whether each "example" has a draw of its own, or the whole "batch" one.
      columns: of the network, of which the global draw chooses one; None for as many as there are branches.
      bits: random bits that decide about a branch: 8, 16 or 32, as in `dropout`. Columns are drawn by 32.

    Returns:
      Array of the shape of the branches and the dtype of the first.

    Raises:
      ValueError: if there is no branch, if one has another shape than the first, or if there are fewer columns than branches; if
        mode or per is another word; else as `dropout`.
      TypeError: if branches is no sequence; else as `dropout`.

    References:
      Larsson, Maire, Shakhnarovich, "FractalNet: ultra-deep neural networks without residuals", ICLR 2017,
      https://arxiv.org/abs/1605.07648.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> branches = [jnp.full((6, 1), value) for value in (1.0, 2.0, 3.0)]
      >>> jaxnorm.fractal_join(jax.random.key(0), branches, 0.5).T
      Array([[3., 2., 1., 2., 1., 1.]], dtype=float32)
    """
    key = check_key(key)
    arrays = _checked_branches(branches)
    check_choice("mode", mode, ("local", "global"))
    check_choice("per", per, ("example", "batch"))
    shared = shared_axes(per, arrays[0], "branches[0]")
    check_number("rate", rate, low=0, high=1)
    check_amount_shape("rate", rate, noise_shape(arrays[0].shape, shared))
    columns = len(arrays) if columns is None else check_size("columns", columns)
    if columns < len(arrays):
        raise ValueError(f"columns must be at least as many as the {len(arrays)} branches, got {columns}")
    bits = check_decision_bits(bits, rate)
    kind = _mean_of_kept(len(arrays)) if mode == "local" else _one_of(columns)
    return _fractal_join(key, arrays, keep_probability(rate, widest_dtype(*arrays)), kind=kind, shared=shared, bits=bits)


def fractal_join_mean(branches: Sequence[jax.Array]) -> jax.Array:
    """Takes the mean of all branches.

    Inference with `fractal_join`: `y = sum(branch_j) / k` of k branches, the expectation of its output in training.

    Args:
      branches: arrays of floating point numbers, of one shape.

    Returns:
      Array of the shape of the branches and the dtype of the first.

    Raises:
      ValueError: if there is no branch, or if one has another shape than the first.
      TypeError: if branches is no sequence of arrays of floating point numbers.

    References:
      Larsson, Maire, Shakhnarovich, "FractalNet: ultra-deep neural networks without residuals", ICLR 2017,
      https://arxiv.org/abs/1605.07648.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.fractal_join_mean([jnp.ones(2), jnp.full(2, 4.0)])
      Array([2.5, 2.5], dtype=float32)
    """
    arrays = _checked_branches(branches)
    wide = widest_dtype(*arrays)
    return (_sum([array.astype(wide) for array in arrays]) / len(arrays)).astype(arrays[0].dtype)


def _checked_rates(rate: Scalar, branch_rate: Scalar | None) -> dict[str, Scalar]:
    """Returns both rates by their names, or raises unless they are probabilities."""
    rates = {"rate": rate, "branch_rate": rate if branch_rate is None else branch_rate}
    for name, one in rates.items():
        check_number(name, one, low=0, high=1)
    return rates


def _checked_branches(branches: Any) -> tuple[jax.Array, ...]:
    """Returns the branches as arrays of one shape, or raises unless they are such."""
    if not isinstance(branches, Sequence):
        raise TypeError(f"branches must be a sequence of arrays, got {type(branches).__name__}")
    if not branches:
        raise ValueError("branches must be one array at least, got none")
    first = check_float("branches[0]", branches[0])
    others = (check_like(f"branches[{i}]", array, first, "branches[0]") for i, array in enumerate(branches[1:], 1))
    return (first, *others)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


@functools.partial(jax.jit, static_argnames=("shared", "bits"))
def _swapout(key: jax.Array, x: jax.Array, branch: jax.Array, keep: Any, *, shared: tuple[int, ...], bits: int) -> jax.Array:
    return draw_again(key, (x, branch), keep, _SUM_OF_KEPT, (draw_size(x, shared),) * 2, bits)


@functools.partial(jax.jit, static_argnames=("kind", "shared", "bits"))
def _fractal_join(
    key: jax.Array, branches: tuple[jax.Array, ...], keep: Any, *, kind: NoiseKind, shared: tuple[int, ...], bits: int
) -> jax.Array:
    draws = len(branches) + 1 if kind.decides else 1
    return draw_again(key, branches, keep, kind, (draw_size(branches[0], shared),) * draws, bits)


def _sum_of_kept(*draws_arrays_prepared: Any) -> jax.Array:
    *draws, arrays, prepared = draws_arrays_prepared
    wide = widest_dtype(*arrays)
    kept = (keep_unscaled.apply(draw, a.astype(wide), own) for draw, a, own in zip(draws, arrays, prepared, strict=True))
    return _sum(kept).astype(arrays[0].dtype)


_SUM_OF_KEPT = NoiseKind(lambda keep, bits: tuple(keep_unscaled.prepare(one, bits) for one in keep), _sum_of_kept, decides=True)
"""The sum of arrays of which each is kept by a draw of its own, with its own probability."""


@functools.cache
def _mean_of_kept(count: int) -> NoiseKind:
    """The mean of those of so many arrays that are kept, by a draw each, and of one of them, by the last draw, where none is."""

    def apply(*draws_branches_prepared: Any) -> jax.Array:
        *draws, choice, branches, (threshold, one) = draws_branches_prepared
        below = [draw.below(threshold) for draw in draws]
        none = ~functools.reduce(jnp.logical_or, below)
        chosen = choice.indices(jnp.uint32(count))
        kept = [drawn | (none & (chosen == j)) for j, drawn in enumerate(below)]
        weight = one / _sum(k.astype(one.dtype) for k in kept)
        return _selected(kept, branches, weight)

    return NoiseKind(keep_unscaled.prepare, apply, decides=True)


@functools.cache
def _one_of(columns: int) -> NoiseKind:
    """One of the arrays, which are the last of so many, by a draw; the first of them where none is chosen."""

    def apply(choice: Draw, branches: tuple[jax.Array, ...], prepared: Any) -> jax.Array:
        missing = columns - len(branches)
        chosen = jnp.maximum(choice.indices(jnp.uint32(columns)), missing) - missing
        return _selected([chosen == j for j in range(len(branches))], branches, prepared[1])

    return NoiseKind(keep_unscaled.prepare, apply)


def _selected(kept: Sequence[jax.Array], branches: Sequence[jax.Array], weight: jax.Array) -> jax.Array:
    """Returns the sum of the branches that are kept, each times the weight, in the type of the first."""
    wide = widest_dtype(*branches)
    terms = [jnp.where(k, branch.astype(wide), np.zeros((), wide)) for k, branch in zip(kept, branches, strict=True)]
    return (_sum(terms) * weight).astype(branches[0].dtype)
