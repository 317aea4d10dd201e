"""Variance shift: how far the variances that norms stored in training are from those that they meet in inference."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import Scalar, check_finite, check_number
from jaxnorm.diagnostics._variances import layers_with_spread, ratio_of, variances_of
from jaxnorm.diagnostics.noise import li_shift_ratio
from jaxnorm.statistics._layers import Found, Layer, PyTree, joined_path
from jaxnorm.statistics.precise import Count, Update, found_of


class VarianceShift(NamedTuple):
    """The variance shift of a norm.

    Attributes:
      stored: the variance of each channel as it was stored in training, `[C]`.
      real: that of what enters the norm in inference, `[C]`; NaN where nothing does that counts.
      ratio: `real / stored`, `[C]`: below 1 where inference misses noise that training had.
      predicted: that ratio in closed form, `[C]`, for noise right before the norm; None where none is given.
      shift: `max(real / stored, stored / real)` of the variances averaged over the channels, at least 1; of norms whose
        statistics are stacked, as under `nn.scan`, one for each.
    """

    stored: jax.Array
    real: jax.Array
    ratio: jax.Array
    predicted: jax.Array | None
    shift: jax.Array


def variance_shift(
    update: Update,
    stats: PyTree,
    batches: Any,
    *,
    noise_variance: Scalar | Mapping[str, Scalar] | None = None,
    count: Count | None = None,
    progress: bool = True,
) -> dict[str, VarianceShift]:
    """Returns for every batch norm of a network how far its stored variance is from the one that it meets in inference.

    `shift = max(real / stored, stored / real)` of variances averaged over the channels, where `real` is that of the norm's input
    over all batches, with the weights as they are, the noise off, and the layers before it normalizing by what they stored.
    Without noise in training it is near 1. Dropout before a norm makes `stored` larger, with what it did to the layers before.
    `jaxnorm.statistics.precise_stats` estimates anew what is off, `correct_variance_shift` without data.

    Noise of mean 1 right before a norm, of a variance s, makes `real / stored = v / (v + (c^2 + v) s)` for a channel of real mean
    c and variance v (`li_shift_ratio`): that is `predicted`, for the noise of this place alone. For noise before the linear layer
    before a norm see `noisy_dense_variance`.

    The real variance is that of the population. An average of biased variances of n elements is `(n - 1) / n` of it without any
    noise, which shows where batches are small.

    Args:
      update: as `jaxnorm.statistics.precise_stats` takes it for its `layer_by_layer`: `linen_update(...)` or `nnx_update(...)`,
        or a function `update(stats, batch) -> stats` that normalizes by `stats`, without noise, and gives the statistics of what
        it normalizes. (One that normalizes by the batch would measure another network.)
      stats: the running statistics of training.
      batches: the training data, as in `precise_stats`.
      noise_variance: variance of noise right before the norms, as of `dropout_noise_variance`: a number or an array that
        broadcasts to the channels, traced or not, for all norms; or a dict of them by the paths of those norms that have such
        noise before them. None predicts nothing.
      count: as in `precise_stats`.
      progress: whether to show a progress bar while an iterable is gone through.

    Returns:
      `VarianceShift` by the path of each norm in stats, as `BatchNorm_0`; the path of statistics that are no part of a tree is
      empty. Norms without a spread, as mean-only batch norm, are left out; of a standard or l_p deviation it is the square.

    Raises:
      ValueError: if stats hold no variance, as of a network without batch norm, or one that is not finite; if noise_variance
        names a norm that is not there, or one of which mean and variance are not known; if a concrete one is below 0; else as
        `precise_stats`.
      TypeError: as `precise_stats`, or if noise_variance is no number.

    References:
      Li, Chen, Hu, Yang, "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019,
      https://arxiv.org/abs/1801.05134.

    Example:
      >>> import jax, jaxnorm
      >>> from jaxnorm.diagnostics import dropout_noise_variance, variance_shift
      >>> params, stats = jaxnorm.init_batch_norm(2)
      >>> x = 1 + jax.random.normal(jax.random.key(0), (10, 5000, 2))
      >>> noisy = jaxnorm.dropout(jax.random.key(1), x, 0.5)
      >>> _, stats = jaxnorm.batch_norm(params, stats, noisy, train=True, momentum=0.0)
      >>> def update(stats, x):  # of one norm; in a network what is normalized goes on as that of batch_norm(train=False)
      ...     return {"norm": jaxnorm.batch_norm(params, stats["norm"], x, train=True, momentum=0.0)[1]}
      >>> found = variance_shift(update, {"norm": stats}, x, noise_variance=dropout_noise_variance(0.5))
      >>> print(found["norm"].shift.round(1), found["norm"].ratio.round(1), found["norm"].predicted.round(1))
      3.0 [0.3 0.3] [0.3 0.3]
    """
    layers = layers_with_spread("stats", stats)
    for path, layer in layers.items():
        for name, part in layer.items():
            check_finite(f"stats: {joined_path(path, name)}", part)
    noise = {} if noise_variance is None else _noise_by_path(noise_variance, layers)
    found = found_of(update, stats, batches, by_stats=True, settle=False, count=count, progress=progress)
    return {path: _shift(layer, found[path], noise.get(path)) for path, layer in layers.items()}


def _noise_by_path(noise: Any, layers: Mapping[str, Layer]) -> Mapping[str, Scalar]:
    """Returns variances of noise by the paths of layers, or raises unless these are there and a closed form holds for them."""
    by_path: Mapping[str, Scalar] = noise if isinstance(noise, Mapping) else dict.fromkeys(layers, noise)
    for path, amount in by_path.items():
        if path not in layers:
            near = difflib.get_close_matches(str(path), layers, 1, 0)
            raise ValueError(f"noise_variance must be of norms in stats, got {path!r}; the nearest is {near[0]!r}")
        if "mean" not in layers[path] or "scale" in layers[path]:
            raise ValueError(f"noise_variance must be of norms with mean and variance, got {path!r} with {list(layers[path])}")
        own, shape = np.shape(check_number("noise_variance", amount, low=0)), layers[path]["mean"].shape
        if len(own) > len(shape) or any(n not in (1, size) for n, size in zip(own[::-1], shape[::-1], strict=False)):
            raise ValueError(f"noise_variance must broadcast to the channels, {list(shape)}, got shape {list(own)}")
    return by_path


@jax.jit
def _shift(layer: Layer, found: Found, noise: Scalar | None) -> VarianceShift:
    stored, met, known = variances_of(layer), variances_of(found.layer), found.n > 0
    real = jnp.where(known, met, jnp.nan)
    predicted = None
    if noise is not None:
        noise = jnp.asarray(noise, real.dtype)
        noise = jnp.broadcast_to(noise.reshape((1,) * (real.ndim - noise.ndim) + noise.shape), real.shape)
        predicted = jnp.where(known, li_shift_ratio(jnp.abs(found.layer["mean"]), met, noise), jnp.nan)
    of_layer = ratio_of(jnp.mean(stored, -1), jnp.mean(real, -1))
    return VarianceShift(stored, real, ratio_of(real, stored), predicted, jnp.maximum(of_layer, 1 / of_layer))
