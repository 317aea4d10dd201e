"""Batch norm in inference as one affine map of each channel, and the parameters by which it is the identity."""

import jax
import jax.numpy as jnp

from jaxnorm._checks import Scalar, check_finite, check_float, check_scalar, check_shape, check_type
from jaxnorm._normalize import inverse_deviation
from jaxnorm._types import AffineParams, RunningStats, real_dtype, wide_dtype, widest_dtype


def as_affine(params: AffineParams, state: RunningStats, *, epsilon: Scalar = 1e-5) -> tuple[jax.Array, jax.Array]:
    """Returns what batch norm does in inference to each channel: `y = factor x + offset`.

    `factor = scale / sqrt(var + epsilon)` and `offset = bias - mean factor`.

    Where a channel's mean is large against its deviation, `factor x` and the offset cancel, which `batch_norm` avoids by
    subtracting the mean first: a mean of 1e4 deviations costs 4 of float32's 7 digits, in a folded layer too.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RunningStats(mean, var)`, each of shape `[C]`.
      epsilon: that of the layer, added to the variance; a number or a traced scalar.

    Returns:
      factor and offset, `[C]` each, in float32 or wider, whatever the parameters are kept in.

    Raises:
      ValueError: if a part of params or state has another shape than the mean; if one of them is not finite, a variance is
        below 0, or `var + epsilon` is 0.
      TypeError: if params or state are no such containers, or hold no floating point numbers.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, section 3.1, https://arxiv.org/abs/1502.03167.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm import AffineParams, RunningStats
      >>> from jaxnorm.folding import as_affine
      >>> params = AffineParams(scale=jnp.array([6.0]), bias=jnp.array([1.0]))
      >>> factor, offset = as_affine(params, RunningStats(mean=jnp.array([10.0]), var=jnp.array([4.0])), epsilon=0.0)
      >>> print(factor, offset)
      [3.] [-29.]
    """
    check_type("params", params, AffineParams)
    mean, var = _checked_state(state, epsilon)
    parts = []
    for name, part in params._asdict().items():
        if part is not None:
            part = check_float(f"params.{name}", part, allow_complex=True)
            check_shape(f"params.{name}", part, mean.shape, "that of the mean")
            check_finite(f"params.{name}", part)
        parts.append(part)
    scale, bias = parts
    wide = widest_dtype(mean, var, scale, bias)
    inverse = inverse_deviation(var.astype(real_dtype(wide)), epsilon)
    check_finite("1 / sqrt(state.var + epsilon)", inverse)
    factor = inverse.astype(wide) if scale is None else inverse.astype(wide) * scale.astype(wide)
    offset = -mean.astype(wide) * factor
    return factor, offset if bias is None else offset + bias.astype(wide)


def identity_batch_norm(state: RunningStats, *, epsilon: Scalar = 1e-5) -> AffineParams:
    """Returns the parameters by which batch norm with these statistics is the identity in inference.

    `scale = sqrt(var + epsilon)` and `bias = mean`: a norm that is put into a trained network leaves it as it was, and learns
    from there.

    Args:
      state: `RunningStats(mean, var)`, each of shape `[C]`: the statistics of what the norm will get.
      epsilon: that of the layer, added to the variance; a number or a traced scalar.

    Returns:
      `AffineParams(scale, bias)` of shape `[C]`, in the types of the variance and the mean.

    Raises:
      ValueError: if mean and var differ in shape, one of them is not finite, or a variance is below 0.
      TypeError: if state is no such container, or holds no floating point numbers.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.folding import identity_batch_norm
      >>> state = jaxnorm.RunningStats(mean=jnp.array([10.0]), var=jnp.array([4.0]))
      >>> params = identity_batch_norm(state)
      >>> y, _ = jaxnorm.batch_norm(params, state, jnp.array([[7.0], [8.0]]), train=False)
      >>> print(y.T)
      [[7. 8.]]
    """
    mean, var = _checked_state(state, epsilon)
    return AffineParams(scale=jnp.sqrt(var + jnp.asarray(epsilon, var.dtype)), bias=mean)


def _checked_state(state: RunningStats, epsilon: Scalar) -> tuple[jax.Array, jax.Array]:
    check_type("state", state, RunningStats)
    check_scalar("epsilon", epsilon, low=0)
    mean = check_float("state.mean", state.mean, allow_complex=True)
    var = check_float("state.var", state.var)
    check_shape("state.var", var, mean.shape, "that of the mean")
    check_finite("state.mean", mean)
    check_finite("state.var", var, low=0)
    return mean.astype(wide_dtype(mean.dtype)), var.astype(wide_dtype(var.dtype))
