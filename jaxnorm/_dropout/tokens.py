"""Dropout of tokens: parts of a sequence are left out, or replaced."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, reshard

from jaxnorm._axes import is_known, sharding_along, whole_along
from jaxnorm._bits import random_words
from jaxnorm._checks import (
    Scalar,
    check_amount_shape,
    check_decision_bits,
    check_float,
    check_integer_of,
    check_integers,
    check_key,
    check_known_flag,
    check_number,
    check_size,
    is_concrete,
)
from jaxnorm._noise import Draw, NoiseKind, decision, keep_probability, multiply_noise, used_key

_FINEST = 1_000_000  # the largest denominator of a fraction that a rate is taken for


def patch_dropout(
    key: jax.Array, x: jax.Array, rate: float, *, num_prefix_tokens: int = 1, ordered: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Keeps a random part of every sequence's tokens, and leaves out the others (PatchDropout, as FLIP masks images).

    Training: `y = x_S`, with S a random set of `n = max(1, floor(L (1 - rate)))` of the L tokens after the prefix, drawn for
    every example, each as likely as any other. Inference: the identity; do not call it.

    The prefix, as a class token, comes first and is always kept. A token is kept with probability `n / L`, and nothing is
    rescaled. The sequence becomes shorter; positions must be added before. Where all tokens are kept, at a rate of 0, they stay
    in order.

    The rate is taken for the nearest fraction with a denominator up to a million, and n computed without rounding: of 100 tokens
    at a rate of 0.9 ten are kept. timm computes in floats, and keeps nine of these; where floats are exact n is timm's.

    Tokens are ordered by 32 random bits, of which two are equal with a probability of 2^-32; then the first of them is the first.
    For the gradient the indices are kept.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      x: array of floating point numbers, `[B, num_prefix_tokens + L, ...]`.
      rate: the share to leave out, in [0, 1], a number known when the function is traced, since it makes a shape.
      num_prefix_tokens: how many tokens at the beginning are kept always.
      ordered: whether kept tokens keep their order; else it is random.

    Returns:
      `(y, indices)`: array `[B, num_prefix_tokens + n, ...]` of x's dtype, and array `[B, n]` of int32, which token each is,
      counted after the prefix.

    Raises:
      ValueError: if rate is outside [0, 1], if num_prefix_tokens is negative, if there is no token after the prefix, if the
        number of tokens is a symbol of `jax.export`, or if key is an array of several keys.
      TypeError: if x does not hold floating point numbers, if rate is no number or traced, if num_prefix_tokens is no int or
        ordered no bool, or if key is no key.

    References:
      Liu, Matsoukas, Strand, Azizpour, Smith, "PatchDropout: economizing vision transformers using patch dropout", WACV 2023,
      https://arxiv.org/abs/2208.07220. Li, Fan, Hu, Feichtenhofer, He, "Scaling language-image pre-training via masking", CVPR
      2023, https://arxiv.org/abs/2212.00794.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> x = jnp.arange(7.0).reshape(1, 7, 1)
      >>> y, indices = jaxnorm.patch_dropout(jax.random.key(0), x, 0.5, ordered=True)
      >>> print(y[0, :, 0], indices[0])
      [0. 3. 4. 6.] [2 3 5]
    """
    x = check_float("x", x)
    check_number("rate", rate, low=0, high=1)
    if not is_concrete(rate) or np.ndim(rate):
        raise TypeError(f"rate must be one number, known when the function is traced, since it makes a shape, got {rate}")
    prefix = check_size("num_prefix_tokens", num_prefix_tokens, low=0)
    ordered = check_known_flag("ordered", ordered)
    if x.ndim < 2:
        raise ValueError(f"x must have shape [B, tokens, ...], got {list(x.shape)}")
    if not is_known(x.shape[1]) or x.shape[1] <= prefix:
        raise ValueError(
            f"x must have a known number of tokens, more than num_prefix_tokens, {prefix}, got shape {list(x.shape)}"
        )
    kept = num_kept(x.shape[1] - prefix, rate)
    return _patches(check_key(key), x, prefix=prefix, kept=kept, ordered=ordered)


def word_dropout(key: jax.Array, tokens: jax.Array, rate: Scalar, *, unknown: int, bits: int = 16) -> jax.Array:
    """Replaces tokens at random by the one that stands for unknown words (word dropout).

    Training: `y = unknown` with probability `rate`, else `y = tokens`, independently for every token. Inference: the identity; do
    not call it.

    Rates that depend on the word, as `a / (a + counts[tokens])` with a = 0.25 (Kiperwasser and Goldberg), are an array of the
    tokens' shape; with 0 where a token must stay, as padding.

    The decisions are those of `dropout`, but not rescaled.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      tokens: array of integers, any shape.
      rate: the probability of replacing, in [0, 1]; a number or a traced scalar, or an array of the rank of the tokens that
        broadcasts to them. Integers have no NaN: a traced rate outside [0, 1] replaces all tokens.
      unknown: the token that stands in their place, an int.
      bits: random bits a token that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of the shape and dtype of the tokens.

    Raises:
      ValueError: if a concrete rate is outside [0, 1] or has another shape, if the type of the tokens does not hold `unknown`, or
        as in `dropout`.
      TypeError: if the tokens are no integers, if unknown is no int, or as in `dropout`.

    References:
      Bowman, Vilnis, Vinyals, Dai, Jozefowicz, Bengio, "Generating sentences from a continuous space", CoNLL 2016,
      https://arxiv.org/abs/1511.06349. Kiperwasser, Goldberg, "Simple and accurate dependency parsing using bidirectional LSTM
      feature representations", TACL 4, 2016, https://arxiv.org/abs/1603.04351.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> print(jaxnorm.word_dropout(jax.random.key(0), jnp.arange(10, 20), 0.3, unknown=1))
      [10 11 12 13 14 15 16  1 18  1]
    """
    tokens = check_integers("tokens", tokens)
    check_number("rate", rate, low=0, high=1)
    check_amount_shape("rate", rate, tokens.shape)
    unknown = check_integer_of("unknown", unknown, tokens.dtype)
    bits = check_decision_bits(bits, rate)
    return multiply_noise(check_key(key), tokens, keep_probability(rate, np.dtype(np.float32)), _replaced(unknown), (), bits)


def num_kept(count: int, rate: float) -> int:
    """Returns how many of so many tokens stay."""
    exact = Fraction(float(rate)).limit_denominator(_FINEST)
    return max(1, int(count * (1 - exact)))


@functools.partial(jax.jit, static_argnames=("prefix", "kept", "ordered"))
def _patches(key: jax.Array, x: jax.Array, *, prefix: int, kept: int, ordered: bool) -> tuple[jax.Array, jax.Array]:
    data, impl = used_key(key)
    shape = (x.shape[0], x.shape[1] - prefix)
    sharding = sharding_along(x, (0, 1))
    if sharding is not None:  # devices that share the tokens of an example need all of them
        sharding = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0], None))
    with jax.named_scope("jaxnorm.patch_dropout"):
        if kept == shape[1]:
            indices = lax.broadcasted_iota(jnp.int32, shape, 1)
            return x, indices if sharding is None else reshard(indices, sharding)
        words = random_words(jax.random.wrap_key_data(data, impl=impl), shape, sharding)
        indices = jnp.argsort(words, axis=1)[:, :kept].astype(jnp.int32)
        if ordered:
            indices = jnp.sort(indices, axis=1)
        tokens = whole_along(x, (1,))
        places = indices.reshape(*indices.shape, *[1] * (x.ndim - 2))
        chosen = jnp.take_along_axis(tokens[:, prefix:], places, axis=1, mode="promise_in_bounds")
        return jnp.concatenate([tokens[:, :prefix], chosen], axis=1), indices


@functools.cache
def _replaced(unknown: int) -> NoiseKind:
    """Leaves x with the probability that is the amount, else puts this number in its place."""

    def prepare(keep: jax.Array, bits: int) -> jax.Array:
        threshold, _ = decision(keep, bits)
        return jnp.where(jnp.isnan(keep), jnp.zeros((), threshold.dtype), threshold)

    def apply(draw: Draw, x: jax.Array, threshold: jax.Array) -> jax.Array:
        return jnp.where(draw.below(threshold), x, jnp.asarray(unknown, x.dtype))

    return NoiseKind(prepare, apply, decides=True)
