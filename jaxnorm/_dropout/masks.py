"""Masks as values: drawn once and applied many times, and keys that make a mask that of an example, wherever it is drawn."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import canonical_axes, match_sharding, noise_shape
from jaxnorm._bits import is_threefry, threefry2x32
from jaxnorm._checks import (
    Scalar,
    check_amount_shape,
    check_array_shape,
    check_decision_bits,
    check_float,
    check_indices,
    check_key,
    check_number,
    check_where,
)
from jaxnorm._noise import decisions, keep_or_drop, keep_probability, multiply_noise, times
from jaxnorm._types import wide_dtype


def dropout_mask(
    key: jax.Array, shape: Sequence[int], rate: Scalar, *, broadcast_dims: Sequence[int] = (), bits: int = 16
) -> jax.Array:
    """Draws the mask of `dropout` as a value, for `apply_mask`.

    Training: `m = 1` with probability `1 - rate`, else 0, independently for every element.

    `apply_mask(dropout_mask(key, x.shape, rate), x, rate)` is `dropout(key, x, rate)` to the bit. So one mask can serve several
    calls, the steps of a scan, or the members of an ensemble. A mask that is the same along an axis need not be stored as often:
    it is that of a shape with 1 there, which `apply_mask` takes as well.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      shape: the shape of what is to be masked.
      rate: the probability of dropping, in [0, 1]; a number or a traced scalar, or an array of as many axes as the shape has,
        that broadcasts to the mask. A traced rate outside [0, 1] gives True everywhere.
      broadcast_dims: axes along which all elements share one draw.
      bits: random bits an element that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of bool of this shape: True for what is kept.

    Raises:
      ValueError: if a size is negative; else as in `dropout`.
      TypeError: if shape is no sequence of ints; else as in `dropout`.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> mask = jaxnorm.dropout_mask(jax.random.key(6), (4,), 0.5)
      >>> print(mask, jaxnorm.apply_mask(mask, jnp.ones(4), 0.5))
      [ True False  True  True] [2. 0. 2. 2.]
    """
    key = check_key(key)
    shape = check_array_shape("shape", shape)
    check_number("rate", rate, low=0, high=1)
    bits = check_decision_bits(bits, rate)
    drawn = noise_shape(shape, canonical_axes("broadcast_dims", broadcast_dims, len(shape)))
    check_amount_shape("rate", rate, drawn)
    mask = multiply_noise(key, jnp.zeros(drawn, bool), keep_probability(rate, np.float32), decisions, (), bits)
    return jnp.broadcast_to(mask, shape)


def apply_mask(mask: jax.Array, x: jax.Array, rate: Scalar, *, bits: int = 16) -> jax.Array:
    """Drops what a mask says, and scales up the rest as `dropout` does.

    Training: `y = x / (1 - rate)` where the mask is True, else 0. Inference: the identity; do not call it.

    With the rate and the bits that the mask was drawn with, y and its gradient are those of `dropout` to the bit. The mask is
    kept for the gradient, where `dropout` keeps the key.

    Args:
      mask: array of bool of x's rank that broadcasts to x, as `dropout_mask` draws it: True for what is kept.
      x: array of floating point numbers, any shape.
      rate: the probability of dropping with which the mask was drawn, in [0, 1]; a number or a traced scalar, or an array of x's
        rank that broadcasts to x. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      bits: the random bits an element with which the mask was drawn: 8, 16 or 32. What is kept is divided by the probability that
        they realise.

    Returns:
      Array of x's shape and dtype.

    Raises:
      ValueError: if the mask does not broadcast to x; if a concrete rate is outside [0, 1], or does not broadcast to x, or is not
        held by 8 bits where 8 are given; or if bits is another number.
      TypeError: if the mask does not hold bools or x no floating point numbers, or if rate is no number or bits no int.

    References:
      Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15, 2014, https://jmlr.org/papers/v15/srivastava14a.html.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> mask = jnp.array([[True], [False]])
      >>> jaxnorm.apply_mask(mask, jnp.ones((2, 3)), 0.5)
      Array([[2., 2., 2.],
             [0., 0., 0.]], dtype=float32)
    """
    x = check_float("x", x)
    mask = check_where(mask, x, "mask")
    check_number("rate", rate, low=0, high=1)
    bits = check_decision_bits(bits, rate)
    check_amount_shape("rate", rate, x.shape)
    return _applied(match_sharding(mask, x), x, keep_probability(rate, wide_dtype(x.dtype)), bits=bits)


@partial(jax.jit, static_argnames="bits")
def _applied(mask: jax.Array, x: jax.Array, keep: jax.Array, *, bits: int) -> jax.Array:
    def apply(mask: jax.Array, x: jax.Array, keep: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.where(mask | jnp.isnan(keep), times(x, scale), jnp.zeros((), x.dtype))

    keep = lax.stop_gradient(keep)
    _, scale = keep_or_drop.prepare(keep, bits)
    # A checkpoint, so that the scale is not kept for the gradient as often as x has elements.
    return jax.checkpoint(apply, prevent_cse=False)(mask, x, keep, scale)


def example_keys(key: jax.Array, indices: Any) -> jax.Array:
    """Makes a key for every example, by its index among all examples.

    Training: `keys[i] = fold_in(key, indices[i])`.

    What is drawn with them, one example a lane of `jax.vmap`, is the same however the examples are put into batches, microbatches
    and shards; inside `jax.shard_map` the index of an example is that in the whole batch, and not that in its shard.

    An index has 64 bits: with keys of threefry, different indices have different keys, and below 2^32 they are those of
    `jax.random.fold_in`. An array that jax holds in 32 bits has lost the others; NumPy's int64 have them.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`; of the step and the layer, say, since the same key and index give
        the same key. Do not draw with it.
      indices: an array of ints, `[B]` or of any shape, or an int; at least 0.

    Returns:
      Array of typed keys, of the shape of the indices.

    Raises:
      ValueError: if a concrete index is negative or 2^64 or more, or if key is an array of several keys.
      TypeError: if indices are no ints, or if key is no key.

    References:
      Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, https://doi.org/10.1145/2063384.2063405.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> def drop(first, x):
      ...     keys = jaxnorm.example_keys(jax.random.key(0), first + jnp.arange(x.shape[0]))
      ...     return jax.vmap(lambda key, row: jaxnorm.dropout(key, row, 0.5))(keys, x)
      >>> x = jnp.ones((4, 100))
      >>> bool((drop(0, x) == jnp.concatenate([drop(0, x[:3]), drop(3, x[3:])])).all())
      True
    """
    key = check_key(key)
    high, low = _words(check_indices("indices", indices))
    if is_threefry(key):
        data = jnp.stack(threefry2x32(jax.random.key_data(key), high, low), -1)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
    fold = jax.vmap(lambda high, low: jax.random.fold_in(jax.random.fold_in(key, high), low))
    return fold(high.reshape(-1), low.reshape(-1)).reshape(high.shape)


def _words(indices: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the upper and the lower 32 bits of indices; those of NumPy are cut by NumPy, which has 64."""
    wide = indices.dtype.itemsize == 8
    high = indices >> indices.dtype.type(32) if wide else indices * 0
    low = indices & indices.dtype.type(0xFFFFFFFF) if wide else indices
    return jnp.asarray(high.astype(np.uint32)), jnp.asarray(low.astype(np.uint32))
