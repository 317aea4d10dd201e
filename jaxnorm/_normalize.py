"""Normalization by given statistics: the only place with a reciprocal root."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import reshard

from jaxnorm._axes import shared_sharding


def normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    epsilon: jax.Array,
    axes: Sequence[int],
    where: jax.Array | None = None,
) -> jax.Array:
    """Returns `(x - mean) * (scale / sqrt(var + epsilon)) + bias`, in x's type.

    The mean is subtracted first: folding it into the bias would cancel wherever it is large.

    Args:
      x: array of real or complex numbers.
      mean: one number, in float32 or wider, for each position along the axes of x that are not in `axes`.
      var: biased variance, real; shaped as the mean, like scale and bias.
      scale: factor, or None.
      bias: offset, or None.
      epsilon: added to the variance.
      axes: the axes of x along which the statistics are shared.
      where: bool array of x's rank that broadcasts to x. Elsewhere x may be NaN or infinite: y is then the bias, with gradient 0.
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
    return _affine(x, where, mean, factor, jnp.zeros_like(mean) if bias is None else along_x(bias))


@jax.custom_jvp
def _affine(x: jax.Array, where: jax.Array | None, mean: jax.Array, factor: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns `(x - mean) * factor + bias`, and the bias where x neither counts nor is finite."""
    return (_valid(x, where, x.astype(mean.dtype) - mean) * factor + bias).astype(x.dtype)


@_affine.defjvp
def _affine_jvp(primals: Any, tangents: Any) -> Any:
    """`dy = factor dx + (x - mean) dfactor + (dbias - factor dmean)`.

    Autodiff's own form is `(dx - dmean) factor + ...`, whose transpose sums an array of x's size where this sums dy, which
    dbias needs anyway. Nothing is kept but x and numbers of the statistics' size.
    """
    dx, _, dmean, dfactor, dbias = tangents

    @jax.checkpoint
    def tangent(primals: Any, dx: jax.Array, dmean: jax.Array, dfactor: jax.Array, dbias: jax.Array) -> jax.Array:
        x, where, mean, factor = primals
        centered = _valid(x, where, x.astype(mean.dtype) - mean)
        if where is None:
            dy = dx.astype(mean.dtype) * factor + centered * dfactor + (dbias - dmean * factor)
        else:
            dy = _valid(x, where, dx.astype(mean.dtype) * factor - dmean * factor) + centered * dfactor + dbias
        return dy.astype(x.dtype)

    return _affine(*primals), tangent(primals[:4], dx, dmean, dfactor, dbias)


def _valid(x: jax.Array, where: jax.Array | None, value: jax.Array) -> jax.Array:
    """Returns `value` where x counts or is finite, else 0."""
    return value if where is None else jnp.where(where | jnp.isfinite(x), value, jnp.zeros((), value.dtype))
