"""Means and covariances of channels in groups: exact and pooled as the moments of single channels are, for the same reasons."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnorm._axes import explicit_sharding, other_axes
from jaxnorm._compiler import recomputed
from jaxnorm._moments import Found, around_the_mean, combine_means, count, is_near, select, shift_along
from jaxnorm._types import widened


class Covariances(NamedTuple):
    """Mean `[G, g]` and biased covariance `[G, g, g]` of G groups of g channels, and the number of vectors they are of, `[G]`."""

    mean: jax.Array
    cov: jax.Array
    n: jax.Array


def covariances(
    x: jax.Array,
    axes: Sequence[int],
    *,
    near: jax.Array,
    wide: jax.Array | None = None,
    where: jax.Array | None = None,
) -> Covariances:
    """Returns `mean = sum(x) / n` and `cov = sum((x - mean) (x - mean)^T) / n` over `axes`.

    Args:
      x: array of real numbers, of which the two axes that are not in `axes` are the groups and the channels in a group.
      axes: reduced axes, counted from the front.
      near: a guess at the mean, `[G, g]`, as in `moments`.
      wide: `widened(x)`, as in `moments`.
      where: bool array of x's rank that broadcasts to x, with size 1 along groups and channels.
    """
    axes = tuple(axes)
    n = jnp.squeeze(count(x, axes, where))  # for all channels, as where is
    wide = widened(x) if wide is None else wide
    mean, cov = _mean_and_cov(x, wide, where, jnp.maximum(n, 1), shift_along(x, axes, near), axes)
    return Covariances(mean, cov, n + jnp.zeros_like(mean[:, 0]))


def combine_covariances(parts: Covariances) -> Covariances:
    """Returns the covariances of the union of parts whose covariances are stacked along the first axis.

    `mean = sum(n_i mean_i) / n`, `cov = sum(n_i (cov_i + d_i d_i^T)) / n` with `d_i = mean_i - mean`.
    """
    n = jnp.sum(parts.n, 0, keepdims=True)
    weight = (parts.n / jnp.maximum(n, 1))[..., None]
    mean = combine_means(weight, parts.mean)
    return Covariances(mean[0], jnp.sum(weight[..., None] * (parts.cov + _outer(parts.mean - mean)), 0), n[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _mean_and_cov(
    x: jax.Array, wide: jax.Array, where: jax.Array | None, n: jax.Array, shift: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and covariance of the counted vectors of x, with the derivatives of those of `wide`, which is the same."""

    def sums(shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        centered = select(where, x.astype(shift.dtype) - jnp.expand_dims(shift, axes))
        return jnp.sum(centered, axes), _products(centered, centered, axes)

    def found(first: jax.Array, products: jax.Array) -> Found:
        offset = first / n
        cov = products / n - _outer(offset)
        return Found(offset, cov, jnp.all(is_near(offset, jnp.diagonal(cov, axis1=1, axis2=2)), -1))

    mean, cov = around_the_mean(sums, found, shift)
    return mean, (cov + cov.mT) / 2


@_mean_and_cov.defjvp
def _mean_and_cov_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    """`dmean = sum(dx) / n`, `dcov = sum((x - mean) dx^T + dx (x - mean)^T) / n`."""
    x, wide, where, n, shift = primals
    mean, cov = _mean_and_cov(x, wide, where, n, shift, axes)

    @recomputed
    def tangent(x: jax.Array, mean: jax.Array, dx: jax.Array) -> tuple[jax.Array, jax.Array]:
        dx = select(where, dx)
        centered = select(where, x.astype(mean.dtype) - jnp.expand_dims(mean, axes))
        half = _products(centered, dx, axes) / n
        return jnp.sum(dx, axes) / n, half + half.mT

    return (mean, cov), tangent(x, mean, tangents[1])


def _products(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns `sum(a b^T)` over `axes`, `[G, g, g]`."""
    group, _ = other_axes(axes, a.ndim)
    sharding = explicit_sharding(a)
    if sharding is not None:
        sharding = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[group], None, None))
    return lax.dot_general(a, b, ((axes, axes), ((group,), (group,))), precision=lax.Precision.HIGHEST, out_sharding=sharding)


def _outer(a: jax.Array) -> jax.Array:
    return a[..., :, None] * a[..., None, :]
