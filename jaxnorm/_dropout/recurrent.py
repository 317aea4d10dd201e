"""Dropout of recurrent networks: zoneout, which keeps old states instead of dropping new ones."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._checks import Scalar, check_amount_shape, check_decision_bits, check_float, check_key, check_like, check_number
from jaxnorm._noise import keep_or_take, keep_probability, multiply_noise
from jaxnorm._types import wide_dtype


def zoneout(key: jax.Array, h_prev: jax.Array, h: jax.Array, rate: Scalar, *, bits: int = 16) -> jax.Array:
    """Lets elements of a state be at random what they were a step before.

    Training: `y = h_prev` with probability `rate`, else `y = h`, independently for every element. Inference:
    `zoneout_mean(h_prev, h, rate)`.

    The cell of an LSTM and its output are zoned out each by a call of its own, with a key and a rate of its own; at every step
    with a new key. Nothing is rescaled: with 16 bits the probability differs from the rate by less than 2^-16, with 8 by less
    than 2^-8. A selection, of which only the key is kept for the gradient: what is not taken reaches neither y nor a gradient,
    NaN neither.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      h_prev: the state of the step before, array of floating point numbers, any shape.
      h: the new state, of the shape and dtype of `h_prev`.
      rate: the probability of staying as before, in [0, 1]; a number or a traced scalar, or an array of h's rank that broadcasts
        to h. No gradient flows into it. A traced rate outside [0, 1] gives NaN everywhere.
      bits: random bits an element that decide: 8, 16 or 32, as in `dropout`.

    Returns:
      Array of h's shape and dtype.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or does not broadcast to h, or is not held by 8 bits where 8 are asked
        for, if the states differ in shape, if bits is another number, or if key is an array of several keys.
      TypeError: if a state does not hold floating point numbers, if they differ in dtype, if rate is no number or bits no int, or
        if key is no key.

    References:
      Krueger, Maharaj, Kramar, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville, Pal, "Zoneout: regularizing RNNs by randomly
      preserving hidden activations", ICLR 2017, https://arxiv.org/abs/1606.01305.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> print(jaxnorm.zoneout(jax.random.key(2), jnp.zeros(6), jnp.ones(6), 0.5))
      [0. 1. 1. 0. 0. 1.]
    """
    key = check_key(key)
    h_prev, h = _states(h_prev, h, rate)
    bits = check_decision_bits(bits, rate)
    return multiply_noise(key, (h, h_prev), keep_probability(rate, wide_dtype(h.dtype)), keep_or_take, (), bits)


def zoneout_mean(h_prev: jax.Array, h: jax.Array, rate: Scalar) -> jax.Array:
    """Mixes a state with that of the step before by the probability of having stayed.

    Inference with `zoneout`: `y = rate h_prev + (1 - rate) h`, the expectation of its output in training.

    A state of weight 0 does not count, NaN neither.

    Args:
      h_prev: the state of the step before, array of floating point numbers, any shape.
      h: the new state, of the shape and dtype of `h_prev`.
      rate: the probability of staying as before in training, as in `zoneout`.

    Returns:
      Array of h's shape and dtype.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or does not broadcast to h, or if the states differ in shape.
      TypeError: if a state does not hold floating point numbers, if they differ in dtype, or if rate is no number.

    References:
      Krueger, Maharaj, Kramar, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville, Pal, "Zoneout: regularizing RNNs by randomly
      preserving hidden activations", ICLR 2017, https://arxiv.org/abs/1606.01305.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.zoneout_mean(jnp.zeros(3), jnp.ones(3), 0.25)
      Array([0.75, 0.75, 0.75], dtype=float32)
    """
    h_prev, h = _states(h_prev, h, rate)
    keep = lax.stop_gradient(jnp.asarray(keep_probability(rate, wide_dtype(h.dtype))))

    def part(state: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.where(weight == 0, jnp.zeros((), weight.dtype), state.astype(weight.dtype)) * weight

    return (part(h_prev, 1 - keep) + part(h, keep)).astype(h.dtype)


def _states(h_prev: jax.Array, h: jax.Array, rate: Scalar) -> tuple[jax.Array, jax.Array]:
    """Returns both states as arrays, or raises unless they are alike and the rate fits them."""
    h = check_float("h", h)
    h_prev = check_like("h_prev", h_prev, h, "h")
    if h_prev.dtype != h.dtype:
        raise TypeError(f"h_prev must have the dtype of h, {h.dtype}, got {h_prev.dtype}")
    check_number("rate", rate, low=0, high=1)
    check_amount_shape("rate", rate, h.shape)
    return h_prev, h
