"""Noisy batch normalization: batch norm whose output is shifted and scaled anew in every step, an instrument of analysis."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import noise_shape, other_axes
from jaxnorm._batch_layer import BatchCall, checked_call, init_batch_layer
from jaxnorm._checks import NOISE_BITS, Scalar, check_bits, check_key, check_scalar
from jaxnorm._moments import AxisName, to_average
from jaxnorm._noise import gaussian, multiply_noise, uniform, used_key
from jaxnorm._types import AffineParams, RunningStats, widened


def init_noisy_batch_norm(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[AffineParams, RunningStats]:
    """Returns the parameters and the running statistics of a new noisy batch norm, which are those of a batch norm.

    `scale = 1`, `bias = 0`, `mean = 0`, `var = 1`: before the first update, inference is the identity but for epsilon.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.
      dtype: type of the running statistics: float32 or float64.

    Returns:
      `AffineParams(scale, bias)` and `RunningStats(mean, var)`, all of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Santurkar, Tsipras, Ilyas, Madry, "How does batch normalization help optimization?", NeurIPS 2018,
      https://arxiv.org/abs/1805.11604.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_noisy_batch_norm(2)
      >>> state.var
      Array([1., 1.], dtype=float32)
    """
    params, mean, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return params, RunningStats(mean=mean, var=ones)


def noisy_batch_norm(
    key: jax.Array,
    params: AffineParams,
    state: RunningStats,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    mean_bound: Scalar = 0.5,
    std_bound: Scalar = 1.25,
    spread: Scalar = 0.1,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    bits: int = 16,
    dtype: Any = None,
) -> tuple[jax.Array, RunningStats]:
    """Normalizes as batch norm does, and spoils the result: every channel gets a mean and a deviation at random in every step.

    Training: `y = s (scale (x - mean) / sqrt(var + epsilon) + bias) + m`, where mean and variance are those of the channel in the
    batch, `m ~ U(c - spread, c + spread)` and `s ~ N(d, spread^2)` are drawn for every element, and `c ~ U(-mean_bound,
    mean_bound)` and `d ~ U(1, std_bound)` for every channel; and `state <- momentum state + (1 - momentum) (mean, var)`.
    Inference: batch norm, without noise; the state stays as it is.

    It shows that batch norm helps though the distributions of activations are no steadier with it. The paper does not give the
    bounds; the defaults are as they are usually cited. No gradient flows into them. The noise is drawn again for the gradient,
    and x is kept, with numbers of the channels' size. Each device of `axis_name` draws for its own part, with the key that it is
    given.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`.
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RunningStats(mean, var)`, each of shape `[C]`, in float32 or wider.
      x: array of real numbers, `[..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the statistics of the batch, and to add noise; a bool or a traced bool.
      mean_bound: the largest mean of a channel, at least 0; a number or a traced scalar.
      std_bound: the largest deviation of a channel, at least 1; a number or a traced scalar.
      spread: of single elements around these, at least 0; a number or a traced scalar.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running variance averages `var n / (n - 1)`, rather than var.
      bits: random bits of which a number is made: 16 or 32.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if mean_bound or spread is negative, or std_bound below 1; if bits is another number; else as `batch_norm`.
      TypeError: if key is no key; if x does not hold real floating point numbers; else as `batch_norm`.

    References:
      Santurkar, Tsipras, Ilyas, Madry, "How does batch normalization help optimization?", NeurIPS 2018,
      https://arxiv.org/abs/1805.11604.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_noisy_batch_norm(1)
      >>> x = jnp.linspace(-1.0, 1.0, 10_000)[:, None]
      >>> y, _ = jaxnorm.noisy_batch_norm(jax.random.key(0), params, state, x, train=True)
      >>> bool(abs(y.mean()) <= 0.51), bool(0.99 <= y.std() <= 1.26)
      (True, True)
    """
    call = checked_call(
        params,
        state,
        x,
        kind=RunningStats,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    bounds = (
        check_scalar("mean_bound", mean_bound, low=0),
        check_scalar("std_bound", std_bound, low=1),
        check_scalar("spread", spread, low=0),
    )
    return _noisy_batch_norm(check_key(key), call, bounds, unbiased=bool(unbiased), bits=check_bits(bits, NOISE_BITS))


@functools.partial(jax.jit, static_argnames=("unbiased", "bits"))
def _noisy_batch_norm(
    key: jax.Array, call: BatchCall, bounds: tuple[Scalar, ...], *, unbiased: bool, bits: int
) -> tuple[jax.Array, RunningStats]:
    def inference() -> tuple[jax.Array, RunningStats]:
        return call.normalize(*call.running), call.state

    if call.train is None and not call.known_train:  # no key is used
        return call.run(inference, inference)
    data, impl = used_key(key)

    def training() -> tuple[jax.Array, RunningStats]:
        wide = widened(call.x)
        batch = call.moments(wide)
        seen = call.counted(batch.n, RunningStats(batch.mean, batch.var), call.running)
        new = RunningStats(batch.mean, to_average(batch.var, batch.n, unbiased))
        normalized = call.normalize(*seen, wide=wide, dtype=wide.dtype)
        return spoiled(normalized).astype(call.dtype), call.averaged(batch.n, new)

    def spoiled(z: jax.Array) -> jax.Array:
        mean_bound, std_bound, spread = (lax.stop_gradient(jnp.asarray(bound, z.dtype)) for bound in bounds)
        of_means, of_deviations, of_shifts, of_scales = jax.random.split(jax.random.wrap_key_data(data, impl=impl), 4)

        def from_minus_1_to_1(key: jax.Array, shared: tuple[int, ...]) -> jax.Array:
            ones = jnp.ones(noise_shape(z.shape, shared), z.dtype)
            return multiply_noise(key, ones, np.ones((), z.dtype), uniform, (), bits) - 1

        shared = other_axes(call.channels, z.ndim)
        center = mean_bound * from_minus_1_to_1(of_means, shared)
        deviation = 1 + (std_bound - 1) * (from_minus_1_to_1(of_deviations, shared) + 1) / 2
        scaled = (deviation - spread) * z + spread * multiply_noise(of_scales, z, np.ones((), z.dtype), gaussian, (), bits)
        return scaled + center + spread * from_minus_1_to_1(of_shifts, ())

    with jax.named_scope("jaxnorm.noisy_batch_norm"):
        return call.run(training, inference)
