"""Averages of statistics: over steps, over sets, and none."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import Scalar, check_number, check_scalar, is_concrete
from jaxnorm._types import wide_dtype
from jaxnorm.statistics._layers import (
    MEAN,
    Found,
    Layer,
    PyTree,
    check_layers,
    check_like,
    first_part,
    layers_of,
    map_layers,
    pooled,
    replaced,
    shown,
)


def cumulative_momentum(step: Scalar) -> jax.Array:
    """Returns the momentum with which running statistics are the plain mean of those of all batches so far.

    `step / (step + 1)`: with it `s_t = s_{t-1} + (batch_t - s_{t-1}) / t`, and what the statistics began with has no weight.
    PyTorch calls it `momentum=None`, and needs a counter.

    Args:
      step: how many batches were averaged before, at least 0; a number or a traced scalar.

    Returns:
      The momentum, a scalar. Of `schedules={"momentum": cumulative_momentum}` of a training step it is made anew in each step.

    Raises:
      ValueError: if a concrete step is below 0, or is no scalar.
      TypeError: if step is no number.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, https://arxiv.org/abs/1502.03167, algorithm 2.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.statistics import cumulative_momentum
      >>> params, state = jaxnorm.init_batch_norm(1)
      >>> for step, mean in enumerate((1.0, 2.0, 6.0)):
      ...     x = jnp.full((4, 1), mean)
      ...     _, state = jaxnorm.batch_norm(params, state, x, train=True, momentum=cumulative_momentum(step))
      >>> print(state.mean)
      [3.]
    """
    step = _step(step)
    return step / (step + 1)


def debiased_momentum(step: Scalar, momentum: Scalar) -> jax.Array:
    """Returns the momentum with which running statistics are averages as with a constant one, but without their beginning.

    `(momentum - momentum^(step + 1)) / (1 - momentum^(step + 1))`, which begins with 0 and tends to momentum: after every step
    the statistics are what Adam's correction would make of them, `sum(momentum^(t-i) batch_i) / sum(momentum^(t-i))`, with
    nothing to count or to correct in the state. For a momentum of 1 it is `cumulative_momentum`.

    Args:
      step: how many batches were averaged before, at least 0; a number or a traced scalar.
      momentum: weight of the old statistics in the long run, in [0, 1]; a number or a traced scalar.

    Returns:
      The momentum, a scalar.

    Raises:
      ValueError: if a concrete step is below 0, or a momentum outside [0, 1].
      TypeError: if one of them is no number.

    References:
      Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, section 3, https://arxiv.org/abs/1412.6980.

    Example:
      >>> from jaxnorm.statistics import debiased_momentum
      >>> print(*(f"{debiased_momentum(step, 0.9):.3f}" for step in (0, 1, 2, 100)))
      0.000 0.474 0.631 0.900
    """
    step, log = _step(step), _log(momentum)
    # 1 - momentum^t as -expm1(t log(momentum)), which keeps its digits next to a momentum of 1; there it tends to t.
    gone, next_gone = (_one_less_power(log, t) for t in (step, step + 1))
    return jnp.exp(log) * gone / next_gone


def debias_stats(stats: PyTree, momentum: Scalar, steps: Scalar) -> PyTree:
    """Returns running averages without what they began with, a mean of 0 and a variance of 1.

    `(s - momentum^steps s_0) / (1 - momentum^steps)`, with s_0 as in `reset_stats`: of statistics that were averaged with a
    constant momentum, as of Flax, and are read after few steps.

    Args:
      stats: running statistics, as in `precise_stats`.
      momentum: weight of the old statistics in their averages, in [0, 1); a number or a traced scalar.
      steps: how many batches were averaged, at least 1; a number or a traced scalar.

    Returns:
      Statistics like those given; a variance that rounding takes below 0 is 0.

    Raises:
      ValueError: if stats hold no statistics; if a concrete momentum is outside [0, 1), or steps below 1.
      TypeError: if stats hold no arrays in float32 or wider; if momentum or steps is no number.

    References:
      Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, section 3, https://arxiv.org/abs/1412.6980.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.statistics import debias_stats
      >>> params, state = jaxnorm.init_batch_norm(1)
      >>> for _ in range(3):
      ...     _, state = jaxnorm.batch_norm(params, state, jnp.array([[3.0], [5.0]]), train=True, momentum=0.99)
      >>> print(state.mean.round(3), debias_stats(state, 0.99, 3).mean.round(3))
      [0.119] [4.]
    """
    check_layers("stats", stats)
    check_number("momentum", momentum, low=0, high=1, open_high=True)
    check_scalar("steps", steps, low=1)
    log, steps = _log(momentum), _step(steps)
    kept, gone = jnp.exp(log * steps), _one_less_power(log, steps)

    def debiased(layer: Layer, start: Layer) -> Layer:
        def part(name: str) -> jax.Array:
            old, own = layer[name], start[name]
            new = (old - kept.astype(own.dtype) * own) / gone.astype(own.dtype)
            return new if name in (MEAN, "cov") else jnp.maximum(new, jnp.zeros((), new.dtype))

        return {name: part(name) for name in layer}

    return map_layers(debiased, stats, reset_stats(stats))


def reset_stats(stats: PyTree) -> PyTree:
    """Returns the statistics of a network that was never trained.

    `mean = 0`, `var = 1`, and likewise a standard or l_p deviation of 1, and the identity as covariance.

    Args:
      stats: running statistics, as in `precise_stats`.

    Returns:
      Statistics like those given, in shapes and dtypes; what is no statistic of a norm stays.

    Raises:
      ValueError: if stats hold no statistics.
      TypeError: if stats hold no arrays in float32 or wider.

    Example:
      >>> import jax.numpy as jnp, jaxnorm
      >>> from jaxnorm.statistics import reset_stats
      >>> reset_stats({"norm": jaxnorm.RunningStats(jnp.array([2.0]), jnp.array([5.0]))})
      {'norm': RunningStats(mean=Array([0.], dtype=float32), var=Array([1.], dtype=float32))}
    """
    check_layers("stats", stats)

    def fresh(name: str, part: jax.Array) -> jax.Array:
        if name == "cov":
            return jnp.zeros_like(part) + jnp.eye(part.shape[-1], dtype=part.dtype).reshape(
                (1,) * (part.ndim - 2) + part.shape[-2:]
            )
        return jnp.zeros_like(part) if name == MEAN else jnp.ones_like(part)

    return map_layers(lambda layer: {name: fresh(name, part) for name, part in layer.items()}, stats)


def combine_stats(stats: Sequence[PyTree], counts: Sequence[Scalar]) -> PyTree:
    """Returns the statistics of several sets together, from those of each and how many elements they are of.

    `mean = sum(n_i mean_i) / n` and `var = sum(n_i (var_i + |mean_i - mean|^2)) / n`, exactly those of the union where the
    variances are biased; standard deviations and covariances likewise. A spread without a mean, or an l_p deviation, is averaged.

    Args:
      stats: trees of running statistics, as in `precise_stats`, all alike.
      counts: a number for each, at least 0, in any unit; numbers or traced scalars.

    Returns:
      Statistics like the first ones.

    Raises:
      ValueError: if there are none, or not as many counts; if the trees differ; if a concrete count is below 0, or all are 0.
      TypeError: if stats or counts are no sequences, stats hold no arrays in float32 or wider, or a count is no number.

    References:
      Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979,
      http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnorm import RunningStats
      >>> from jaxnorm.statistics import combine_stats
      >>> one, other = (RunningStats(jnp.array([mean]), jnp.array([var])) for mean, var in ((0.0, 1.0), (4.0, 1.0)))
      >>> print(*combine_stats([one, other], [30, 10]))
      [1.] [4.]
    """
    for name, given in (("stats", stats), ("counts", counts)):
        if not isinstance(given, list | tuple) or hasattr(given, "_fields"):
            raise TypeError(f"{name} must be a list or tuple, with one for each set, got {shown(given)}")
    if not stats or len(stats) != len(counts):
        raise ValueError(f"stats and counts must be as many, at least one, got {len(stats)} and {len(counts)}")
    for number, (tree, n) in enumerate(zip(stats, counts, strict=True)):
        check_layers(f"stats[{number}]", tree)
        check_like(f"stats[{number}]", tree, stats[0], "stats[0]")
        check_scalar(f"counts[{number}]", n, low=0)
    if all(map(is_concrete, counts)) and not any(float(n) for n in counts):
        raise ValueError(f"counts must not all be 0, got {list(counts)}")
    return replaced(
        stats[0], {path: _together([layers_of(tree)[path] for tree in stats], counts) for path in layers_of(stats[0])}
    )


def _together(layers: Sequence[Layer], counts: Sequence[Scalar]) -> Found:
    def counted(layer: Layer, n: Scalar) -> Found:
        first = first_part(layer).real
        return Found(layer, jnp.zeros_like(first) + jnp.asarray(n).astype(first.dtype))

    total, *others = map(counted, layers, counts)
    for other in others:
        total = pooled(total, other)
    return total


def _step(step: Scalar) -> jax.Array:
    check_scalar("step", step, low=0)
    step = jnp.asarray(step)
    return step.astype(wide_dtype(step.dtype) if jnp.issubdtype(step.dtype, jnp.inexact) else jnp.float32)


def _log(momentum: Scalar) -> jax.Array:
    """Returns the logarithm of a momentum, in float64 as long as it is a number; that of 0 is a large negative number."""
    check_scalar("momentum", momentum, low=0, high=1)
    if is_concrete(momentum):
        return jnp.asarray(np.log(np.maximum(np.float64(momentum), 1e-37)), jnp.float32)
    momentum = momentum.astype(wide_dtype(momentum.dtype))
    return jnp.log(jnp.maximum(momentum, jnp.asarray(1e-37, momentum.dtype)))


def _one_less_power(log: jax.Array, t: jax.Array) -> jax.Array:
    """Returns `1 - momentum^t`, or t, to which it is in proportion, for a momentum of 1."""
    return jnp.where(log == 0, t.astype(log.dtype), -jnp.expm1(log * t.astype(log.dtype)))
