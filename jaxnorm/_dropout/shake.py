"""Shaken branches: ShakeDrop and Shake-Shake, which scale branches by one random number forward and by another one backward.

Both are written so that y has the value of the one number and, in every mode of differentiation, the derivative of the other:
`y = k_f stop_gradient(F) + k_b (F - stop_gradient(F))`, whose last term is 0.
"""

import functools
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import noise_shape, shared_axes
from jaxnorm._checks import (
    Scalar,
    check_amount_shape,
    check_choice,
    check_decision_bits,
    check_float,
    check_key,
    check_like,
    check_number,
)
from jaxnorm._noise import Draw, NoiseKind, draw_again, draw_size, from_0_to_1, keep_probability, keep_unscaled
from jaxnorm._types import widest_dtype

Range = tuple[float, float]
"""The lowest and the highest number that is drawn."""

_PER = ("example", "element", "batch")


def shake_drop(
    key: jax.Array,
    x: jax.Array,
    branch: jax.Array,
    rate: Scalar,
    *,
    alpha: Range = (-1.0, 1.0),
    beta: Range = (0.0, 1.0),
    per: Literal["example", "element", "batch"] = "example",
    bits: int = 16,
) -> jax.Array:
    """Adds a branch to its shortcut and, where it would be dropped, scales it at random: by another number backward.

    Training: `y = x + k branch` with `k = b + alpha - b alpha`: 1 where `b = 1`, with probability `1 - rate`, else alpha, drawn
    evenly from its range. Its derivative by the branch is `b + beta - b beta` in place of k, with a beta drawn likewise.
    Inference: `shake_drop_mean`.

    With `alpha=(0, 0), beta=(0, 0)` it is stochastic depth. `E[k] = 1 - rate` where the range of alpha is around 0. The paper has
    rates that grow with the depth to 0.5 (`jaxnorm.schedules.linear_rates`), and a batch norm at the end of the branch.

    b is drawn for each example (the authors' code: for the whole batch, as here with "batch"); alpha and beta, too, or for each
    element.

    A branch whose factors are both 0 adds nothing whatever it holds, NaN and infinity too; else what is not finite gives NaN.
    Only the key is kept for the gradient; there is no custom rule, and derivatives of second order are 0.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, `[B, ...]`: the shortcut.
      branch: array of x's shape.
      rate: the probability of `b = 0`, in [0, 1]; a number or a traced scalar, or an array of x's rank with one entry for each b.
        No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      alpha: the lowest and the highest factor forward.
      beta: those backward.
      per: whether each "example" has an alpha and a beta, each "element", or the "batch" one of each.
      bits: random bits that decide about b: 8, 16 or 32, as in `dropout`. alpha and beta are made of 16 or 32.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if branch has another shape than x, if a range is not two finite numbers in order, if per is another word; else
        as `dropout`.
      TypeError: as `dropout`, of x and the branch.

    References:
      Yamada, Iwamura, Akiba, Kise, "ShakeDrop regularization for deep residual learning", IEEE Access 7, 2019,
      https://arxiv.org/abs/1802.02375.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm, numpy as np
      >>> x, branch = jnp.zeros((5, 1)), jnp.ones((5, 1))
      >>> print(np.round(np.asarray(jaxnorm.shake_drop(jax.random.key(0), x, branch, 0.5).T), 2))
      [[ 0.6  -0.84  1.    1.    0.82]]
    """
    key = check_key(key)
    x = check_float("x", x)
    branch = check_like("branch", branch, x)
    check_choice("per", per, _PER)
    gates = shared_axes("batch" if per == "batch" else "example", x)
    check_number("rate", rate, low=0, high=1)
    check_amount_shape("rate", rate, noise_shape(x.shape, gates))
    wide = widest_dtype(x, branch)
    ranges = tuple(np.asarray(_checked_range(name, given), wide) for name, given in (("alpha", alpha), ("beta", beta)))
    amounts = (keep_probability(rate, wide), *ranges)
    return _shake_drop(key, x, branch, amounts, per=per, gates=gates, bits=check_decision_bits(bits, rate))


def shake_drop_mean(x: jax.Array, branch: jax.Array, rate: Scalar, *, alpha: Range = (-1.0, 1.0)) -> jax.Array:
    """Adds a branch to its shortcut, scaled by its mean factor in training.

    Inference with `shake_drop`: `y = x + k branch` with `k = 1 - rate + rate (alpha[0] + alpha[1]) / 2`, the expectation of its
    output in training.

    Args:
      x: array of floating point numbers, any shape: the shortcut.
      branch: array of x's shape.
      rate: the probability of being shaken in training, in [0, 1]; a number or a traced scalar, or an array of x's rank that
        broadcasts to x. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      alpha: the lowest and the highest factor in training.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or does not broadcast to x; if branch has another shape than x; if the
        range is not two finite numbers in order.
      TypeError: if x or branch does not hold floating point numbers, or if the rate is no number.

    References:
      Yamada, Iwamura, Akiba, Kise, "ShakeDrop regularization for deep residual learning", IEEE Access 7, 2019,
      https://arxiv.org/abs/1802.02375.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.shake_drop_mean(jnp.ones(2), jnp.full(2, 10.0), 0.5)
      Array([6., 6.], dtype=float32)
    """
    x = check_float("x", x)
    branch = check_like("branch", branch, x)
    check_number("rate", rate, low=0, high=1)
    check_amount_shape("rate", rate, x.shape)
    wide = widest_dtype(x, branch)
    keep = lax.stop_gradient(jnp.asarray(keep_probability(rate, wide)))
    middle = np.asarray(sum(_checked_range("alpha", alpha)) / 2, wide)
    return (x.astype(wide) + (keep + (1 - keep) * middle) * branch.astype(wide)).astype(x.dtype)


def shake_shake(
    key: jax.Array,
    first: jax.Array,
    second: jax.Array,
    *,
    per: Literal["example", "element", "batch"] = "example",
    backward: Literal["shake", "even", "keep"] = "shake",
) -> jax.Array:
    """Mixes two branches at random, and their gradients by another random number.

    Training: `y = alpha first + (1 - alpha) second`, with alpha drawn evenly from [0, 1]. Its derivatives have beta in place of
    alpha: a number of its own ("shake"), 1/2 ("even") or alpha ("keep"). Inference: `shake_shake_mean`.

    y is added to the shortcut of a residual block. The paper calls the three Shake-Shake, Shake-Even and Shake-Keep; "Image" is
    its word for `per="example"`, which did best with "shake" for wide networks, and "Batch" for "batch".

    Only the key is kept for the gradient; there is no custom rule, and derivatives of second order are 0.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      first: array of floating point numbers, `[B, ...]`: a branch.
      second: array of its shape: the other branch.
      per: whether each "example" has an alpha and a beta, each "element", or the "batch" one of each.
      backward: what beta is: "shake", "even" or "keep".

    Returns:
      Array of the shape and dtype of the first branch.

    Raises:
      ValueError: if the branches have not the same shape, if per or backward is another word, or if key is an array of several
        keys.
      TypeError: if a branch does not hold floating point numbers, or if key is no key.

    References:
      Gastaldi, "Shake-Shake regularization", ICLR 2017 workshop, https://arxiv.org/abs/1705.07485.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm, numpy as np
      >>> y = jaxnorm.shake_shake(jax.random.key(0), jnp.zeros((4, 1)), jnp.ones((4, 1)))
      >>> print(np.round(np.asarray(y.T), 2))
      [[0.49 0.03 0.61 0.81]]
    """
    key = check_key(key)
    first = check_float("first", first)
    second = check_like("second", second, first, "first")
    check_choice("per", per, _PER)
    check_choice("backward", backward, tuple(_MIXTURES))
    return _shake_shake(key, first, second, shared=shared_axes(per, first, "first"), backward=backward)


def shake_shake_mean(first: jax.Array, second: jax.Array) -> jax.Array:
    """Takes the mean of two branches.

    Inference with `shake_shake`: `y = (first + second) / 2`, the expectation of its output in training.

    Args:
      first: array of floating point numbers, any shape: a branch.
      second: array of its shape: the other branch.

    Returns:
      Array of the shape and dtype of the first branch.

    Raises:
      ValueError: if the branches have not the same shape.
      TypeError: if a branch does not hold floating point numbers.

    References:
      Gastaldi, "Shake-Shake regularization", ICLR 2017 workshop, https://arxiv.org/abs/1705.07485.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.shake_shake_mean(jnp.ones(2), jnp.full(2, 4.0))
      Array([2.5, 2.5], dtype=float32)
    """
    first = check_float("first", first)
    second = check_like("second", second, first, "first")
    wide = widest_dtype(first, second)
    return ((first.astype(wide) + second.astype(wide)) / 2).astype(first.dtype)


def _checked_range(name: str, given: Any) -> Range:
    """Returns the range, or raises unless it is two finite numbers, of which the first is not the larger."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"{name} must be the lowest and the highest number, got {given!r}")
    low, high = (float(check_number(name, number, low=-np.inf)) for number in given)
    if not (np.isfinite(low) and low <= high):
        raise ValueError(f"{name} must be two finite numbers in ascending order, got {given!r}")
    return low, high


def _between(draw: Draw, low: Any, high: Any) -> jax.Array:
    """Returns numbers drawn evenly from the range."""
    return low + (high - low) * from_0_to_1(replace(draw, bits=max(16, draw.bits))).astype(high.dtype)


def _shaken(branch: jax.Array, forward: jax.Array, backward: jax.Array) -> jax.Array:
    """Returns the branch times the one factor, whose derivative is the other; 0, whatever it is, where both are 0."""
    value = lax.stop_gradient(branch)
    return jnp.where((forward == 0) & (backward == 0), 0, forward * value + backward * (branch - value))


@functools.partial(jax.jit, static_argnames=("per", "gates", "bits"))
def _shake_drop(
    key: jax.Array, x: jax.Array, branch: jax.Array, amounts: Any, *, per: str, gates: tuple[int, ...], bits: int
) -> jax.Array:
    factors = draw_size(x, shared_axes(per, x))
    return draw_again(key, (x, branch), amounts, _SHAKE_DROP, (draw_size(x, gates), factors, factors), bits)


@functools.partial(jax.jit, static_argnames=("shared", "backward"))
def _shake_shake(key: jax.Array, first: jax.Array, second: jax.Array, *, shared: tuple[int, ...], backward: str) -> jax.Array:
    draws = 2 if backward == "shake" else 1
    return draw_again(key, (first, second), (), _MIXTURES[backward], (draw_size(first, shared),) * draws, 16)


def _shake_if_dropped(gate: Draw, ahead: Draw, back: Draw, arrays: tuple[jax.Array, ...], prepared: Any) -> jax.Array:
    x, branch = arrays
    (threshold, one), alpha, beta = prepared
    kept = gate.below(threshold)
    forward, backward = (jnp.where(kept, one, _between(draw, *bounds)) for draw, bounds in ((ahead, alpha), (back, beta)))
    return (x.astype(one.dtype) + _shaken(branch.astype(one.dtype), forward, backward)).astype(x.dtype)


def _mixed(backward: str) -> NoiseKind:
    """Two arrays, mixed by a number between 0 and 1, and their gradients by what `backward` says."""

    def apply(*draws_arrays_prepared: Any) -> jax.Array:
        *draws, (first, second), _ = draws_arrays_prepared
        wide = widest_dtype(first, second)
        alpha, beta = (_between(draw, np.zeros((), wide), np.ones((), wide)) for draw in (draws[0], draws[-1]))
        beta = jnp.full_like(beta, 0.5) if backward == "even" else beta
        mixed = _shaken(first.astype(wide), alpha, beta) + _shaken(second.astype(wide), 1 - alpha, 1 - beta)
        return mixed.astype(first.dtype)

    return NoiseKind(lambda amount, bits: amount, apply)


_SHAKE_DROP = NoiseKind(lambda amounts, bits: (keep_unscaled.prepare(amounts[0], bits), *amounts[1:]), _shake_if_dropped)
_MIXTURES = {backward: _mixed(backward) for backward in ("shake", "even", "keep")}
