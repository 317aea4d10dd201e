"""Flax models as functions `apply(key, params, stats, x, *, train) -> (outputs, stats)`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from jaxnorm._checks import check_key, check_type
from jaxnorm.training.state import Apply, PyTree


def linen_apply(module: linen.Module) -> Apply:
    """Returns a linen module as `apply(key, params, stats, x, *, train) -> (outputs, stats)`.

    The parameters are its collection `params`, the statistics its collection `batch_stats`, the key that of its stream `dropout`.
    The module is called as `module(x, train=train)`, so its `__call__` takes `train`, and hands it on as `use_running_average=not
    train` and `deterministic=not train`.

    Args:
      module: a linen module, unbound.

    Returns:
      The model as a function. `variables = module.init(key, x, train=False)` gives its `variables["params"]`, and
      `variables.get("batch_stats", {})` as its statistics. Further keyword arguments (as of `schedules`) go to the module's call.

    Raises:
      TypeError: if module is no linen module.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> from jaxnorm.training import init_train_state, linen_apply
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, *, train):
      ...         x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
      ...         return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))
      >>> net, x = Net(), jnp.ones((4, 3))
      >>> variables = net.init(jax.random.key(0), x, train=False)
      >>> state = init_train_state(jax.random.key(1), variables["params"], variables["batch_stats"], optax.adam(1e-3))
      >>> outputs, stats = linen_apply(net)(state.key, state.params, state.stats, x, train=True)
      >>> outputs.shape
      (4, 2)
    """
    check_type("module", module, linen.Module)

    def apply(
        key: jax.Array, params: PyTree, stats: PyTree, x: PyTree, /, *, train: bool, **scheduled: Any
    ) -> tuple[Any, PyTree]:
        variables = {"params": params, "batch_stats": stats}
        if not train:
            return module.apply(variables, x, train=False, **scheduled), stats
        outputs, updates = module.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"], **scheduled)
        return outputs, updates.get("batch_stats", {})

    return apply


def nnx_apply(model: nnx.Module) -> tuple[Apply, PyTree, PyTree]:
    """Returns an nnx model as `apply(key, params, stats, x, *, train) -> (outputs, stats)`, with its parameters and statistics.

    The parameters are its `nnx.Param` variables, the statistics all its other variables (`nnx.BatchStat` above all) but those
    of its random streams. Every stream is seeded anew in each call, from the key and its place in the model: what the model
    draws is a function of the key. The model is called as `model(x)`, after `model.train()` or `model.eval()`. The given model
    itself is never changed; `nnx.update(model, params, stats)` puts trained values into it.

    Args:
      model: an nnx model.

    Returns:
      `apply`, params and stats; the latter two are nested dicts of arrays. Further keyword arguments (as of `schedules`) go to
      the model's call.

    Raises:
      TypeError: if model is no nnx module.
      ValueError: when `apply` is called with params or stats of another tree than the model's.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from jaxnorm.training import init_train_state, nnx_apply
      >>> rngs = nnx.Rngs(0)
      >>> norm, drop = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
      >>> net = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), norm, nnx.relu, drop, nnx.Linear(8, 2, rngs=rngs))
      >>> apply, params, stats = nnx_apply(net)
      >>> state = init_train_state(jax.random.key(1), params, stats, optax.adam(1e-3))
      >>> outputs, stats = apply(state.key, state.params, state.stats, jnp.ones((4, 3)), train=True)
      >>> outputs.shape
      (4, 2)
    """
    check_type("model", model, nnx.Module)
    graphdef, param_state, streams, stat_state = nnx.split(model, nnx.Param, nnx.RngState, ...)
    params, stats = nnx.to_pure_dict(param_state), nnx.to_pure_dict(stat_state)
    fill_params, fill_stats = filler("params", param_state), filler("stats", stat_state)

    def apply(
        key: jax.Array, params: PyTree, stats: PyTree, x: PyTree, /, *, train: bool, **scheduled: Any
    ) -> tuple[Any, PyTree]:
        seeded = seed_streams(streams, key) if train else streams
        copy = nnx.merge(graphdef, fill_params(params), seeded, fill_stats(stats), copy=True)
        copy.train() if train else copy.eval()
        outputs = copy(x, **scheduled)
        _, _, _, new_stats = nnx.split(copy, nnx.Param, nnx.RngState, ...)
        return outputs, nnx.to_pure_dict(new_stats)

    return apply, params, stats


def filler(name: str, state: nnx.State) -> Any:
    """Returns a function that makes a state like this one with the arrays of a nested dict; it keeps no arrays itself."""
    structure = jax.tree.structure(state)
    expected = jax.tree.structure(nnx.to_pure_dict(state))

    def fill(values: PyTree) -> nnx.State:
        if jax.tree.structure(values) != expected:
            raise ValueError(f"{name} must have the tree of the model's, {expected}, got {jax.tree.structure(values)}")
        return jax.tree.unflatten(structure, jax.tree.leaves(values))

    return fill


def seed_streams(streams: nnx.State, key: jax.Array) -> nnx.State:
    """Returns the random streams with new keys, each its own, and with counts of 0."""
    key = check_key(key)

    def fresh(number: int, variable: Any) -> Any:
        if not isinstance(variable, nnx.RngKey):
            return variable.replace(jnp.zeros_like(variable[...]))
        own = jax.random.fold_in(key, number)
        return variable.replace(jax.random.split(own, variable.shape) if variable.shape else own)

    flat = enumerate(nnx.to_flat_state(streams))
    return nnx.from_flat_state([(path, fresh(number, variable)) for number, (path, variable) in flat])
