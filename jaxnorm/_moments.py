"""Mean and variance: the only place where either is computed.

Both are exact in the sense that matters: no difference of large squares is ever taken, so a mean far from zero costs no
digits of the variance; parts are pooled by their counts, so uneven parts weigh what they hold.

The sums are those of `x - shift` and of its square, for a shift that is there before x is, as a running mean: so they wait for
nothing, are taken together with whatever makes x, and over several devices in one collective. The variance
`E|x - shift|^2 - |mean - shift|^2` loses digits where the shift is many deviations from the mean: there, in a branch that
training leaves aside once the running mean is near, they are summed again around the mean. Without such a shift the mean is
summed first: that waits, but nothing branches.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import reshard

from jaxnorm._axes import (
    count_of,
    explicit_sharding,
    in_parts,
    is_known,
    match_sharding,
    merge_axes,
    other_axes,
    sharding_along,
    split_axis,
    vary,
    varying,
)
from jaxnorm._compiler import recomputed, unshared
from jaxnorm._types import Moments, real_dtype, wide_dtype, widened

AxisName = Any
"""A name of a mapped axis, or a tuple of names."""

_FAR = 4  # variances in the square of the distance from shift to mean: that costs 2 of the variance's 24 binary digits
_TRIES = 4  # after a shift that tells nothing: around 0, around the mean, and around what that was rounded by, twice


def moments(
    x: jax.Array,
    axes: Sequence[int],
    *,
    near: jax.Array | None = None,
    wide: jax.Array | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Moments:
    """Returns the moments of x over `axes`, of the elements that `where` counts, pooled over the devices of `axis_name`.

    `mean = sum(x) / n`, `var = sum(|x - mean|^2) / n`; a constant channel has variance 0 and its mean to the last bit. Where
    nothing is counted all are 0.

    Args:
      x: array of real or complex numbers.
      axes: reduced axes, counted from the front.
      near: a guess at the mean for each position that is not reduced, or None where there is none. A bad one costs time and
        nothing else, whatever it is. No gradient flows into it.
      wide: `widened(x)`, if something else is made of x too: the gradient flows to it.
      where: bool array of x's rank that broadcasts to x.
      axis_name: name or names of mapped axes over which the moments are pooled, in one collective.
      axis_index_groups: groups of indices along `axis_name` that are pooled separately.

    Returns:
      The moments, in float32 or wider.
    """
    axes = tuple(axes)
    n = count(x, axes, where)
    shift = None if near is None else shift_along(x, axes, near)
    wide = widened(x) if wide is None else wide
    mean, var = _mean_and_var(x, wide, where, jnp.maximum(n, 1), shift, axes)
    local = Moments(mean, var, n + jnp.zeros_like(var))
    return local if axis_name is None else combine_moments(from_devices(local, axis_name, axis_index_groups))


class Mean(NamedTuple):
    """Mean, and the number of elements it is of, for every position that is not reduced."""

    value: jax.Array
    n: jax.Array


def combine_mean(parts: Mean) -> Mean:
    """Returns the mean of the union of parts whose means are stacked along the first axis."""
    n = jnp.sum(parts.n, 0, keepdims=True)
    return Mean(combine_means(parts.n / jnp.maximum(n, 1), parts.value)[0], n[0])


class MeanSquare(NamedTuple):
    """Mean of squares, and the number of elements it is of, for every position that is not reduced."""

    value: jax.Array
    n: jax.Array


def mean_square(
    x: jax.Array,
    axes: Sequence[int],
    *,
    wide: jax.Array | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> MeanSquare:
    """Returns `sum(|x|^2) / n` over `axes`, in float32 or wider; arguments as those of `moments`. It is 0 of nothing."""
    axes = tuple(axes)
    n = count(x, axes, where)
    value = _mean_square(x, widened(x) if wide is None else wide, where, jnp.maximum(n, 1), axes)
    local = MeanSquare(value, n + jnp.zeros_like(value))
    if axis_name is None:
        return local
    parts = from_devices(local, axis_name, axis_index_groups)
    n = jnp.sum(parts.n, 0, keepdims=True)
    return MeanSquare(jnp.sum(parts.n / jnp.maximum(n, 1) * parts.value, 0), n[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _mean_square(x: jax.Array, wide: jax.Array, where: jax.Array | None, n: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the mean square of the counted elements of x, with the derivatives of that of `wide`, which is the same."""
    return jnp.sum(select(where, abs_square(widened(x))), axes) / n


@_mean_square.defjvp
def _mean_square_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    """`2 Re sum(conj(x) dx) / n`, of x as it is kept."""
    x, _, where, n = primals

    @recomputed
    def tangent(x: jax.Array, dx: jax.Array) -> jax.Array:
        along = select(where, x.astype(dx.dtype)).conj() * select(where, dx)
        return 2 * jnp.sum(along.real, axes) / n

    return _mean_square(*primals, axes), tangent(x, tangents[1])


def pool_groups(parts: Moments, axis: int, groups: int) -> Moments:
    """Returns for every position the moments of all in its group; `axis` consists of so many groups of consecutive positions."""

    def stacked(part: jax.Array) -> jax.Array:
        return jnp.moveaxis(split_axis(part, axis, groups), axis + 1, 0)

    def spread(whole: jax.Array, like: jax.Array) -> jax.Array:
        split = split_axis(like, axis, groups)
        return merge_axes(match_sharding(jnp.broadcast_to(jnp.expand_dims(whole, axis + 1), split.shape), split), axis, like)

    return jax.tree.map(spread, combine_moments(jax.tree.map(stacked, parts)), parts)


def combine_moments(parts: Moments) -> Moments:
    """Returns the moments of the union of parts whose moments are stacked along the first axis.

    `n = sum(n_i)`, `mean = sum(n_i mean_i) / n`, `var = sum(n_i (var_i + |mean_i - mean|^2)) / n`.

    References:
      Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    count = jnp.sum(parts.n, 0, keepdims=True)
    weight = parts.n / jnp.maximum(count, 1)
    mean = combine_means(weight, parts.mean)
    var = jnp.sum(weight * (parts.var + abs_square(parts.mean - mean)), 0)
    return Moments(mean[0], var, count[0])


def to_average(spread: jax.Array, n: jax.Array, unbiased: bool) -> jax.Array:
    """Returns the variance, or covariance, for running averages: the biased one, or `n / (n - 1)` times it where n is above 1."""
    return spread * before(n / jnp.maximum(n - 1, 1), spread) if unbiased else spread


def combine_means(weight: jax.Array, means: jax.Array) -> jax.Array:
    """Returns the weighted mean along the first axis, which stays with size 1."""
    weight = weight.astype(means.dtype)
    rough = jnp.sum(weight * means, 0, keepdims=True)
    # The weights add up to 1 only roughly; deviations from the rough mean are small, so that their rounding is.
    return rough + jnp.sum(weight * (means - rough), 0, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5, 6))
def _mean_and_var(
    x: jax.Array,
    wide: jax.Array,
    where: jax.Array | None,
    n: jax.Array,
    shift: jax.Array | None,
    axes: tuple[int, ...],
    derived: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance of the counted elements of x, with the derivatives of those of `wide`, which is the same."""

    def sums(shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        def around(shift: jax.Array) -> jax.Array:
            return select(where, x.astype(shift.dtype) - jnp.expand_dims(shift, axes))

        centered = around(shift)
        # A selection goes to memory there anyway, once for both.
        again = around(unshared(shift)) if where is None else centered
        return jnp.sum(centered, axes), jnp.sum(abs_square(again), axes)

    def found(first: jax.Array, squares: jax.Array) -> Found:
        offset = first / n.astype(first.dtype)
        var = squares / n - abs_square(offset)
        return Found(offset, var, is_near(offset, var))

    mean, var = _in_two_passes(x, where, n, axes, derived) if shift is None else around_the_mean(sums, found, shift)
    return mean, jnp.maximum(var, jnp.zeros((), var.dtype))


@_mean_and_var.defjvp
def _mean_and_var_jvp(axes: tuple[int, ...], derived: bool, primals: Any, tangents: Any) -> Any:
    """`dmean = sum(dx) / n`, `dvar = 2 Re sum(conj(x - mean) dx) / n`: what autodiff adds to the second is 0.

    Two sums over dx, and nothing kept but x and the mean: autodiff of the sums above would take three, and keep `x - mean`.
    """
    x, wide, where, n, shift = primals
    mean, var = _mean_and_var(x, wide, where, n, shift, axes, True)
    copy = 0 if x.ndim - 1 in axes else 2  # a row that is normalized shares its `x - mean` in one loop; a column had better not

    @recomputed
    def tangent(x: jax.Array, mean: jax.Array, dx: jax.Array) -> tuple[jax.Array, jax.Array]:
        dx = select(where, dx)
        along = select(where, x.astype(mean.dtype) - jnp.expand_dims(unshared(mean, copy), axes)).conj() * dx
        return jnp.sum(dx, axes) / n.astype(mean.dtype), 2 * jnp.sum(along.real, axes) / n

    return (mean, var), tangent(x, mean, tangents[1])


def _in_two_passes(
    x: jax.Array, where: jax.Array | None, n: jax.Array, axes: tuple[int, ...], derived: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance: a mean that is rounded, as large sums are, and what is summed around it, which corrects both.

    Alone, and together with what normalizes, the sums of a row are one loop for a CPU, which shares `x - shift`. Where they are
    `derived`, it would go to memory for that.
    """
    wide = widened(x)

    def mean_of(x: jax.Array) -> jax.Array:
        return jnp.sum(select(where, x), axes) / n.astype(x.dtype)

    def around(shift: jax.Array) -> jax.Array:
        return wide - jnp.expand_dims(shift, axes)

    shift = _rough_mean(x, where, n, axes)
    offset = mean_of(around(shift))
    squares = mean_of(abs_square(around(unshared(shift, 3) if derived else shift)))
    var = squares - jnp.minimum(abs_square(offset), jnp.finfo(squares.dtype).max)  # infinite where both overflow, and not NaN
    return shift + offset, var


def _rough_mean(x: jax.Array, where: jax.Array | None, n: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns a mean whose square is at most 3 variances away from the true one, apart from rounding: that costs 2 digits of 24.

    It is that of every fourth, third or second position along one of the axes, where these are not the last, so that a sum is one
    more walk through memory: a part f of all numbers has a mean at most sqrt((1 - f) / f) standard deviations off, whatever they
    are. Else it is the mean of all.
    """
    steps = ((axis, step) for step in (4, 3, 2) for axis in axes if is_known(x.shape[axis]) and x.shape[axis] % step == 0)
    found = next(steps, None)
    if where is None and x.ndim - 1 not in axes and found and x.size and explicit_sharding(x) is None:
        axis, step = found
        x = lax.index_in_dim(split_axis(x, axis, x.shape[axis] // step), 0, axis + 1, keepdims=False)
        n = n / step
    # Each divided by n before it is summed, so that no finite numbers overflow.
    wide = widened(x)
    return jnp.sum(select(where, wide * jnp.expand_dims(1 / n, axes).astype(wide.dtype)), axes)


class Found(NamedTuple):
    """What sums around a shift tell: the mean's offset from it, what is made of the squares, and where both have their digits."""

    offset: jax.Array
    of_squares: jax.Array
    near: jax.Array


def is_near(offset: jax.Array, var: jax.Array) -> jax.Array:
    """Returns where the mean is near enough to the shift, and neither is NaN or overflows."""
    return (abs_square(offset) <= _FAR * var) & jnp.isfinite(var) & jnp.isfinite(abs_square(offset))


def around_the_mean(
    sums: Callable[[jax.Array], tuple[jax.Array, jax.Array]], found: Callable[..., Found], shift: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and what is made of squares, summed again where the shift was too far from the mean.

    Only the sums go into the branch: what is made of them is made there, since a side that gives what it was given copies it.

    Args:
      sums: gives the sums of `x - shift` and of its squares, for a shift.
      found: gives what they tell; `near` has the leading axes of what is made of the squares.
      shift: the first shift; any number, NaN and infinity too.
    """

    def around(shift: jax.Array) -> tuple[jax.Array, ...]:
        first, squares = sums(shift)
        return vary(shift, varying(first)), first, squares

    def is_done(result: tuple[jax.Array, ...]) -> jax.Array:
        return jnp.all(found(*result[1:]).near)

    def again(result: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        def step(carry: tuple[tuple[jax.Array, ...], jax.Array]) -> tuple[tuple[jax.Array, ...], jax.Array]:
            result, left = carry
            shift, *summed = result
            offset, _, near = found(*summed)
            mean = shift + offset
            # Beside a shift that is larger by far, the mean has no digits.
            has_digits = jnp.isfinite(mean) & (jnp.abs(mean) >= 2**-10 * jnp.abs(shift))
            new = around(jnp.where(has_digits, mean, jnp.zeros((), mean.dtype)))
            # What was near stays to the last bit: no channel depends on what another one needs.
            return tuple(jnp.where(before(near, b), a, b) for a, b in zip(result, new, strict=True)), left - 1

        # A loop for the sake of vmap, which runs both sides of a branch, but ends a loop that no lane needs.
        return lax.while_loop(lambda carry: (carry[1] > 0) & ~is_done(carry[0]), step, (result, jnp.int32(_TRIES)))[0]

    def told(result: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        shift, *summed = result
        offset, of_squares, _ = found(*summed)
        return shift + offset, of_squares

    result = around(shift)
    return lax.cond(is_done(result), told, lambda result: told(again(result)), result)


def count(x: jax.Array, axes: tuple[int, ...], where: jax.Array | None) -> jax.Array:
    """Returns how many elements are counted, as a real number for each position that is not reduced, or one for all of them."""
    real = real_dtype(wide_dtype(x.dtype))
    if where is None:
        return jnp.full((1,) * (x.ndim - len(axes)), count_of((x.shape[a] for a in axes), real))
    if not axes:
        return where.astype(real)
    # Integers, because a running sum of ones in float32 stops at 2^24; but of parts that devices hold whole, and of these real
    # numbers, whose sum takes the same collective as all others.
    parts = where
    for place, axis in enumerate(axes):
        parts = in_parts(parts, axis + place, 16 if place else 64)
    integers = jnp.sum(parts, [axis + place + 1 for place, axis in enumerate(axes)], dtype=jnp.uint32)
    counted = jnp.sum(integers.astype(real), axes)
    return counted * count_of((x.shape[a] for a in axes if where.shape[a] == 1), real)


def shift_along(x: jax.Array, axes: tuple[int, ...], near: jax.Array) -> jax.Array:
    """Returns the shift for every position that is not reduced, sharded as x is there."""
    shift = lax.stop_gradient(near).astype(wide_dtype(x.dtype))
    sharding = sharding_along(x, other_axes(axes, x.ndim))
    return shift if sharding is None else reshard(shift, sharding)


def select(where: jax.Array | None, x: jax.Array) -> jax.Array:
    """Returns x where it counts, else 0: a selection, so that NaN and infinity in the rest go nowhere."""
    return x if where is None else jnp.where(where, x, jnp.zeros((), x.dtype))


def abs_square(x: jax.Array) -> jax.Array:
    """Returns `|x|^2`."""
    if jnp.iscomplexobj(x):
        return lax.square(x.real) + lax.square(x.imag)
    return lax.square(x)


def root(square: jax.Array) -> jax.Array:
    """Returns the square root, whose derivative at 0 is 0."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, jnp.ones((), square.dtype))), square)


def from_devices(local: Any, axis_name: AxisName, groups: Sequence[Sequence[int]] | None) -> Any:
    """Returns the moments of all devices of `axis_name`, or of each one's group, stacked along a new first axis.

    Each device puts its own into its row of an array of zeros: the sum over devices then holds every device's, on every device.
    (Sums of squares would need no rows, and would cancel.) Where a device counts nothing, or is of another group, all are 0.

    Args:
      local: a NamedTuple of moments, whose count `n` has the leading axes of the others.
      axis_name: name or names of mapped axes.
      groups: groups of indices along them.
    """
    index, size = place_among(axis_name)
    row, unravel = ravel_pytree(jax.tree.map(lambda part: jnp.stack(_real_parts(part)), local))
    own = (jnp.arange(size) == index)[:, None]
    rows = jax.vmap(unravel)(lax.psum(jnp.where(own, row, jnp.zeros((), row.dtype)), axis_name))
    stacked = jax.tree.map(lambda part, rows: _from_real_parts(part.dtype, rows), local, rows)
    if groups is None:
        return stacked
    together = jnp.asarray(membership(groups, size))[index]
    n = select(before(together, stacked.n), stacked.n)
    # A device outside the group has no weight, and must not bring in its NaN either.
    return jax.tree.map(lambda part: select(before(n > 0, part), part), stacked._replace(n=n))


def place_among(axis_name: AxisName, groups: Sequence[Sequence[int]] | None = None) -> tuple[jax.Array, Any]:
    """Returns which of the devices of `axis_name`, or of its own group, this one is, and how many they are."""
    try:
        size, index = lax.axis_size(axis_name), lax.axis_index(axis_name)
    except NameError as error:
        raise ValueError(
            f"axis_name {axis_name!r} is not bound here: call inside jax.shard_map or jax.vmap(axis_name=...), or leave it out"
        ) from error
    if groups is None:
        return index, size
    together = jnp.asarray(membership(groups, size))[index]
    return jnp.sum(together & (jnp.arange(size) < index)), jnp.sum(together)


def before(x: jax.Array, like: jax.Array) -> jax.Array:
    """Returns x, which has the leading axes of `like`, with axes of size 1 for the others."""
    return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))


def _real_parts(x: jax.Array) -> tuple[jax.Array, ...]:
    return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


def _from_real_parts(dtype: np.dtype, rows: jax.Array) -> jax.Array:
    """Returns the numbers of which `rows` holds the parts along the second axis."""
    return lax.complex(rows[:, 0], rows[:, 1]) if jnp.issubdtype(dtype, jnp.complexfloating) else rows[:, 0]


def membership(groups: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """Returns which devices share a group, as a `[size, size]` bool matrix."""
    if sorted(i for group in groups for i in group) != list(range(size)):
        raise ValueError(f"axis_index_groups must hold each index below {size} once, got {groups!r}")
    together = np.zeros((size, size), bool)
    for group in groups:
        together[np.ix_(list(group), list(group))] = True
    return together
