"""Attention with dropout of its weights, whole or in blocks of queries: what the Flax packages share.

The weights are those of Flax's own functions, so that all of their arguments mean the same.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, reshard

from jaxnorm._axes import (
    canonical_axes,
    explicit_sharding,
    is_known,
    noise_shape,
    shared_sharding,
    split_axis,
    whole_along,
)
from jaxnorm._checks import (
    Scalar,
    check_decision_bits,
    check_key,
    check_known_flag,
    check_scalar,
    check_size,
    is_known_to_be,
)
from jaxnorm._compiler import recomputed
from jaxnorm._noise import (
    Draw,
    DrawPart,
    DrawSize,
    NoiseKind,
    draw_again,
    draw_size,
    keep_or_drop,
    keep_probability,
    multiply_noise,
    times,
)
from jaxnorm._packed_bits import has_packed_form
from jaxnorm._types import wide_dtype


class WeightsFunction(NamedTuple):
    """A function of Flax for the weights, `(query, key, bias, mask, *, deterministic, ...)`, and its other arguments."""

    function: Callable[..., jax.Array]
    options: tuple[tuple[str, Any], ...]

    def __call__(self, query: jax.Array, key: jax.Array, bias: jax.Array | None, mask: jax.Array | None) -> jax.Array:
        """Returns the weights, `[..., H, T, K]`."""
        return self.function(query, key, bias, mask, deterministic=True, **dict(self.options))


class Combination(NamedTuple):
    """The product of weights and values, and how it is to be computed. A head of the values serves one query head or several."""

    precision: Any = None
    dot_general: Callable[..., jax.Array] | None = None

    def __call__(self, weights: jax.Array, value: jax.Array) -> jax.Array:
        """Returns `[..., T, H, D]` of weights `[..., H, T, K]` and values `[..., K, H, D]`."""
        options: Any = {} if self.dot_general is None else {"_dot_general": self.dot_general}
        heads, groups = weights.shape[-3], value.shape[-2]
        if heads == groups:
            return jnp.einsum("...hqk,...khd->...qhd", weights, value, precision=self.precision, **options)
        weights = split_axis(weights, weights.ndim - 3, groups)
        return _merged(jnp.einsum("...hgqk,...khd->...qhgd", weights, value, precision=self.precision, **options), -3)


class WeightsNoise(NamedTuple):
    """Dropout of weights: the key, the probability to keep, the axes that share a draw, and the random bits of one."""

    key: jax.Array
    keep: Any
    shared: tuple[int, ...]
    bits: int


def weights_noise(
    dropout_rng: Any,
    dropout_rate: Scalar,
    deterministic: bool,
    broadcast_dropout: bool,
    broadcast_dims: Sequence[int] | None,
    bits: int,
    *,
    like: jax.Array,
) -> WeightsNoise | None:
    """Returns the dropout that the arguments of an attention function say, for queries like these; None for none."""
    check_scalar("dropout_rate", dropout_rate, low=0, high=1)
    bits = check_decision_bits(bits, dropout_rate)
    if broadcast_dims is not None:
        shared = canonical_axes("broadcast_dims", broadcast_dims, like.ndim)
    else:
        shared = tuple(range(like.ndim - 2)) if check_known_flag("broadcast_dropout", broadcast_dropout) else ()
    silent = is_known_to_be(0, dropout_rate)
    if check_known_flag("deterministic", deterministic) or silent:
        return None
    if dropout_rng is None:
        raise ValueError(f"dropout_rng is required for a dropout_rate of {dropout_rate} in training, got None")
    keep = keep_probability(dropout_rate, wide_dtype(like.dtype))
    return WeightsNoise(check_key(dropout_rng, "dropout_rng"), keep, shared, bits)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    *,
    weights_of: WeightsFunction,
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    noise: WeightsNoise | None,
    is_causal: bool,
    block_size: int | None,
) -> jax.Array:
    """Returns attention, with dropout of its weights, whole or in blocks of queries.

    Args:
      query: array of floating point numbers, `[..., T, H, D]`.
      key: array of the same type, `[..., K, H, D]`, or with a number of heads that divides the queries'.
      value: the same, of any D.
      bias: what is added to the logits, broadcastable to `[..., H, T, K]`, or None.
      mask: True for the keys that a query sees, likewise.
      weights_of: gives the weights, without noise.
      combine: gives y of weights and values; anything but a `Combination` is called once, outside of any transformation.
      noise: which weights are dropped.
      is_causal: whether a query sees no keys behind its own position.
      block_size: how many queries are worked through at a time; None for all at once.

    Returns:
      Array `[..., T, H, D]`.
    """
    _check_sizes(query, key, value)
    is_causal = check_known_flag("is_causal", is_causal)
    for name, x in (("bias", bias), ("mask", mask)):
        _check_broadcast(name, x, (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3]))
    if block_size is not None:
        _check_blocks(query, weights_of, combine, noise, block_size)
        return _attend_in_blocks(
            () if noise is None else (noise.key, noise.keep),
            (query, key, value, bias, mask),
            weights_of=weights_of,
            combine=combine,
            shared=() if noise is None else noise.shared,
            bits=32 if noise is None else noise.bits,
            is_causal=is_causal,
            block_size=block_size,
        )
    if is_causal:
        mask = _causal(mask, 0, query, key)
    weights = weights_of(query, key, bias, mask)
    if noise is None:
        return combine(weights, value)
    key, keep, shared, bits = noise
    if not isinstance(combine, Combination):
        return combine(multiply_noise(key, weights, keep, keep_or_drop, shared, bits), value)
    return _drop_and_combine(key, keep, weights, value, combine=combine, shared=shared, bits=bits)


def _check_sizes(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    shapes = f"got query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
    if not query.ndim == key.ndim == value.ndim:
        raise ValueError(f"query, key and value must have the same rank, {shapes}")
    if query.ndim < 3:
        raise ValueError(f"query, key and value must have axes of positions, heads and features, {shapes}")
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(f"query, key and value must have the same batch dims, {shapes}")
    if key.shape[-3] != value.shape[-3]:
        raise ValueError(f"key and value lengths must match, {shapes}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key depths must match, {shapes}")
    if key.shape[-2] != value.shape[-2] or query.shape[-2] % key.shape[-2]:
        raise ValueError(f"the number of query heads must be a multiple of the number of key and value heads, {shapes}")


def _check_broadcast(name: str, x: jax.Array | None, shape: tuple[int, ...]) -> None:
    if x is not None and (x.ndim > len(shape) or any(n not in (1, m) for n, m in zip(x.shape[::-1], shape[::-1], strict=False))):
        raise ValueError(f"{name} must broadcast to the shape of the weights, {list(shape)}, got shape {list(x.shape)}")


def _causal(mask: jax.Array | None, start: jax.Array | int, query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns a mask that hides what comes after each query, of which the first is at this position; and what `mask` hides."""
    shape = (query.shape[-3], key.shape[-3])
    seen = start + lax.broadcasted_iota(jnp.int32, shape, 0) >= lax.broadcasted_iota(jnp.int32, shape, 1)
    ndim = query.ndim if mask is None else max(query.ndim, mask.ndim)
    seen = jnp.expand_dims(seen, tuple(range(ndim - 2)))
    return seen if mask is None else seen & jnp.expand_dims(mask, tuple(range(ndim - mask.ndim))).astype(bool)


@functools.partial(jax.jit, static_argnames=("combine", "shared", "bits"))
def _drop_and_combine(
    key: jax.Array,
    keep: Any,
    weights: jax.Array,
    value: jax.Array,
    *,
    combine: Combination,
    shared: tuple[int, ...],
    bits: int,
) -> jax.Array:
    """Returns the product of dropped weights and values, of which the gradient keeps the weights as they were, and the key."""

    def apply(draw: Draw, given: tuple[jax.Array, jax.Array], prepared: Any) -> jax.Array:
        weights, value = given
        return _combined(draw, weights, value, prepared, combine)

    kind = NoiseKind(keep_or_drop.prepare, apply, decides=True)
    return draw_again(key, (weights, value), keep, kind, (draw_size(weights, shared),), bits)


def _check_blocks(
    query: jax.Array, weights_of: WeightsFunction, combine: Any, noise: WeightsNoise | None, block_size: int
) -> None:
    """Raises unless attention can be computed in blocks of so many queries."""
    check_size("block_size", block_size)
    if dict(weights_of.options).get("module") is not None:
        raise ValueError(f"block_size must be None where weights are sown, as there are never all of them, got {block_size}")
    if not isinstance(combine, Combination):
        raise ValueError(f"block_size must be None with einsums of your own, got {block_size}")
    if not is_known(query.shape[-3]):
        raise ValueError(f"block_size must be None for an unknown number of queries, {query.shape[-3]}, got {block_size}")
    if noise is not None and not has_packed_form(noise.key, noise.bits):
        raise ValueError(
            f"bits must be 8 or 16 with block_size and a key of {jax.random.key_impl(noise.key)}, got {noise.bits}: parts of a "
            "draw of 32 bits are those of threefry2x32 alone"
        )


def _combined(
    draw: Draw | DrawPart, weights: jax.Array, value: jax.Array, prepared: tuple[jax.Array, jax.Array], combine: Combination
) -> jax.Array:
    """Returns the product of dropped weights and values; it is scaled, as that is smaller than the weights are."""
    threshold, scale = prepared
    kept = jnp.where(draw.below(threshold), weights, np.zeros((), weights.dtype))
    return times(combine(kept, value), scale)


_STATIC = ("weights_of", "combine", "shared", "bits", "is_causal", "block_size")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _attend_in_blocks(
    drawn: tuple[jax.Array, ...],
    given: tuple[Any, ...],
    *,
    weights_of: WeightsFunction,
    combine: Combination,
    shared: tuple[int, ...],
    bits: int,
    is_causal: bool,
    block_size: int,
) -> jax.Array:
    """Returns attention of which no more weights are there at a time, in any mode of differentiation, than those of a block."""
    query, key, *others = given
    sharding = shared_sharding(query, (query.ndim - 1,))  # and that of y
    query = whole_along(query, (query.ndim - 3,))

    def blocks(draw: Draw | None, given: tuple[Any, ...], prepared: Any) -> jax.Array:
        query, key, value, bias, mask = given
        axis = query.ndim - 2  # of the queries among the weights' axes

        @recomputed  # or each step of the loop would keep its weights
        def block(start: jax.Array | int, rows: dict[str, jax.Array]) -> jax.Array:
            own = {"bias": bias, "mask": mask} | rows
            mask_here = _causal(own["mask"], start, own["query"], key) if is_causal else own["mask"]
            weights = weights_of(own["query"], key, own["bias"], mask_here)
            if draw is None:
                return combine(weights, value)
            return _combined(draw.part(axis, start, weights.shape[axis]), weights, value, prepared, combine)

        # What has a row for each query is cut as the queries are.
        with_rows = {"query": query} | {
            name: x for name, x in (("bias", bias), ("mask", mask)) if x is not None and x.ndim > 1 and x.shape[-2] > 1
        }
        return _over_blocks(block, with_rows, query.shape[-3], block_size)

    if drawn:
        rng, keep = drawn
        kind = NoiseKind(keep_or_drop.prepare, blocks, decides=True)
        y = draw_again(rng, (query, key, *others), keep, kind, (_weights_size(query, key, shared),), bits)
    else:
        y = blocks(None, (query, key, *others), None)
    return y if sharding is None else reshard(y, sharding)


def _weights_size(query: jax.Array, key: jax.Array, shared: tuple[int, ...]) -> DrawSize:
    """Returns the size of a draw for the weights of these queries and keys, but for the shared axes."""
    shape = (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])
    of_query, of_key = explicit_sharding(query), explicit_sharding(key)
    if of_query is None or of_key is None:
        return noise_shape(shape, shared), None
    spec = (*of_query.spec[:-3], of_query.spec[-2], of_query.spec[-3], of_key.spec[-3])
    spec = PartitionSpec(*(None if axis in shared else part for axis, part in enumerate(spec)))
    return noise_shape(shape, shared), NamedSharding(of_query.mesh, spec)


def _over_blocks(
    block: Callable[[jax.Array | int, dict[str, jax.Array]], jax.Array], rows: dict[str, jax.Array], length: int, size: int
) -> jax.Array:
    """Returns the outputs of `block(start, rows)` for so many rows at a time, one after another; the last may be smaller."""
    count, rest = divmod(length, size)
    axes = {name: x.ndim - (3 if name == "query" else 2) for name, x in rows.items()}

    def cut(start: int, stop: int) -> dict[str, jax.Array]:
        return {name: lax.slice_in_dim(x, start, stop, axis=axes[name]) for name, x in rows.items()}

    parts = []
    if count:
        stacks = {name: jnp.moveaxis(split_axis(x, axes[name], count), axes[name], 0) for name, x in cut(0, count * size).items()}
        starts = jnp.arange(count, dtype=jnp.int32) * np.int32(size)
        parts.append(_merged(jnp.moveaxis(lax.map(lambda given: block(*given), (starts, stacks)), 0, -4), -4))
    if rest or not count:
        parts.append(block(count * size, cut(count * size, length)))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -3)


def _merged(x: jax.Array, axis: int) -> jax.Array:
    """Returns x with this axis, counted from behind, and the next one merged into one, which is sharded as the first is."""
    sharding, shape = explicit_sharding(x), (*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    if sharding is not None:
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[: axis + 1], *sharding.spec[axis + 2 :]))
    return lax.reshape(x, shape, out_sharding=sharding)
