"""Drift of running statistics: how far they are from others of the same network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm._moments import abs_square
from jaxnorm.diagnostics._variances import layers_with_spread, ratio_of, variances_of
from jaxnorm.statistics._layers import MEAN, Layer, PyTree, check_like


class StatisticsDrift(NamedTuple):
    """How far the running statistics of a norm are from others.

    Attributes:
      mean: `(mean - mean_0) / sqrt(var_0)` of each channel, `[C]`: in standard deviations; None for statistics without a mean.
      log_var: `log(var / var_0)` of each channel, `[C]`.
      rms_mean: the root mean square of `mean` over the channels; of norms whose statistics are stacked, one for each; or None.
      rms_log_var: that of `log_var`.
    """

    mean: jax.Array | None
    log_var: jax.Array
    rms_mean: jax.Array | None
    rms_log_var: jax.Array


def statistics_drift(stats: PyTree, reference: PyTree) -> dict[str, StatisticsDrift]:
    """Returns for every batch norm of a network how far its running statistics are from those of a reference.

    `(mean - mean_0) / sqrt(var_0)` and `log(var / var_0)`, by the reference's mean_0 and var_0, channel by channel. The reference
    may be those of `jaxnorm.statistics.precise_stats`, to see whether averages are stale, or biased by noise; or those of an
    earlier step, to see how fast the distributions move; or those of another domain. In inference an error of d in `log_var`
    scales what the norm gives by `exp(-d / 2)`, one in `mean` moves it by as many standard deviations.

    Args:
      stats: running statistics, any tree as in `precise_stats`.
      reference: others of the same layers and shapes, in any container.

    Returns:
      `StatisticsDrift` by the path of each norm in stats, as `BatchNorm_0`; the path of statistics that are no part of a tree is
      empty. Norms without a spread, as mean-only batch norm, have no unit for their means and are left out; of a standard or l_p
      deviation it is the square. Where both variances are 0, `log_var` is 0, and so is `mean` if the means are equal.

    Raises:
      ValueError: if stats hold no variance, as of a network without batch norm; if reference has other layers or shapes.
      TypeError: if either holds no arrays in float32 or wider.

    References:
      Wu, Johnson, "Rethinking 'batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576. The figures are not in it.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm import RunningStats
      >>> from jaxnorm.diagnostics import statistics_drift
      >>> old = RunningStats(jnp.zeros(2), jnp.array([4.0, 1.0]))
      >>> new = RunningStats(jnp.array([1.0, 0.0]), jnp.array([4.0, 2.0]))
      >>> drift = statistics_drift({"norm": new}, {"norm": old})["norm"]
      >>> print(drift.mean, drift.log_var.round(3), drift.rms_mean.round(3))
      [0.5 0. ] [0.    0.693] 0.354
    """
    layers, others = layers_with_spread("stats", stats), layers_with_spread("reference", reference)
    check_like("reference", reference, stats, "stats")
    return {path: _drift(layer, others[path]) for path, layer in layers.items()}


@jax.jit
def _drift(layer: Layer, reference: Layer) -> StatisticsDrift:
    reference = {name: part.astype(layer[name].dtype) for name, part in reference.items()}
    old = variances_of(reference)
    log_var = jnp.log(ratio_of(variances_of(layer), old))
    if MEAN not in layer:
        return StatisticsDrift(None, log_var, None, _rms(log_var))
    step = layer[MEAN] - reference[MEAN]
    mean = jnp.where(step == 0, step, step / jnp.sqrt(old).astype(step.dtype))
    return StatisticsDrift(mean, log_var, _rms(mean), _rms(log_var))


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(abs_square(x), -1))
