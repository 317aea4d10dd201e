"""What the programs about batch statistics share: data, weights, and layers as functions."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

import jaxnorm
from jaxnorm.diagnostics import lint
from jaxnorm.diagnostics._lint.report import Report

MOMENTUM = 0.9
DEVICES = 4


def data(n: int = 64) -> jax.Array:
    return 0.1 + jax.random.normal(jax.random.key(0), (n, 4))


def weights(*shape: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape) / shape[-2] ** 0.5


def pure_variables(*names: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters and statistics of a net of `pure_layer`s of 8 features by name, and a last linear layer of 3."""
    params: dict[str, Any] = {"last": weights(8, 3, seed=9)}
    stats = {}
    for number, name in enumerate(names):
        norm, stats[name] = jaxnorm.init_batch_norm(8)
        params[name] = {"kernel": weights(8 if number else 4, 8, seed=number), "norm": norm}
    return params, stats


def pure_layer(
    params: Any, stats: Any, x: jax.Array, *, train: bool, momentum: float = MOMENTUM, axis_name: Any = None
) -> tuple[jax.Array, Any]:
    y = x @ params["kernel"]
    y, stats = jaxnorm.batch_norm(params["norm"], stats, y, train=train, momentum=momentum, axis_name=axis_name)
    return jax.nn.relu(y), stats


def plain_norm(
    stats: Any, x: jax.Array, *, train: bool, momentum: float = MOMENTUM, axis_name: Any = None
) -> tuple[jax.Array, Any]:
    """Normalizes `[B, C]` with nothing but jax.numpy; the statistics are a dict of `mean` and `var`."""
    if not train:
        return (x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5), stats
    mean, squares = jnp.mean(x, 0), jnp.mean(x * x, 0)
    if axis_name:
        mean, squares = jax.lax.pmean((mean, squares), axis_name)
    var = squares - mean**2
    new = {"mean": momentum * stats["mean"] + (1 - momentum) * mean, "var": momentum * stats["var"] + (1 - momentum) * var}
    return (x - mean) / jnp.sqrt(var + 1e-5), new


def plain_variables(*names: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the weights and the statistics of a net of linear layers of 8 features with norms, and a last one of 3."""
    params = {name: weights(8 if number else 4, 8, seed=number) for number, name in enumerate(names)}
    return {**params, "last": weights(8, 3, seed=9)}, {name: {"mean": jnp.zeros(8), "var": jnp.ones(8)} for name in names}


def settled(apply: Any, params: Any, stats: Any, x: Any) -> Any:
    """Returns the statistics after 80 steps of training on the same batch: those of x, whatever they were."""
    step = jax.jit(lambda stats: apply(jax.random.key(0), params, stats, x, train=True)[1])
    for _ in range(80):
        stats = step(stats)
    return stats


def _mean_over_devices(leaf: jax.Array) -> jax.Array:
    return jax.lax.pmean(leaf, "data") if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def lint_over_devices(apply: Any, params: Any, stats: Any, x: jax.Array) -> Report:
    """Lints `apply` with its batch spread over devices, and the new averages of these averaged."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def spread(key: jax.Array, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        def part(params: Any, stats: Any, x: jax.Array) -> tuple[Any, Any]:
            outputs, stats = apply(key, params, stats, x, train=train)
            return outputs, jax.tree.map(_mean_over_devices, stats)

        specs = {"in_specs": (P(), P(), P("data")), "out_specs": (P("data"), P())}
        return jax.shard_map(part, mesh=mesh, **specs)(params, stats, x)

    return lint(spread, params, stats, x)
