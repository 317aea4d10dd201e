"""Dropout of blocks: regions of a map that are dropped whole, at random places."""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import count_of, is_known, match_sharding, noise_shape, other_axes, spatial_axes
from jaxnorm._checks import (
    Scalar,
    check_amount_shape,
    check_choice,
    check_decision_bits,
    check_float,
    check_key,
    check_known_flag,
    check_number,
    check_size,
    check_sizes_along,
    is_concrete,
)
from jaxnorm._compiler import in_memory
from jaxnorm._noise import Draw, NoiseKind, decision, kept_or_zero, multiply_noise
from jaxnorm._types import wide_dtype

Rescale = Literal["example", "batch", "expected"]


def drop_block(
    key: jax.Array,
    x: jax.Array,
    rate: Scalar,
    *,
    block_size: int | Sequence[int] = 7,
    channel_axis: int = -1,
    shared: bool = False,
    rescale: Rescale = "example",
    bits: int = 16,
) -> jax.Array:
    """Sets blocks of neighboring positions to zero at random and scales up the others (DropBlock).

    Training: `y = x m / k`, with m = 0 in blocks and 1 elsewhere, and k the share of the example that is kept. Inference: the
    identity; do not call it.

    A block begins with probability `gamma = rate H W / (b^2 (H - b + 1) (W - b + 1))`, independently, at each of the
    `(H - b + 1) (W - b + 1)` places where one of size b fits (in one dimension and in three likewise).

    Blocks overlap, so that more than `1 - rate` is kept: in expectation the mean over all positions of `(1 - gamma)^n`, n the
    number of blocks that could cover the position. Of 14 x 14 with blocks of 7 and a rate of 0.1 it is 0.9071. Positions near the
    borders are covered by fewer blocks, and dropped less often. With blocks of size 1 the mask is that of `dropout`, to the bit,
    and with blocks as large as the map that of dropout of whole channels. A rate of 1 drops everything, which gamma would not.

    k is, as `rescale` says, the share that is kept of the example itself, so that its number of elements counts as before; that
    of the whole batch (where each example depends on all others); or the expectation, by which alone `E[y] = x` holds, as the
    mean over all positions, however few are kept. An example of which nothing is kept is 0.

    Only the key is kept for the gradient (a compiler may keep the mask instead, for a CPU a bit an element). The decisions where
    blocks begin are drawn as those of `dropout` are, for gamma instead of the rate. It is much smaller: a known gamma below 2^-12
    takes 32 bits where 16 are asked for, and 8 bits are rarely enough. A traced rate takes the bits asked for: with 16, gamma is
    a multiple of 2^-16, and one below 2^-17 drops nothing.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, `[B, ..., C]`, with 1 to 3 spatial dimensions.
      rate: the probability of dropping, in [0, 1], from which gamma is made; a number or a traced scalar, or an array of x's rank
        with one for each channel, or example. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      block_size: the size of blocks along every spatial dimension, or one for each.
      channel_axis: the axis of the channels; the first is that of the batch.
      shared: whether all channels of an example are dropped at the same places. Else each channel has blocks of its own.
      rescale: what is divided by: "example", "batch" or "expected".
      bits: random bits that decide whether a block begins at a place: 8, 16 or 32.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if a concrete rate is outside [0, 1] or has another shape, if a block is larger than the map, if x does not
        have 1 to 3 spatial dimensions, if rescale is another word, or as in `dropout`.
      TypeError: as in `dropout`, or if block_size is no int, or shared no bool.

    References:
      Ghiasi, Lin, Le, "DropBlock: a regularization method for convolutional networks", NeurIPS 2018,
      https://arxiv.org/abs/1810.12890. The paper rescales by the whole batch.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> y = jaxnorm.drop_block(jax.random.key(1), jnp.ones((1, 5, 6, 1)), 0.3, block_size=2)
      >>> print((y[0, :, :, 0] != 0).astype(int))
      [[1 1 1 1 1 1]
       [1 1 0 0 1 1]
       [1 0 0 0 1 1]
       [1 0 0 0 1 1]
       [1 1 1 1 1 1]]
    """
    x = check_float("x", x)
    check_number("rate", rate, low=0, high=1)
    channel, spatial = spatial_axes(x, channel_axis)
    blocks = check_sizes_along("block_size", block_size, spatial)
    sizes = tuple(x.shape[axis] for axis in spatial)
    if any(is_known(size) and block > size for size, block in zip(sizes, blocks, strict=True)):
        raise ValueError(f"block_size must be at most the size of the map, {list(sizes)}, got {block_size!r}")
    alike = (*spatial, channel) if check_known_flag("shared", shared) else spatial
    check_amount_shape("rate", rate, noise_shape(x.shape, alike))
    check_choice("rescale", rescale, get_args(Rescale))
    along = tuple(map(_Along, spatial, sizes, blocks))
    gamma = _gamma(rate, along, wide_dtype(x.dtype))
    bits = check_decision_bits(bits, gamma, of="a probability that a block begins")
    clear = np.asarray(1 - gamma, wide_dtype(x.dtype)) if is_concrete(gamma) else 1 - gamma
    return multiply_noise(check_key(key), x, clear, _block_kind(along, rescale, x.ndim), alike, bits)


def cutout(
    key: jax.Array, x: jax.Array, size: int | Sequence[int], *, holes: int = 1, fill: Scalar = 0.0, channel_axis: int = -1
) -> jax.Array:
    """Cuts a square out of every example, at a random place (Cutout).

    Training: `y = fill` in the square, and `y = x` elsewhere, which is not rescaled. Inference: the identity; do not call it.

    The center is drawn uniformly from all pixels, so that squares reach over the borders, where they are clipped: of n pixels
    along an axis `mean_i(c_i) / n` are cut in expectation, with c_i the number of centers whose square covers pixel i, and of the
    map the product of these: of 8 x 8 with a size of 4 it is 0.1914, not 0.25. All channels have the same holes. A hole spans
    `size` pixels, the center with `size // 2` before it (where the authors' code cuts one pixel less of odd sizes).

    Only the key is kept for the gradient, which is 0 in the holes. Centers are made of 32 random bits: of n pixels none is
    likelier than another by more than 2^-32.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, `[B, ..., C]`, with 1 to 3 spatial dimensions.
      size: the size of a hole in pixels, or one for each spatial dimension; it may be larger than the map.
      holes: how many holes are cut out of an example, which may overlap.
      fill: what stands in the holes, a number or a traced scalar, or an array of x's rank that broadcasts to x, as with one for
        each channel. No gradient flows into it.
      channel_axis: the axis of the channels; the first is that of the batch.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if a size or holes is below 1, if x does not have 1 to 3 spatial dimensions, if fill has another shape or is
        no finite number, if an axis is out of range, or if key is an array of several keys.
      TypeError: if x does not hold floating point numbers, if size or holes is no int, if fill is no number, or if key is no key.

    References:
      DeVries, Taylor, "Improved regularization of convolutional neural networks with Cutout", 2017,
      https://arxiv.org/abs/1708.04552.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> y = jaxnorm.cutout(jax.random.key(1), jnp.ones((1, 5, 6, 1)), 3)
      >>> print(y[0, :, :, 0].astype(int))
      [[1 1 1 1 1 1]
       [1 1 0 0 0 1]
       [1 1 0 0 0 1]
       [1 1 0 0 0 1]
       [1 1 1 1 1 1]]
    """
    x = check_float("x", x)
    _, spatial = spatial_axes(x, channel_axis)
    sizes = check_sizes_along("size", size, spatial)
    kind = _hole_kind(tuple(zip(spatial, sizes, strict=True)), check_size("holes", holes))
    check_number("fill", fill, low=-np.inf)
    check_amount_shape("fill", fill, x.shape)
    return multiply_noise(check_key(key), x, jnp.asarray(fill).astype(x.dtype), kind, other_axes((0,), x.ndim), 32)


class _Along(NamedTuple):
    """A spatial dimension: its axis of x, the size of the map along it, and that of a block."""

    axis: int
    size: int
    block: int

    @property
    def places(self) -> int:
        """Where a block can begin."""
        return self.size - self.block + 1


def _gamma(rate: Scalar, along: tuple[_Along, ...], dtype: np.dtype) -> jax.Array | np.ndarray:
    """Returns the probability that a block begins at a place; NaN for a rate outside [0, 1]."""
    if is_concrete(rate) and all(is_known(dimension.size) for dimension in along):
        excess = math.prod(dimension.size / (dimension.block * dimension.places) for dimension in along)
        rate = np.asarray(rate, np.float64)
        return np.where(rate == 1, 1, rate * excess)
    rate = jnp.asarray(rate).astype(dtype)
    dropped = count_of((part for dimension in along for part in (dimension.block, dimension.places)), dtype)
    gamma = rate * count_of((dimension.size for dimension in along), dtype) / dropped
    return jnp.where((rate >= 0) & (rate < 1), gamma, jnp.where(rate == 1, rate, jnp.nan))


def expected_share(clear: jax.Array, along: Sequence[tuple[int, int, int]]) -> jax.Array:
    """Returns which share of a map is covered by no block, in expectation.

    Args:
      clear: the probability that none begins at a place, with size 1 along the spatial axes.
      along: axis, size of the map and size of a block of each spatial dimension.
    """
    blocks = jnp.ones((1,) * clear.ndim, clear.dtype)  # which could cover a position
    for axis, size, block in along:
        position = lax.broadcasted_iota(jnp.int32, [size if a == axis else 1 for a in range(clear.ndim)], axis)
        first, last = jnp.maximum(position - (block - 1), 0), jnp.minimum(position, size - block)
        blocks = blocks * (last - first + 1).astype(clear.dtype)
    return jnp.sum(clear**blocks, [axis for axis, *_ in along], keepdims=True) / count_of(
        (size for _, size, _ in along), clear.dtype
    )


@functools.cache
def _block_kind(along: tuple[_Along, ...], rescale: Rescale, ndim: int) -> NoiseKind:
    """Makes x over the share that is kept, and 0 in blocks. Its amount is the probability that none begins at a place."""

    def prepare(clear: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
        threshold, realised = decision(clear, bits)
        if rescale == "expected":
            return threshold, 1 / _not_zero(expected_share(realised.reshape(realised.shape or (1,) * ndim), along))
        return threshold, jnp.where(jnp.isnan(clear), clear, jnp.ones((), clear.dtype))

    return NoiseKind(prepare, functools.partial(_drop_blocks, along=along, rescale=rescale), decides=True)


def _drop_blocks(
    draw: Draw, x: jax.Array, prepared: tuple[jax.Array, jax.Array], *, along: tuple[_Along, ...], rescale: Rescale
) -> jax.Array:
    threshold, scale = prepared
    places = {dimension.axis: dimension.places for dimension in along}
    begin = draw.of_shape([places.get(axis, size) for axis, size in enumerate(draw.shape)])
    clear = begin.words_below(threshold, packed=x.ndim - 1 not in places)
    words = clear.words
    for axis, _, block in reversed(along):  # the nearest neighbors first
        words = _clear_of_all(words, axis, block)
    kept = clear._replace(words=in_memory(words))
    if rescale != "expected":
        share = kept.share_of_yes(range(1, x.ndim), scale.dtype)
        if rescale == "batch":
            share = jnp.sum(share, keepdims=True) / count_of(x.shape[:1], share.dtype)
        scale = scale / _not_zero(share)
    return kept_or_zero(draw, match_sharding(kept.answers(), x), x, scale)


def _clear_of_all(words: jax.Array, axis: int, block: int) -> jax.Array:
    """Returns for every position along the axis whether no block that covers it begins, from the places where none begins."""
    beyond = [(block - 1, block - 1, 0) if a == axis else (0, 0, 0) for a in range(words.ndim)]
    words = lax.pad(words, ~jnp.zeros((), words.dtype), beyond)
    width = 1
    while width < block:  # each word stands for so many places in a row
        step = min(width, block - width)
        words = lax.slice_in_dim(words, 0, words.shape[axis] - step, axis=axis) & lax.slice_in_dim(words, step, None, axis=axis)
        width += step
    return words


def _not_zero(share: jax.Array) -> jax.Array:
    """Returns 1 instead of a share of 0, by which nothing is to be divided."""
    return jnp.where(share == 0, jnp.ones((), share.dtype), share)


@functools.cache
def _hole_kind(along: tuple[tuple[int, int], ...], holes: int) -> NoiseKind:
    """Leaves x, and puts the amount in holes, of this size along each of these axes."""
    return NoiseKind(lambda fill, _: fill, functools.partial(_cut, along=along, holes=holes), decides=True)


def _cut(draw: Draw, x: jax.Array, fill: jax.Array, *, along: tuple[tuple[int, int], ...], holes: int) -> jax.Array:
    ones = (1,) * (len(along) - 1)
    sizes = jnp.stack([jnp.asarray(x.shape[axis], jnp.uint32) for axis, _ in along]).reshape(1, 1, -1, *ones)
    centers = draw.of_shape((x.shape[0], holes, len(along), *ones)).indices(sizes)
    cut = jnp.zeros((1,) * x.ndim, bool)
    for hole in range(holes):
        inside = jnp.ones((1,) * x.ndim, bool)
        for i, (axis, size) in enumerate(along):
            first = centers[:, hole : hole + 1, i : i + 1] - size // 2
            position = lax.broadcasted_iota(jnp.int32, [x.shape[a] if a == axis else 1 for a in range(x.ndim)], axis)
            inside &= (position >= first) & (position < first + size)
        cut |= inside
    return jnp.where(match_sharding(cut, x), fill, x)
