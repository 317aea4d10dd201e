"""Running statistics: the only place that makes a new running state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._axes import match_sharding


def update_running(state: Any, batch: Any, trusted: Any, weights: tuple[jax.Array, jax.Array]) -> Any:
    """Returns `old_weight * state + new_weight * batch` where the statistics of the batch are trusted, else the state.

    Nothing flows back through the result.

    Args:
      state: running statistics, a tree of arrays.
      batch: those of the batch, pooled over all devices, so that all devices agree on what is kept.
      trusted: bools that broadcast to them.
      weights: of the old statistics and of the batch's.
    """

    def average(old: jax.Array, new: jax.Array, trusted: jax.Array) -> jax.Array:
        wide = np.promote_types(old.dtype, new.dtype)
        old_weight, new_weight = (w.astype(wide) for w in weights)
        old_here = match_sharding(old, new)
        mixed = old_weight * old_here.astype(wide) + new_weight * new.astype(wide)
        return lax.stop_gradient(match_sharding(jnp.where(trusted, mixed.astype(old.dtype), old_here), old))

    return jax.tree.map(average, state, batch, trusted)
