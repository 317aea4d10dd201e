"""Multiplicative noise of mean 1: what a draw does to x, and the only place that does it.

A kind of noise is a function `(words, x, amount) -> y` of uniform 32-bit words; `multiply_noise` draws the words, and sees to it
that nothing but the key is kept for the gradient: the words are drawn again where they are needed, in every mode of
differentiation.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import noise_shape, shared_sharding
from jaxnorm._bits import random_words

NoiseKind = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_RESOLUTION = 2**23  # uniform numbers are k / 2^23, as those of jax.random.uniform in float32


def multiply_noise(
    key: jax.Array, x: jax.Array, amount: jax.Array | np.ndarray, kind: NoiseKind, shared: tuple[int, ...]
) -> jax.Array:
    """Returns x times noise of this kind, one draw for each element but for the `shared` axes.

    Args:
      key: a typed key.
      x: array of floating point numbers.
      amount: the kind's parameter, a scalar or an array that broadcasts to the noise; no gradient flows into it.
      kind: one of the functions below.
      shared: axes along which all elements share one draw.
    """
    return _multiply_noise(key, x, amount, kind=kind, shared=shared)


@functools.partial(jax.jit, static_argnames=("kind", "shared"))
def _multiply_noise(key: jax.Array, x: jax.Array, amount: jax.Array, *, kind: NoiseKind, shared: tuple[int, ...]) -> jax.Array:
    # The draw below is from the key's data, which jax_debug_key_reuse does not see. Nothing is drawn here, but the checker
    # sees the key used once.
    jax.random.bits(key, (0,))
    impl = jax.random.key_impl(key)

    @jax.checkpoint
    def apply(data: jax.Array, x: jax.Array, amount: jax.Array) -> jax.Array:
        fresh = jax.random.wrap_key_data(data, impl=impl)
        words = random_words(fresh, noise_shape(x.shape, shared), shared_sharding(x, shared))
        return kind(words, x, amount)

    with jax.named_scope("jaxnorm.noise"):
        return apply(jax.random.key_data(key), x, lax.stop_gradient(amount))


def keep_or_drop(words: jax.Array, x: jax.Array, keep: jax.Array) -> jax.Array:
    """Returns x / keep with probability `keep`, else 0. A NaN `keep` gives NaN everywhere."""
    zero = jnp.zeros((), x.dtype)
    wide = x.astype(keep.dtype) / _nonzero(keep)
    return jnp.where(_kept(words, keep), wide.astype(x.dtype), zero)


def keep_unscaled(words: jax.Array, x: jax.Array, keep: jax.Array) -> jax.Array:
    """Returns x with probability `keep`, else 0. A NaN `keep` gives NaN everywhere."""
    zero = jnp.where(jnp.isnan(keep), keep, 0).astype(x.dtype)
    return jnp.where(_kept(words, keep) & ~jnp.isnan(keep), x, zero)


def gaussian(words: jax.Array, x: jax.Array, std: jax.Array) -> jax.Array:
    """Returns x * n with n ~ N(1, std^2)."""
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(low, _uniform(words) * (np.float32(1) - low) + low)
    normal = np.float32(np.sqrt(2)) * lax.erf_inv(uniform)
    return _times(x, 1 + std * normal.astype(std.dtype))


def uniform(words: jax.Array, x: jax.Array, beta: jax.Array) -> jax.Array:
    """Returns x * n with n ~ U(1 - beta, 1 + beta)."""
    symmetric = 2 * _uniform(words) - 1
    return _times(x, 1 + beta * symmetric.astype(beta.dtype))


def _times(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Multiplies in the wider of the two types and rounds once."""
    return (x.astype(noise.dtype) * noise).astype(x.dtype)


def _uniform(words: jax.Array) -> jax.Array:
    """Returns numbers in [0, 1): multiples of 2^-23 from the upper 23 bits."""
    return (words >> 9).astype(jnp.float32) * np.float32(1 / _RESOLUTION)


def _kept(words: jax.Array, keep: jax.Array) -> jax.Array:
    """Returns where the uniform number is below `keep`: `jax.random.bernoulli`'s choice, in integers. True for a NaN."""
    threshold = jnp.ceil(keep.astype(jnp.float32) * _RESOLUTION)
    threshold = jnp.where(jnp.isnan(keep), _RESOLUTION, threshold).astype(jnp.uint32)
    return words >> 9 < threshold


def _nonzero(keep: jax.Array) -> jax.Array:
    """Returns a divisor for kept elements; where none is kept (`keep` 0), 1 keeps the gradient finite."""
    return jnp.where(keep == 0, jnp.ones((), keep.dtype), keep)
