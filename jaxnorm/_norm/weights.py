"""Norms of the weights: what a layer multiplies by is normalized, and not what it is given.

Each maps a kernel to the kernel that the layer takes: the parameters themselves are never overwritten.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnorm._axes import canonical_axes, check_one_axis, explicit_sharding, match_sharding, other_axes
from jaxnorm._checks import (
    Scalar,
    check_flag,
    check_float,
    check_key,
    check_output_dtype,
    check_scalar,
    check_shape,
    check_size,
    check_stats_dtype,
    check_type,
)
from jaxnorm._moments import mean_square, moments
from jaxnorm._normalize import inverse_deviation, inverse_length, rescale
from jaxnorm._types import SpectralStats, WeightNormParams, widened


def init_weight_norm(kernel: jax.Array, *, channel_axis: int | Sequence[int] = -1) -> WeightNormParams:
    """Returns the parameters of a weight norm that gives this kernel: itself as the direction, and its lengths as the gain.

    `direction = kernel`, `gain = sqrt(sum(kernel^2))`, where the sum is over all that belongs to an output.

    Args:
      kernel: array of floating point numbers, `[..., F]` or with the outputs on `channel_axis`.
      channel_axis: the axis of the outputs, or several axes, or none as `()`.

    Returns:
      `WeightNormParams(direction, gain)`, of the kernel's shape and of `[F]`, in the kernel's type.

    Raises:
      ValueError: if channel_axis is out of range, names an axis twice, or leaves none to take lengths over.
      TypeError: if kernel does not hold floating point numbers.

    References:
      Salimans, Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural networks", NIPS
      2016, https://arxiv.org/abs/1602.07868.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> jaxnorm.init_weight_norm(jnp.array([[3.0, 0.0], [4.0, 2.0]])).gain
      Array([5., 2.], dtype=float32)
    """
    kernel, reduced = _checked_kernel(kernel, channel_axis)
    return WeightNormParams(kernel, jnp.sqrt(_sum_of_squares(kernel, reduced)).astype(kernel.dtype))


def init_weight_norm_from_data(
    kernel: jax.Array, preactivation: jax.Array, *, channel_axis: int | Sequence[int] = -1, epsilon: Scalar = 1e-10
) -> tuple[WeightNormParams, jax.Array]:
    """Returns the parameters of a weight norm, and a bias, with which a layer's outputs have mean 0 and variance 1 in a batch.

    `gain = |kernel| / std`, `bias = -mean / std`, with the mean and `std = sqrt(var + epsilon)` of each output in the batch.

    Args:
      kernel: array of floating point numbers, `[..., F]` or with the outputs on `channel_axis`.
      preactivation: what the layer gives for a batch with this kernel and without a bias, `[..., F]`.
      channel_axis: the axis of the outputs in the kernel, or several axes, which are the last ones of the preactivation.
      epsilon: added to the variance, at least 0.

    Returns:
      `WeightNormParams(direction, gain)`, of the kernel's shape and of `[F]`, and the bias, `[F]`, in the kernel's type.

    Raises:
      ValueError: if the last sizes of the preactivation are not those of the outputs; else as `init_weight_norm`.
      TypeError: if kernel or preactivation does not hold floating point numbers.

    References:
      Salimans, Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural networks", NIPS
      2016, section 3, https://arxiv.org/abs/1602.07868.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> kernel, x = jnp.array([[2.0]]), jnp.array([[1.0], [3.0]])
      >>> params, bias = jaxnorm.init_weight_norm_from_data(kernel, x @ kernel)
      >>> print((x @ jaxnorm.weight_norm(params) + bias).T)
      [[-1.  1.]]
    """
    params = init_weight_norm(kernel, channel_axis=channel_axis)
    preactivation = check_float("preactivation", preactivation)
    check_scalar("epsilon", epsilon, low=0)
    outputs = params.gain.shape if params.gain is not None else ()
    if preactivation.shape[preactivation.ndim - len(outputs) :] != outputs or preactivation.ndim < len(outputs):
        raise ValueError(f"preactivation must have shape [..., {list(outputs)}], got {list(preactivation.shape)}")
    batch = moments(preactivation, tuple(range(preactivation.ndim - len(outputs))))
    inverse = inverse_deviation(batch.var, epsilon)
    gain = (widened(jnp.asarray(params.gain)) * inverse).astype(params.direction.dtype)
    return params._replace(gain=gain), (-batch.mean * inverse).astype(params.direction.dtype)


def weight_norm(
    params: WeightNormParams, *, channel_axis: int | Sequence[int] = -1, epsilon: Scalar = 1e-12, dtype: Any = None
) -> jax.Array:
    """Returns the kernel of a direction and a length for each output, which are learned apart.

    Training and inference: `kernel = gain direction / sqrt(sum(direction^2) + epsilon)`, where the sum is over all that belongs
    to an output.

    It is computed in float32 or wider. For the gradient the direction is kept, and numbers of the gain's size; the gradient of
    the direction is orthogonal to it.

    Args:
      params: `WeightNormParams(direction, gain)`: `[..., F]`, and `[F]` or None for lengths of 1.
      channel_axis: the axis of the outputs; or several axes, whose sizes in ascending order are the shape of the gain, or none as
        `()`, for one length of all.
      epsilon: added to the square of the length, at least 0; a number or a traced scalar.
      dtype: type of the kernel, to which it is rounded once; None for that of the direction.

    Returns:
      The kernel, of the direction's shape.

    Raises:
      ValueError: if the gain has another shape than the outputs; if channel_axis is out of range, names an axis twice, or leaves
        none to take lengths over; if epsilon is out of range.
      TypeError: if params are no WeightNormParams; if they do not hold real floating point numbers; if dtype is none of these.

    References:
      Salimans, Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural networks", NIPS
      2016, https://arxiv.org/abs/1602.07868.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.WeightNormParams(direction=jnp.array([[3.0, 0.0], [4.0, 2.0]]), gain=jnp.array([10.0, 1.0]))
      >>> print(jaxnorm.weight_norm(params))
      [[6. 0.]
       [8. 1.]]
    """
    check_type("params", params, WeightNormParams)
    direction, reduced = _checked_kernel(params.direction, channel_axis, "params.direction")
    check_scalar("epsilon", epsilon, low=0)
    shape = tuple(direction.shape[a] for a in other_axes(reduced, direction.ndim))
    if params.gain is not None:
        check_shape("params.gain", check_float("params.gain", params.gain), shape, "the outputs of the kernel")
    return _weight_norm(
        params._replace(direction=direction), epsilon, reduced=reduced, dtype=check_output_dtype(dtype, direction)
    )


def weight_standardization(
    kernel: jax.Array,
    *,
    gain: jax.Array | None = None,
    scaled: bool = False,
    channel_axis: int | Sequence[int] = -1,
    epsilon: Scalar = 1e-6,
    dtype: Any = None,
) -> jax.Array:
    """Returns the kernel whose weights have mean 0 and variance 1 for each output.

    Training and inference: `y = gain (kernel - mean) / sqrt(var + epsilon)`, where mean and `var = sum((kernel - mean)^2) / n`
    are those of the n weights that belong to an output; if scaled, divided by `sqrt(n)` too, as in networks without a normalizer.

    They are exact for means far from zero, and computed in float32 or wider. The kernel is kept for the gradient, and numbers of
    the outputs.

    Args:
      kernel: array of real numbers, `[..., F]` or with the outputs on `channel_axis`.
      gain: factor of each output, `[F]`, or None.
      scaled: whether the result is divided by the root of the number of weights, so that it keeps the variance of what it meets.
      channel_axis: the axis of the outputs, or several axes, or none as `()`.
      epsilon: added to the variance, at least 0; a number or a traced scalar. The paper's is 1e-5, added to the deviation.
      dtype: type of y, to which it is rounded once; None for that of the kernel.

    Returns:
      y, of the kernel's shape.

    Raises:
      ValueError: if gain has another shape than the outputs; if channel_axis is out of range, names an axis twice, or leaves none
        to take moments over; if epsilon is out of range.
      TypeError: if kernel or gain does not hold real floating point numbers; if dtype is none of these.

    References:
      Qiao, Wang, Liu, Shen, Yuille, "Micro-batch training with batch-channel normalization and weight standardization", 2019,
      https://arxiv.org/abs/1903.10520; Brock, De, Smith, "Characterizing signal propagation to close the performance gap in
      unnormalized ResNets", ICLR 2021, https://arxiv.org/abs/2101.08692.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> print(jaxnorm.weight_standardization(jnp.array([[3.0, 10.0], [5.0, 0.0]])).round())
      [[-1.  1.]
       [ 1. -1.]]
    """
    kernel, reduced = _checked_kernel(kernel, channel_axis)
    check_scalar("epsilon", epsilon, low=0)
    shape = tuple(kernel.shape[a] for a in other_axes(reduced, kernel.ndim))
    if gain is not None:
        gain = check_float("gain", gain)
        check_shape("gain", gain, shape, "the outputs of the kernel")
    dtype = check_output_dtype(dtype, kernel)
    return _weight_standardization(kernel, gain, epsilon, reduced=reduced, scaled=bool(scaled), dtype=dtype)


def init_spectral_norm(key: jax.Array, num_features: int, *, dtype: Any = jnp.float32) -> SpectralStats:
    """Returns the state of a new spectral norm: a random direction, `u ~ N(0, 1)`, and `sigma = 1`.

    Args:
      key: the key of the direction.
      num_features: number of outputs of the kernel, F.
      dtype: type of the state: float32 or float64.

    Returns:
      `SpectralStats(u, sigma)`, of shapes `[F]` and `[]`.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if key is none; if num_features is no int; if dtype is not float32 or wider.

    References:
      Miyato, Kataoka, Koyama, Yoshida, "Spectral normalization for generative adversarial networks", ICLR 2018,
      https://arxiv.org/abs/1802.05957.

    Example:
      >>> import jax, jaxnorm
      >>> jaxnorm.init_spectral_norm(jax.random.key(0), 3).sigma
      Array(1., dtype=float32)
    """
    shape, dtype = (check_size("num_features", num_features),), check_stats_dtype("dtype", dtype, like=jnp.float32)
    return SpectralStats(jax.random.normal(check_key(key), shape, dtype), jnp.ones((), dtype))


def spectral_norm(
    state: SpectralStats,
    kernel: jax.Array,
    *,
    train: bool | jax.Array,
    steps: int = 1,
    epsilon: Scalar = 1e-12,
    channel_axis: int = -1,
    dtype: Any = None,
) -> tuple[jax.Array, SpectralStats]:
    """Returns the kernel divided by its largest singular value, as steps of the power iteration find it.

    Training: `y = kernel / sigma`, where in each step `v = kernel u / |kernel u|` and `u = kernel^T v / |kernel^T v|`, and
    `sigma = v^T kernel u`; the state is the last u and sigma. Inference: the same y, from the state's u; the state stays as it
    is.

    The kernel is taken for a matrix of its outputs and all else. No gradient flows through u and v, which is the gradient of the
    singular value once they have converged, as they do over the steps of training. A kernel that is 0, or not finite, changes
    nothing of the state; one that is 0 is given back. It is computed in float32 or wider.

    Args:
      state: `SpectralStats(u, sigma)`, of shapes `[F]` and `[]`, in float32 or wider.
      kernel: array of real numbers, `[..., F]` or with the outputs on `channel_axis`.
      train: whether the new u is kept; a bool or a traced bool.
      steps: steps of the power iteration, at least 1.
      epsilon: added to the squares of the lengths of u and v, at least 0; a number or a traced scalar.
      channel_axis: the axis of the outputs.
      dtype: type of y, to which it is rounded once; None for that of the kernel.

    Returns:
      y, of the kernel's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if u has another shape than the outputs of the kernel; if steps is below 1; if epsilon is out of range; if
        channel_axis is out of range, names several axes, or leaves none besides.
      TypeError: if train is left out; if the state is no SpectralStats, or narrower than float32; if kernel does not hold real
        floating point numbers; if steps is no int; if dtype is none of real floating point numbers.

    References:
      Miyato, Kataoka, Koyama, Yoshida, "Spectral normalization for generative adversarial networks", ICLR 2018,
      https://arxiv.org/abs/1802.05957.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> state = jaxnorm.init_spectral_norm(jax.random.key(0), 2)
      >>> kernel = jnp.array([[4.0, 0.0], [0.0, 1.0]])
      >>> y, state = jaxnorm.spectral_norm(state, kernel, train=True, steps=20)
      >>> print(y)
      [[1.   0.  ]
       [0.   0.25]]
    """
    kernel, reduced = _checked_kernel(kernel, channel_axis)
    channels = other_axes(reduced, kernel.ndim)
    check_one_axis("channel_axis", channels, channel_axis)
    check_scalar("epsilon", epsilon, low=0)
    check_type("state", state, SpectralStats)
    for name, part, shape in (("u", state.u, (kernel.shape[channels[0]],)), ("sigma", state.sigma, ())):
        check_stats_dtype(f"state.{name}", check_float(f"state.{name}", part).dtype, like=jnp.float32)
        check_shape(f"state.{name}", part, shape, "the outputs of the kernel" if shape else "a number")
    return _spectral_norm(
        state,
        kernel,
        check_flag("train", train),
        epsilon,
        steps=check_size("steps", steps),
        channel=channels[0],
        dtype=check_output_dtype(dtype, kernel),
    )


def _checked_kernel(kernel: Any, channel_axis: int | Sequence[int], name: str = "kernel") -> tuple[jax.Array, tuple[int, ...]]:
    """Returns the kernel as an array, and the axes of what belongs to an output."""
    kernel = check_float(name, kernel)
    reduced = other_axes(canonical_axes("channel_axis", channel_axis, kernel.ndim), kernel.ndim)
    if not reduced:
        raise ValueError(f"channel_axis must leave an axis of {name} to norm over, got {channel_axis!r} for rank {kernel.ndim}")
    return kernel, reduced


def _sum_of_squares(kernel: jax.Array, reduced: tuple[int, ...]) -> jax.Array:
    square, n = mean_square(kernel, reduced, wide=widened(kernel))
    return square * n


@functools.partial(jax.jit, static_argnames=("reduced", "dtype"))
def _weight_norm(params: WeightNormParams, epsilon: Scalar, *, reduced: tuple[int, ...], dtype: Any) -> jax.Array:
    with jax.named_scope("jaxnorm.weight_norm"):
        wide = widened(params.direction)
        square, n = mean_square(params.direction, reduced, wide=wide)
        inverse = inverse_deviation(square * n, epsilon)
        return rescale(params.direction, None, inverse, params.gain, None, axes=reduced, wide=wide, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("reduced", "scaled", "dtype"))
def _weight_standardization(
    kernel: jax.Array, gain: jax.Array | None, epsilon: Scalar, *, reduced: tuple[int, ...], scaled: bool, dtype: Any
) -> jax.Array:
    with jax.named_scope("jaxnorm.weight_standardization"):
        wide = widened(kernel)
        mean, var, n = moments(kernel, reduced, wide=wide)
        inverse = inverse_deviation(var, epsilon)
        inverse = inverse * inverse_deviation(n, 0.0) if scaled else inverse
        return rescale(kernel, mean, inverse, gain, None, axes=reduced, wide=wide, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("steps", "channel", "dtype"))
def _spectral_norm(
    state: SpectralStats, kernel: jax.Array, train: Any, epsilon: Scalar, *, steps: int, channel: int, dtype: Any
) -> tuple[jax.Array, SpectralStats]:
    wide = widened(kernel)
    others = other_axes((channel,), kernel.ndim)

    def product(a: jax.Array, along: tuple[int, ...]) -> jax.Array:
        """Returns the kernel times a vector of its outputs, or of all else."""
        left = other_axes(along, kernel.ndim)
        sharding = explicit_sharding(kernel)
        if sharding is not None:
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*(sharding.spec[axis] for axis in left)))
        dimensions = ((along, tuple(range(len(along)))), ((), ()))
        return lax.dot_general(wide, a, dimensions, precision=lax.Precision.HIGHEST, out_sharding=sharding)

    def unit(a: jax.Array) -> jax.Array:
        largest = jnp.max(jnp.abs(a), initial=0.0)
        largest = jnp.where(largest > 0, largest, 1)  # so that no square is too large or too small
        a = a / largest
        return a * inverse_length(jnp.sum(lax.square(a)) + lax.square(jnp.sqrt(jnp.asarray(epsilon, a.dtype)) / largest), 0.0)

    def iterated(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        v = unit(product(u, (channel,)))
        return lax.stop_gradient(v), lax.stop_gradient(unit(product(v, others)))

    with jax.named_scope("jaxnorm.spectral_norm"):
        v, u = iterated(state.u.astype(wide.dtype))
        for _ in range(steps - 1):
            v, u = iterated(u)
        sigma = jnp.sum(product(u, (channel,)) * v)
        inverse = 1 / jnp.where(sigma != 0, sigma, 1)
        y = rescale(kernel, None, inverse, None, None, axes=tuple(range(kernel.ndim)), wide=wide, dtype=dtype)
        trusted = jnp.isfinite(sigma) & (sigma > 0) & jnp.asarray(train)

        def kept(old: jax.Array, new: jax.Array) -> jax.Array:
            new = match_sharding(lax.stop_gradient(new).astype(old.dtype), old)
            return jnp.where(trusted, new, old)

        return y, jax.tree.map(kept, state, SpectralStats(u, sigma))
