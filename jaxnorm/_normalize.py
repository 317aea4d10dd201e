"""Normalization by given statistics: the only place with a reciprocal root."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    epsilon: jax.Array,
    axes: Sequence[int],
) -> jax.Array:
    """Returns `(x - mean) * (scale / sqrt(var + epsilon)) + bias`, in x's type.

    The mean is subtracted first: folding it into the bias would cancel wherever it is large.

    Args:
      x: array in the type of the computation.
      mean: one number for each position along the axes of x that are not in `axes`; `var`, `scale` and `bias` alike.
      var: biased variance.
      scale: factor, or None.
      bias: offset, or None.
      epsilon: added to the variance.
      axes: the axes of x along which the statistics are shared.
    """
    real = var.dtype

    def spread(a: jax.Array) -> jax.Array:
        return jnp.expand_dims(a, tuple(axes))

    factor = lax.rsqrt(var + jnp.asarray(epsilon, real))
    if scale is not None:
        factor = factor * scale
    y = (x - spread(mean)) * spread(factor).astype(x.dtype)
    return y if bias is None else y + spread(bias).astype(x.dtype)
