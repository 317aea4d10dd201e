"""Response normalization: by the size of the responses, of a channel at all positions or of neighboring channels at one.

Nothing is subtracted, there is no state, and training is inference.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, reshard

from jaxnorm._axes import canonical_axes, check_one_axis, count_of, explicit_sharding, match_sharding
from jaxnorm._batch_layer import init_affine
from jaxnorm._checks import Scalar, check_dtype, check_float, check_output_dtype, check_scalar, check_size, check_sizes
from jaxnorm._compiler import recomputed
from jaxnorm._moments import AxisName, abs_square, root
from jaxnorm._normalize import elementwise, scaled_and_shifted
from jaxnorm._sample_layer import SampleCall, checked_channel_call
from jaxnorm._types import AffineParams, FilterResponseParams, widened


def init_filter_response_norm(
    num_features: int | Sequence[int],
    *,
    use_scale: bool = True,
    use_bias: bool = True,
    use_threshold: bool = True,
    learned_epsilon: float | None = None,
    param_dtype: Any = jnp.float32,
) -> FilterResponseParams:
    """Returns the parameters of a new filter response norm: `scale = 1`, `bias = 0`, `threshold = 0`, which is a ReLU.

    Args:
      num_features: number of channels, C, or sizes of several channel axes in ascending order of the axes.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      use_threshold: whether there is a threshold, that of the thresholded linear unit which takes the activation's place.
      learned_epsilon: the start of a learned epsilon, 1e-4 in the paper, for maps of a single position; None for none.
      param_dtype: type of the parameters.

    Returns:
      `FilterResponseParams(scale, bias, threshold, epsilon)`, of shapes `[C]`, `[C]`, `[C]` and `[]`; a part that is not used is
      None.

    Raises:
      ValueError: if a size is below 1, or learned_epsilon is negative.
      TypeError: if a size is no int, or if param_dtype is none of floating point numbers.

    References:
      Singh, Krishnan, "Filter response normalization layer: eliminating batch dependence in the training of deep neural
      networks", CVPR 2020, https://arxiv.org/abs/1911.09737.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_filter_response_norm(2, use_bias=False).threshold
      Array([0., 0.], dtype=float32)
    """
    shape, param_dtype = check_sizes("num_features", num_features), check_dtype("param_dtype", param_dtype)
    if learned_epsilon is not None:
        check_scalar("learned_epsilon", learned_epsilon, low=0)
    return FilterResponseParams(
        *init_affine(shape, use_scale, use_bias, param_dtype),
        threshold=jnp.zeros(shape, param_dtype) if use_threshold else None,
        epsilon=None if learned_epsilon is None else jnp.asarray(learned_epsilon, param_dtype),
    )


def filter_response_norm(
    params: FilterResponseParams,
    x: jax.Array,
    *,
    epsilon: Scalar = 1e-6,
    channel_axis: int | Sequence[int] = -1,
    reduction_axes: int | Sequence[int] | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Divides every channel of every example by its root mean square over all positions, and cuts off below a threshold.

    Training and inference: `y = max(scale x / sqrt(mean_square + epsilon + |params.epsilon|) + bias, threshold)`, where
    `mean_square = sum(x^2) / n` is that of the example's positions. Without a threshold nothing is cut off.

    No example depends on another. All of it is computed in float32 or wider. For the gradient nothing is kept but x and numbers
    of the statistics' size. With maps of one position it is `sign(x)` but for epsilon, which had better be learned there.

    Args:
      params: `FilterResponseParams(scale, bias, threshold, epsilon)`, of shapes `[C]`, `[C]`, `[C]` and `[]`, or None each.
      x: array of real numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      epsilon: added to the mean square, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels; or several axes, whose sizes in ascending order are the shape of the parameters.
      reduction_axes: the axes over which the mean square is taken; None for all but the first, that of the batch, and the
        channels.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `group_norm`.
      axis_name: name or names of mapped axes over which the positions are divided: the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: as `instance_norm`.
      TypeError: if params are no FilterResponseParams; if x does not hold real floating point numbers; else as `instance_norm`.

    References:
      Singh, Krishnan, "Filter response normalization layer: eliminating batch dependence in the training of deep neural
      networks", CVPR 2020, https://arxiv.org/abs/1911.09737.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.init_filter_response_norm(1)
      >>> print(jaxnorm.filter_response_norm(params, jnp.array([[[3.0], [-3.0], [0.0], [0.0]]])).round(3).T)
      [[[1.414]
        [0.   ]
        [0.   ]
        [0.   ]]]
    """
    call = checked_channel_call(
        params,
        x,
        kind=FilterResponseParams,
        others={"epsilon": ()},
        epsilon=epsilon,
        channel_axis=channel_axis,
        reduction_axes=reduction_axes,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    return _filter_response_norm(call)


def init_global_response_norm(
    num_features: int | Sequence[int], *, use_scale: bool = True, use_bias: bool = True, param_dtype: Any = jnp.float32
) -> AffineParams:
    """Returns the parameters of a new global response norm: `scale = 0`, `bias = 0`, with which it is the identity.

    Args:
      num_features: number of channels, C, or sizes of several channel axes in ascending order of the axes.
      use_scale: whether there is a scale; without one it is 1.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.

    Returns:
      `AffineParams(scale, bias)`, each of shape `[C]`; a part that is not used is None.

    Raises:
      ValueError: if a size is below 1.
      TypeError: if a size is no int, or if param_dtype is none of floating point numbers.

    References:
      Woo, Debnath, Hu, Chen, Liu, Kweon, Xie, "ConvNeXt V2: co-designing and scaling ConvNets with masked autoencoders", CVPR
      2023, https://arxiv.org/abs/2301.00808.

    Example:
      >>> import jaxnorm
      >>> jaxnorm.init_global_response_norm(2).scale
      Array([0., 0.], dtype=float32)
    """
    params = init_affine(check_sizes("num_features", num_features), use_scale, use_bias, param_dtype)
    return params._replace(scale=None if params.scale is None else jnp.zeros_like(params.scale))


def global_response_norm(
    params: AffineParams,
    x: jax.Array,
    *,
    epsilon: Scalar = 1e-6,
    channel_axis: int = -1,
    reduction_axes: int | Sequence[int] | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Adds to x itself times the share that its channel has in the response of all channels of the example.

    Training and inference: `y = x + scale x g / (mean(g) + epsilon) + bias`, where `g = sqrt(sum(|x|^2))` is a channel's over all
    positions of the example, and `mean(g)` that of the channels.

    No example depends on another. All of it is computed in float32 or wider. For the gradient nothing is kept but x and numbers
    of the statistics' size; it is finite for channels that are 0 everywhere, which stay so.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[C]` or None.
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      epsilon: added to the mean of the channels' responses, at least 0; a number or a traced scalar. Where both are 0 the share
        is 0.
      channel_axis: the axis of the channels.
      reduction_axes: the axes over which the response is summed; None for all but the first, that of the batch, and the channels.
      where: bool array of x's rank that broadcasts to x: the elements that count in the response, as in `group_norm`.
      axis_name: name or names of mapped axes over which the positions are divided: the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if channel_axis names several axes; else as `instance_norm`.
      TypeError: as `instance_norm`.

    References:
      Woo, Debnath, Hu, Chen, Liu, Kweon, Xie, "ConvNeXt V2: co-designing and scaling ConvNets with masked autoencoders", CVPR
      2023, https://arxiv.org/abs/2301.00808.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params = jaxnorm.AffineParams(scale=jnp.ones(2), bias=None)
      >>> print(jaxnorm.global_response_norm(params, jnp.array([[[3.0, 0.0], [4.0, 5.0]]])).round())
      [[[ 6.  0.]
        [ 8. 10.]]]
    """
    call = checked_channel_call(
        params,
        x,
        epsilon=epsilon,
        channel_axis=channel_axis,
        reduction_axes=reduction_axes,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
        takes_complex=True,
    )
    check_one_axis("channel_axis", call.features, channel_axis)
    return _global_response_norm(call)


def local_response_norm(
    x: jax.Array,
    *,
    size: int = 5,
    k: Scalar = 2.0,
    alpha: Scalar = 1e-4,
    beta: Scalar = 0.75,
    channel_axis: int = -1,
    dtype: Any = None,
) -> jax.Array:
    """Divides every element by a power of the sum of squares of its neighbors along the channels.

    Training and inference: `y = x / (k + alpha sum(|x|^2))^beta`, where the sum is over the `size` channels around the element's
    own at its position, those of them that there are; of an even number one more lies before it.

    It is computed in float32 or wider, and x alone is kept for the gradient.

    Args:
      x: array of real or complex numbers, `[..., C]` or with the channels on `channel_axis`.
      size: number of channels in the window, at least 1; TensorFlow's is `2 depth_radius + 1`.
      k: added to the sum, at least 0; a number or a traced scalar. With 0, an element whose window is 0 gives 0.
      alpha: factor of the sum, at least 0; a number or a traced scalar. PyTorch and Caffe divide theirs by the size.
      beta: exponent, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape.

    Raises:
      ValueError: if size is below 1; if k, alpha or beta is negative; if channel_axis is out of range or names several axes.
      TypeError: if x holds integers or bools; if size is no int; if dtype is none of floating point numbers, or real for a
        complex x.

    References:
      Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012, section 3.3,
      https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> print(jaxnorm.local_response_norm(jnp.array([3.0, 4.0]), size=3, k=0.0, alpha=1.0, beta=0.5))
      [0.6 0.8]
    """
    x = check_float("x", x, allow_complex=True)
    channels = canonical_axes("channel_axis", channel_axis, x.ndim)
    check_one_axis("channel_axis", channels, channel_axis)
    amounts = tuple(check_scalar(name, a, low=0) for name, a in (("k", k), ("alpha", alpha), ("beta", beta)))
    dtype = check_output_dtype(dtype, x)
    return _local_response_norm(x, amounts, size=check_size("size", size), axis=channels[0], dtype=dtype)


@jax.jit
def _filter_response_norm(call: SampleCall) -> jax.Array:
    with jax.named_scope("jaxnorm.filter_response_norm"):
        wide = widened(call.x)
        square, n = call.mean_square(wide)
        scale, bias, threshold, learned = call.params
        square = square if learned is None else square + jnp.abs(learned.astype(square.dtype))
        numbers = (call.factor(square, n), call.kept), *((part, call.features) for part in (scale, bias, threshold))
        return elementwise(_thresholded, call.x, numbers, wide=wide, where=call.where, dtype=call.dtype)


def _thresholded(x: jax.Array, factor: jax.Array, scale: Any, bias: Any, threshold: Any) -> jax.Array:
    y = scaled_and_shifted(x * factor, scale, bias)
    return y if threshold is None else jnp.maximum(y, threshold)


@jax.jit
def _global_response_norm(call: SampleCall) -> jax.Array:
    with jax.named_scope("jaxnorm.global_response_norm"):
        wide = widened(call.x)
        square, n = call.mean_square(wide)
        response = root(square * n)
        place = call.kept.index(call.features[0])
        channels = count_of((response.shape[place],), response.dtype)
        mean = jnp.sum(response, place, keepdims=True) / channels + jnp.asarray(call.epsilon, response.dtype)
        share = jnp.where(mean > 0, response / jnp.where(mean > 0, mean, 1), 0)
        scale = call.params.scale
        if scale is not None:
            others = tuple(a for a in range(share.ndim) if a != place)
            share = share.astype(wide.dtype) * jnp.expand_dims(scale.astype(wide.dtype), others)
        unscaled = call.params._replace(scale=None)
        return dataclasses.replace(call, params=unscaled).rescale(wide, None, 1 + share)


@functools.partial(jax.jit, static_argnames=("size", "axis", "dtype"))
def _local_response_norm(x: jax.Array, amounts: tuple[Scalar, ...], *, size: int, axis: int, dtype: Any) -> jax.Array:
    @recomputed
    def output(x: jax.Array, amounts: tuple[Scalar, ...]) -> jax.Array:
        wide = widened(x)
        total = _window_sum(abs_square(wide), size, axis)
        k, alpha, beta = (jnp.asarray(a, total.dtype) for a in amounts)
        base = k + alpha * total
        factor = jnp.where(base > 0, jnp.where(base > 0, base, 1) ** -beta, 0)
        return (wide * factor.astype(wide.dtype)).astype(dtype)

    with jax.named_scope("jaxnorm.local_response_norm"):
        return output(x, lax.stop_gradient(amounts))


def _window_sum(a: jax.Array, size: int, axis: int) -> jax.Array:
    """Returns for every position along the axis the sum over so many around it: shifted arrays, which fuse into one step."""
    left = size // 2
    length, sharding = a.shape[axis], explicit_sharding(a)
    whole = a
    if sharding is not None:  # neighbors on other devices
        spec = PartitionSpec(*(None if i == axis else part for i, part in enumerate(sharding.spec)))
        whole = reshard(a, NamedSharding(sharding.mesh, spec))
    config = [(left, size - 1 - left, 0) if i == axis else (0, 0, 0) for i in range(a.ndim)]
    padded = lax.pad(whole, jnp.zeros((), a.dtype), config)
    parts = (lax.slice_in_dim(padded, shift, shift + length, axis=axis) for shift in range(size))
    return match_sharding(functools.reduce(jnp.add, parts), a)
