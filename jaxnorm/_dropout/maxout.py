"""Maxout: the activation that was made for dropout."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._axes import canonical_axes, check_one_axis, split_axis
from jaxnorm._checks import check_float, check_size


def maxout(x: jax.Array, pieces: int, *, channel_axis: int = -1) -> jax.Array:
    """Takes the largest of so many neighboring channels.

    Training and inference: `y_c = max(x_ck, ..., x_ck+k-1)` of k pieces, so that a dense layer or a convolution with `k C`
    outputs before it gives C units, each a convex function of its inputs, piece by piece linear.

    Dropout goes before that layer. One piece is the identity; of two, of which one is 0, the positive part is left.

    Args:
      x: array of floating point numbers, with `pieces C` channels; the pieces of a unit are neighbors.
      pieces: how many channels a unit takes the largest of.
      channel_axis: the axis of the channels.

    Returns:
      Array of x's shape and dtype, but with C channels.

    Raises:
      ValueError: if pieces is below 1 or does not divide the number of channels, or if channel_axis is out of range.
      TypeError: if x does not hold real floating point numbers, or if pieces is no int.

    References:
      Goodfellow, Warde-Farley, Mirza, Courville, Bengio, "Maxout networks", ICML 2013, https://arxiv.org/abs/1302.4389.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.maxout(jnp.array([[1.0, 5.0, 2.0, -3.0, -1.0, -2.0]]), 3)
      Array([[ 5., -1.]], dtype=float32)
    """
    x = check_float("x", x)
    check_size("pieces", pieces)
    axes = canonical_axes("channel_axis", channel_axis, x.ndim)
    check_one_axis("channel_axis", axes, channel_axis)
    channels: Any = x.shape[axes[0]]
    if channels % pieces:
        raise ValueError(f"pieces must divide the number of channels, {channels}, got {pieces}")
    with jax.named_scope("jaxnorm.maxout"):
        units = split_axis(x, axes[0], channels // pieces)
        # One after another: a reduction over so few neighbors takes a CPU ten times as long.
        return functools.reduce(jnp.maximum, (lax.index_in_dim(units, i, axes[0] + 1, keepdims=False) for i in range(pieces)))
