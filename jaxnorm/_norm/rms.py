"""Norms of the root mean square: every example is divided by a length, and nothing is subtracted."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import reshard

from jaxnorm._axes import canonical_axes, is_known, other_axes, shared_sharding
from jaxnorm._batch_layer import init_affine
from jaxnorm._checks import (
    Scalar,
    check_activation,
    check_float,
    check_known_flag,
    check_like,
    check_number,
    check_scalar,
    check_sizes,
    is_concrete,
    is_known_to_be,
)
from jaxnorm._compiler import recomputed
from jaxnorm._moments import AxisName
from jaxnorm._normalize import Activation, elementwise, scaled_and_shifted, valid
from jaxnorm._sample_layer import SampleCall, checked_sample_call
from jaxnorm._types import AffineParams, wide_dtype, widened


def init_rms_norm(
    num_features: int | Sequence[int],
    *,
    use_scale: bool = True,
    use_bias: bool = False,
    scale_offset: float = 0.0,
    param_dtype: Any = jnp.float32,
) -> AffineParams:
    """Returns the parameters of a new RMS norm: `scale = 1 - scale_offset`, and no bias unless it is asked for.

    Args:
      num_features: size of the feature axis, or sizes of several in ascending order of the axes.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias, of 0.
      scale_offset: what `rms_norm` is told to add to the scale.
      param_dtype: type of scale and bias.

    Returns:
      `AffineParams(scale, bias)`, each with these sizes as its shape; a part that is not used is None.

    Raises:
      ValueError: if a size is below 1.
      TypeError: if a size is no int, or if param_dtype is none of floating point numbers.

    References:
      Zhang, Sennrich, "Root mean square layer normalization", NeurIPS 2019, https://arxiv.org/abs/1910.07467.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_rms_norm(3)
      AffineParams(scale=Array([1., 1., 1.], dtype=float32), bias=None)
    """
    params = init_affine(check_sizes("num_features", num_features), use_scale, use_bias, param_dtype)
    check_scalar("scale_offset", scale_offset, low=-np.inf)
    return params if params.scale is None else params._replace(scale=params.scale - jnp.asarray(scale_offset, param_dtype))


def rms_norm(
    params: AffineParams,
    x: jax.Array,
    *,
    epsilon: Scalar = 1e-6,
    fraction: float = 1.0,
    scale_offset: Scalar = 0.0,
    round_before_scale: bool = False,
    reduction_axes: int | Sequence[int] = -1,
    feature_axes: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Divides every example, and every position in it, by the root mean square of its features.

    Training and inference: `y = (scale_offset + scale) x / sqrt(mean_square + epsilon) + bias`, where
    `mean_square = sum(|x|^2) / n` is that over the reduction axes, or over their first `fraction` (pRMSNorm).

    It is computed in float32 or wider, and y alone is rounded, but with `round_before_scale`. No example depends on another. For
    the gradient nothing is kept but x and numbers of the statistics' size.

    Args:
      params: `AffineParams(scale, bias)`, each with the sizes of the feature axes as its shape, or None.
      x: array of real or complex numbers, `[..., C]`.
      epsilon: added to the mean square, at least 0; a number or a traced scalar. PyTorch's is the smallest step of x's type at 1.
      fraction: of the features, the first of which are squared: above 0 and at most 1, of one reduction axis; at least one is.
      scale_offset: added to the scale, without a gradient; a number or a traced scalar. 1 for scales that are kept as their
        difference from 1, as Gemma and Qwen3-Next keep them.
      round_before_scale: whether what is normalized, and the scale, are rounded to `dtype` before they are multiplied, as in T5
        and Llama, whose outputs of half precision differ by that.
      reduction_axes: the axis, or axes, over which the mean square is taken.
      feature_axes: the axis, or axes, along which scale and bias vary; their sizes in ascending order of the axes are the shape
        of the parameters.
      where: bool array of x's rank that broadcasts to x: the elements that count in the mean square. The others are divided by
        its root; a NaN or an infinity there gives the bias, has gradient 0 and reaches nothing else. Where nothing counts at
        all, y is the bias and the gradient 0.
      axis_name: name or names of mapped axes (of `jax.shard_map` or `jax.vmap`) over which the features are divided: the mean
        square is pooled over them, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if a part of params has another shape than the features of x; if epsilon or fraction is out of range; if a
        fraction below 1 meets several reduction axes, or an axis_name; if an axis is out of range or named twice; if where has
        another rank than x or does not broadcast to it; if axis_name is not bound where the function is called, or
        axis_index_groups does not fit it.
      TypeError: if x holds integers or bools; if where does not hold bools; if fraction is traced; if round_before_scale is no
        bool, or traced; if dtype is none of floating point numbers, or real for a complex x.

    References:
      Zhang, Sennrich, "Root mean square layer normalization", NeurIPS 2019, https://arxiv.org/abs/1910.07467.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_rms_norm(4)
      >>> print(jaxnorm.rms_norm(params, jnp.array([[0.0, 0.0, 0.0, 4.0], [-3.0, 3.0, 3.0, 3.0]])).round(3))
      [[ 0.  0.  0.  2.]
       [-1.  1.  1.  1.]]
    """
    x = check_float("x", x, allow_complex=True)
    call = _checked(
        params,
        x,
        scale_offset,
        epsilon=epsilon,
        reduction_axes=reduction_axes,
        feature_axes=feature_axes,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _rms_norm(call, first=_first(fraction, call), rounded=check_known_flag("round_before_scale", round_before_scale))


def init_gated_rms_norm(
    num_features: int | Sequence[int],
    *,
    use_scale: bool = True,
    use_bias: bool = False,
    scale_offset: float = 0.0,
    param_dtype: Any = jnp.float32,
) -> AffineParams:
    """Returns the parameters of a new gated RMS norm, which are those of `init_rms_norm`.

    Args:
      num_features: size of the feature axis, or sizes of several in ascending order of the axes.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias, of 0.
      scale_offset: what `gated_rms_norm` is told to add to the scale.
      param_dtype: type of scale and bias.

    Returns:
      `AffineParams(scale, bias)`, as `init_rms_norm`.

    Raises:
      ValueError: as `init_rms_norm`.
      TypeError: as `init_rms_norm`.

    References:
      Dao, Gu, "Transformers are SSMs: generalized models and efficient algorithms through structured state space duality", ICML
      2024, https://arxiv.org/abs/2405.21060.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_gated_rms_norm(2)
      AffineParams(scale=Array([1., 1.], dtype=float32), bias=None)
    """
    return init_rms_norm(num_features, use_scale=use_scale, use_bias=use_bias, scale_offset=scale_offset, param_dtype=param_dtype)


def gated_rms_norm(
    params: AffineParams,
    x: jax.Array,
    gate: jax.Array,
    *,
    gate_first: bool = False,
    activation: Activation = jax.nn.silu,
    epsilon: Scalar = 1e-6,
    scale_offset: Scalar = 0.0,
    reduction_axes: int | Sequence[int] = -1,
    feature_axes: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Divides every example by the root mean square of its features, and multiplies by the silu of a gate, after it or before.

    Training and inference: `y = rms_norm(params, x) silu(gate)`; with `gate_first` it is `y = rms_norm(params, x silu(gate))`.

    All of it is computed in float32 or wider, and y alone is rounded. For the gradient nothing is kept but x, the gate, and
    numbers of the statistics' size: neither what is normalized nor what is gated. Where a mean square is that of a group of the
    features, as in Mamba-2 on several devices, give the groups an axis of their own.

    Args:
      params: `AffineParams(scale, bias)`, as of `rms_norm`.
      x: array of real numbers, `[..., C]`.
      gate: array of x's shape.
      gate_first: whether x is gated before the norm, as in Mamba-2; after it, as in Qwen3-Next.
      activation: function of single elements that makes a factor of the gate; `jax.nn.sigmoid` in Kimi Linear.
      epsilon: added to the mean square, at least 0; a number or a traced scalar.
      scale_offset: added to the scale, as in `rms_norm`.
      reduction_axes: the axis, or axes, over which the mean square is taken.
      feature_axes: the axis, or axes, along which scale and bias vary.
      where: bool array of x's rank that broadcasts to x: the elements that count in the mean square, as in `rms_norm`. What is
        not finite elsewhere, in x or the gate, reaches nothing else.
      axis_name: name or names of mapped axes over which the features are divided, as in `rms_norm`.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if gate has another shape than x, or activation gives one; else as `rms_norm`.
      TypeError: if x or gate does not hold real floating point numbers; if gate_first is no bool, or traced; if activation is no
        function, or gives another dtype than it gets; else as `rms_norm`.

    References:
      Dao, Gu, "Transformers are SSMs: generalized models and efficient algorithms through structured state space duality", ICML
      2024, https://arxiv.org/abs/2405.21060.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_gated_rms_norm(4)
      >>> x, gate = jnp.array([[3.0, 3.0, -3.0, 3.0]]), jnp.array([[0.0, 0.0, 0.0, 30.0]])
      >>> print(jaxnorm.gated_rms_norm(params, x, gate, epsilon=0.0))
      [[ 0.  0. -0. 30.]]
      >>> print(jaxnorm.gated_rms_norm(params, x, gate, epsilon=0.0, gate_first=True))
      [[ 0.  0. -0.  2.]]
    """
    x = check_float("x", x)
    gate = check_like("gate", gate, x)
    check_activation(activation, x, optional=False)
    gate_first = check_known_flag("gate_first", gate_first)
    call = _checked(
        params,
        x,
        scale_offset,
        epsilon=epsilon,
        reduction_axes=reduction_axes,
        feature_axes=feature_axes,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _gated_rms_norm(call, gate, gate_first=gate_first, activation=activation)


def _checked(
    params: AffineParams, x: jax.Array, scale_offset: Scalar, *, reduction_axes: Any, feature_axes: Any, **options: Any
) -> SampleCall:
    call = checked_sample_call(
        params,
        x,
        reduced=canonical_axes("reduction_axes", reduction_axes, x.ndim),
        features=canonical_axes("feature_axes", feature_axes, x.ndim),
        **options,
    )
    check_scalar("scale_offset", scale_offset, low=-np.inf)
    scale = params.scale
    if scale is None or is_known_to_be(0, scale_offset):
        return call
    wide = widened(scale)  # beside 1, a scale of half precision would lose its digits
    return dataclasses.replace(
        call, params=params._replace(scale=wide + lax.stop_gradient(jnp.asarray(scale_offset, wide.dtype)))
    )


def _first(fraction: float, call: SampleCall) -> int | None:
    """Returns how many features are squared, None for all."""
    if not is_concrete(fraction):
        raise TypeError("fraction must be known when the function is traced, got a traced number")
    check_number("fraction", fraction, low=0, high=1)
    if is_known_to_be(0, fraction):
        raise ValueError(f"fraction must be above 0, got {fraction}")
    if is_known_to_be(1, fraction):
        return None
    sizes = [call.x.shape[a] for a in call.reduced]
    if len(sizes) != 1 or not is_known(sizes[0]) or call.axis_name is not None:
        raise ValueError(f"fraction must be 1 for several reduction_axes, of unknown size, or with axis_name, got {fraction}")
    return max(1, int(float(fraction) * sizes[0]))


@functools.partial(jax.jit, static_argnames=("first", "rounded"))
def _rms_norm(call: SampleCall, *, first: int | None, rounded: bool) -> jax.Array:
    def normalized(call: SampleCall) -> jax.Array:
        wide = widened(call.x)
        squared = call if first is None else dataclasses.replace(call, where=_among_first(first, call))
        return call.normalize(wide, None, *squared.mean_square(wide))

    @recomputed
    def scaled_after(call: SampleCall) -> jax.Array:
        y = normalized(dataclasses.replace(call, params=AffineParams(None, None)))
        scale, bias = (None if a is None else a.astype(call.dtype) for a in call.params)
        return elementwise(scaled_and_shifted, y, ((scale, call.features), (bias, call.features)), dtype=call.dtype)

    with jax.named_scope("jaxnorm.rms_norm"):
        return scaled_after(call) if rounded else normalized(call)


def _among_first(first: int, call: SampleCall) -> jax.Array:
    """Returns where x counts and is one of the first features."""
    (axis,) = call.reduced
    others = other_axes((axis,), call.x.ndim)
    among = jnp.expand_dims(jnp.arange(call.x.shape[axis]) < first, others)
    sharding = shared_sharding(call.x, others)
    among = among if sharding is None else reshard(among, sharding)
    return among if call.where is None else among & call.where


@functools.partial(jax.jit, static_argnames=("gate_first", "activation"))
def _gated_rms_norm(call: SampleCall, gate: jax.Array, *, gate_first: bool, activation: Activation) -> jax.Array:
    def normalized(call: SampleCall, wide: jax.Array) -> jax.Array:
        return call.normalize(wide, None, *call.mean_square(wide))

    @recomputed
    def before(call: SampleCall, gate: jax.Array) -> jax.Array:
        x, factor = (widened(valid(a, call.where, a)) for a in (call.x, gate))
        gated = x * activation(factor).astype(x.dtype)
        return normalized(dataclasses.replace(call, x=gated), gated)

    @recomputed
    def after(call: SampleCall, gate: jax.Array) -> jax.Array:
        y = normalized(dataclasses.replace(call, dtype=wide_dtype(call.x.dtype)), widened(call.x))
        return (y * activation(widened(valid(gate, call.where, gate))).astype(y.dtype)).astype(call.dtype)

    with jax.named_scope("jaxnorm.gated_rms_norm"):
        return before(call, gate) if gate_first else after(call, gate)
