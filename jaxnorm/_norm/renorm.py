"""Batch renormalization: the batch's statistics, corrected towards the running ones.

Training: `y = scale (r (x - mean) / std + d) + bias`, where `std = sqrt(var + epsilon)`; batch norm is `r = 1, d = 0`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._axes import match_sharding
from jaxnorm._batch_layer import BatchCall, checked_call, init_batch_layer
from jaxnorm._checks import Scalar, check_scalar
from jaxnorm._moments import AxisName
from jaxnorm._types import AffineParams, RenormStats, widened


def init_batch_renorm(
    num_features: int, *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> tuple[AffineParams, RenormStats]:
    """Returns the parameters and the running statistics of a new batch renormalization.

    `scale = 1`, `bias = 0`, `mean = 0`, `std = 1`: before the first update, inference is the identity.

    Args:
      num_features: number of channels, C.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.
      dtype: type of the running statistics: float32 or float64.

    Returns:
      `AffineParams(scale, bias)` and `RenormStats(mean, std)`, all of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if num_features is below 1.
      TypeError: if num_features is no int, or if dtype is not float32 or wider.

    References:
      Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized models", NIPS 2017,
      https://arxiv.org/abs/1702.03275.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_batch_renorm(3)
      >>> state
      RenormStats(mean=Array([0., 0., 0.], dtype=float32), std=Array([1., 1., 1.], dtype=float32))
    """
    params, mean, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    return params, RenormStats(mean=mean, std=ones)


def batch_renorm(
    params: AffineParams,
    state: RenormStats,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    r_max: Scalar = 3.0,
    d_max: Scalar = 5.0,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> tuple[jax.Array, RenormStats]:
    """Normalizes every channel by the batch, and corrects the result towards that of the running statistics.

    Training: `y = scale (r (x - mean) / std + d) + bias`, where `std = sqrt(var + epsilon)` and `mean` are the batch's,
    `r = clip(std / running_std, 1 / r_max, r_max)` and `d = clip((mean - running_mean) / running_std, -d_max, d_max)`, both
    constants for the gradient; and `state <- momentum state + (1 - momentum) (mean, std)`. Inference: `y = scale (x -
    running_mean) / running_std + bias`; the state stays as it is.

    Within the limits training gives what inference gives, whatever else is in the batch: that is for batches that are small, or
    whose examples are not independent. `r_max=1, d_max=0` is batch norm, and the paper begins with it: limits may follow a
    schedule, from (1, 0) in the first 5,000 steps to (3, 5).

    The statistics are those of `batch_norm`: exact, pooled over devices, in float32 or wider. A batch that is not finite in a
    channel changes nothing of that channel's state; one without a counted element is normalized with the running statistics.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      state: `RenormStats(mean, std)`, each of shape `[C]`, in float32 or wider; std includes epsilon.
      x: array of real numbers, `[..., C]` or with the channels on `channel_axis`.
      train: whether to use and average the statistics of the batch; a bool or a traced bool.
      r_max: the largest r, at least 1 and possibly infinite; a number or a traced scalar.
      d_max: the largest d, at least 0 and possibly infinite; a number or a traced scalar.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if r_max is below 1 or d_max below 0; else as `batch_norm`.
      TypeError: if x does not hold real floating point numbers; else as `batch_norm`.

    References:
      Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized models", NIPS 2017,
      https://arxiv.org/abs/1702.03275. The standard deviation is averaged, as there, and not the variance.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_batch_renorm(2)
      >>> x = jnp.array([[1.0, 10.0], [3.0, 26.0]])
      >>> y, state = jaxnorm.batch_renorm(params, state, x, train=True, momentum=0.5, epsilon=0.0)
      >>> print(y)  # the first channel is within the limits: as in inference; in the second r = 3 and d = 5
      [[1. 2.]
       [3. 8.]]
      >>> print(state.std)
      [1.  4.5]
    """
    call = checked_call(
        params,
        state,
        x,
        kind=RenormStats,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        channel_axis=channel_axis,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _batch_renorm(
        call, check_scalar("r_max", r_max, low=1, infinite=True), check_scalar("d_max", d_max, low=0, infinite=True)
    )


@jax.jit
def _batch_renorm(call: BatchCall, r_max: Scalar, d_max: Scalar) -> tuple[jax.Array, RenormStats]:
    def training() -> tuple[jax.Array, RenormStats]:
        wide = widened(call.x)
        batch = call.moments(wide)
        own = RenormStats(batch.mean, jnp.sqrt(batch.var + jnp.asarray(call.epsilon, batch.var.dtype)))
        seen = call.counted(batch.n, own, call.running)
        r, d = _correction(seen, call.running, r_max, d_max)
        scale, bias = call.params
        affine = AffineParams(
            scale=r if scale is None else r * scale.astype(r.dtype),
            bias=(d if scale is None else d * scale.astype(d.dtype)) + (0 if bias is None else bias.astype(d.dtype)),
        )
        y = call.normalize(seen.mean, lax.square(seen.std), wide=wide, affine=affine, epsilon=0)
        return y, call.averaged(batch.n, own)

    def inference() -> tuple[jax.Array, RenormStats]:
        mean, std = call.running
        return call.normalize(mean, lax.square(std), epsilon=0), call.state

    with jax.named_scope("jaxnorm.batch_renorm"):
        return call.run(training, inference)


def _correction(batch: RenormStats, running: RenormStats, r_max: Scalar, d_max: Scalar) -> tuple[jax.Array, jax.Array]:
    """Returns r and d, through which no gradient flows."""
    mean, std = (match_sharding(old, new) for old, new in zip(running, batch, strict=True))
    r_max, d_max = (jnp.asarray(limit, std.dtype) for limit in (r_max, d_max))
    r = jnp.clip(batch.std / std, 1 / r_max, r_max)
    d = jnp.clip((batch.mean - mean) / std, -d_max, d_max)
    return lax.stop_gradient(r), lax.stop_gradient(d)
