"""Meters of activations: dead and saturated units, percentiles, sparsity, units that say the same.

Each is a pure function of what enters or leaves a layer for a batch, and gives a figure for every channel, of the elements that
`where` counts. Of nothing that counts, a share, a mean and a percentile are NaN.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._axes import canonical_axes, other_axes
from jaxnorm._checks import Scalar, check_float, check_number, check_scalar, check_where
from jaxnorm._moments import count, moments
from jaxnorm._types import wide_dtype, widened


class Sparsity(NamedTuple):
    """How active units are, `[C]` each.

    Attributes:
      mean: the mean activation.
      inactive: the share of elements that are not above the tolerance.
    """

    mean: jax.Array
    inactive: jax.Array


def dead_units(
    x: jax.Array, *, tolerance: Scalar = 0.0, channel_axis: int | Sequence[int] = -1, where: jax.Array | None = None
) -> jax.Array:
    """Returns which units are dead: those without an element above 0 in the batch.

    `dead = all(x <= tolerance)`, of what leaves a ReLU, or of what enters it. Through a unit that is dead for all data no
    gradient flows, and nothing brings it back; for a batch that is small, or of one class, a unit may only rest.

    Args:
      x: activations or preactivations, real numbers `[..., C]`, or with the channels on `channel_axis`.
      tolerance: what an element must exceed, a number or a traced scalar; above 0 for activations that only come close to 0.
      channel_axis: the axis of the channels, or several, as in `jaxnorm.batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count.

    Returns:
      Bool array `[C]`. A unit with a NaN, or without an element that counts, is not called dead.

    Raises:
      ValueError: if channel_axis is out of range or names an axis twice; if where has another rank than x or does not broadcast
        to it; if tolerance is NaN or no scalar.
      TypeError: if x holds no real floating point numbers, where no bools, or tolerance is no number.

    References:
      Maas, Hannun, Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML workshop 2013.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm.diagnostics import dead_units
      >>> print(dead_units(jax.nn.relu(jnp.array([[1.0, -3.0], [-1.0, -2.0]]))))
      [False  True]
    """
    x, axes, where = _checked("x", x, channel_axis, where)
    return _dead(x, _like(x, "tolerance", tolerance), where, axes)


def activation_sparsity(
    x: jax.Array, *, tolerance: Scalar = 0.0, channel_axis: int | Sequence[int] = -1, where: jax.Array | None = None
) -> Sparsity:
    """Returns how active units are: their mean activation, and the share of elements for which they rest.

    `mean = sum(x) / n`, `inactive = sum(x <= tolerance) / n`, of what leaves a ReLU. Dropout makes hidden units sparser than they
    are without it. Where the share is 1 the unit is dead.

    Args:
      x: activations, real numbers `[..., C]`, or with the channels on `channel_axis`.
      tolerance: what an element must exceed, a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `jaxnorm.batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count.

    Returns:
      `Sparsity(mean, inactive)`, `[C]` each, in float32 or wider.

    Raises:
      ValueError: as `dead_units`.
      TypeError: as `dead_units`.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 2014, section 7.2, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.diagnostics import activation_sparsity
      >>> print(*activation_sparsity(jnp.array([[0.0, 1.0], [0.0, 2.0], [6.0, 3.0], [0.0, 2.0]])))
      [1.5 2. ] [0.75 0.  ]
    """
    x, axes, where = _checked("x", x, channel_axis, where)
    return _sparsity(x, _like(x, "tolerance", tolerance), where, axes)


def saturated_share(
    preactivations: jax.Array, *, bound: Scalar = 4.0, channel_axis: int | Sequence[int] = -1, where: jax.Array | None = None
) -> jax.Array:
    """Returns the share of elements for which each unit is saturated: those further from 0 than a bound.

    `sum(|x| > bound) / n`, of what enters a sigmoid or a tanh. At 4 a sigmoid's derivative is 0.018, a fourteenth of that at 0;
    a tanh, `2 sigmoid(2 x) - 1`, is as flat at a bound of 2.

    Args:
      preactivations: x, real numbers `[..., C]`, or with the channels on `channel_axis`.
      bound: at least 0, a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `jaxnorm.batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count.

    Returns:
      Shares `[C]`, in float32 or wider. A NaN is not further from 0 than anything.

    Raises:
      ValueError: if bound is below 0, NaN or no scalar; else as `dead_units`.
      TypeError: as `dead_units`.

    References:
      Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
      https://proceedings.mlr.press/v9/glorot10a.html. It shows percentiles of activations; the bound is a convention.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.diagnostics import saturated_share
      >>> print(saturated_share(jnp.array([[0.5, -7.0], [-1.0, 5.0]])))
      [0. 1.]
    """
    x, axes, where = _checked("preactivations", preactivations, channel_axis, where)
    return _saturated(x, _like(x, "bound", bound, low=0), where, axes)


def activation_percentiles(
    x: jax.Array,
    *,
    percentiles: Any = (15, 50, 85),
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
) -> jax.Array:
    """Returns percentiles of each unit's values: called every so many steps, how its distribution moves in training.

    The percentile q is the value at place `q / 100 (n - 1)` of the n sorted ones, linearly between two of them; of more than 2^24
    the place is rounded. The default percentiles are those of batch norm's paper, figure 1: the median, and of a normal variable
    about a standard deviation to either side.

    Args:
      x: activations or preactivations, real numbers `[..., C]`, or with the channels on `channel_axis`.
      percentiles: P numbers in [0, 100], a sequence or an array, which may be traced.
      channel_axis: the axis of the channels, or several, as in `jaxnorm.batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count.

    Returns:
      `[P, C]`, in float32 or wider; NaN for a unit with a NaN.

    Raises:
      ValueError: if percentiles are outside [0, 100], or no list of numbers; else as `dead_units`.
      TypeError: as `dead_units`, or if percentiles are no numbers.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, https://arxiv.org/abs/1502.03167.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.diagnostics import activation_percentiles
      >>> print(activation_percentiles(jnp.arange(101.0)[:, None]).T)
      [[15. 50. 85.]]
    """
    x, axes, where = _checked("x", x, channel_axis, where)
    quantiles = percentiles if hasattr(percentiles, "dtype") else np.asarray(percentiles)
    check_number("percentiles", quantiles, low=0, high=100)
    if quantiles.ndim != 1:
        raise ValueError(f"percentiles must be a list of numbers, got shape {list(quantiles.shape)}")
    return _percentiles(x, jnp.asarray(quantiles, wide_dtype(x.dtype)), where, axes)


def unit_redundancy(x: jax.Array, *, channel_axis: int | Sequence[int] = -1, where: jax.Array | None = None) -> jax.Array:
    """Returns for every unit the largest correlation with another one, whatever its sign: 1 is a replica.

    `max_{j != i} |cov(x_i, x_j)| / sqrt(var(x_i) var(x_j))`, over the batch (and the positions of a map). A unit that is
    constant, as one that is dead, is no replica of any: 0. The correlation of few elements is large by chance: of n independent
    ones about `sqrt(2 log(C) / n)` for the most alike of C units.

    Args:
      x: activations, real numbers `[..., C]`, or with the channels on `channel_axis`.
      channel_axis: the axis of the channels, or several, as in `jaxnorm.batch_norm`; a unit is then any position along them.
      where: bool array of x's rank that broadcasts to x, with size 1 along the channels: the elements that count, of every unit
        the same.

    Returns:
      `[C]`, in [0, 1], in float32 or wider; NaN for a unit that is not finite, which counts for no other. C x C numbers are in
      memory.

    Raises:
      ValueError: if where is not the same for all channels; else as `dead_units`.
      TypeError: as `dead_units`.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 2014, sections 2 and 7.1, https://jmlr.org/papers/v15/srivastava14a.html. The figure is not in it.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm.diagnostics import unit_redundancy
      >>> x = jnp.array([1.0, -1.0, 2.0, -2.0])
      >>> print(unit_redundancy(jnp.stack([x, -3 * x + 1, jnp.abs(x), jnp.ones(4)], -1)))
      [1. 1. 0. 0.]
    """
    x, axes, where = _checked("x", x, channel_axis, where)
    channels = other_axes(axes, x.ndim)
    if where is not None and any(where.shape[axis] != 1 for axis in channels):
        raise ValueError(f"where must have size 1 along the channels, {list(channels)}, got shape {list(where.shape)}")
    return _redundancy(x, where, axes)


def _checked(
    name: str, x: Any, channel_axis: int | Sequence[int], where: Any
) -> tuple[jax.Array, tuple[int, ...], jax.Array | None]:
    """Returns x, the axes that are reduced, and the mask."""
    x = check_float(name, x)
    axes = other_axes(canonical_axes("channel_axis", channel_axis, x.ndim), x.ndim)
    return x, axes, None if where is None else check_where(where, x, of=name)


def _like(x: jax.Array, name: str, value: Scalar, *, low: float = -np.inf) -> jax.Array:
    return jnp.asarray(check_scalar(name, value, low=low, infinite=True)).astype(x.dtype)


_of_axes = functools.partial(jax.jit, static_argnames=("axes",))


@_of_axes
def _dead(x: jax.Array, tolerance: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    silent = x <= tolerance
    return jnp.all(silent if where is None else silent | ~where, axes) & (count(x, axes, where) > 0)


@_of_axes
def _sparsity(x: jax.Array, tolerance: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> Sparsity:
    found = moments(x, axes, where=where)
    return Sparsity(jnp.where(found.n > 0, found.mean, jnp.nan), _share(x, x <= tolerance, where, axes))


@_of_axes
def _saturated(x: jax.Array, bound: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    return _share(x, jnp.abs(x) > bound, where, axes)


def _share(x: jax.Array, hit: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    """Returns which share of the elements of x that count is hit."""
    n = count(x, axes, where)
    hits = count(x, axes, hit if where is None else hit & where)
    return jnp.where(n > 0, hits / jnp.maximum(n, 1), jnp.nan)


@_of_axes
def _percentiles(x: jax.Array, quantiles: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    wide = widened(x)
    # What does not count comes last, behind what may be infinite itself; a NaN comes behind that.
    ordered = _rows(wide if where is None else jnp.where(where, wide, jnp.inf), axes)
    n = jnp.full(ordered.shape[1:], len(ordered))
    if where is not None:
        n = jnp.sum(_rows(jnp.broadcast_to(where, x.shape), axes), 0, dtype=jnp.int32)
    if not len(ordered):
        return jnp.full((len(quantiles), *n.shape), jnp.nan, wide.dtype)
    ordered, last = jnp.sort(ordered, 0), jnp.maximum(n - 1, 0)[None]
    place = jnp.expand_dims(quantiles, range(1, 1 + n.ndim)) * last.astype(wide.dtype) / 100
    ends = (
        jnp.minimum(end(place).astype(jnp.int32), last) for end in (jnp.floor, jnp.ceil)
    )  # the last one, however it is rounded
    low, high = (jnp.take_along_axis(ordered, end, 0) for end in ends)
    # Between two infinities too, if they are one.
    found = jnp.where(low == high, low, low + (place - jnp.floor(place)) * (high - low))
    is_known = (n > 0) & ~jnp.isnan(ordered[-1])
    return jnp.where(is_known[None], found, jnp.nan)


@_of_axes
def _redundancy(x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    found = moments(x, axes, where=where)
    is_finite = jnp.isfinite(found.var)
    varies = is_finite & (found.var > 0)
    scale = jnp.where(varies, 1 / jnp.sqrt(jnp.where(varies, found.var, 1)), 0)
    counted = jnp.expand_dims(varies, axes) if where is None else jnp.expand_dims(varies, axes) & where
    # Of variance 1 first: squares of what is large or small by itself would not be numbers.
    z = jnp.where(counted, (widened(x) - jnp.expand_dims(found.mean, axes)) * jnp.expand_dims(scale, axes), 0)
    z = _rows(z, axes).reshape(-1, found.var.size)
    n = jnp.maximum(jnp.max(found.n, initial=0), 1)
    alike = jnp.minimum(jnp.abs(jnp.matmul(z.T, z, precision="highest")) / n, 1)
    others = jnp.where(jnp.eye(len(alike), dtype=bool), 0, alike)
    return jnp.where(is_finite, jnp.max(others, 0, initial=0).reshape(found.var.shape), jnp.nan)


def _rows(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns x with all reduced axes as one, the first."""
    channels = other_axes(axes, x.ndim)
    sizes = [x.shape[axis] for axis in channels]
    return jnp.transpose(x, (*axes, *channels)).reshape(math.prod(x.shape[axis] for axis in axes), *sizes)
