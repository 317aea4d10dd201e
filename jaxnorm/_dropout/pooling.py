"""Dropout in pooling: elements of a window are dropped before the largest is taken."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._axes import is_known, noise_shape, spatial_axes, whole_along
from jaxnorm._checks import (
    Scalar,
    check_amount_shape,
    check_decision_bits,
    check_float,
    check_key,
    check_number,
    check_sizes_along,
)
from jaxnorm._compiler import in_memory, recomputed, stored
from jaxnorm._noise import Draw, NoiseKind, keep_probability, keep_unscaled, multiply_noise
from jaxnorm._types import wide_dtype, widened


def max_pool_dropout(
    key: jax.Array,
    x: jax.Array,
    rate: Scalar,
    *,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    bits: int = 16,
) -> jax.Array:
    """Pools by the largest element of every window, of those that are not dropped at random (max-pooling dropout).

    Training: `y = max_i m_i x_i` over the n elements of a window, with m_i = 0 with probability `rate`, else 1, for each
    element of x. Inference: `max_pool_dropout_mean(x, rate)`.

    Nothing is rescaled. For `x_(1) >= ... >= x_(n) >= 0`, which the paper is about, `y = x_(i)` with probability
    `(1 - rate) rate^(i - 1)`, and 0 with probability `rate^n`. A dropped element counts as 0, and so is larger than a
    negative one. Windows lie inside of x: what the last one leaves over along an axis goes nowhere. Where they overlap they meet
    the same dropped elements.

    For the gradient the key and x are kept. It goes to the largest element, the first of equal ones, and is 0 for dropped ones.
    The masks are those of `dropout`; the probability that few bits realise differs from the `1 - rate` of inference by less than
    2^-16 with 16 bits, 2^-8 with 8.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, `[B, ..., C]`, with 1 to 3 spatial dimensions.
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar, or an array of x's rank with one for
        each channel, or example. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      window: the size of windows along every spatial dimension, or one for each.
      strides: the distance from one window to the next, likewise; None for that of windows that touch.
      bits: random bits an element that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array `[B, ..., C]` of x's dtype, with `(size - window) // strides + 1` positions along a spatial dimension.

    Raises:
      ValueError: if a concrete rate is outside [0, 1] or has another shape, if a window is larger than the map, if a size is
        below 1, if x does not have 1 to 3 spatial dimensions, or as in `dropout`.
      TypeError: as in `dropout`, or if window or strides hold no ints.

    References:
      Wu, Gu, "Towards dropout training for convolutional neural networks", Neural Networks 71, 2015,
      https://arxiv.org/abs/1512.00242.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> x = jnp.arange(1.0, 9).reshape(1, 8, 1)
      >>> print(jaxnorm.max_pool_dropout(jax.random.key(0), x, 0.5, window=2)[0, :, 0])
      [2. 3. 6. 7.]
    """
    x = check_float("x", x)
    check_number("rate", rate, low=0, high=1)
    along = _checked(x, rate, window, strides)
    bits = check_decision_bits(bits, rate)
    return multiply_noise(check_key(key), x, keep_probability(rate, wide_dtype(x.dtype)), _pooled(along), (), bits)


def max_pool_dropout_mean(
    x: jax.Array, rate: Scalar, *, window: int | Sequence[int], strides: int | Sequence[int] | None = None
) -> jax.Array:
    """Pools by a weighted sum of the sorted elements of every window (probabilistic weighted pooling).

    Inference with `max_pool_dropout`: `y = sum_i (1 - rate) rate^(i - 1) x_(i)`, `x_(1) >= ... >= x_(n)`, the expectation of its
    output in training over the masks.

    It is the expectation for negative x too, which dropped elements, as 0, are larger than: these count as 0, but for the largest
    element of a window without any other, which is there if nothing is dropped, so that `y = (1 - rate)^n x_(1)`.

    For the gradient x is kept.

    Args:
      x: array of floating point numbers, `[B, ..., C]`, with 1 to 3 spatial dimensions.
      rate: the probability of dropping in training, in [0, 1], as in `max_pool_dropout`.
      window: the size of windows along every spatial dimension, or one for each.
      strides: the distance from one window to the next, likewise; None for that of windows that touch.

    Returns:
      Array `[B, ..., C]` of x's dtype, of the shape of `max_pool_dropout`.

    Raises:
      ValueError: as in `max_pool_dropout`.
      TypeError: as in `max_pool_dropout`.

    References:
      Wu, Gu, "Towards dropout training for convolutional neural networks", Neural Networks 71, 2015,
      https://arxiv.org/abs/1512.00242.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> x = jnp.arange(1.0, 9).reshape(1, 8, 1)
      >>> print(jaxnorm.max_pool_dropout_mean(x, 0.5, window=2)[0, :, 0])
      [1.25 2.75 4.25 5.75]
    """
    x = check_float("x", x)
    check_number("rate", rate, low=0, high=1)
    along = _checked(x, rate, window, strides)
    return _weighted(x, jnp.asarray(keep_probability(rate, wide_dtype(x.dtype))), along=along)


class _Along(NamedTuple):
    """A spatial dimension: its axis of x, the size of windows along it, and the distance from one to the next."""

    axis: int
    window: int
    stride: int


def _checked(x: jax.Array, rate: Scalar, window: int | Sequence[int], strides: int | Sequence[int] | None) -> tuple[_Along, ...]:
    _, spatial = spatial_axes(x, -1)
    windows = check_sizes_along("window", window, spatial)
    steps = windows if strides is None else check_sizes_along("strides", strides, spatial)
    sizes = [x.shape[axis] for axis in spatial]
    if any(is_known(size) and own > size for size, own in zip(sizes, windows, strict=True)):
        raise ValueError(f"window must be at most the size of the map, {sizes}, got {window!r}")
    check_amount_shape("rate", rate, noise_shape(x.shape, spatial))
    return tuple(map(_Along, spatial, windows, steps))


@functools.cache
def _pooled(along: tuple[_Along, ...]) -> NoiseKind:
    """The largest of every window of x, of which elements are kept with the probability that is the amount, and else are 0."""

    def apply(draw: Draw, x: jax.Array, prepared: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _largest(*_windows(keep_unscaled.apply(draw, widened(x), prepared), along)).astype(x.dtype)

    return keep_unscaled._replace(apply=apply)


@functools.partial(jax.jit, static_argnames="along")
def _weighted(x: jax.Array, keep: jax.Array, *, along: tuple[_Along, ...]) -> jax.Array:
    def pooled(x: jax.Array) -> jax.Array:
        return _expectation(lax.stop_gradient(keep), *_windows(widened(x), along)).astype(x.dtype)

    with jax.named_scope("jaxnorm.max_pool_dropout_mean"):
        return recomputed(pooled)(x)


@jax.custom_jvp
def _expectation(keep: jax.Array, *elements: jax.Array) -> jax.Array:
    """Returns the expectation of the largest of each place, if elements are 0 unless they are kept."""
    return _sum_of_products(_weights(keep, *elements), elements)


@_expectation.defjvp
def _expectation_jvp(given: tuple[jax.Array, ...], moved: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    keep, *elements = given
    weights = stored(lambda: _weights(keep, *elements), lambda: elements)  # or all would be compared for each gradient
    return _expectation(keep, *elements), _sum_of_products(weights, moved[1:])


def _weights(keep: jax.Array, *elements: jax.Array) -> list[jax.Array]:
    """Returns the probability of each element to be what a window gives: that it is kept, and those before it are not.

    Before it, in descending order, for which pairs are compared: sorting would take a hundred times as long.
    """
    drop, one, zero = 1 - keep, jnp.ones((), keep.dtype), jnp.zeros((), keep.dtype)
    weights = [jnp.broadcast_to(keep, elements[0].shape)] * len(elements)
    first = [jnp.ones(elements[0].shape, bool)] * len(elements)
    for (i, element), (j, later) in itertools.combinations(enumerate(elements), 2):
        ahead = (later > element) | jnp.isnan(later)
        weights[i], weights[j] = weights[i] * jnp.where(ahead, drop, one), weights[j] * jnp.where(ahead, one, drop)
        first[i], first[j] = first[i] & ~ahead, first[j] & ahead
    all_kept = keep ** len(elements)
    of_negative = [jnp.where(leads, all_kept, zero) for leads in first]
    return [
        jnp.where(element < 0, negative, weight) for element, negative, weight in zip(elements, of_negative, weights, strict=True)
    ]


def _sum_of_products(weights: Sequence[jax.Array], elements: Sequence[jax.Array]) -> jax.Array:
    """Returns the weighted sum, in which nothing times 0 is 0."""
    zero = jnp.zeros((), elements[0].dtype)
    return sum((jnp.where(weight == 0, zero, weight * element) for weight, element in zip(weights, elements, strict=True)), zero)


def _windows(x: jax.Array, along: tuple[_Along, ...]) -> list[jax.Array]:
    """Returns for each position in a window the elements that all windows have there."""
    x = whole_along(x, [axis for axis, *_ in along])
    elements = []
    for offsets in itertools.product(*(range(window) for _, window, _ in along)):
        part = x
        for (axis, window, stride), offset in zip(along, offsets, strict=True):
            part = lax.slice_in_dim(part, offset, x.shape[axis] - (window - 1 - offset), stride, axis)
        elements.append(part)
    return elements


@jax.custom_jvp
def _largest(*elements: jax.Array) -> jax.Array:
    """Returns the largest of each place. Its derivative is that of the first of equal ones, without an array for each pair."""
    return functools.reduce(jnp.maximum, elements)


@_largest.defjvp
def _largest_jvp(elements: tuple[jax.Array, ...], moved: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    best = _largest(*elements)
    which = jnp.zeros(best.shape, jnp.uint8)
    for i in reversed(range(len(elements))):
        which = jnp.where(elements[i] == best, jnp.uint8(i), which)
    which = in_memory(which)
    tangent = jnp.zeros_like(best)
    for i, own in enumerate(moved):
        tangent = jnp.where(which == i, own, tangent)
    return best, tangent
