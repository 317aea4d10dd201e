"""Normalization by given statistics, and what may follow it in one step: the only place with a reciprocal root."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import reshard

from jaxnorm._axes import shared_sharding
from jaxnorm._compiler import recomputed, unshared

Activation = Callable[[jax.Array], jax.Array]
"""A function of single elements, as `jax.nn.relu`."""


def normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    epsilon: Any,
    axes: Sequence[int],
    where: jax.Array | None = None,
    residual: jax.Array | None = None,
    activation: Activation | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Returns `activation((x - mean) * (scale / sqrt(var + epsilon)) + bias + residual)`.

    The mean is subtracted first: folding it into the bias would cancel wherever it is large. For the gradient nothing is kept but
    x, the residual, and numbers of the statistics' size: what the activation needs is computed again.

    Args:
      x: array of real or complex numbers.
      mean: one number, in float32 or wider, for each position along the axes of x that are not in `axes`.
      var: biased variance, real; shaped as the mean, like scale and bias.
      scale: factor, or None.
      bias: offset, or None.
      epsilon: added to the variance.
      axes: the axes of x along which the statistics are shared.
      where: bool array of x's rank that broadcasts to x. Elsewhere x may be NaN or infinite: it then adds nothing to the bias
        (and the residual), and has gradient 0.
      residual: array of x's shape, or None.
      activation: function of single elements, or None; it gets and gives numbers of the mean's type.
      dtype: type of the result, which is rounded once; None for x's.
    """
    wide = mean.dtype
    spread = shared_sharding(x, axes)

    def along_x(a: jax.Array) -> jax.Array:
        a = jnp.expand_dims(a.astype(wide), tuple(axes))
        return a if spread is None else reshard(a, spread)

    factor = along_x(lax.rsqrt(var + jnp.asarray(epsilon, var.dtype)))
    if scale is not None:
        factor = factor * along_x(scale)
    mean = along_x(mean)
    bias = jnp.zeros_like(mean) if bias is None else along_x(bias)
    return _output(x, where, residual, mean, factor, bias, activation, jnp.dtype(dtype or x.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(6, 7))
def _output(
    x: jax.Array,
    where: jax.Array | None,
    residual: jax.Array | None,
    mean: jax.Array,
    factor: jax.Array,
    bias: jax.Array,
    activation: Activation | None,
    dtype: Any,
) -> jax.Array:
    """Returns `activation((x - mean) * factor + bias + residual)`; x adds nothing where it neither counts nor is finite."""
    z = _before_activation(x, where, residual, mean, factor, bias)
    return (z if activation is None else activation(z)).astype(dtype)


def _before_activation(
    x: jax.Array, where: jax.Array | None, residual: jax.Array | None, mean: jax.Array, factor: jax.Array, bias: jax.Array
) -> jax.Array:
    z = _valid(x, where, x.astype(mean.dtype) - mean) * factor + bias
    return z if residual is None else z + residual.astype(z.dtype)


@_output.defjvp
def _output_jvp(activation: Activation | None, dtype: Any, primals: Any, tangents: Any) -> Any:
    """`dz = factor dx + dresidual + (x - mean) dfactor + (dbias - factor dmean)`, `dy = activation'(z) dz`.

    Autodiff's own form is `(dx - dmean) factor + ...`, whose transpose sums an array of x's size where this sums dy, which
    dbias needs anyway.

    With an activation the two halves of dz, that of x's size and that of the statistics, are parts of their own: the transpose of
    the first is elementwise, that of the second sums, and each then computes z for itself and reads x and dy but no array
    between. On CPUs the compiler must not see for that that both compute the same.
    """
    dx, _, dresidual, dmean, dfactor, dbias = tangents

    def of_elements(primals: Any, dx: jax.Array, dresidual: jax.Array | None) -> jax.Array:
        x, where, _, mean, factor, _ = primals
        dz = _valid(x, where, dx.astype(mean.dtype) * factor)
        return dz if dresidual is None else dz + dresidual.astype(dz.dtype)

    def of_statistics(primals: Any, dmean: jax.Array, dfactor: jax.Array, dbias: jax.Array) -> jax.Array:
        x, where, _, mean, factor, _ = primals
        centered = _valid(x, where, x.astype(mean.dtype) - unshared(mean))
        if where is None:
            return centered * dfactor + (dbias - dmean * factor)
        return centered * dfactor + _valid(x, where, -dmean * factor) + dbias

    def activated(primals: Any, dz: jax.Array) -> jax.Array:
        if activation is not None:
            dz = jax.jvp(activation, (_before_activation(*primals),), (dz,))[1]
        return dz.astype(dtype)

    @recomputed
    def at_once(primals: Any, *tangents: Any) -> jax.Array:
        return activated(primals, of_elements(primals, *tangents[:2]) + of_statistics(primals, *tangents[2:]))

    @recomputed
    def through_elements(primals: Any, *tangents: Any) -> jax.Array:
        return activated(primals, of_elements(primals, *tangents))

    @recomputed
    def through_statistics(primals: Any, *tangents: Any) -> jax.Array:
        primals = (*primals[:3], *map(unshared, primals[3:]))
        return activated(primals, of_statistics(primals, *tangents))

    y = _output(*primals, activation, dtype)
    if activation is None:
        return y, at_once(primals, dx, dresidual, dmean, dfactor, dbias)
    return y, through_elements(primals, dx, dresidual) + through_statistics(primals, dmean, dfactor, dbias)


def _valid(x: jax.Array, where: jax.Array | None, value: jax.Array) -> jax.Array:
    """Returns `value` where x counts or is finite, else 0."""
    return value if where is None else jnp.where(where | jnp.isfinite(x), value, jnp.zeros((), value.dtype))
