"""Running statistics: the only place that makes a new running state."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import match_sharding
from jaxnorm._moments import Moments
from jaxnorm._types import RunningStats


def update_running(state: RunningStats, batch: Moments, weights: tuple[jax.Array, jax.Array], *, unbiased: bool) -> RunningStats:
    """Returns `old_weight * state + new_weight * batch` for the channels whose batch statistics can be trusted.

    A channel with no counted element, or whose mean or variance is not finite, keeps its running statistics. Nothing flows
    back through the result.

    Args:
      state: running statistics.
      batch: moments of the batch, pooled over all devices, so that all devices agree on what is kept.
      weights: of the old statistics and of the batch's.
      unbiased: whether the variance that is averaged is `n / (n - 1)` times the biased one (the biased one if n is 1).
    """
    var = batch.var
    if unbiased:
        var = var * (batch.n / jnp.maximum(batch.n - 1, 1))
    trusted = (batch.n > 0) & jnp.isfinite(batch.mean) & jnp.isfinite(var)

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        wide = np.promote_types(old.dtype, new.dtype)
        old_weight, new_weight = (w.astype(wide) for w in weights)
        old_here = match_sharding(old, new)
        mixed = old_weight * old_here.astype(wide) + new_weight * new.astype(wide)
        return lax.stop_gradient(match_sharding(jnp.where(trusted, mixed.astype(old.dtype), old_here), old))

    return RunningStats(average(state.mean, batch.mean), average(state.var, var))
