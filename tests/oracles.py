"""Slow versions of the layers in NumPy and float64, written from the papers, without jax."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import digamma, erfcinv

Array = NDArray


class Normalized(NamedTuple):
    y: Array
    mean: Array
    var: Array


def wide(x: ArrayLike) -> Array:
    """Returns x in float64 or complex128: exact for every type that jax has."""
    x = np.asarray(x)
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def moments(x: ArrayLike, axes: Sequence[int], where: ArrayLike | None = None) -> tuple[Array, Array, Array]:
    """Mean, biased variance and count over `axes` of what `where` counts; 0 where nothing does. Reduced axes stay, at size 1."""
    x, axes = wide(x), tuple(axes)
    counted = np.broadcast_to(True if where is None else np.asarray(where), x.shape)
    n = counted.sum(axes, keepdims=True)
    some = np.maximum(n, 1)
    mean = np.where(counted, x, 0).sum(axes, keepdims=True) / some
    var = (np.abs(np.where(counted, x - mean, 0)) ** 2).sum(axes, keepdims=True) / some
    return mean, var, n


def batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    *,
    train: bool,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
    unbiased: bool = False,
    residual: ArrayLike | None = None,
    activation: Callable[[Array], Array] | None = None,
) -> Normalized:
    """Algorithms 1 and 2 of Ioffe and Szegedy (2015), with running averages. Counts at least one element in every channel."""
    x = wide(x)
    axes = reduced_axes(x.ndim, channel_axis)
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    running_mean, running_var = (np.expand_dims(wide(part), axes) for part in state)
    mean, var, n = moments(x, axes, where)
    if train:
        bessel = n / np.maximum(n - 1, 1) if unbiased else 1.0
        new_mean = momentum * running_mean + (1 - momentum) * mean
        new_var = momentum * running_var + (1 - momentum) * var * bessel
    else:
        mean, var, new_mean, new_var = running_mean, running_var, running_mean, running_var
    y = (x - mean) / np.sqrt(var + epsilon)
    if params[0] is not None:
        y = y * np.expand_dims(wide(params[0]), axes)
    if params[1] is not None:
        y = y + np.expand_dims(wide(params[1]), axes)
    if residual is not None:
        y = y + wide(residual)
    if activation is not None:
        y = activation(y)
    return Normalized(y, new_mean.reshape(kept), new_var.reshape(kept))


def ghost_batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    ghost_size: int,
    *,
    train: bool,
    where: ArrayLike | None = None,
    **options: Any,
) -> Normalized:
    """Hoffer, Hubara and Soudry (2017), algorithm 1: batch norm of one ghost after another, but of one that counts nothing."""
    x = wide(x)
    if not train:
        return batch_norm(params, state, x, train=False, **options)
    counted = None if where is None else np.broadcast_to(np.asarray(where), x.shape)
    y, mean, var = np.empty_like(x), *map(wide, state)
    for first in range(0, len(x), ghost_size):
        part = slice(first, first + ghost_size)
        some = None if counted is None else counted[part]
        seen = some is None or bool(some.any())
        y[part], new_mean, new_var = batch_norm(params, (mean, var), x[part], train=seen, where=some if seen else None, **options)
        mean, var = new_mean, new_var
    return Normalized(y, mean, var)


def _rows(table: ArrayLike | None, kinds: Array, ndim: int, channels: int) -> Array | None:
    """Each example's row, beside the positions."""
    if table is None:
        return None
    rows = wide(table)[kinds]
    return rows.reshape(len(kinds), *[1] * (ndim - 1 - channels), *rows.shape[1:])


def conditional_batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    labels: ArrayLike,
    **options: Any,
) -> Normalized:
    """Batch norm, and then each example by its class's scale and bias (Dumoulin et al., 2017); the channels come last."""
    y, mean, var = batch_norm((None, None), state, x, **options)
    scale, bias = (_rows(table, np.asarray(labels), y.ndim, 1) for table in params)
    y = y if scale is None else y * scale
    return Normalized(y if bias is None else y + bias, mean, var)


def domain_batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    domains: ArrayLike,
    *,
    train: bool,
    where: ArrayLike | None = None,
    **options: Any,
) -> Normalized:
    """Batch norm of each domain's examples alone (Chang et al., 2019); one that counts nothing takes the running statistics."""
    x, of = wide(x), np.broadcast_to(np.asarray(domains), len(np.asarray(x)))
    counted = None if where is None else np.broadcast_to(np.asarray(where), x.shape)
    y, means, variances = np.empty_like(x), *(np.array(wide(part)) for part in state)
    for domain in range(len(means)):
        some = of == domain
        own = [None if part is None else part if np.ndim(part) == 1 else np.asarray(part)[domain] for part in params]
        mask = None if counted is None else counted[some]
        seen = bool(some.any()) and (mask is None or bool(mask.any()))
        result = batch_norm(own, (means[domain], variances[domain]), x[some], train=train and seen, where=mask, **options)
        y[some] = result.y
        if train and seen:
            means[domain], variances[domain] = result.mean, result.var
    return Normalized(y, means, variances)


def split_batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    *,
    train: bool,
    **options: Any,
) -> Normalized:
    """Batch norm of each equal part of the batch, of which the first alone is there in inference (Xie et al., 2020)."""
    parts = len(np.asarray(state[0]))
    size = len(np.asarray(x))
    return domain_batch_norm(params, state, x, np.arange(size) * parts // size if train else 0, train=train, **options)


class Renormalized(NamedTuple):
    y: Array
    mean: Array
    std: Array


def batch_renorm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    *,
    train: bool,
    r_max: float = 3.0,
    d_max: float = 5.0,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    channel_axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
) -> Renormalized:
    """Algorithm 1 of Ioffe (2017), written as the paper has it: normalized by the batch, times r, plus d."""
    x = wide(x)
    axes = reduced_axes(x.ndim, channel_axis)
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    running_mean, running_std = (np.expand_dims(wide(part), axes) for part in state)
    new_mean, new_std = running_mean, running_std
    if train:
        mean, var, _ = moments(x, axes, where)
        std = np.sqrt(var + epsilon)
        r = np.minimum(np.maximum(std / running_std, 1 / r_max), r_max)
        d = np.minimum(np.maximum((mean - running_mean) / running_std, -d_max), d_max)
        y = (x - mean) / std * r + d
        new_mean = running_mean + (1 - momentum) * (mean - running_mean)
        new_std = running_std + (1 - momentum) * (std - running_std)
    else:
        y = (x - running_mean) / running_std
    if params[0] is not None:
        y = y * np.expand_dims(wide(params[0]), axes)
    if params[1] is not None:
        y = y + np.expand_dims(wide(params[1]), axes)
    return Renormalized(y, new_mean.reshape(kept), new_std.reshape(kept))


class Whitened(NamedTuple):
    y: Array
    mean: Array
    cov: Array


def decorrelated_batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    *,
    train: bool,
    group_size: int,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    channel_axis: int = -1,
    where: ArrayLike | None = None,
    unbiased: bool = False,
    root: Callable[[Array], Array] | None = None,
) -> Whitened:
    """Algorithm 1 of Huang, Yang, Lang and Deng (2018), group after group, on vectors: ZCA by eigenvectors, or another root."""
    x = np.moveaxis(wide(x), channel_axis, -1)
    rows = np.ones(x.shape[:-1], bool)
    if where is not None:
        rows &= np.moveaxis(np.asarray(where), channel_axis, -1)[..., 0]
    running_mean, running_cov = map(wide, state)
    y, new_mean, new_cov = np.empty_like(x), np.empty_like(running_mean), np.empty_like(running_cov)
    for group in range(x.shape[-1] // group_size):
        part = slice(group * group_size, (group + 1) * group_size)
        mean, cov = running_mean[part], running_cov[group]
        new_mean[part], new_cov[group] = mean, cov
        if train:
            vectors = x[..., part][rows]
            mean = vectors.mean(0)
            cov = (vectors - mean).T @ (vectors - mean) / len(vectors)
            bessel = len(vectors) / (len(vectors) - 1) if unbiased else 1.0
            new_mean[part] = momentum * new_mean[part] + (1 - momentum) * mean
            new_cov[group] = momentum * new_cov[group] + (1 - momentum) * cov * bessel
        values, directions = np.linalg.eigh(cov + epsilon * np.eye(group_size))
        w = (directions / np.sqrt(values)) @ directions.T if root is None else root(cov)
        y[..., part] = (x[..., part] - mean) @ w
    if params[0] is not None:
        y = y * wide(params[0])
    if params[1] is not None:
        y = y + wide(params[1])
    return Whitened(np.moveaxis(y, -1, channel_axis), new_mean, new_cov)


def layer_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    x: ArrayLike,
    *,
    epsilon: float = 1e-6,
    reduction_axes: int | Sequence[int] = -1,
    feature_axes: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Ba, Kiros and Hinton (2016), equations 3 and 4; of an example of which nothing counts, the bias."""
    x = wide(x)
    reduced, features = ((axes,) if isinstance(axes, int) else tuple(axes) for axes in (reduction_axes, feature_axes))
    mean, var, n = moments(x, tuple(a % x.ndim for a in reduced), where)
    var = np.where(n > 0, var, np.inf)
    y = (x - mean) / np.sqrt(var + epsilon)
    along = reduced_axes(x.ndim, features)
    if params[0] is not None:
        y = y * np.expand_dims(wide(params[0]), along)
    return y if params[1] is None else y + np.expand_dims(wide(params[1]), along)


def group_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    x: ArrayLike,
    num_groups: int | None = None,
    *,
    group_size: int | None = None,
    epsilon: float = 1e-6,
    channel_axis: int = -1,
    reduction_axes: int | Sequence[int] | None = None,
    where: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: Callable[[Array], Array] | None = None,
) -> Array:
    """Wu and He (2018), equations 1, 2, 6 and 7, group after group; of a group of which nothing counts, the bias."""
    x = np.moveaxis(wide(x), channel_axis, -1)
    size = x.shape[-1] // num_groups if group_size is None else group_size
    counted = (
        np.ones(x.shape, bool) if where is None else np.moveaxis(np.asarray(where), channel_axis, -1) & np.ones(x.shape, bool)
    )
    if reduction_axes is None:
        axes = tuple(range(1, x.ndim))
    else:
        named = (reduction_axes,) if isinstance(reduction_axes, int) else reduction_axes
        order = [a for a in range(x.ndim) if a != channel_axis % x.ndim]
        axes = (*(order.index(a % x.ndim) for a in named if a % x.ndim in order), x.ndim - 1)
    y = np.empty_like(x)
    for first in range(0, x.shape[-1], size):
        part = slice(first, first + size)
        mean, var, n = moments(x[..., part], axes, counted[..., part])
        var = np.where(n > 0, var, np.inf)
        y[..., part] = (x[..., part] - mean) / np.sqrt(var + epsilon)
    if params[0] is not None:
        y = y * wide(params[0])
    if params[1] is not None:
        y = y + wide(params[1])
    y = np.moveaxis(y, -1, channel_axis)
    y = y if residual is None else y + wide(residual)
    return y if activation is None else activation(y)


def instance_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    x: ArrayLike,
    *,
    epsilon: float = 1e-6,
    channel_axis: int | Sequence[int] = -1,
    reduction_axes: int | Sequence[int] | None = None,
    where: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: Callable[[Array], Array] | None = None,
) -> Array:
    """Ulyanov, Vedaldi and Lempitsky (2016), equation 3: layer norm over the positions, with parameters of the channels."""
    x = wide(x)
    positions = tuple(a for a in reduced_axes(x.ndim, channel_axis) if a) if reduction_axes is None else reduction_axes
    y = layer_norm(params, x, epsilon=epsilon, reduction_axes=positions, feature_axes=channel_axis, where=where)
    y = y if residual is None else y + wide(residual)
    return y if activation is None else activation(y)


def rms_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    x: ArrayLike,
    *,
    epsilon: float = 1e-6,
    fraction: float = 1.0,
    scale_offset: float = 0.0,
    reduction_axes: int | Sequence[int] = -1,
    feature_axes: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Zhang and Sennrich (2019), equation 4; of the first features of pRMSNorm there are one at least; of nothing, the bias."""
    x = wide(x)
    reduced, features = ((axes,) if isinstance(axes, int) else tuple(axes) for axes in (reduction_axes, feature_axes))
    counted = np.array(np.broadcast_to(True if where is None else np.asarray(where), x.shape))
    if fraction < 1:
        size = x.shape[reduced[0]]
        np.moveaxis(counted, reduced[0], 0)[max(1, int(fraction * size)) :] = False
    squares, n = (a.sum(reduced, keepdims=True) for a in (np.where(counted, np.abs(x) ** 2, 0), counted))
    y = np.where(n > 0, x, 0) / np.sqrt(squares / np.maximum(n, 1) + epsilon)
    along = reduced_axes(x.ndim, features)
    if params[0] is not None:
        y = y * np.expand_dims(wide(params[0]) + scale_offset, along)
    return y if params[1] is None else y + np.expand_dims(wide(params[1]), along)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gated_rms_norm(
    params: tuple[ArrayLike | None, ArrayLike | None], x: ArrayLike, gate: ArrayLike, *, gate_first: bool = False, **options: Any
) -> Array:
    """The norm of Mamba-2 (Dao and Gu, 2024), and in the other order of Qwen3-Next."""
    factor = silu(wide(gate))
    return rms_norm(params, wide(x) * factor, **options) if gate_first else rms_norm(params, x, **options) * factor


def filter_response_norm(
    params: tuple[ArrayLike | None, ...],
    x: ArrayLike,
    *,
    epsilon: float = 1e-6,
    channel_axis: int | Sequence[int] = -1,
    reduction_axes: int | Sequence[int] | None = None,
    where: ArrayLike | None = None,
) -> Array:
    """Singh and Krishnan (2020), equations 1 to 4: a mean of squares alone, and a maximum with the threshold."""
    *affine, threshold, learned = params
    x = wide(x)
    along = reduced_axes(x.ndim, channel_axis)
    positions = tuple(a for a in along if a) if reduction_axes is None else reduction_axes
    whole = epsilon + (0 if learned is None else abs(float(np.asarray(learned))))
    y = rms_norm(tuple(affine), x, epsilon=whole, reduction_axes=positions, feature_axes=channel_axis, where=where)
    return y if threshold is None else np.maximum(y, np.expand_dims(wide(threshold), along))


def global_response_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    x: ArrayLike,
    *,
    epsilon: float = 1e-6,
    channel_axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Woo et al. (2023), algorithm 1, channels last: sums of squares, not means, and the shortcut."""
    x = wide(x)
    counted = np.broadcast_to(True if where is None else np.asarray(where), x.shape)
    x, counted = (np.moveaxis(a, channel_axis, -1) for a in (x, counted))
    g = np.sqrt((np.abs(np.where(counted, x, 0)) ** 2).sum(tuple(range(1, x.ndim - 1)), keepdims=True))
    y = x * (g / (g.mean(-1, keepdims=True) + epsilon))
    y = y if params[0] is None else y * wide(params[0])
    y = y if params[1] is None else y + wide(params[1])
    return np.moveaxis(y + x, -1, channel_axis)


def local_response_norm(
    x: ArrayLike, *, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75, channel_axis: int = -1
) -> Array:
    """Krizhevsky, Sutskever and Hinton (2012), section 3.3, channel after channel."""
    x = np.moveaxis(wide(x), channel_axis, -1)
    y = np.empty_like(x)
    for i in range(x.shape[-1]):
        window = x[..., max(0, i - size // 2) : i + (size - 1) // 2 + 1]
        y[..., i] = x[..., i] / (k + alpha * (np.abs(window) ** 2).sum(-1)) ** beta
    return np.moveaxis(y, -1, channel_axis)


def unit_norm(
    x: ArrayLike,
    *,
    k: float = 1.0,
    epsilon: float = 1e-6,
    reduction_axes: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Huang, Kümmerle and Zhang (2024), of the counted elements; 0 where there are none."""
    x = wide(x)
    counted = np.broadcast_to(True if where is None else np.asarray(where), x.shape)
    over: Any = {"axis": reduction_axes, "keepdims": True}
    length, n = np.sqrt((np.abs(np.where(counted, x, 0)) ** 2).sum(**over)), counted.sum(**over)
    return np.where(n > 0, np.maximum(n, 1.0) ** (k / 2), 0) * x / np.maximum(length, epsilon)


def scale_norm(params: tuple[ArrayLike | None, ArrayLike | None], x: ArrayLike, **options: Any) -> Array:
    """Nguyen and Salazar (2019), section 2.2: one length for all."""
    y = unit_norm(x, k=0.0, **options)
    y = y if params[0] is None else y * wide(params[0])
    return y if params[1] is None else y + wide(params[1])


def cosine_norm(kernel: ArrayLike, x: ArrayLike, *, centered: bool = False, epsilon: float = 1e-6) -> Array:
    """Luo et al. (2018), equations 2 and 4, output after output."""
    x, kernel = wide(x), wide(kernel)
    if centered:
        x, kernel = x - x.mean(-1, keepdims=True), kernel - kernel.mean(0)
    lengths = np.maximum(np.linalg.norm(x, axis=-1), epsilon)
    columns = [(x * column).sum(-1) / lengths / max(float(np.linalg.norm(column)), epsilon) for column in kernel.T]
    return np.stack(columns, -1)


def dynamic_tanh(params: tuple[ArrayLike | None, ...], x: ArrayLike, *, channel_axis: int | Sequence[int] = -1) -> Array:
    """Zhu et al. (2025), equation 1."""
    scale, bias, alpha = params
    along = reduced_axes(np.ndim(np.asarray(x)), channel_axis)
    y = np.tanh(float(np.asarray(alpha)) * wide(x))
    y = y if scale is None else y * np.expand_dims(wide(scale), along)
    return y if bias is None else y + np.expand_dims(wide(bias), along)


def layer_scale(params: tuple[ArrayLike | None, ArrayLike | None], x: ArrayLike, *, channel_axis: int = -1) -> Array:
    """Touvron et al. (2021), equation 6, without the shortcut."""
    x = wide(x)
    scale, bias = (part if part is None or not np.ndim(part) else along_channels(part, x, channel_axis) for part in params)
    y = x if scale is None else x * wide(scale)
    return y if bias is None else y + wide(bias)


def modulate(
    x: ArrayLike, scale: ArrayLike | None, bias: ArrayLike | None, *, scale_offset: float = 0.0, channel_axis: int = -1
) -> Array:
    """Perez et al. (2018), equation 2, and Park et al. (2019), equation 1 without its norm."""
    y = x = wide(x)
    if scale is not None:
        y = x * (along_channels(scale, x, channel_axis) + scale_offset)
    return y if bias is None else y + along_channels(bias, x, channel_axis)


def along_channels(part: ArrayLike, x: Array, channel_axis: int) -> Array:
    """Numbers of the channels, or of examples and channels, in the form that broadcasts to x; maps as they are."""
    part = wide(part)
    if part.ndim == x.ndim:
        return part
    others = reduced_axes(x.ndim, channel_axis)
    return np.expand_dims(part, others if part.ndim == 1 else tuple(a for a in others if a))


def adaptive_instance_norm(
    x: ArrayLike,
    style: ArrayLike,
    *,
    epsilon: float = 1e-5,
    channel_axis: int = -1,
    where: ArrayLike | None = None,
    style_where: ArrayLike | None = None,
) -> Array:
    """Huang and Belongie (2017), equation 8; what nothing is known of takes the style's mean."""
    x = wide(x)
    positions = tuple(a for a in reduced_axes(x.ndim, channel_axis) if a)
    (mean, var, n), (of_style, var_of_style, _) = moments(x, positions, where), moments(style, positions, style_where)
    std = np.sqrt(np.where(n > 0, var, np.inf) + epsilon)
    return np.sqrt(var_of_style + epsilon) * (x - mean) / std + of_style


def weight_norm(
    params: tuple[ArrayLike, ArrayLike | None], *, channel_axis: int | Sequence[int] = -1, epsilon: float = 1e-12
) -> Array:
    """Salimans and Kingma (2016), equation 2."""
    direction, gain = wide(params[0]), params[1]
    along = reduced_axes(direction.ndim, channel_axis)
    kernel = direction / np.sqrt((direction**2).sum(along, keepdims=True) + epsilon)
    return kernel if gain is None else kernel * np.expand_dims(wide(gain), along)


def weight_standardization(
    kernel: ArrayLike,
    *,
    gain: ArrayLike | None = None,
    scaled: bool = False,
    channel_axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
) -> Array:
    """Qiao et al. (2019), equation 5, with epsilon beside the variance; scaled as Brock, De and Smith (2021), equation 1."""
    kernel = wide(kernel)
    along = reduced_axes(kernel.ndim, channel_axis)
    mean, var, n = moments(kernel, along)
    y = (kernel - mean) / np.sqrt(var + epsilon) / (np.sqrt(n) if scaled else 1)
    return y if gain is None else y * np.expand_dims(wide(gain), along)


class Spectral(NamedTuple):
    y: Array
    u: Array
    sigma: Array


def spectral_norm(
    state: tuple[ArrayLike, ArrayLike],
    kernel: ArrayLike,
    *,
    train: bool,
    steps: int = 1,
    epsilon: float = 1e-12,
    channel_axis: int = -1,
) -> Spectral:
    """Miyato et al. (2018), algorithm 1, on the matrix of all else and the outputs."""
    kernel = wide(kernel)
    matrix = np.moveaxis(kernel, channel_axis, -1).reshape(-1, kernel.shape[channel_axis])
    u, sigma = map(wide, state)
    v, new = np.zeros(len(matrix)), u
    for _ in range(steps):
        v = matrix @ new / np.sqrt(((matrix @ new) ** 2).sum() + epsilon)
        new = matrix.T @ v / np.sqrt(((matrix.T @ v) ** 2).sum() + epsilon)
    found = v @ matrix @ new
    return Spectral(kernel / (found or 1.0), *((new, found) if train and found else (u, sigma)))


class LpNormalized(NamedTuple):
    y: Array
    mean: Array
    scale: Array


def lp_batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    p: float,
    *,
    train: bool,
    gaussian: bool = False,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    channel_axis: int = -1,
    where: ArrayLike | None = None,
) -> LpNormalized:
    """Hoffer et al. (2018), section 4, channel after channel, with epsilon beside the square of the deviation."""
    x = np.moveaxis(wide(x), channel_axis, -1)
    counted = np.broadcast_to(True if where is None else np.asarray(where), x.shape)
    y, new = np.empty_like(x), [np.array(wide(part)) for part in state]
    for c in range(x.shape[-1]):
        mean, deviation = (float(part[c]) for part in new)
        if train:
            some = x[..., c][counted[..., c]]
            mean = some.mean()
            distances = np.abs(some - mean)
            deviation = distances.max() if p == np.inf else (distances**p).mean() ** (1 / p)
            if gaussian and p == np.inf:
                deviation *= (1 + np.sqrt(np.pi * np.log(4))) / 2 / np.sqrt(2 * np.log(len(some)))
            elif gaussian:
                deviation /= (2 ** (p / 2) * math.gamma((p + 1) / 2) / np.sqrt(np.pi)) ** (1 / p)
            for part, own in zip(new, (mean, deviation), strict=True):
                part[c] = momentum * part[c] + (1 - momentum) * own
        y[..., c] = (x[..., c] - mean) / np.sqrt(deviation**2 + epsilon)
        y[..., c] = y[..., c] if params[0] is None else y[..., c] * float(np.asarray(params[0])[c])
        y[..., c] = y[..., c] if params[1] is None else y[..., c] + float(np.asarray(params[1])[c])
    return LpNormalized(np.moveaxis(y, -1, channel_axis), *new)


class Centered(NamedTuple):
    y: Array
    mean: Array


def mean_only_batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike],
    x: ArrayLike,
    *,
    train: bool,
    momentum: float = 0.99,
    channel_axis: int = -1,
    where: ArrayLike | None = None,
) -> Centered:
    """Salimans and Kingma (2016), section 4: batch norm whose variance is 1."""
    zero = np.zeros(np.shape(np.asarray(state[0])))
    x = wide(x)
    axes = reduced_axes(x.ndim, channel_axis)
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    mean = moments(x, axes, where)[0].reshape(kept) if train else wide(state[0])
    y = batch_norm(params, (mean, zero), x, train=False, epsilon=1.0, channel_axis=channel_axis).y
    return Centered(y, momentum * wide(state[0]) + (1 - momentum) * mean if train else mean)


def batch_instance_norm(
    params: tuple[ArrayLike | None, ...], state: tuple[ArrayLike, ArrayLike], x: ArrayLike, **options: Any
) -> Normalized:
    """Nam and Kim (2018), equation 4: a mixture of the two outputs; what nothing is known of takes the batch's statistics."""
    *affine, gate = params
    x, axis, where = wide(x), options.get("channel_axis", -1), options.get("where")
    batch = batch_norm((None, None), state, x, **options)
    positions = tuple(a for a in reduced_axes(x.ndim, axis) if a)
    mean, var, n = moments(x, positions, where)
    own = np.where(n > 0, (x - mean) / np.sqrt(var + options.get("epsilon", 1e-5)), batch.y)
    rho = along_channels(gate, x, axis)
    y = rho * batch.y + (1 - rho) * own
    y = y if affine[0] is None else y * along_channels(affine[0], x, axis)
    y = y if affine[1] is None else y + along_channels(affine[1], x, axis)
    return Normalized(y, batch.mean, batch.var)


def switchable_norm(
    params: tuple[ArrayLike | None, ...], state: tuple[ArrayLike, ArrayLike], x: ArrayLike, *, train: bool, **options: Any
) -> Normalized:
    """Luo et al. (2019), equation 3, with biased variances; what nothing is known of takes the batch's statistics."""
    scale, bias, *logits = params
    x, axis, where = wide(x), options.get("channel_axis", -1), options.get("where")
    new = batch_norm((None, None), state, x, train=train, **options)
    axes = reduced_axes(x.ndim, axis)
    positions, all_but_first = tuple(a for a in axes if a), tuple(range(1, x.ndim))
    of_batch = moments(x, axes, where)[:2] if train else tuple(np.expand_dims(wide(part), axes) for part in state)
    *of_instance, n = moments(x, positions, where)
    of_instance = [np.where(n > 0, part, other) for part, other in zip(of_instance, of_batch, strict=True)]
    *of_layer, n = moments(x, all_but_first, where)
    of_layer = [np.where(n > 0, part, other) for part, other in zip(of_layer, of_batch, strict=True)]
    mean, var = (
        sum(w * part for w, part in zip(np.exp(wide(a)) / np.exp(wide(a)).sum(), parts, strict=True))
        for a, parts in zip(logits, zip(of_instance, of_layer, of_batch, strict=True), strict=True)
    )
    y = (x - mean) / np.sqrt(var + options.get("epsilon", 1e-5))
    y = y if scale is None else y * along_channels(scale, x, axis)
    y = y if bias is None else y + along_channels(bias, x, axis)
    return Normalized(y, new.mean, new.var)


def tracked_instance_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    *,
    train: bool,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    channel_axis: int = -1,
    where: ArrayLike | None = None,
    unbiased: bool = False,
) -> Normalized:
    """Instance norm, and batch norm in inference; what is averaged are plain means over the examples that count something."""
    if not train:
        return batch_norm(params, state, x, train=False, epsilon=epsilon, channel_axis=channel_axis)
    x = wide(x)
    positions = tuple(a for a in reduced_axes(x.ndim, channel_axis) if a)
    mean, var, n = (np.squeeze(part, positions) for part in moments(x, positions, where))
    n = np.broadcast_to(n, mean.shape)
    var = var * n / np.maximum(n - 1, 1) if unbiased else var
    new = [
        momentum * wide(old) + (1 - momentum) * np.where(n > 0, part, 0).sum(0) / (n > 0).sum(0)
        for old, part in zip(state, (mean, var), strict=True)
    ]
    return Normalized(instance_norm(params, x, epsilon=epsilon, channel_axis=channel_axis, where=where), *new)


def virtual_batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    x: ArrayLike,
    reference: tuple[ArrayLike, ArrayLike, ArrayLike],
    *,
    epsilon: float = 1e-5,
    channel_axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Salimans et al. (2016), section 3.4, with sums of squares: as if the reference's elements were there once more."""
    x = wide(x)
    axes = reduced_axes(x.ndim, channel_axis)
    positions = tuple(a for a in axes if a)
    counted = np.broadcast_to(True if where is None else np.asarray(where), x.shape)
    mean, var, n = (np.expand_dims(wide(part), axes) for part in reference)
    total = n + counted.sum(positions, keepdims=True)
    joined = (n * mean + np.where(counted, x, 0).sum(positions, keepdims=True)) / total
    squares = n * (var + np.abs(mean) ** 2) + np.where(counted, np.abs(x) ** 2, 0).sum(positions, keepdims=True)
    y = (x - joined) / np.sqrt(squares / total - np.abs(joined) ** 2 + epsilon)
    y = y if params[0] is None else y * np.expand_dims(wide(params[0]), axes)
    return y if params[1] is None else y + np.expand_dims(wide(params[1]), axes)


def frozen_batch_norm(
    params: tuple[ArrayLike | None, ArrayLike | None], state: tuple[ArrayLike, ArrayLike], x: ArrayLike, **options: Any
) -> Array:
    """Batch norm in inference."""
    return batch_norm(params, state, x, train=False, **options).y


def iterative_norm(
    params: tuple[ArrayLike | None, ArrayLike | None],
    state: tuple[ArrayLike, ArrayLike],
    x: ArrayLike,
    *,
    train: bool,
    group_size: int,
    iterations: int = 5,
    epsilon: float = 1e-5,
    **options: Any,
) -> Whitened:
    """Algorithm 1 of Huang, Zhou, Zhu, Liu and Shao (2019): by the eigenvalues, on each of which the iteration acts alone."""

    def inverse_root(cov: Array) -> Array:
        values, directions = np.linalg.eigh(cov + epsilon * np.eye(group_size))
        ratio, p = values / values.sum(), np.ones(group_size)
        for _ in range(iterations):
            p = (3 * p - p**3 * ratio) / 2
        return (directions * p) @ directions.T / np.sqrt(values.sum())

    return decorrelated_batch_norm(params, state, x, train=train, group_size=group_size, root=inverse_root, **options)


class EvoNormalized(NamedTuple):
    y: Array
    var: Array


def evonorm_b(
    kind: str,
    params: tuple[ArrayLike | None, ...],
    state: tuple[ArrayLike],
    x: ArrayLike,
    *,
    train: bool,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    channel_axis: int = -1,
    where: ArrayLike | None = None,
    unbiased: bool = False,
) -> EvoNormalized:
    """Liu et al. (2020), table 2, and appendix A for B1 and B2; an x that neither counts nor is finite is 0."""
    scale, bias, *v = params
    x = wide(x)
    axes = reduced_axes(x.ndim, channel_axis)
    _, var, n = moments(x, axes, where)
    new = wide(state[0])
    if train:
        used = np.squeeze(var * n / np.maximum(n - 1, 1) if unbiased else var, axes)
        new = momentum * new + (1 - momentum) * used
    else:
        var = np.expand_dims(new, axes)
    mean, own, _ = moments(x, tuple(a for a in axes if a), where)
    deviation, size = np.sqrt(own + epsilon), np.sqrt(own + mean**2 + epsilon)
    if kind == "b0":
        other = along_channels(v[0], x, channel_axis) * x + deviation
    else:
        other = (x + 1) * size if kind == "b1" else size - x
    y = x / np.maximum(np.sqrt(var + epsilon), other)
    y = y if scale is None else y * along_channels(scale, x, channel_axis)
    return EvoNormalized(y if bias is None else y + along_channels(bias, x, channel_axis), new)


def evonorm_s(
    kind: str,
    params: tuple[ArrayLike | None, ...],
    x: ArrayLike,
    num_groups: int | None = None,
    *,
    group_size: int | None = None,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
) -> Array:
    """Liu et al. (2020), table 2, and appendix A for S1 and S2, group after group; of nothing counted, the bias."""
    scale, bias, *v = params
    x = wide(x)
    size = x.shape[-1] // num_groups if num_groups else group_size
    counted = np.broadcast_to(True if where is None else np.asarray(where), x.shape)
    y = np.empty_like(x)
    for first in range(0, x.shape[-1], size):
        part = slice(first, first + size)
        own = x[..., part]
        mean, var, n = moments(own, tuple(range(1, x.ndim)), counted[..., part])
        square = np.where(n > 0, var + (mean**2 if kind == "s2" else 0), np.inf)
        gate = own * wide(v[0])[part] if v else own
        y[..., part] = own / (1 + np.exp(-gate)) / np.sqrt(square + epsilon)
    y = y if scale is None else y * wide(scale)
    return y if bias is None else y + wide(bias)


def batch_norm_gradient(
    x: ArrayLike, scale: ArrayLike, dy: ArrayLike, *, epsilon: float, where: ArrayLike | None = None, channel_axis: int = -1
) -> tuple[Array, Array, Array]:
    """Gradients of `sum(y dy)` for x, scale and bias in training: the paper's, where what counts moves the statistics."""
    x, dy = wide(x), wide(dy)
    axes = reduced_axes(x.ndim, channel_axis)
    mean, var, n = moments(x, axes, where)
    share = np.broadcast_to(True if where is None else np.asarray(where), x.shape) / n
    inverse = 1 / np.sqrt(var + epsilon)
    normal = (x - mean) * inverse
    over = {"axis": axes, "keepdims": True}
    dx = dy - share * dy.sum(**over) - share * normal * (dy * normal).sum(**over)
    return np.expand_dims(wide(scale), axes) * inverse * dx, (dy * normal).sum(axes), dy.sum(axes)


def reduced_axes(ndim: int, channel_axis: int | Sequence[int]) -> tuple[int, ...]:
    channels = (channel_axis,) if isinstance(channel_axis, int) else channel_axis
    return tuple(sorted(set(range(ndim)) - {a % ndim for a in channels}))


def threefry2x32(key: ArrayLike, counter: tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds, from Salmon, Moraes, Dror and Shaw (2011), in Python's order: round after round."""
    k = [int(word) for word in np.asarray(key)]
    k.append(0x1BD11BDA ^ k[0] ^ k[1])
    rotations = (13, 15, 26, 6, 17, 29, 16, 24)
    modulus = np.uint64(2**32 - 1)
    a, b = ((np.asarray(word).astype(np.uint64) + np.uint64(k[i])) & modulus for i, word in enumerate(counter))
    for r in range(20):
        turn = np.uint64(rotations[r % 8])
        a = (a + b) & modulus
        b = ((b << turn) | (b >> (np.uint64(32) - turn))) & modulus
        b = b ^ a
        if r % 4 == 3:
            injection = r // 4 + 1
            a = (a + np.uint64(k[injection % 3])) & modulus
            b = (b + np.uint64(k[(injection + 1) % 3] + injection)) & modulus
    return a.astype(np.uint32), b.astype(np.uint32)


def derived_key(words: ArrayLike) -> Array:
    """A key of this cipher from one of another generator: pair after pair of its words, enciphered with what came before."""
    words = np.asarray(words)
    key = np.zeros(2, np.uint32)
    for pair in np.append(words, np.zeros(words.size % 2, np.uint32)).reshape(-1, 2):
        key = np.stack(threefry2x32(key, tuple(pair)))
    return key


def random_words(key: ArrayLike, shape: Sequence[int], start: int = 0) -> Array:
    """One word for each element: the cipher of its 64-bit index, both halves in one; `start` is the first element's index."""
    index = _index(shape, start)
    high, low = threefry2x32(key, (index >> 32, index & 0xFFFFFFFF))
    return high ^ low


def random_integers(key: ArrayLike, shape: Sequence[int], bits: int, start: int = 0) -> Array:
    """One number of 8 or 16 bits for each element, a part of a block of 64 bits; or the upper 23 bits of a word of 32."""
    if bits == 32:
        return random_words(key, shape, start) >> 9
    block, lane = np.divmod(_index(shape, start), 64 // bits)
    first, second = threefry2x32(key, (block >> 32, block & 0xFFFFFFFF))
    both = first.astype(np.uint64) | second.astype(np.uint64) << np.uint64(32)
    return (both >> (lane * bits).astype(np.uint64) & np.uint64(2**bits - 1)).astype(np.uint32)


def uniform_numbers(key: ArrayLike, shape: Sequence[int], bits: int = 16) -> Array:
    """Numbers in [0, 1): of 32 bits multiples of 2^-23, of 16 the middles of the intervals between multiples of 2^-16."""
    numbers = random_integers(key, shape, bits)
    return numbers / 2.0**23 if bits == 32 else (numbers + 0.5) / 2.0**16


def realised(rate: ArrayLike, bits: int = 16) -> Array:
    """The probability to keep that so many bits realise; `1 - rate` is held in float32, and what is kept is divided by this."""
    keep = np.float32(1 - np.asarray(rate, np.float64)).astype(np.float64)
    if bits == 32:
        return keep
    return np.where(keep > 0, np.maximum(np.round(keep * 2**bits), 1), 0) / 2**bits


def keep_mask(key: ArrayLike, shape: Sequence[int], rate: ArrayLike, bits: int = 16) -> Array:
    """What is kept: the elements whose number, as a fraction of 1, is below the probability to keep."""
    return random_integers(key, shape, bits) / 2.0 ** min(bits, 23) < realised(rate, bits)


def alpha_dropout(mask: ArrayLike, x: ArrayLike, keep: ArrayLike, mean: ArrayLike = 0.0, var: ArrayLike = 1.0) -> Array:
    """Klambauer and others (2017), section 4, of a mask drawn with this probability to keep, for any mean and variance."""
    saturated = -1.7580993408473766
    a = np.sqrt(var / (keep * ((1 - keep) * (saturated - np.asarray(mean)) ** 2 + var)))
    b = mean - a * (keep * np.asarray(mean) + (1 - keep) * saturated)
    return a * np.where(mask, wide(x), saturated) + b


def normal_numbers(words: ArrayLike) -> Array:
    """Standard normal: the lower 31 bits of a word are the probability of lying further from 0, the highest is the sign."""
    words = np.asarray(words).astype(np.int64)
    outside = ((words & 0x7FFFFFFF) + 0.5) / 2.0**31
    return np.where(words >> 31, -1, 1) * np.sqrt(2) * erfcinv(outside)


def normal_numbers_of_16_bits(numbers: ArrayLike) -> Array:
    """Standard normal from whole numbers below 2^16: each is the middle of its interval, and all 2^16 have variance 1."""
    middles = np.asarray(numbers).astype(np.uint32) << 16 | 2**15
    return normal_numbers(middles) / np.std(normal_numbers(np.arange(2**15, 2**32, 2**16)))


def standard_normal(key: ArrayLike, shape: Sequence[int], bits: int = 16) -> Array:
    """N(0, 1) by inversion."""
    return normal_numbers(random_words(key, shape)) if bits == 32 else normal_numbers_of_16_bits(random_integers(key, shape, 16))


def gaussian_noise(key: ArrayLike, shape: Sequence[int], rate: float, bits: int = 16) -> Array:
    """N(1, rate / (1 - rate))."""
    return 1 + np.sqrt(rate / (1 - rate)) * standard_normal(key, shape, bits)


def uniform_noise(key: ArrayLike, shape: Sequence[int], beta: float, bits: int = 16) -> Array:
    """U(1 - beta, 1 + beta)."""
    return 1 - beta + 2 * beta * uniform_numbers(key, shape, bits)


def logistic_noise(key: ArrayLike, shape: Sequence[int], bits: int = 16) -> Array:
    """The logit of a uniform number, in the middle of one of 2^16 or 2^23 intervals (of 16 bits next to it)."""
    words = random_words(key, shape) if bits == 32 else random_integers(key, shape, 16).astype(np.uint32) << 16 | 2**15
    u = (words >> 8 | 1) / 2.0**24
    return np.log(u / (1 - u))


def concrete_mask(noise: ArrayLike, rate: ArrayLike, temperature: float) -> Array:
    """The authors' z, which is near 1 where they drop."""
    rate = np.asarray(rate)
    return 1 / (1 + np.exp(-(np.log(rate) - np.log(1 - rate) + np.asarray(noise)) / temperature))


def log_uniform_divergence(alpha: ArrayLike) -> Array:
    """The KL of N(1, alpha) from the log-uniform prior, by the series of E[log |e|] over a Poisson distribution."""
    alpha = np.asarray(alpha, np.float64)
    mean = 1 / (2 * alpha[..., None])
    k = np.arange(int(mean.max() + 40 * np.sqrt(mean.max()) + 60))
    log_of_noise = (np.log(2 * alpha) + np.sum(stats.poisson.pmf(k, mean) * digamma(k + 0.5), -1)) / 2
    return (np.euler_gamma + np.log(2)) / 2 - np.log(alpha) / 2 + log_of_noise


def block_probability(rate: ArrayLike, sizes: Sequence[int], blocks: Sequence[int]) -> Array:
    """Gamma of DropBlock, of maps that need not be square."""
    places = [n - b + 1 for n, b in zip(sizes, blocks, strict=True)]
    return np.asarray(rate) * np.prod(sizes) / (np.prod(blocks) * np.prod(places))


def outside_blocks(begins: ArrayLike, axes: Sequence[int], blocks: Sequence[int]) -> Array:
    """Which positions no block covers, from where blocks begin, one by one."""
    begins = np.asarray(begins)
    shape = list(begins.shape)
    for axis, block in zip(axes, blocks, strict=True):
        shape[axis] += block - 1
    outside = np.ones(shape, bool)
    for place in np.argwhere(begins):
        covered = [slice(i, i + 1) for i in place]
        for axis, block in zip(axes, blocks, strict=True):
            covered[axis] = slice(place[axis], place[axis] + block)
        outside[tuple(covered)] = False
    return outside


def covering_blocks(size: int, block: int) -> Array:
    """How many blocks inside of a line could cover each of its positions."""
    return np.sum([(np.arange(size) >= i) & (np.arange(size) < i + block) for i in range(size - block + 1)], axis=0)


def holes(centers: Sequence[int], sizes: Sequence[int], shape: Sequence[int]) -> Array:
    """The pixels of a square around a center, clipped at the borders of the map."""
    ranges = (range(c - s // 2, c - s // 2 + s) for c, s in zip(centers, sizes, strict=True))
    cut = np.zeros(shape, bool)
    for pixel in itertools.product(*ranges):
        if all(0 <= i < n for i, n in zip(pixel, shape, strict=True)):
            cut[pixel] = True
    return cut


def windows(x: ArrayLike, sizes: Sequence[int], strides: Sequence[int]) -> Array:
    """The elements of every window of `[B, ..., C]`, along a last axis of their own."""
    x = np.asarray(x)
    axes = tuple(range(1, x.ndim - 1))
    view = np.lib.stride_tricks.sliding_window_view(x, sizes, axes)[(slice(None), *(slice(None, None, s) for s in strides))]
    return view.reshape(*view.shape[: x.ndim], -1)


def max_pool_dropout_mean(x: ArrayLike, rate: float, sizes: Sequence[int], strides: Sequence[int]) -> Array:
    """The mean of the largest over all masks of a window, one by one."""
    elements = windows(wide(x), sizes, strides)
    n = elements.shape[-1]
    masks = np.array(list(itertools.product((0, 1), repeat=n)))
    weight = rate ** (n - masks.sum(1)) * (1 - rate) ** masks.sum(1)
    return sum(w * np.max(elements * mask, axis=-1) for w, mask in zip(weight, masks, strict=True))


def attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, bias: ArrayLike, mask: ArrayLike, kept: ArrayLike, keep: ArrayLike
) -> Array:
    """Vaswani and others (2017), section 3.2.1, `[B, T, H, D]`, with dropout of the weights; every query sees a key."""
    logits = np.einsum("bqhd,bkhd->bhqk", wide(query), wide(key)) / math.sqrt(np.shape(query)[-1]) + wide(bias)
    seen = np.where(mask, np.exp(logits - logits.max(-1, keepdims=True)), 0)
    weights = np.where(kept, seen / seen.sum(-1, keepdims=True), 0) / keep
    return np.einsum("bhqk,bkhd->bqhd", weights, wide(value))


def _index(shape: Sequence[int], start: int = 0) -> Array:
    return start + np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
