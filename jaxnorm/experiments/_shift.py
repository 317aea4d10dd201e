"""Variance shift: how far the variances that batch norm stored in training are from those that it meets in inference."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import RunningStats
from jaxnorm._moments import moments
from jaxnorm.diagnostics import li_dense_shift_ratio, li_shift_ratio, noisy_dense_variance, noisy_variance
from jaxnorm.experiments._mlp import MLP, Dense, Params, Seen, Stats

_DRAWS = 8


class Variances(NamedTuple):
    """Variances of what enters each batch norm, averaged over the channels, `[depth]` each.

    Attributes:
      stored: what batch norm stored in training.
      real: without noise, on the training set, normalized with what was stored.
      noisy: the same but for noise at this layer alone, drawn.
      closed_form: `noisy` in closed form, from the moments without noise.
      li: `noisy` by the formulas of Li et al., which take all inputs for alike.
    """

    stored: jax.Array
    real: jax.Array
    noisy: jax.Array
    closed_form: jax.Array
    li: jax.Array


class Shift(NamedTuple):
    """Ratios of the variance in training to that in inference at each batch norm, `[depth]` each.

    Attributes:
      compounded: stored to real or its inverse, at least 1: of the network as it was trained, with noise everywhere.
      alone: with noise at this layer alone, drawn.
      closed_form: the same in closed form.
      li: the same by the formulas of Li et al.
    """

    compounded: jax.Array
    alone: jax.Array
    closed_form: jax.Array
    li: jax.Array


def measure_shift(model: MLP, key: jax.Array, params: Params, stats: Stats, x: jax.Array) -> tuple[Variances, Shift]:
    """Measures the shift of every batch norm on the training set x, `[B, features]`, with the weights as they are."""
    _, _, (first, others) = model.forward(None, params, stats, x, train=False)
    layer = functools.partial(_layer_variances, model, key)
    at_first = layer(0, params.first.dense, stats.first, first)
    # One after the other, as memory is what all layers' draws at once would take.
    numbers = jnp.arange(1, 1 + len(params.others.dense.bias))
    at_others = lax.map(lambda given: layer(*given), (numbers, params.others.dense, stats.others, others))
    variances = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), at_first, at_others)
    compounded = jnp.maximum(variances.stored / variances.real, variances.real / variances.stored)
    return variances, Shift(compounded, *(part / variances.real for part in variances[2:]))


def _layer_variances(
    model: MLP, key: jax.Array, number: int | jax.Array, layer: Dense, stats: RunningStats, seen: Seen
) -> Variances:
    def drawn(draw: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, number * _DRAWS + draw)
        return moments(model.preactivation(layer, seen.input, own), (0,)).var

    real, noisy = moments(seen.preactivation, (0,)), lax.map(drawn, jnp.arange(_DRAWS))
    closed_form, li = _closed_forms(model, layer, seen)
    correction = len(seen.input) / (len(seen.input) - 1)  # to unbiased variances, as the stored ones are
    return Variances(jnp.mean(stats.var), *(correction * jnp.mean(part) for part in (real.var, noisy, closed_form, li)))


def _closed_forms(model: MLP, layer: Dense, seen: Seen) -> tuple[jax.Array, jax.Array]:
    """Returns the variance with noise at this layer in closed form, exactly and by Li et al., `[width]` each."""
    after = moments(seen.preactivation, (0,))
    if model.noise is None or model.noise.place not in ("before norm", "before dense"):
        return after.var, after.var
    if model.noise.place == "before norm":
        exact = noisy_variance(after.mean, after.var, model.noise.variance)
        return exact, after.var / li_shift_ratio(after.mean, after.var, model.noise.variance)
    before = moments(seen.input, (0,))
    second_moment = jnp.square(before.mean) + before.var
    exact = noisy_dense_variance(layer.kernel, second_moment, after.var, model.noise.variance)
    mean, var = jnp.sqrt(jnp.mean(jnp.square(before.mean))), jnp.mean(before.var)
    ratio = li_dense_shift_ratio(layer.kernel, mean, var, _mean_correlation(seen.input), model.noise.variance)
    return exact, after.var / ratio


def _mean_correlation(x: jax.Array) -> jax.Array:
    """Returns the mean covariance of two different features of x, `[B, features]`, over the mean variance."""
    of_features = jnp.sum(moments(x, (0,)).var)
    of_sum = moments(jnp.sum(x, 1), (0,)).var
    others = max(x.shape[1] - 1, 1)
    # The variance of a sum is the sum of the variances and of the covariances of all ordered pairs.
    return (of_sum - of_features) / (of_features * others)
