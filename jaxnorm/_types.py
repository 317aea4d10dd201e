"""The containers that layers pass around, and the types that numbers are computed in."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export


class AffineParams(NamedTuple):
    """Scale and bias of a normalization layer, `[C]` each; a part that is not used is None."""

    scale: jax.Array | None
    bias: jax.Array | None


class FilterResponseParams(NamedTuple):
    """Scale, bias and threshold of filter response normalization, `[C]` each, and a learned epsilon, `[]`; or None."""

    scale: jax.Array | None
    bias: jax.Array | None
    threshold: jax.Array | None = None
    epsilon: jax.Array | None = None


class DynamicTanhParams(NamedTuple):
    """Scale and bias of a dynamic tanh, `[C]` each or None, and the factor alpha of x, `[]`."""

    scale: jax.Array | None
    bias: jax.Array | None
    alpha: jax.Array


class EvoNormParams(NamedTuple):
    """Scale and bias, `[C]` each or None, and the factor v of x in its own normalization or activation, `[C]`."""

    scale: jax.Array | None
    bias: jax.Array | None
    v: jax.Array


class GatedParams(NamedTuple):
    """Scale and bias, `[C]` each or None, and the gate between two norms, `[C]`, from 0 to 1."""

    scale: jax.Array | None
    bias: jax.Array | None
    gate: jax.Array


class SwitchableParams(NamedTuple):
    """Scale and bias, `[C]` each or None, and what weighs three norms, `[3]` for their means and for their variances."""

    scale: jax.Array | None
    bias: jax.Array | None
    mean_logits: jax.Array
    var_logits: jax.Array


class WeightNormParams(NamedTuple):
    """Direction of a kernel, `[..., F]`, and the lengths for its outputs, `[F]`, or None for lengths of 1."""

    direction: jax.Array
    gain: jax.Array | None


class NoisyLinearParams(NamedTuple):
    """Means of a kernel, `[C, F]`, and a bias, `[F]`, and the standard deviations of their noise; a bias may be None."""

    kernel: jax.Array
    bias: jax.Array | None
    kernel_std: jax.Array
    bias_std: jax.Array | None


class VariationalDropoutParams(NamedTuple):
    """Logarithm of the variance alpha of the noise, `[C]`, or `[]` for one of all features."""

    log_alpha: jax.Array


class VariationalDenseParams(NamedTuple):
    """Means of a kernel, `[C, F]`, a bias, `[F]` or None, and the logarithm of alpha, `[C, F]` (1 where shared) or `[]`."""

    kernel: jax.Array
    bias: jax.Array | None
    log_alpha: jax.Array


class SparseVariationalDenseParams(NamedTuple):
    """Means of a kernel, `[C, F]`, a bias, `[F]` or None, and the logarithm of the weights' variances, `[C, F]`."""

    kernel: jax.Array
    bias: jax.Array | None
    log_var: jax.Array


class ConcreteDropoutParams(NamedTuple):
    """Logit of the rate, `log(rate / (1 - rate))`, `[]`."""

    logit: jax.Array


class StandoutParams(NamedTuple):
    """Factor and offset of the preactivation, `[]` each, in the logit of the probability to keep."""

    alpha: jax.Array
    beta: jax.Array


class RunningStats(NamedTuple):
    """Running mean and variance of a normalization layer, `[C]` each, in float32 or wider."""

    mean: jax.Array
    var: jax.Array


class RenormStats(NamedTuple):
    """Running mean and standard deviation of batch renormalization, `[C]` each, in float32 or wider."""

    mean: jax.Array
    std: jax.Array


class CovarianceStats(NamedTuple):
    """Running mean `[C]` and covariances `[C / g, g, g]` of groups of g channels, in float32 or wider."""

    mean: jax.Array
    cov: jax.Array


class Moments(NamedTuple):
    """Mean, biased variance, and the number of elements they are of, for all positions that are not reduced, as `[C]`."""

    mean: jax.Array
    var: jax.Array
    n: jax.Array


class RunningMean(NamedTuple):
    """Running mean of a normalization layer, `[C]`, in float32 or wider."""

    mean: jax.Array


class RunningVar(NamedTuple):
    """Running variance of a normalization layer, `[C]`, in float32 or wider."""

    var: jax.Array


class LpStats(NamedTuple):
    """Running mean and running l_p deviation of a normalization layer, `[C]` each, in float32 or wider."""

    mean: jax.Array
    scale: jax.Array


class SpectralStats(NamedTuple):
    """Direction of a kernel's outputs, `[F]`, and largest singular value, `[]`, as the power iteration last found them."""

    u: jax.Array
    sigma: jax.Array


_PARAMS = (
    AffineParams,
    ConcreteDropoutParams,
    DynamicTanhParams,
    EvoNormParams,
    FilterResponseParams,
    GatedParams,
    NoisyLinearParams,
    SparseVariationalDenseParams,
    StandoutParams,
    SwitchableParams,
    VariationalDenseParams,
    VariationalDropoutParams,
    WeightNormParams,
)
_STATES = (CovarianceStats, LpStats, Moments, RenormStats, RunningMean, RunningStats, RunningVar, SpectralStats)

for _container in (*_PARAMS, *_STATES):
    # Exported programs that take or give these are written to files and read back.
    export.register_namedtuple_serialization(_container, serialized_name=f"jaxnorm.{_container.__name__}")


def wide_dtype(dtype: Any) -> np.dtype:
    """Returns the type that values of this type are computed in: float32 or wider, complex for complex."""
    if jnp.issubdtype(dtype, jnp.complexfloating) or dtype == jnp.float64:
        return np.dtype(dtype)
    return np.dtype(np.float32)


def widest_dtype(*arrays: jax.Array | None) -> np.dtype:
    """Returns the type that arrays are computed with in where they meet; None counts for nothing."""
    return functools.reduce(np.promote_types, (wide_dtype(array.dtype) for array in arrays if array is not None))


def widened(x: jax.Array) -> jax.Array:
    """Returns x in the type that it is computed in.

    A layer with statistics takes it once, for the derivatives of all that it makes of x: these then are summed in this type, and
    the gradient is rounded once. For its value x itself is read, which is what is kept.
    """
    return x.astype(wide_dtype(x.dtype))


def real_dtype(dtype: Any) -> np.dtype:
    """Returns the type of the real part of a number of this type."""
    return np.dtype(jnp.finfo(dtype).dtype)
