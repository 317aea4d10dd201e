"""Averages of the parameters over the steps, and what to evaluate of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnorm._checks import Scalar, check_scalar
from jaxnorm._types import wide_dtype
from jaxnorm.training.state import PyTree, TrainState

Reestimate = Callable[[PyTree, PyTree], PyTree]
"""From parameters and running statistics to statistics that belong to these parameters."""


class AverageParamsState(NamedTuple):
    """State of `average_params`.

    Attributes:
      weight: `s_t`, the sum of the weights of all parameters so far, that of the latest being 1; `float32[]`.
      average: the average of the parameters, in float32 or wider.
    """

    weight: jax.Array
    average: PyTree


def average_params(decay: Scalar) -> optax.GradientTransformation:
    """Returns a transformation that keeps an average of the parameters over the steps, and changes no update.

    `average_t = average_{t-1} + (params_t - average_{t-1}) / s_t` with `s_t = 1 + decay s_{t-1}` and `s_0 = 0`, of the parameters
    after each step: the exponential moving average, debiased, as of `optax.ema`. With `decay = 1` it is the mean of all of them,
    `s_t = t` (Polyak, SWA). It is kept in float32 also of parameters in bfloat16, which would lose such small changes.

    It is the last of a chain, `optax.chain(optax.adam(1e-3), average_params(0.999))`, where the updates are what is added to the
    parameters. Under `optax.MultiSteps` and `optax.apply_if_finite` steps without an update do not count.

    Args:
      decay: the weight of the old average, from 0 to 1; a number or a traced scalar.

    Returns:
      An Optax transformation, whose `update` needs the parameters; `averaged_params` and `averaged_state` read the average.

    Raises:
      ValueError: if decay is not in [0, 1]; in its `update`, if there are no parameters.
      TypeError: if decay is no number.

    References:
      Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on Control and Optimization 30,
      1992. Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging weights leads to wider optima and better generalization",
      UAI 2018, https://arxiv.org/abs/1803.05407.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxnorm.training import average_params, averaged_params
      >>> optimizer = optax.chain(optax.sgd(1.0), average_params(1.0))
      >>> params = jnp.zeros(2)
      >>> state = optimizer.init(params)
      >>> for gradient in (-1.0, -3.0):
      ...     updates, state = optimizer.update(jnp.full(2, gradient), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params, averaged_params(state, params))
      [4. 4.] [2.5 2.5]
    """
    check_scalar("decay", decay, low=0, high=1)

    def init(params: Any) -> AverageParamsState:
        # A copy, so that a step may be given the buffers of both.
        average = jax.tree.map(lambda param: jnp.array(param, wide_dtype(param.dtype), copy=True), params)
        return AverageParamsState(jnp.zeros((), jnp.float32), average)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AverageParamsState]:
        if params is None:
            raise ValueError("params must be given to the update of average_params, got None")
        weight = 1 + jnp.asarray(decay, jnp.float32) * state.weight

        def averaged(old: jax.Array, param: jax.Array) -> jax.Array:
            return old + (param.astype(old.dtype) - old) / weight.astype(old.dtype)

        new = optax.apply_updates(params, updates)
        return updates, AverageParamsState(weight, jax.tree.map(averaged, state.average, new))

    return optax.GradientTransformation(init, update)


def averaged_params(opt_state: PyTree, params: PyTree) -> PyTree:
    """Returns the averaged parameters that an optimizer with `average_params` keeps.

    Args:
      opt_state: the optimizer's state. The average is found inside of `optax.chain`, `masked`, `partition`,
        `inject_hyperparams`, `MultiSteps`, `apply_if_finite` and the like.
      params: the parameters of the run, which give the dtypes, and the values of those that a mask leaves out.

    Returns:
      A tree like params.

    Raises:
      ValueError: if opt_state has no average.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxnorm.training import average_params, averaged_params
      >>> params = jnp.ones(2)
      >>> averaged_params(optax.chain(optax.sgd(0.1), average_params(0.9)).init(params), params)
      Array([1., 1.], dtype=float32)
    """
    parts = jax.tree.leaves(opt_state, is_leaf=_is_average)
    averages = [part.average for part in parts if _is_average(part)]
    if not averages:
        raise ValueError("opt_state must be of an optimizer with average_params, got one without")
    for average in averages:
        params = jax.tree.map(_chosen, average, params, is_leaf=_is_masked)
    return params


def averaged_state(state: TrainState, reestimate: Reestimate | None = None) -> TrainState:
    """Returns the state to evaluate: with the averaged parameters, and statistics that belong to them.

    The running statistics of a run are those of the parameters of its last steps, not of their average, for which they have to be
    estimated anew. As an argument of `fit`: `eval_state=lambda state: averaged_state(state, reestimate)`.

    Args:
      state: the state of a run whose optimizer has `average_params`.
      reestimate: `reestimate(params, stats) -> stats`, by `jaxnorm.statistics.precise_stats` over some batches. Of a linen model:
        `lambda params, stats: precise_stats(linen_update(net, {"params": params, "batch_stats": stats}, train=False), stats,
        batches)`. None keeps the statistics: right for a model without any.

    Returns:
      `TrainState`, with step, key and optimizer state as they were.

    Raises:
      ValueError: if the optimizer's state has no average.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm, optax
      >>> from jaxnorm.statistics import precise_stats
      >>> from jaxnorm.training import average_params, averaged_state, init_train_state
      >>> norm, stats = jaxnorm.init_batch_norm(2)
      >>> params, batches = {"w": jnp.ones((3, 2)), "norm": norm}, jax.random.normal(jax.random.key(0), (5, 32, 3))
      >>> def reestimate(params, stats):
      ...     def update(stats, x):
      ...         return jaxnorm.batch_norm(params["norm"], stats, x @ params["w"], train=True, momentum=0.0)[1]
      ...     return precise_stats(update, stats, batches)
      >>> state = init_train_state(jax.random.key(1), params, stats, optax.chain(optax.sgd(0.1), average_params(0.99)))
      >>> print(averaged_state(state, reestimate).stats.var.round(1))
      [3. 3.]
    """
    params = averaged_params(state.opt_state, state.params)
    stats = state.stats if reestimate is None else reestimate(params, state.stats)
    return state._replace(params=params, stats=stats)


def _chosen(average: Any, param: Any) -> Any:
    return param if _is_masked(average) else average.astype(param.dtype)


def _is_average(part: Any) -> bool:
    return isinstance(part, AverageParamsState)


def _is_masked(part: Any) -> bool:
    return isinstance(part, optax.MaskedNode)
