"""Normal random numbers from uniform words: the inverse of the normal distribution function, in few and branchless steps."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LOW_31 = 0x7FFFFFFF
_SIGN = np.uint32(0x80000000)
_SQRT_HALF = 0x3F3504F3  # of float32, as an integer: mantissas are taken from [sqrt(1/2), sqrt(2))

# z / x as a quotient of polynomials in w = -log(1 - x^2), where x = 2 Phi(z) - 1, for w from 0 to 22: by Lawson's iteration in
# float64 for the least largest relative error, which is 1.3e-7. Lowest powers first.
_NUMERATOR = (1.25331430, 0.454717191, 0.0905615759, 0.0120020447, 1.01391488e-3, 2.89529700e-5)
_DENOMINATOR = (1.0, 0.101015591, 0.0327676274, 2.33355846e-3, 1.69698346e-4, 9.87949143e-7)
# log(1 + m) / m for 1 + m from sqrt(1/2) to sqrt(2), the same way: the logarithm's largest error is 2.1e-7.
_LOG1P = (1.00000325, -0.500019651, 0.333032984, -0.248813395, 0.206046725, -0.189019798, 0.118274821)

DEVIATION_OF_16_BITS = 0.99998986  # of the 65536 numbers that are made of 16 random bits, each in the middle of its interval


def standard_normal(words: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Returns a standard normal number for each uniform `uint32`, which decides it alone.

    The lower 31 bits k are a tail probability `p = (k + 1/2) / 2^31` of both sides, `|z| = -Phi^-1(p / 2)`; the highest is the
    sign. So z reaches +-6.3, and its distribution is symmetric. `jax.random.normal` uses 23 bits, and an inverse error function
    whose two branches are both computed.

    In float64 the polynomials are no closer to the inverse, but draws of one number agree to float64's rounding wherever they
    are compiled: forward and backward see one noise, as a check of float64 gradients asks.
    """
    p = (lax.bitcast_convert_type(words & _LOW_31, jnp.int32).astype(jnp.float32) + np.float32(0.5)) * np.float32(2**-31)
    w = _minus_log(p * (2 - p), dtype)
    z = (1 - p).astype(dtype) * _polynomial(_NUMERATOR, w) / _polynomial(_DENOMINATOR, w)
    # No selection: with one, XLA for CPUs keeps the numbers of a chain of layers for their gradients.
    sign = words & _SIGN
    if z.dtype == jnp.float64:
        sign = sign.astype(jnp.uint64) << np.uint64(32)
    return lax.bitcast_convert_type(lax.bitcast_convert_type(z, sign.dtype) | sign, z.dtype)


def _minus_log(x: jax.Array, dtype: Any) -> jax.Array:
    """Returns -log(x) for normal float32 numbers above 0, from exponent and mantissa, which are exact in either type."""
    integer = lax.bitcast_convert_type(x, jnp.int32)
    exponent = (integer - _SQRT_HALF) >> 23
    m = (lax.bitcast_convert_type(integer - (exponent << 23), jnp.float32) - 1).astype(dtype)
    return exponent.astype(dtype) * np.asarray(-np.log(2), dtype) - m * _polynomial(_LOG1P, m)


def _polynomial(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    """Evaluates a polynomial by pairs (Estrin): a chain of three products, where Horner's rule has one of five."""
    terms: list[Any] = [np.asarray(c, x.dtype) for c in coefficients]
    while len(terms) > 1:
        odd = terms[1::2]
        pairs = [low + high * x for low, high in zip(terms[::2], odd, strict=False)]
        terms = pairs + terms[2 * len(odd) :]
        x = x * x
    return terms[0]
