"""Mean and variance: the only place where either is computed.

Both are exact in the sense that matters: no difference of large squares is ever taken, so a mean far from zero costs no
digits of the variance; parts are pooled by their counts, so uneven parts weigh what they hold.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import explicit_sharding
from jaxnorm._compiler import unshared
from jaxnorm._types import real_dtype, wide_dtype

AxisName = Any
"""A name of a mapped axis, or a tuple of names."""

_SAMPLE = 64  # elements a channel whose mean is near enough to the channel's


class Moments(NamedTuple):
    """Mean, biased variance, and the number of elements they are of, for every position that is not reduced."""

    mean: jax.Array
    var: jax.Array
    n: jax.Array


def moments(
    x: jax.Array,
    axes: Sequence[int],
    *,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Moments:
    """Returns the moments of x over `axes`, of the elements that `where` counts, pooled over the devices of `axis_name`.

    `mean = sum(x) / n`, `var = sum(|x - mean|^2) / n`, over values from which a number near them was subtracted: a constant
    channel has variance 0 and its mean to the last bit. Where nothing is counted all are 0.

    Args:
      x: array of real or complex numbers.
      axes: reduced axes, counted from the front.
      where: bool array of x's rank that broadcasts to x.
      axis_name: name or names of mapped axes over which the moments are pooled, in one collective.
      axis_index_groups: groups of indices along `axis_name` that are pooled separately.

    Returns:
      The moments, in float32 or wider.
    """
    axes = tuple(axes)
    n = _count(x, axes, where)
    at_least_one = jnp.maximum(n, 1)
    mean, var = _mean_and_var(x, where, at_least_one, axes)
    local = Moments(*(jnp.squeeze(part, axes) for part in (mean, var, n + jnp.zeros_like(var))))
    return local if axis_name is None else _pooled(local, axis_name, axis_index_groups)


def combine_moments(parts: Moments) -> Moments:
    """Returns the moments of the union of parts whose moments are stacked along the first axis.

    `n = sum(n_i)`, `mean = sum(n_i mean_i) / n`, `var = sum(n_i (var_i + |mean_i - mean|^2)) / n`.

    References:
      Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    count = jnp.sum(parts.n, 0, keepdims=True)
    weight = parts.n / jnp.maximum(count, 1)
    weight_of_mean = weight.astype(parts.mean.dtype)
    rough = jnp.sum(weight_of_mean * parts.mean, 0, keepdims=True)
    # The weights add up to 1 only roughly; deviations from the rough mean are small, so that their rounding is.
    mean = rough + jnp.sum(weight_of_mean * (parts.mean - rough), 0, keepdims=True)
    var = jnp.sum(weight * (parts.var + _abs_square(parts.mean - mean)), 0)
    return Moments(mean[0], var, count[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _mean_and_var(x: jax.Array, where: jax.Array | None, n: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance of the counted elements, with the reduced axes kept at size 1."""
    operands = (x, n) if where is None else (x, n, where)
    on_cpu, elsewhere = (functools.partial(f, axes=axes) for f in (_in_two_passes, _in_one_pass))
    return lax.platform_dependent(*operands, cpu=on_cpu, default=elsewhere)


def _in_two_passes(
    x: jax.Array, n: jax.Array, where: jax.Array | None = None, *, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance, exact whatever the values are: no dearer on CPUs, which do not sum two things in one pass."""
    x = x.astype(wide_dtype(x.dtype))
    shift = _shift(x, where, n, axes)
    offset = _sum(_select(where, x - shift), axes) / n.astype(x.dtype)
    mean = shift + offset
    # Far from zero the mean is rounded to steps that may not be small against the deviation: that much is too much in the sum.
    rounding = _abs_square(offset - (mean - shift))
    var = _sum(_abs_square(_select(where, x - unshared(mean))), axes) / n - rounding
    return mean, jnp.maximum(var, jnp.zeros((), var.dtype))


def _in_one_pass(
    x: jax.Array, n: jax.Array, where: jax.Array | None = None, *, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance from the sums of `x - s` and of its square, which GPUs and TPUs take in one pass.

    `var = E|x - s|^2 - |E(x - s)|^2` loses as many digits as `|mean - s|^2 / var` has: none to speak of for the mean s of a
    sample, whatever the mean and the deviation are. (For a single element s it would where that is an outlier.)
    """
    x = x.astype(wide_dtype(x.dtype))
    shift = _shift(x, where, n, axes)
    centered = _select(where, x - shift)
    offset = _sum(centered, axes) / n.astype(x.dtype)
    var = _sum(_abs_square(centered), axes) / n - _abs_square(offset)
    return shift + offset, jnp.maximum(var, jnp.zeros((), var.dtype))


@_mean_and_var.defjvp
def _mean_and_var_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    """`dmean = sum(dx) / n`, `dvar = 2 Re sum(conj(x - mean) dx) / n`: what autodiff adds to the second is 0.

    Two sums over dx, and nothing kept but x and the mean: autodiff of the sums above would take three, and keep `x - mean`.
    """
    x, where, n = primals
    mean, var = _mean_and_var(x, where, n, axes)

    @jax.checkpoint
    def tangent(x: jax.Array, mean: jax.Array, dx: jax.Array) -> tuple[jax.Array, jax.Array]:
        dx = _select(where, dx.astype(mean.dtype))
        along = _select(where, x.astype(mean.dtype) - mean).conj() * dx
        return _sum(dx, axes) / n.astype(mean.dtype), 2 * _sum(along.real, axes) / n

    return (mean, var), tangent(x, mean, tangents[0])


def _count(x: jax.Array, axes: tuple[int, ...], where: jax.Array | None) -> jax.Array:
    """Returns how many elements are counted, as a real number, with the reduced axes kept at size 1."""
    real = real_dtype(wide_dtype(x.dtype))
    if where is None:
        return jnp.full((1,) * x.ndim, np.prod([x.shape[a] for a in axes], dtype=np.int64), real)
    repeats = np.prod([x.shape[a] for a in axes if where.shape[a] == 1], dtype=np.int64)
    # Integers, because a running sum of ones in float32 stops at 2^24.
    return jnp.sum(where, axes, dtype=jnp.uint32, keepdims=True).astype(real) * jnp.asarray(repeats, real)


def _shift(x: jax.Array, where: jax.Array | None, n: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns a number near each channel's counted elements: the mean of a sample, or a rough one where that may not count."""
    if where is None and x.size and explicit_sharding(x) is None:
        some = lax.slice(x, (0,) * x.ndim, x.shape, _strides(x.shape, axes, _SAMPLE))
        # Shared out before anything uses it: a compiler that spreads x over devices would carry on with a part of it on each.
        some = lax.optimization_barrier(some)
        first = lax.slice(some, (0,) * x.ndim, tuple(1 if a in axes else size for a, size in enumerate(x.shape)))
        return first + jnp.mean(some - first, axes, keepdims=True)
    return _sum(_select(where, x), axes) / n.astype(x.dtype)


def _strides(shape: Sequence[int], axes: tuple[int, ...], sample: int) -> tuple[int, ...]:
    """Returns strides that leave at most `sample` elements a channel, about as many positions along every reduced axis."""
    strides = [1] * len(shape)
    for done, a in enumerate(axes):
        kept = min(shape[a], round(sample ** (1 / (len(axes) - done))))
        strides[a] = -(-shape[a] // kept)
        sample //= kept
    return tuple(strides)


def _sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axes, keepdims=True)


def _select(where: jax.Array | None, x: jax.Array) -> jax.Array:
    """Returns x where it counts, else 0: a selection, so that NaN and infinity in the rest go nowhere."""
    return x if where is None else jnp.where(where, x, jnp.zeros((), x.dtype))


def _abs_square(x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        return lax.square(x.real) + lax.square(x.imag)
    return lax.square(x)


def _pooled(local: Moments, axis_name: AxisName, groups: Sequence[Sequence[int]] | None) -> Moments:
    """Returns the moments over all devices of `axis_name`, or over each one's group, in one sum over devices.

    Each device puts its count, mean and variance into its own row of an array of zeros: the sum then holds every device's, on
    every device, and they are merged there. (Sums of squares would need no rows, and would cancel.)
    """
    try:
        size, index = lax.axis_size(axis_name), lax.axis_index(axis_name)
    except NameError as error:
        raise ValueError(
            f"axis_name {axis_name!r} is not bound here: call inside jax.shard_map or jax.vmap(axis_name=...), or leave it out"
        ) from error
    is_complex = jnp.iscomplexobj(local.mean)
    mean = (local.mean.real, local.mean.imag) if is_complex else (local.mean,)
    row = jnp.stack([local.n, local.var, *mean])[None]
    own = (jnp.arange(size) == index).reshape((size,) + (1,) * (row.ndim - 1))
    rows = lax.psum(jnp.where(own, row, jnp.zeros((), row.dtype)), axis_name)
    count, var, *mean = (rows[:, i] for i in range(rows.shape[1]))
    if groups is not None:
        together = jnp.asarray(_membership(groups, size))[index]
        count = jnp.where(together.reshape((size,) + (1,) * (count.ndim - 1)), count, jnp.zeros((), count.dtype))
        # A device outside the group has no weight, and must not bring in its NaN either.
        present = count > 0
        var, *mean = (jnp.where(present, part, jnp.zeros((), part.dtype)) for part in (var, *mean))
    return combine_moments(Moments(lax.complex(*mean) if is_complex else mean[0], var, count))


def _membership(groups: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """Returns which devices share a group, as a `[size, size]` bool matrix."""
    if sorted(i for group in groups for i in group) != list(range(size)):
        raise ValueError(f"axis_index_groups must hold each index below {size} once, got {groups!r}")
    together = np.zeros((size, size), bool)
    for group in groups:
        together[np.ix_(list(group), list(group))] = True
    return together
