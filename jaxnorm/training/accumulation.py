"""Gradients, and statistics, of a batch that is gone through in microbatches, so that the memory is that of one."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import reshard

from jaxnorm._axes import explicit_sharding, split_axis, vary, varying
from jaxnorm._checks import check_size
from jaxnorm._parts import Told, dependent
from jaxnorm.training.state import Apply, PyTree, as_arrays

MicrobatchStats = Literal["micro", "pooled", "exact"]
Objective = Callable[[PyTree, PyTree, jax.Array, Any], tuple[jax.Array, tuple[PyTree, Any]]]
"""`objective(params, stats, key, part) -> (loss, (stats, metrics))`: a microbatch's shares of the batch's loss and metrics."""


class Accumulated(NamedTuple):
    """What all microbatches of a batch add up to."""

    loss: jax.Array
    stats: PyTree
    metrics: Any
    grads: PyTree


def accumulate(
    objective: Objective, params: PyTree, stats: PyTree, key: jax.Array, batch: Any, microbatches: int, how: MicrobatchStats
) -> Accumulated:
    """Returns the sums over the microbatches of loss, metrics and gradients, and the new statistics.

    Microbatch i is rows `i::n`: so each is as spread over devices as the batch is. Its key is `fold_in(key, i)`.
    """
    parts = _Parts(key, batch, microbatches)
    if how == "micro":
        return _micro(objective, params, stats, parts)
    told = Told(objective, params, stats, *parts.of(0))
    (loss, metrics, grads), whole = (_exact if how == "exact" else _pooled)(told, params, stats, parts)
    return Accumulated(loss, _committed(told, params, stats, *parts.of(0), whole), metrics, grads)


def _micro(objective: Objective, params: PyTree, stats: PyTree, parts: "_Parts") -> Accumulated:
    """Returns the sums of microbatches that follow each other, each with the running statistics that the last one left."""

    def step(stats: PyTree, i: jax.Array) -> tuple[PyTree, Any, None]:
        (loss, (stats, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(params, stats, *parts.of(i))
        return stats, (loss, metrics, grads), None

    stats, (loss, metrics, grads), _ = parts.sum(step, stats)
    return Accumulated(loss, stats, metrics, grads)


def _pooled(told: Told, params: PyTree, stats: PyTree, parts: "_Parts") -> tuple[Any, list[Any]]:
    """Returns loss, metrics and gradients, of microbatches normalized by their own statistics, and those of the whole batch."""

    def objective(params: PyTree, i: jax.Array) -> tuple[jax.Array, Any]:
        (loss, (_, metrics)), found = told(params, stats, *parts.of(i))
        return loss, (metrics, found)

    def step(carried: tuple[()], i: jax.Array) -> tuple[tuple[()], Any, list[Any]]:
        (loss, (metrics, found)), grads = jax.value_and_grad(objective, has_aux=True)(params, i)
        return carried, (loss, metrics, grads), found

    _, total, found = parts.sum(step, ())
    return total, told.combine(found)


def _exact(told: Told, params: PyTree, stats: PyTree, parts: "_Parts") -> tuple[Any, list[Any]]:
    """Returns loss, metrics and gradients as of the whole batch, and its statistics s.

    `s = m(params, s)`, where m are the statistics of what the layers are given if they use s: each depends on those before it
    alone, so that after k turns of `s <- m(params, s)` the first k are right. The gradient of `loss(params, s)` is that of
    `loss + c . m` with respect to params, where `c = dloss/ds + c . dm/ds`: after k turns the last k are right.
    """

    def find(_: Any, found: list[Any]) -> list[Any]:
        whole = told.combine(found)
        return parts.sum(lambda carried, i: (carried, (), told(params, stats, *parts.of(i), told=whole)[1]), ())[2]

    first = told(params, stats, *parts.of(0))[1]
    found = jax.tree.map(lambda part: jnp.broadcast_to(part[None], (parts.count, *part.shape)), first)
    found = lax.fori_loop(0, told.count, find, found)
    whole, pull = jax.vjp(told.combine, found)

    def gradients(of_whole: bool, cotangents: list[Any]) -> Any:
        (shares,) = pull(cotangents)

        def step(carried: tuple[()], i: jax.Array) -> tuple[tuple[()], Any, None]:
            def outputs(varied: Any) -> tuple[Any, Any]:
                given, told_of = (params, varied) if of_whole else (varied, whole)
                (loss, (_, metrics)), found = told(given, stats, *parts.of(i), told=told_of)
                return (loss, found), metrics

            (loss, _), pull_back, metrics = jax.vjp(outputs, whole if of_whole else params, has_aux=True)
            (grads,) = pull_back((vary(jnp.ones_like(loss), varying(loss)), jax.tree.map(lambda share: share[i], shares)))
            return carried, (loss, metrics, grads), None

        return parts.sum(step, ())[1]

    cotangents = lax.fori_loop(0, told.count, lambda _, c: gradients(True, c)[2], jax.tree.map(_zeros, whole))
    return gradients(False, cotangents), whole


def _committed(told: Told, params: PyTree, stats: PyTree, key: jax.Array, part: Any, whole: list[Any]) -> PyTree:
    """Returns the new statistics of a model that is told those of the batch; of a part nothing but its shapes is used."""

    def commit(part: Any) -> PyTree:
        (_, (stats_of_whole, _)), _ = told(params, stats, key, part, told=whole)
        return stats_of_whole

    _check_told(dependent(commit, part))
    return commit(part)


def _check_told(paths: list[str]) -> None:
    if paths:
        raise ValueError(
            f"only statistics of layers of jaxnorm that pool over the batch can be pooled over microbatches, but stats{paths[0]} "
            "are computed otherwise from the examples: jaxnorm.linen.replacing_layers and jaxnorm.nnx.replace_layers put them in "
            "the place of Flax's; of ghost_batch_norm, whose statistics are of small parts anyway, microbatch_stats='micro' does"
        )


class _Parts:
    """The microbatches of a batch, and their keys."""

    def __init__(self, key: jax.Array, batch: Any, count: int) -> None:
        self.count = count
        self._key = key
        self._rows = jax.tree.map(lambda a: split_axis(jnp.asarray(a), 0, a.shape[0] // count), batch)

    def of(self, i: int | jax.Array) -> tuple[jax.Array, Any]:
        """Returns key and examples of one."""
        part = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, 1, keepdims=False), self._rows)
        return jax.random.fold_in(self._key, i), part

    def sum(self, function: Callable[[Any, jax.Array], tuple[Any, Any, Any]], carried: Any) -> tuple[Any, Any, Any]:
        """Goes through them with `function(carried, i) -> (carried, term, kept)`: returns the last, the sum, and all kept."""

        def body(carry: tuple[Any, Any], i: jax.Array) -> tuple[tuple[Any, Any], Any]:
            carried, term, kept = function(carry[0], i)
            return (carried, jax.tree.map(jnp.add, carry[1], term)), kept

        numbers = jnp.arange(self.count)
        _, term, _ = jax.eval_shape(function, carried, numbers[0])
        (carried, total), kept = lax.scan(body, (carried, jax.tree.map(_zeros, term)), numbers)
        return carried, total, kept


def _zeros(like: Any) -> jax.Array:
    """Returns zeros of the shape, dtype, explicit sharding and mapped axes of an array, or of what stands for one."""
    zeros, sharding = jnp.zeros(like.shape, like.dtype), explicit_sharding(like)
    return vary(zeros if sharding is None else reshard(zeros, sharding), varying(like))


class AccumulatedStats(NamedTuple):
    """Running statistics that change once in several calls.

    Attributes:
      stats: those of the last optimizer step, which evaluation uses.
      pooled: the statistics of the calls since then.
      calls: how many calls those are, `int32[]`.
    """

    stats: PyTree
    pooled: list[Any]
    calls: jax.Array


def accumulate_stats(apply: Apply, params: PyTree, stats: PyTree, x: PyTree, *, every: int) -> tuple[Apply, AccumulatedStats]:
    """Returns a model whose running statistics change once in `every` calls, by statistics pooled over all of these.

    For optimizers that take several calls of the step for one of their own, as `optax.MultiSteps` with the same `every`. Each
    call is normalized by the statistics of its batch, as with `microbatch_stats="pooled"` in `make_train_step`; what evaluation
    uses changes together with the parameters.

    Args:
      apply: the model, `apply(key, params, stats, x, *, train) -> (outputs, stats)`.
      params: its parameters.
      stats: its running statistics.
      x: inputs as those of a call, of which only shapes and types are used.
      every: number of calls that the statistics are pooled over.

    Returns:
      The model, and its statistics, which hold those that were given.

    Raises:
      ValueError: if every is below 1; if statistics are computed from the examples otherwise than by layers of jaxnorm that pool
        over the batch, or such a layer is called within a loop, a branch or a `jax.vmap` of the model.
      TypeError: if every is no int.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm, optax
      >>> from jaxnorm.training import accumulate_stats, init_train_state, make_train_step
      >>> def apply(key, params, stats, x, *, train):
      ...     return jaxnorm.batch_norm(params, stats, x, train=train, momentum=0.5)
      >>> params, stats = jaxnorm.init_batch_norm(2)
      >>> apply, stats = accumulate_stats(apply, params, stats, jnp.ones((2, 2)), every=2)
      >>> optimizer = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
      >>> state = init_train_state(jax.random.key(0), params, stats, optimizer)
      >>> step = jax.jit(make_train_step(apply, optimizer))
      >>> for x in (jnp.array([[0.0, 2.0], [4.0, 6.0]]), jnp.array([[8.0, 2.0], [8.0, 2.0]])):
      ...     state, metrics = step(state, (x, jnp.array([0, 1])))
      ...     print(state.stats.stats.mean)
      [0. 0.]
      [2.5 1.5]
    """
    check_size("every", every)

    def traced(key: jax.Array, params: PyTree, stats: PyTree, x: PyTree, scheduled: dict[str, Any]) -> Told:
        def model(params: PyTree, stats: PyTree, key: jax.Array, x: PyTree) -> tuple[Any, tuple[PyTree, None]]:
            outputs, stats = apply(key, params, stats, x, train=True, **scheduled)
            return outputs, (as_arrays("stats", stats), None)

        return Told(model, params, stats, key, x)

    def accumulating(
        key: jax.Array, params: PyTree, state: AccumulatedStats, x: PyTree, /, *, train: bool, **scheduled: Any
    ) -> tuple[Any, AccumulatedStats]:
        if not train:
            return apply(key, params, state.stats, x, train=False, **scheduled)[0], state
        told = traced(key, params, state.stats, x, scheduled)
        (outputs, _), found = told(params, state.stats, key, x)
        parts = jax.tree.map(lambda *parts: jnp.stack(parts), state.pooled, lax.stop_gradient(found))
        pooled, calls = told.combine(parts), state.calls + 1
        committed = _committed(told, params, state.stats, key, x, pooled)
        due = calls == every
        new = jax.tree.map(lambda new, old: jnp.where(due, new, old), committed, state.stats)
        pooled = jax.tree.map(lambda part: jnp.where(due, jnp.zeros_like(part), part), pooled)
        return outputs, AccumulatedStats(new, pooled, jnp.where(due, 0, calls))

    def found(key: jax.Array, params: PyTree, stats: PyTree, x: PyTree) -> list[Any]:
        return traced(key, params, stats, x, {})(params, stats, key, x)[1]

    stats = as_arrays("stats", stats)
    pooled = jax.tree.map(_zeros, jax.eval_shape(found, jax.random.key(0), params, stats, x))
    return accumulating, AccumulatedStats(stats, pooled, jnp.zeros((), jnp.int32))
