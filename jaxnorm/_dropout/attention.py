"""Dropout in attention: of the keys that a query sees; `dot_product_attention` of the modules drops weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxnorm._axes import canonical_axes, noise_shape
from jaxnorm._checks import (
    Scalar,
    check_amount_shape,
    check_decision_bits,
    check_float,
    check_key,
    check_number,
)
from jaxnorm._noise import keep_or_take, keep_probability, multiply_noise
from jaxnorm._types import wide_dtype

_HIDDEN = -(2.0**15)  # which every type holds


def drop_key(key: jax.Array, logits: jax.Array, rate: Scalar, *, broadcast_dims: Sequence[int] = (), bits: int = 16) -> jax.Array:
    """Hides keys of attention at random, before the softmax (DropKey).

    Training: `y = logits` with probability `1 - rate`, else -2^15, independently for every query and key, so that
    `softmax(y) = m exp(logits) / sum(m exp(logits))` with `m = 1` for what is kept, else 0. Inference: the identity; do not call
    it.

    The weights that the softmax gives sum to 1 whatever is hidden, where dropout of the weights leaves a sum of 1 in expectation
    alone. Of -2^15 the softmax makes 0 beside any logit above -32,000. It is finite, in half precision too, and higher than what
    masks put: with the mask applied after it, a query from which all keys are hidden weighs those alike that the mask shows.
    Nothing flows back from it.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      logits: array of floating point numbers, `[..., T, K]` of T queries and K keys, as the softmax over the last axis takes it.
      rate: the probability of hiding, in [0, 1]; a number or a traced scalar, or an array of the rank of the logits that
        broadcasts to the mask. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      broadcast_dims: axes along which all elements share one draw, as `(-2,)` to hide a key from all queries.
      bits: random bits an element that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of the shape and dtype of the logits.

    Raises:
      ValueError: as in `dropout`.
      TypeError: as in `dropout`.

    References:
      Li, Hu, Nie, Han, Jiang, Guo, Liu, "DropKey for Vision Transformer", CVPR 2023, https://arxiv.org/abs/2208.02646.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> logits = jaxnorm.drop_key(jax.random.key(4), jnp.zeros((2, 4)), 0.5)
      >>> print(jax.nn.softmax(logits))
      [[0.  0.5 0.5 0. ]
       [0.  1.  0.  0. ]]
    """
    key = check_key(key)
    logits = check_float("logits", logits)
    check_number("rate", rate, low=0, high=1)
    bits = check_decision_bits(bits, rate)
    shared = canonical_axes("broadcast_dims", broadcast_dims, logits.ndim)
    check_amount_shape("rate", rate, noise_shape(logits.shape, shared))
    hidden = jnp.asarray(_HIDDEN, logits.dtype)
    return multiply_noise(key, (logits, hidden), keep_probability(rate, wide_dtype(logits.dtype)), keep_or_take, shared, bits)
