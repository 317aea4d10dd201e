"""Normalization by given statistics, and what may follow it in one step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import reshard

from jaxnorm._axes import match_sharding, other_axes, sharding_along, shared_sharding
from jaxnorm._compiler import computed_from, recomputed, unshared
from jaxnorm._types import wide_dtype, widened

Activation = Callable[[jax.Array], jax.Array]
"""A function of single elements, as `jax.nn.relu`."""


def inverse_deviation(var: jax.Array, epsilon: Any) -> jax.Array:
    """Returns `1 / sqrt(var + epsilon)`; 0 where the variance is infinite."""
    return lax.rsqrt(var + jnp.asarray(epsilon, var.dtype))


def inverse_length(square: jax.Array, floor: Any) -> jax.Array:
    """Returns `1 / max(sqrt(square), floor)`; 0 where both are 0, and finite derivatives there."""
    floor = jnp.asarray(floor, square.dtype)
    longer = square > lax.square(floor)
    inverse = jnp.where(floor > 0, 1 / jnp.where(floor > 0, floor, 1), 0)
    return jnp.where(longer, lax.rsqrt(jnp.where(longer, square, 1)), inverse)


def rescale(
    x: jax.Array,
    mean: jax.Array | None,
    factor: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    axes: Sequence[int],
    wide: jax.Array | None = None,
    feature_axes: Sequence[int] | None = None,
    where: jax.Array | None = None,
    residual: jax.Array | None = None,
    activation: Activation | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Returns `activation((x - mean) * factor * scale + bias + residual)`.

    The mean is subtracted first: folding it into the bias would cancel wherever it is large. For the gradient nothing is kept but
    x, the residual, and numbers of the statistics' size: what the activation needs is computed again.

    Args:
      x: array of real or complex numbers.
      mean: one number, in float32 or wider, for each position along the axes of x that are not in `axes`; None for 0.
      factor: likewise, and real.
      scale: factor, or None; shaped as the other one, or as x along `feature_axes`.
      bias: offset, or None; shaped as the scale.
      axes: the axes of x along which the statistics are shared.
      wide: `widened(x)`, if something else is made of x too: the gradient flows to it.
      feature_axes: the axes of x along which scale and bias vary, ascending; None for those that the statistics have.
      where: bool array of x's rank that broadcasts to x. Elsewhere x may be NaN or infinite: it then adds nothing to the bias
        (and the residual), and has gradient 0.
      residual: array of x's shape, or None.
      activation: function of single elements, or None; it gets and gives numbers of the mean's type.
      dtype: type of the result, which is rounded once; None for x's.
    """
    axes, kept = tuple(axes), other_axes(axes, x.ndim)
    features = kept if feature_axes is None else tuple(feature_axes)
    either = tuple(sorted({*kept, *features}))
    if (kept, features) != (either, either) and len(either) < x.ndim:
        parts = (mean, kept), (factor, kept), (scale, features), (bias, features)
        mean, factor, scale, bias = lax.optimization_barrier(
            tuple(None if part is None else _spread(part, along, either, x) for part, along in parts)
        )
        axes, features = other_axes(either, x.ndim), either
    along = _Axes(axes, other_axes(features, x.ndim))
    numbers = wide_dtype(x.dtype) if mean is None else mean.dtype
    factor = factor.astype(numbers)
    gain = None if scale is None else scale.astype(numbers)
    if gain is not None and along.features == axes:
        factor, gain = factor * match_sharding(gain, factor), None
    bias = None if bias is None else bias.astype(numbers)
    wide = widened(x) if wide is None else wide
    return _output(_Parts(x, wide, where, residual, mean, factor, gain, bias), along, activation, jnp.dtype(dtype or x.dtype))


def _spread(part: jax.Array, along: tuple[int, ...], either: tuple[int, ...], x: jax.Array) -> jax.Array:
    """Returns numbers along some axes of x for every position along the axes that any of the numbers has.

    So the gradients of all take the same sums over x, and those of what the statistics were pooled from take none, unless the
    compiler makes one sum of two: a barrier behind them keeps those over the axes that none of them has.
    """
    shape, sharding = tuple(x.shape[axis] for axis in either), sharding_along(x, either)
    shared = tuple(place for place, axis in enumerate(either) if axis not in along)
    whole = jnp.broadcast_to(jnp.expand_dims(part, shared), shape)
    return whole if sharding is None else reshard(whole, sharding)


def elementwise(
    function: Callable[..., jax.Array],
    x: jax.Array,
    numbers: Sequence[tuple[jax.Array | None, Sequence[int]]],
    *,
    wide: jax.Array | None = None,
    where: jax.Array | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Returns `function(x, *numbers)`, of which for the gradient nothing is kept but x and the numbers.

    Args:
      function: function of single elements, which gets arrays that broadcast, in float32 or wider.
      x: array of real or complex numbers.
      numbers: arrays, each with the axes of x that it has, ascending; None for one that there is not, which the function gets.
      wide: `widened(x)`, if something else is made of x too: the gradient flows to it.
      where: bool array of x's rank that broadcasts to x. Elsewhere an x that is not finite is taken for 0.
      dtype: type of the result, which is rounded once; None for x's.
    """
    either = tuple(sorted({axis for part, axes in numbers if part is not None for axis in axes}))

    def along_x(part: jax.Array | None, axes: tuple[int, ...]) -> jax.Array | None:
        if part is None:
            return None
        part = part.astype(wide_dtype(x.dtype))
        if axes != either and len(either) < x.ndim:
            part, axes = _spread(part, axes, either, x), either
        shared = other_axes(axes, x.ndim)
        sharding = shared_sharding(x, shared)
        part = jnp.expand_dims(part, shared)
        return part if sharding is None else reshard(part, sharding)

    rounded = jnp.dtype(dtype or x.dtype)

    def result(x: jax.Array, where: jax.Array | None, *numbers: jax.Array | None) -> jax.Array:
        return function(valid(x, where, x), *numbers).astype(rounded)

    wide = widened(x) if wide is None else wide
    return computed_from(result, x, wide, where, *(along_x(part, tuple(axes)) for part, axes in numbers))


def scaled_and_shifted(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """Returns `x scale + bias`, of those that there are: for the functions of `elementwise`."""
    y = x if scale is None else x * scale
    return y if bias is None else y + bias


class _Axes(NamedTuple):
    """The axes of x along which the statistics are shared, and those along which scale and bias are."""

    statistics: tuple[int, ...]
    features: tuple[int, ...]


class _Parts(NamedTuple):
    """What a normalized element is made of: x, whose derivatives are those of `wide`, and numbers along some of its axes.

    These have no other axes, so that the rules compute with few numbers of one shape until they meet x, in one step.
    """

    x: jax.Array
    wide: jax.Array | None
    where: jax.Array | None
    residual: jax.Array | None
    mean: jax.Array | None
    factor: jax.Array
    gain: jax.Array | None
    bias: jax.Array | None


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _output(parts: _Parts, along: _Axes, activation: Activation | None, dtype: Any) -> jax.Array:
    """Returns `activation((x - mean) factor gain + bias + residual)`; x adds nothing where it neither counts nor is finite."""
    z = _before_activation(parts, along)
    return (z if activation is None else activation(z)).astype(dtype)


def _before_activation(parts: _Parts, along: _Axes) -> jax.Array:
    x, _, _, residual, _, factor, gain, bias = parts
    of_statistics, of_features = _spreads(x, along)
    z = _centered(parts, of_statistics) * of_statistics(factor)
    z = z if gain is None else z * of_features(gain)
    z = z if bias is None else z + of_features(bias)
    return z if residual is None else z + residual.astype(z.dtype)


def _centered(parts: _Parts, of_statistics: Callable[[jax.Array], jax.Array]) -> jax.Array:
    x = parts.x.astype(parts.factor.dtype)
    return valid(parts.x, parts.where, x if parts.mean is None else x - of_statistics(parts.mean))


def _spreads(x: jax.Array, along: _Axes) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Returns what makes numbers of the statistics, and of the features, broadcast to x, sharded as it is."""

    def spread(shared: tuple[int, ...], a: jax.Array) -> jax.Array:
        a = jnp.expand_dims(a, shared)
        sharding = shared_sharding(x, shared)
        return a if sharding is None else reshard(a, sharding)

    return functools.partial(spread, along.statistics), functools.partial(spread, along.features)


@_output.defjvp
def _output_jvp(along: _Axes, activation: Activation | None, dtype: Any, primals: Any, tangents: Any) -> Any:
    """`dz = factor gain dx + dresidual + (x - mean) (gain dfactor + factor dgain) + (dbias - factor gain dmean)`, `dy =
    activation'(z) dz`.

    Autodiff's own form is `(dx - dmean) factor + ...`, whose transpose sums an array of x's size where this sums dy, which
    dbias needs anyway.

    With an activation the two halves of dz, that of x's size and that of the statistics, are parts of their own: the transpose of
    the first is elementwise, that of the second sums, and each then computes z for itself and reads x and dy but no array
    between. On CPUs the compiler must not see for that that both compute the same.
    """
    (parts,), (d,) = primals, tangents
    of_statistics, of_features = _spreads(parts.x, along)

    def gained(gain: jax.Array | None, value: jax.Array) -> jax.Array:
        return value if gain is None else value * of_features(gain)

    def from_elements(parts: _Parts, dx: jax.Array, dresidual: jax.Array | None) -> jax.Array:
        x, _, where, _, _, factor, gain, _ = _apart(parts, 2)
        dz = valid(x, where, gained(gain, dx * of_statistics(factor)))
        return dz if dresidual is None else dz + dresidual.astype(dz.dtype)

    def from_statistics(parts: _Parts, dmean: jax.Array | None, dfactor: jax.Array, dgain: Any, dbias: Any) -> jax.Array:
        x, _, where, _, mean, factor, gain, _ = _apart(parts, 0)

        def centered(copy: int) -> jax.Array:
            return _centered(parts._replace(mean=None if mean is None else unshared(mean, copy)), of_statistics)

        dz = centered(0) * gained(gain, of_statistics(dfactor))
        moved = None if dmean is None else -dmean * factor
        if moved is not None:
            if dbias is not None and where is None and along.features == along.statistics:  # one sum for both
                moved, dbias = moved + dbias, None
            moved = valid(x, where, gained(gain, of_statistics(moved)))
        if dbias is not None:
            moved = of_features(dbias) if moved is None else moved + of_features(dbias)
        dz = dz if moved is None else dz + moved
        return dz if dgain is None else dz + centered(1) * of_statistics(unshared(parts.factor, 1)) * of_features(dgain)

    def activated(parts: _Parts, dz: jax.Array) -> jax.Array:
        if activation is not None:
            dz = jax.jvp(activation, (_before_activation(parts, along),), (dz,))[1]
        return dz.astype(dtype)

    @recomputed
    def at_once(parts: _Parts, *tangents: Any) -> jax.Array:
        return activated(parts, from_elements(parts, *tangents[:2]) + from_statistics(parts, *tangents[2:]))

    @recomputed
    def through_elements(parts: _Parts, *tangents: Any) -> jax.Array:
        return activated(parts, from_elements(parts, *tangents))

    @recomputed
    def through_statistics(parts: _Parts, *tangents: Any) -> jax.Array:
        parts = _Parts(*parts[:4], *jax.tree.map(unshared, parts[4:]))
        return activated(parts, from_statistics(parts, *tangents))

    y = _output(parts, along, activation, dtype)
    parts = parts._replace(wide=None)  # of which nothing but the derivative is used
    statistics = d.mean, d.factor, d.gain, d.bias
    if activation is None:
        return y, at_once(parts, d.wide, d.residual, *statistics)
    return y, through_elements(parts, d.wide, d.residual) + through_statistics(parts, *statistics)


def _apart(parts: _Parts, copy: int) -> _Parts:
    """Returns the parts for one use: with a gain several sums want `dy gain`, and a CPU's compiler must not see that they do."""
    if parts.gain is None:
        return parts
    return parts._replace(factor=unshared(parts.factor, copy), gain=unshared(parts.gain, copy))


def valid(x: jax.Array, where: jax.Array | None, value: jax.Array) -> jax.Array:
    """Returns `value` where x counts or is finite, else 0."""
    return value if where is None else jnp.where(where | jnp.isfinite(x), value, jnp.zeros((), value.dtype))
