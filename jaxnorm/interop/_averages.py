"""Running averages that forget their start: how much of it is left, and the momentum that a layer here needs for the same."""

import math
from typing import Any

import jax.numpy as jnp

from jaxnorm._checks import Scalar, check_number, check_scalar, is_concrete

UPDATES = 2**30
"""So many updates that nothing of the start is left, whatever the momentum, and a counter of 32 bits still counts on."""


def debiased_momentum(decay: Any, count: Scalar) -> Scalar:
    """Returns the weight of the old average after `count` updates where the average is `hidden / (1 - decay^count)`.

    With `hidden <- decay hidden + (1 - decay) batch` it is `decay (1 - decay^count) / (1 - decay^(count + 1))`.
    """
    if decay == 0:
        return 0.0
    if is_concrete(count):
        number = float(count)
        return decay * share_of_updates(decay, number) / share_of_updates(decay, number + 1)
    count = jnp.asarray(count, float)
    past, now = (-jnp.expm1(updates * jnp.asarray(math.log(decay), count.dtype)) for updates in (count, count + 1))
    return decay * past / now


def cumulative_momentum(count: Scalar) -> Scalar:
    """Returns the weight of the old average after `count` updates where all batches count alike."""
    if is_concrete(count):
        return float(count) / (float(count) + 1)
    count = jnp.asarray(count, float)
    return count / (count + 1)


def share_of_updates(decay: float, count: float) -> float:
    """Returns `1 - decay^count`, by which hidden averages are divided: what is not of their start."""
    if decay == 0 or count == 0:
        return float(count > 0)
    return -math.expm1(count * math.log(decay))


def check_decay(name: str, decay: Any) -> float:
    """Returns the weight of old statistics, or raises unless it is a number in [0, 1)."""
    check_scalar(name, decay, low=0)
    if not is_concrete(decay):
        raise TypeError(f"{name} must be a number in [0, 1), got a traced one")
    check_number(name, decay, low=0, high=1, open_high=True)
    return float(decay)
