"""Rates by depth, as numbers, and by time, as Optax schedules: functions of the step.

A rate may be traced, so a schedule costs one compilation: `dropout(key, x, schedule(step))`, or
`make_train_step(..., schedules={"rate": schedule})`.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import jax.numpy as jnp
import optax

from jaxnorm._checks import Scalar, check_known_flag, check_scalar, check_size, check_sizes

__all__ = ["curriculum_rate", "early_rate", "late_rate", "linear_rates", "ramped_rate", "stagewise_rates"]


def linear_rates(rate: Scalar, depth: int, *, first_is_zero: bool = True) -> tuple[Any, ...]:
    """Returns a rate for each of the layers, which grow with the depth to the given one.

    `rate l / (depth - 1)` for `l = 0, ..., depth - 1`, as timm has it, so that the first layer has none (a single layer too); or
    `rate l / depth` for `l = 1, ..., depth`, as the paper on stochastic depth has it.

    Args:
      rate: of the last layer, in [0, 1]; a number or a traced scalar.
      depth: how many layers.
      first_is_zero: which of the two.

    Returns:
      So many rates.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or depth below 1.
      TypeError: if rate is no number, depth no int, or first_is_zero no bool.

    References:
      Huang, Sun, Liu, Sedra, Weinberger, "Deep networks with stochastic depth", ECCV 2016, https://arxiv.org/abs/1603.09382.

    Example:
      >>> from jaxnorm.schedules import linear_rates
      >>> linear_rates(0.5, 3), linear_rates(0.75, 3, first_is_zero=False)
      ((0.0, 0.25, 0.5), (0.25, 0.5, 0.75))
    """
    check_scalar("rate", rate, low=0, high=1)
    depth = check_size("depth", depth)
    if check_known_flag("first_is_zero", first_is_zero):
        return tuple(rate * (layer / max(1, depth - 1)) for layer in range(depth))
    return tuple(rate * (layer / depth) for layer in range(1, depth + 1))


def stagewise_rates(rate: Scalar, depths: Sequence[int], *, first_is_zero: bool = True) -> tuple[tuple[Any, ...], ...]:
    """Returns `linear_rates` of all layers together, by the stages that they are in.

    Args:
      rate: of the last layer, in [0, 1]; a number or a traced scalar.
      depths: how many layers each stage has.
      first_is_zero: as in `linear_rates`.

    Returns:
      For each stage, so many rates.

    Raises:
      ValueError: as `linear_rates`.
      TypeError: as `linear_rates`.

    Example:
      >>> from jaxnorm.schedules import stagewise_rates
      >>> stagewise_rates(0.5, (2, 1, 2))
      ((0.0, 0.125), (0.25,), (0.375, 0.5))
    """
    sizes = check_sizes("depths", depths)
    rates = linear_rates(rate, sum(sizes), first_is_zero=first_is_zero)
    return tuple(rates[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True))


def ramped_rate(rate: Scalar, steps: int) -> optax.Schedule:
    """Returns a schedule that grows from 0 to the rate, as that of scheduled DropBlock and drop path.

    `rate min(1, step / steps)`.

    Args:
      rate: the last rate, in [0, 1]; a number or a traced scalar.
      steps: after how many steps it is reached: those of the training in the paper.

    Returns:
      A function of the step.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or steps is below 1.
      TypeError: if rate is no number or steps no int.

    References:
      Ghiasi, Lin, Le, "DropBlock: a regularization method for convolutional networks", NeurIPS 2018,
      https://arxiv.org/abs/1810.12890.

    Example:
      >>> from jaxnorm.schedules import ramped_rate
      >>> float(ramped_rate(0.5, 100)(50))
      0.25
    """
    check_scalar("rate", rate, low=0, high=1)
    return optax.linear_schedule(0.0, rate, check_size("steps", steps))


def curriculum_rate(rate: Scalar, gamma: Scalar) -> optax.Schedule:
    """Returns a schedule that grows from 0 to the rate, ever slower (curriculum dropout).

    `rate (1 - exp(-gamma step))`.

    Args:
      rate: the rate that is approached, in [0, 1]; a number or a traced scalar.
      gamma: how fast, at least 0; a number or a traced scalar. The authors' code has 1e-3 and 1e-4; with 10 over the number of
        steps the last rate is reached to a part in 22,000.

    Returns:
      A function of the step.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or gamma negative.
      TypeError: if one is no number.

    References:
      Morerio, Cavazza, Volpi, Vidal, Murino, "Curriculum dropout", ICCV 2017, https://arxiv.org/abs/1703.06229.

    Example:
      >>> from jaxnorm.schedules import curriculum_rate
      >>> schedule = curriculum_rate(0.5, 1e-3)
      >>> print(schedule(0), schedule(693).round(3))
      0.0 0.25
    """
    check_scalar("rate", rate, low=0, high=1)
    check_scalar("gamma", gamma, low=0)
    return lambda step: -rate * jnp.expm1(-gamma * jnp.asarray(step, jnp.float32))


def early_rate(rate: Scalar, cutoff: int, *, linear: bool = True) -> optax.Schedule:
    """Returns a schedule for dropout in the first steps alone, which lets a network that underfits fit better.

    `rate max(0, 1 - step / cutoff)`, or, not linear, the rate until the cutoff and then 0.

    Args:
      rate: the first rate, in [0, 1]; a number or a traced scalar.
      cutoff: the step from which on there is none: a sixth of the training in the paper.
      linear: whether it falls until then.

    Returns:
      A function of the step.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or cutoff is below 1.
      TypeError: if rate is no number, cutoff no int, or linear no bool.

    References:
      Liu, Xu, Jin, Shen, Darrell, "Dropout reduces underfitting", ICML 2023, https://arxiv.org/abs/2303.01500. The authors' code
      reaches 0 a step earlier.

    Example:
      >>> from jaxnorm.schedules import early_rate
      >>> [float(early_rate(0.5, 4)(step)) for step in (0, 2, 4, 9)]
      [0.5, 0.25, 0.0, 0.0]
    """
    check_scalar("rate", rate, low=0, high=1)
    check_size("cutoff", cutoff)
    return optax.linear_schedule(rate, 0.0, cutoff) if check_known_flag("linear", linear) else _steps(rate, 0.0, cutoff)


def late_rate(rate: Scalar, cutoff: int) -> optax.Schedule:
    """Returns a schedule for dropout in the last steps alone, against overfitting.

    0 until the cutoff, and then the rate.

    Args:
      rate: the last rate, in [0, 1]; a number or a traced scalar.
      cutoff: the step from which on there is dropout.

    Returns:
      A function of the step.

    Raises:
      ValueError: if a concrete rate is outside [0, 1], or cutoff is below 1.
      TypeError: if rate is no number or cutoff no int.

    References:
      Liu, Xu, Jin, Shen, Darrell, "Dropout reduces underfitting", ICML 2023, https://arxiv.org/abs/2303.01500.

    Example:
      >>> from jaxnorm.schedules import late_rate
      >>> [float(late_rate(0.5, 4)(step)) for step in (0, 3, 4, 9)]
      [0.0, 0.0, 0.5, 0.5]
    """
    check_scalar("rate", rate, low=0, high=1)
    return _steps(0.0, rate, check_size("cutoff", cutoff))


def _steps(before: Scalar, after: Scalar, cutoff: int) -> optax.Schedule:
    return optax.join_schedules([optax.constant_schedule(before), optax.constant_schedule(after)], [cutoff])
