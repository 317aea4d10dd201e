"""How far Gaussian multiplicative noise is from the log-uniform prior of variational dropout.

The divergence of `w ~ N(m, alpha m^2)` from a prior that is even in `log |w|` depends on alpha alone, up to a constant, which is
set so that it is 0 for infinite alpha: `KL = (euler_gamma + log 2) / 2 - log(alpha) / 2 + E[log |e|]` with `e ~ N(1, alpha)`.
"""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import count_of
from jaxnorm._checks import check_choice
from jaxnorm._types import wide_dtype

Divergence = Literal["fit", "exact", "cubic"]
DIVERGENCES = get_args(Divergence)

_OFFSET = 0.6351814227307392  # (euler_gamma + log 2) / 2
_FIT = (0.63576, 1.87320, 1.48695)
_CUBIC = (1.16145124, -1.50204118, 0.58629921)
_CUBIC_OFFSET = 0.67  # which the paper leaves open
_SMALLEST = -4.0943445622221  # log alpha, for 1 / (2 alpha) = 30; below it the series in alpha is taken
_TERMS = np.arange(90)  # of the other series, whose rest is below float64's rounding; so is that of the powers
_HARMONICS = np.concatenate([[0.0], np.cumsum(1 / (2 * _TERMS + 1))])[:-1]
_POWERS = np.arange(1, 21)
_MOMENTS = np.cumprod(2.0 * _POWERS - 1) / (2 * _POWERS)  # E[e^2m] / (2m) for a standard normal e


def total_divergence(log_alpha: jax.Array, shape: tuple[Any, ...], kind: Divergence) -> jax.Array:
    """Returns the sum of the divergences over an array of this shape, to which log alpha broadcasts: a scalar, or of its rank."""
    check_choice("divergence", kind, DIVERGENCES)
    return _total(log_alpha, shape=shape, kind=kind)


@functools.partial(jax.jit, static_argnames=("shape", "kind"))
def _total(log_alpha: jax.Array, *, shape: tuple[Any, ...], kind: Divergence) -> jax.Array:
    log_alpha = log_alpha.astype(wide_dtype(log_alpha.dtype))
    shared = [size for size, own in zip(shape, log_alpha.shape or (1,) * len(shape), strict=True) if own == 1]
    return jnp.sum(divergence(log_alpha, kind)) * count_of(shared, log_alpha.dtype)


def divergence(log_alpha: jax.Array, kind: Divergence) -> jax.Array:
    """Returns the divergence for each alpha: by a fit of Molchanov et al. or of Kingma et al., or exactly."""
    return {"fit": _fit, "exact": _exact, "cubic": _cubic}[kind](log_alpha)


def _fit(log_alpha: jax.Array) -> jax.Array:
    height, shift, slope = _FIT
    return height * jax.nn.sigmoid(-(shift + slope * log_alpha)) + jax.nn.softplus(-log_alpha) / 2


def _cubic(log_alpha: jax.Array) -> jax.Array:
    """Above alpha = 1 what it is there: the fit is for less, and would fall."""
    held = jnp.minimum(log_alpha, 0)
    alpha = jnp.exp(held)
    first, second, third = _CUBIC
    return _CUBIC_OFFSET - held / 2 - alpha * (first + alpha * (second + alpha * third))


# With m = 1 / (2 alpha): KL = E[sum_(j < k) 1 / (2 j + 1)] for a k that is Poisson of mean m, and its derivative by log alpha is
# -m E[1 / (2 k + 1)]: sums of positive numbers. For large m there is the series of E[log |1 + sqrt(alpha) e|] in alpha.


@jax.custom_jvp
def _exact(log_alpha: jax.Array) -> jax.Array:
    near = _poisson_mean(_mean(log_alpha), _HARMONICS)
    far = _OFFSET - log_alpha / 2 - _power_series(log_alpha, _MOMENTS)
    return jnp.where(log_alpha < _SMALLEST, far, near)


@jax.custom_jvp
def _steepness(log_alpha: jax.Array) -> jax.Array:
    """Returns minus the derivative of the exact divergence by log alpha."""
    mean = _mean(log_alpha)
    near = mean * _poisson_mean(mean, 1 / (2 * _TERMS + 1))
    far = 0.5 + _power_series(log_alpha, _POWERS * _MOMENTS)
    return jnp.where(log_alpha < _SMALLEST, far, near)


@_exact.defjvp
def _exact_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (log_alpha,), (moved,) = primals, tangents
    return _exact(log_alpha), -_steepness(log_alpha) * moved


@_steepness.defjvp
def _steepness_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """By the differential equation that it solves, that of Dawson's function."""
    (log_alpha,), (moved,) = primals, tangents
    value, mean = _steepness(log_alpha), _mean(log_alpha)
    near = -(mean + (1 - 2 * mean) * value) / 2
    far = _power_series(log_alpha, _POWERS**2 * _MOMENTS)
    return value, jnp.where(log_alpha < _SMALLEST, far, near) * moved


def _mean(log_alpha: jax.Array) -> jax.Array:
    """Returns `1 / (2 alpha)`, or the largest that the sum over a Poisson distribution is for."""
    return jnp.exp(-jnp.maximum(log_alpha, _SMALLEST)) / 2


def _poisson_mean(mean: jax.Array, values: np.ndarray) -> jax.Array:
    """Returns `E[values[k]]` for a k that is Poisson of this mean, by Horner's rule from the last value."""

    def add(total: jax.Array, term: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        value, inverse = term
        return total * mean * inverse + value, None

    terms = jnp.asarray(values, mean.dtype), jnp.asarray(1 / (_TERMS + 1), mean.dtype)
    total, _ = lax.scan(add, 0 * mean, terms, reverse=True)  # of the mean, which may be sharded
    return total * jnp.exp(-mean)


def _power_series(log_alpha: jax.Array, coefficients: np.ndarray) -> jax.Array:
    """Returns `sum_m coefficients[m - 1] alpha^m`, of an alpha that is small enough."""
    alpha = jnp.exp(jnp.minimum(log_alpha, _SMALLEST))
    total = 0 * alpha
    for coefficient in coefficients[::-1]:
        total = (total + float(coefficient)) * alpha
    return total
