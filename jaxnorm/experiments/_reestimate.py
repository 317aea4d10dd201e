"""Re-estimation of running statistics with the weights as they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def reestimate_stats(update: Callable[[Any, jax.Array, jax.Array], Any], stats: Any, batches: jax.Array) -> Any:
    """Returns running statistics estimated anew: the mean of those of every batch, with all weights as they are.

    Every batch norm normalizes by the statistics of the batch, so that each layer sees inputs that the layers below have
    already corrected; the old statistics have no part in it. (With the old ones in use while the new ones are collected, every
    layer would be estimated on inputs that it will not see any more, the worse the deeper it is.) With the whole training set as
    one batch the result is exact: it equals estimating layer after layer.

    Args:
      update: `update(stats, x, momentum) -> stats`, a pass through the network in training mode without any noise.
      stats: the running statistics; only their tree, shapes and dtypes matter.
      batches: `[batches, B, ...]`.
    """

    def step(stats: Any, given: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        number, x = given
        return update(stats, x, number / (number + 1)), None

    return lax.scan(step, stats, (jnp.arange(len(batches), dtype=jnp.float32), batches))[0]
