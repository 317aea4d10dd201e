"""Batch normalization of several kinds of examples: parameters, or statistics too, of each kind's own.

The moments are those of each example, pooled in its kind: which examples are of a kind may be known to the running program alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._axes import count_of, explicit_sharding, is_known, sharding_along, vary, varying
from jaxnorm._batch_layer import BatchCall, check_batch_axis, checked_call, init_affine, init_batch_layer
from jaxnorm._checks import Scalar, check_affine, check_kinds, check_size, check_type
from jaxnorm._compiler import recomputed
from jaxnorm._moments import AxisName, abs_square, before, combine_moments, place_among, select, to_average
from jaxnorm._types import AffineParams, Moments, RunningStats, real_dtype, widened

_NONE = AffineParams(None, None)


def init_conditional_batch_norm(
    num_features: int,
    *,
    num_classes: int = 2,
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
    dtype: Any = jnp.float32,
) -> tuple[AffineParams, RunningStats]:
    """Returns the parameters and the running statistics of a new conditional batch norm.

    `scale = 1`, `bias = 0`, `mean = 0`, `var = 1`: before the first update, inference is the identity but for epsilon.

    Args:
      num_features: number of channels, C.
      num_classes: number of classes, K.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.
      dtype: type of the running mean, complex for complex x; the variance's is real.

    Returns:
      `AffineParams(scale, bias)` of shape `[K, C]`, of which a part that is not used is None, and `RunningStats(mean, var)` of
      shape `[C]`.

    Raises:
      ValueError: if num_features or num_classes is below 1.
      TypeError: if one of them is no int, or if dtype is narrower than float32.

    References:
      Dumoulin, Shlens, Kudlur, "A learned representation for artistic style", ICLR 2017, https://arxiv.org/abs/1610.07629; de
      Vries, Strub, Mary, Larochelle, Pietquin, Courville, "Modulating early visual processing by language", NIPS 2017,
      https://arxiv.org/abs/1707.00683.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_conditional_batch_norm(3, use_bias=False)
      >>> params
      AffineParams(scale=Array([[1., 1., 1.],
             [1., 1., 1.]], dtype=float32), bias=None)
    """
    _, mean, ones = init_batch_layer(num_features, False, False, param_dtype, dtype)
    return _tables(num_classes, "num_classes", mean, use_scale, use_bias, param_dtype), RunningStats(mean=mean, var=ones)


def conditional_batch_norm(
    params: AffineParams,
    state: RunningStats,
    x: jax.Array,
    labels: jax.Array,
    *,
    train: bool | jax.Array,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    dtype: Any = None,
) -> tuple[jax.Array, RunningStats]:
    """Normalizes every channel by the mean and variance of the batch, and scales and shifts it as the example's class says.

    Training: `y = scale[label] (x - mean) / sqrt(var + epsilon) + bias[label]`, where mean and variance are those of the channel
    in the batch, of all classes, and `state <- momentum state + (1 - momentum) (mean, var)`. Inference: the same y with the
    state's mean and variance; the state stays as it is.

    The statistics are those of `batch_norm`. A label that is none of the classes gives NaN for its example, and no class a
    gradient. Gradients flow into the rows of the classes that are in the batch; those of the others are 0.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[K, C]` or None.
      state: `RunningStats(mean, var)`, each of shape `[C]`, in float32 or wider.
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      labels: class of each example, `[B]` ints from 0 to K - 1.
      train: whether to use and average the statistics of the batch; a bool or a traced bool.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`, and not the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running variance averages `var n / (n - 1)`, rather than var.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if labels has another length than the batch; if channel_axis names the first axis; else as `batch_norm`.
      TypeError: if labels does not hold ints; else as `batch_norm`.

    References:
      Dumoulin, Shlens, Kudlur, "A learned representation for artistic style", ICLR 2017, https://arxiv.org/abs/1610.07629; de
      Vries, Strub, Mary, Larochelle, Pietquin, Courville, "Modulating early visual processing by language", NIPS 2017,
      https://arxiv.org/abs/1707.00683.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_conditional_batch_norm(1)
      >>> params = params._replace(bias=jnp.array([[0.0], [1.0]]))
      >>> y, state = jaxnorm.conditional_batch_norm(params, state, jnp.array([[1.0], [3.0]]), jnp.array([0, 1]), train=True)
      >>> print(y.round(3).T)
      [[-1.  2.]]
    """
    call = _checked(
        params,
        state,
        x,
        channel_axis,
        of_kinds=False,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    labels = check_kinds("labels", labels, call.x.shape[0])
    return _conditional_batch_norm(call, labels, unbiased=bool(unbiased))


def init_domain_batch_norm(
    num_features: int,
    *,
    num_domains: int = 2,
    shared: bool = False,
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
    dtype: Any = jnp.float32,
) -> tuple[AffineParams, RunningStats]:
    """Returns the parameters and the running statistics of a new domain-specific batch norm.

    `scale = 1`, `bias = 0`, `mean = 0`, `var = 1`: before the first update, inference is the identity but for epsilon.

    Args:
      num_features: number of channels, C.
      num_domains: number of domains, K.
      shared: whether all domains have one scale and bias.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.
      dtype: type of the running mean, complex for complex x; the variance's is real.

    Returns:
      `AffineParams(scale, bias)` of shape `[K, C]`, or `[C]` if they are shared, of which a part that is not used is None, and
      `RunningStats(mean, var)` of shape `[K, C]`.

    Raises:
      ValueError: if num_features or num_domains is below 1.
      TypeError: if one of them is no int, or if dtype is narrower than float32.

    References:
      Chang, You, Seo, Kwak, Han, "Domain-specific batch normalization for unsupervised domain adaptation", CVPR 2019,
      https://arxiv.org/abs/1906.03950.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_domain_batch_norm(3, shared=True)
      >>> params.scale.shape, state.mean.shape
      ((3,), (2, 3))
    """
    params, mean, ones = init_batch_layer(num_features, use_scale, use_bias, param_dtype, dtype)
    if not shared:
        params = _tables(num_domains, "num_domains", mean, use_scale, use_bias, param_dtype)
    return params, RunningStats(*(jnp.tile(part, (check_size("num_domains", num_domains), 1)) for part in (mean, ones)))


def domain_batch_norm(
    params: AffineParams,
    state: RunningStats,
    x: jax.Array,
    domains: int | jax.Array,
    *,
    train: bool | jax.Array,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    dtype: Any = None,
) -> tuple[jax.Array, RunningStats]:
    """Normalizes every channel by the mean and variance of the examples of the same domain.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where mean and variance are those of the channel in the
    domain's part of the batch, and the domain's `state <- momentum state + (1 - momentum) (mean, var)`; those of domains without
    an example stay. Inference: the same y with the domain's state, which stays as it is.

    The statistics are exact for means far from zero, uneven devices and masks, and are computed in float32 or wider. A domain
    that is none of them gives NaN for its example, and changes nothing else. A domain's part that is not finite in a channel, or
    counts nothing there, changes nothing of its state.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[K, C]`, or `[C]` for all domains, or None.
      state: `RunningStats(mean, var)`, each of shape `[K, C]`, in float32 or wider.
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`.
      domains: domain of each example, `[B]` ints from 0 to K - 1, or one for all of them; traced or not.
      train: whether to use and average the statistics of the batch; a bool or a traced bool.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`, and not the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the statistics are pooled, by counts.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running variance averages `var n / (n - 1)`, rather than var.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if domains is a negative int, or has another length than the batch; if channel_axis names the first axis;
        else as `batch_norm`.
      TypeError: if domains does not hold ints; else as `batch_norm`.

    References:
      Chang, You, Seo, Kwak, Han, "Domain-specific batch normalization for unsupervised domain adaptation", CVPR 2019,
      https://arxiv.org/abs/1906.03950.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_domain_batch_norm(1)
      >>> x, domains = jnp.array([[1.0], [30.0], [3.0], [10.0]]), jnp.array([0, 1, 0, 1])
      >>> y, state = jaxnorm.domain_batch_norm(params, state, x, domains, train=True, momentum=0.5)
      >>> print(y.round(3).T)
      [[-1.  1.  1. -1.]]
      >>> print(state.mean.T)
      [[ 1. 10.]]
    """
    call = _checked(
        params,
        state,
        x,
        channel_axis,
        of_kinds=True,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    domains = jnp.broadcast_to(check_kinds("domains", domains, call.x.shape[0], scalar=True), call.x.shape[:1])
    return _domain_batch_norm(call, domains, domains, unbiased=bool(unbiased), name="domain")


def init_split_batch_norm(
    num_features: int,
    *,
    num_splits: int = 2,
    use_scale: bool = True,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
    dtype: Any = jnp.float32,
) -> tuple[AffineParams, RunningStats]:
    """Returns the parameters and the running statistics of a new split batch norm.

    `scale = 1`, `bias = 0`, `mean = 0`, `var = 1`: before the first update, inference is the identity but for epsilon.

    Args:
      num_features: number of channels, C.
      num_splits: number of parts, K.
      use_scale: whether there is a scale.
      use_bias: whether there is a bias.
      param_dtype: type of scale and bias.
      dtype: type of the running mean, complex for complex x; the variance's is real.

    Returns:
      `AffineParams(scale, bias)`, of which a part that is not used is None, and `RunningStats(mean, var)`, all of shape
      `[K, C]`.

    Raises:
      ValueError: if num_features or num_splits is below 1.
      TypeError: if one of them is no int, or if dtype is narrower than float32.

    References:
      Xie, Tan, Gong, Wang, Yuille, Le, "Adversarial examples improve image recognition", CVPR 2020,
      https://arxiv.org/abs/1911.09665.

    Example:
      >>> import jaxnorm
      >>> params, state = jaxnorm.init_split_batch_norm(3)
      >>> params.scale.shape, state.mean.shape
      ((2, 3), (2, 3))
    """
    return init_domain_batch_norm(
        num_features,
        num_domains=check_size("num_splits", num_splits),
        use_scale=use_scale,
        use_bias=use_bias,
        param_dtype=param_dtype,
        dtype=dtype,
    )


def split_batch_norm(
    params: AffineParams,
    state: RunningStats,
    x: jax.Array,
    *,
    train: bool | jax.Array,
    momentum: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    dtype: Any = None,
) -> tuple[jax.Array, RunningStats]:
    """Normalizes each of K equal parts of the batch by a batch norm of its own, of which the first serves inference.

    Training: `y = scale (x - mean) / sqrt(var + epsilon) + bias`, where mean and variance are those of the channel in the part,
    and the part's `state <- momentum state + (1 - momentum) (mean, var)`. Inference: the same y for all examples, with scale,
    bias and state of the first part; the state stays as it is.

    For batches whose parts are distributed otherwise, as clean and adversarial examples in AdvProp, of which the others are to
    help in training alone. What else is true of `domain_batch_norm` is so here.

    Args:
      params: `AffineParams(scale, bias)`, each of shape `[K, C]` or None.
      state: `RunningStats(mean, var)`, each of shape `[K, C]`, in float32 or wider.
      x: array of real or complex numbers, `[B, ..., C]` or with the channels on `channel_axis`; in training K divides B.
      train: whether to use and average the statistics of the parts; a bool or a traced bool.
      momentum: weight of the old statistics in the running averages, in [0, 1]; a number or a traced scalar.
      epsilon: added to the variance, at least 0; a number or a traced scalar.
      channel_axis: the axis of the channels, or several, as in `batch_norm`, and not the first.
      where: bool array of x's rank that broadcasts to x: the elements that count in the statistics, as in `batch_norm`.
      axis_name: name or names of mapped axes over which the batch is divided, in the order of the indices: the parts are those
        of the whole batch. Every device must have as many examples.
      axis_index_groups: groups of indices along `axis_name`, which are pooled separately.
      unbiased: whether the running variance averages `var n / (n - 1)`, rather than var.
      dtype: type of y, to which it is rounded once; None for that of x.

    Returns:
      y of x's shape, and the new state, alike in shapes and dtypes to the old one.

    Raises:
      ValueError: if K does not divide the batch, unless train is False; if channel_axis names the first axis; else as
        `batch_norm`.
      TypeError: as `batch_norm`.

    References:
      Xie, Tan, Gong, Wang, Yuille, Le, "Adversarial examples improve image recognition", CVPR 2020,
      https://arxiv.org/abs/1911.09665.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> params, state = jaxnorm.init_split_batch_norm(1)
      >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
      >>> y, state = jaxnorm.split_batch_norm(params, state, x, train=True, momentum=0.5)
      >>> print(y.round(3).T)
      [[-1.  1. -1.  1.]]
      >>> print(state.mean.T)
      [[ 1. 10.]]
    """
    call = _checked(
        params,
        state,
        x,
        channel_axis,
        of_kinds=True,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        where=where,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    parts = first = jnp.zeros(call.x.shape[0], jnp.int32)
    if call.known_train is not False:
        parts = _parts(call)
    return _domain_batch_norm(call, parts, first, unbiased=bool(unbiased), name="split")


def _tables(count: Any, name: str, mean: jax.Array, use_scale: bool, use_bias: bool, param_dtype: Any) -> AffineParams:
    return init_affine((check_size(name, count), *mean.shape), use_scale, use_bias, param_dtype)


def _parts(call: BatchCall) -> jax.Array:
    """Returns which of the equal parts of the whole batch each example is in."""
    place, devices, own, count = 0, 1, call.x.shape[0], call.state.mean.shape[0]
    if call.axis_name is not None:
        place, devices = place_among(call.axis_name, call.axis_index_groups)
    if is_known(own) and is_known(devices) and (not count or own * devices % count):
        raise ValueError(f"x must have a batch that the {count} parts of the state divide, got {own * devices} examples")
    return (place * own + jnp.arange(own)) * count // (own * devices)


def _checked(
    params: AffineParams, state: RunningStats, x: jax.Array, channel_axis: Any, *, of_kinds: bool, **options: Any
) -> BatchCall:
    """Checks a call with parameters of each kind; where the statistics are `of_kinds` too, the parameters may be of all."""
    shapes = count = None
    if of_kinds:
        check_type("state", state, RunningStats)
        count = _rows_of(state.mean)
        shapes = lambda shape: RunningStats(*[(count, *shape)] * 2)  # type: ignore[arg-type]  # noqa: E731
    call = checked_call(
        _NONE, state, x, kind=RunningStats, channel_axis=channel_axis, takes_complex=True, shapes=shapes, **options
    )
    check_batch_axis(call, channel_axis)
    check_type("params", params, AffineParams)
    shape = tuple(call.x.shape[axis] for axis in call.channels)
    part = next((part for part in params if part is not None), None)
    if part is not None:
        shared = of_kinds and jnp.ndim(part) == len(shape)
        check_affine(params, shape if shared else (_rows_of(part) if count is None else count, *shape), like=call.x)
    return dataclasses.replace(call, params=params)


def _rows_of(table: jax.Array) -> int:
    return jnp.shape(table)[0] if jnp.ndim(table) else 0


def _rows(table: jax.Array, kinds: jax.Array, call: BatchCall) -> jax.Array:
    """Returns each example's row, sharded as x is; NaN for a kind that there is not."""
    sharding = sharding_along(call.x, (0, *call.channels))
    return table.at[kinds].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False, out_sharding=sharding)


def _affine_rows(call: BatchCall, kinds: jax.Array) -> tuple[AffineParams, tuple[int, ...]]:
    """Returns scale and bias of each example, or of all, and the axes of x along which they vary."""
    part = next((part for part in call.params if part is not None), None)
    if part is None or part.ndim == len(call.channels):
        return call.params, call.channels
    return jax.tree.map(lambda table: _rows(table, kinds, call), call.params), (0, *call.channels)


@functools.partial(jax.jit, static_argnames=("unbiased",))
def _conditional_batch_norm(call: BatchCall, labels: jax.Array, *, unbiased: bool) -> tuple[jax.Array, RunningStats]:
    def output(mean: jax.Array, var: jax.Array, **then: Any) -> jax.Array:
        affine, features = _affine_rows(call, labels)
        return call.normalize(mean, var, affine=affine, feature_axes=features, **then)

    def training() -> tuple[jax.Array, RunningStats]:
        wide = widened(call.x)
        batch = call.moments(wide)
        seen = call.counted(batch.n, RunningStats(batch.mean, batch.var), call.running)
        new = RunningStats(batch.mean, to_average(batch.var, batch.n, unbiased))
        return output(*seen, wide=wide), call.averaged(batch.n, new)

    def inference() -> tuple[jax.Array, RunningStats]:
        return output(*call.running), call.state

    with jax.named_scope("jaxnorm.conditional_batch_norm"):
        return call.run(training, inference)


@functools.partial(jax.jit, static_argnames=("unbiased", "name"))
def _domain_batch_norm(
    call: BatchCall, kinds: jax.Array, kinds_in_inference: jax.Array, *, unbiased: bool, name: str
) -> tuple[jax.Array, RunningStats]:
    def output(call: BatchCall, kinds: jax.Array, statistics: RunningStats, **then: Any) -> jax.Array:
        affine, features = _affine_rows(call, kinds)
        mean, var = (_rows(part, kinds, call) for part in statistics)
        return call.normalize(mean, var, affine=affine, axes=call.positions, feature_axes=features, **then)

    def trained(call: BatchCall) -> tuple[jax.Array, Moments]:
        wide = widened(call.x)
        found = call.pooled((_pooled if call.positions else _summed)(call, kinds, wide))
        seen = call.counted(found.n, RunningStats(found.mean, found.var), call.running)
        return output(call, kinds, seen, wide=wide), found

    def training() -> tuple[jax.Array, RunningStats]:
        # Of vectors each example's own statistics would be as large as x: they are not made, and what is as large is not kept.
        y, found = (trained if call.positions else recomputed(trained))(call)
        return y, call.averaged(found.n, RunningStats(found.mean, to_average(found.var, found.n, unbiased)))

    def inference() -> tuple[jax.Array, RunningStats]:
        return output(call, kinds_in_inference, call.running), call.state

    with jax.named_scope(f"jaxnorm.{name}_batch_norm"):
        return call.run(training, inference)


def _summed(call: BatchCall, kinds: jax.Array, wide: jax.Array) -> Moments:
    """Returns the moments of every kind, of examples that are vectors."""
    count = call.state.mean.shape[0]
    one = jnp.ones((1,) * wide.ndim, bool) if call.where is None else call.where
    counted = jnp.broadcast_to(one, (wide.shape[0], *one.shape[1:]))
    n = _sum_of_kinds(counted.astype(real_dtype(wide.dtype)), kinds, count)
    size = count_of(wide.shape[:1], n.dtype)

    def mean_of(x: jax.Array) -> jax.Array:
        # Divided before it is summed too, so that no finite numbers overflow.
        return _sum_of_kinds(select(call.where, x / size), kinds, count) * (size / jnp.maximum(n, 1))

    rough = mean_of(wide)
    mean = rough + mean_of(wide - _rows(rough, kinds, call))
    var = mean_of(abs_square(wide - _rows(mean, kinds, call)))
    return Moments(mean, var, n + jnp.zeros_like(var))


def _sum_of_kinds(x: jax.Array, kinds: jax.Array, count: int) -> jax.Array:
    """Returns the sum of the examples of each kind; of a kind that there is not, none."""

    def scattered(x: jax.Array, kinds: jax.Array) -> jax.Array:
        zeros = vary(jnp.zeros((count, *x.shape[1:]), x.dtype), varying(x))
        return zeros.at[kinds].add(x, mode="drop", wrap_negative_indices=False)

    def selected(x: jax.Array, kinds: jax.Array) -> jax.Array:
        return jax.vmap(lambda kind: jnp.sum(select(before(kinds == kind, x), x), 0))(jnp.arange(count))

    if explicit_sharding(x) is not None:
        return selected(x, kinds)
    # To add row by row is many times faster for a CPU, and slower for others.
    return lax.platform_dependent(x, kinds, cpu=scattered, default=selected)


def _pooled(call: BatchCall, kinds: jax.Array, wide: jax.Array) -> Moments:
    """Returns the moments of every kind, pooled from those of the examples."""
    own = call.moments_of_examples(wide)

    def of_kind(kind: jax.Array) -> Moments:
        n = select(before(kinds == kind, own.n), own.n)
        # What is not of this kind has no weight, and must not bring in its NaN either.
        return combine_moments(jax.tree.map(lambda part: select(n > 0, part), own._replace(n=n)))

    return jax.vmap(of_kind)(jnp.arange(call.state.mean.shape[0]))
