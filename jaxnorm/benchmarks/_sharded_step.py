"""The collectives of a compiled training step whose batch is divided over devices."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh

import jaxnorm.linen
from jaxnorm.benchmarks._collectives import collectives, num_bytes
from jaxnorm.training import Layout, init_train_state, linen_apply, make_train_step, shard_batch, shard_state, state_shardings

DEVICES = (1, 2, 4, 8)
NORMS: dict[str, Callable[..., Callable[[jax.Array], jax.Array]]] = {
    "jaxnorm.linen": jaxnorm.linen.BatchNorm,
    "flax.linen": nn.BatchNorm,
    "no norm": lambda **_: lambda x: x,
}
WAYS = ("jit", "shard_map")
_BATCH, _SIDE, _WIDTH, _CLASSES, _AXIS = 64, 8, 16, 10, "data"


class _Net(nn.Module):
    """Two convolutions, each with a norm."""

    norm: Callable[..., Callable[[jax.Array], jax.Array]]
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for factor in (1, 2):
            x = nn.Conv(factor * _WIDTH, (3, 3), use_bias=False)(x)
            x = nn.relu(self.norm(use_running_average=not train, axis_name=self.axis_name)(x))
        return nn.Dense(_CLASSES)(jnp.mean(x, (1, 2)))


def collectives_of_a_step(library: str, way: str, devices: int) -> list[tuple[str, int]]:
    """Returns the operation and the bytes of every collective of a training step, as it is compiled for so many devices."""
    mesh = jax.make_mesh((devices,), (_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    x, labels = jnp.ones((_BATCH, _SIDE, _SIDE, 1)), jnp.zeros(_BATCH, jnp.int32)
    net, optimizer = _Net(NORMS[library], _AXIS if way == "shard_map" else None), optax.sgd(0.1)
    variables = _Net(NORMS[library], None).init(jax.random.key(0), x, train=False)
    state = init_train_state(jax.random.key(1), variables["params"], variables.get("batch_stats", {}), optimizer)
    layout = Layout(mesh)
    state, batch = shard_state(state, layout), shard_batch((x, labels), layout)
    if way == "jit":
        step = jax.jit(make_train_step(linen_apply(net), optimizer), out_shardings=(state_shardings(state, layout), None))
    else:
        step = jax.jit(_mapped(linen_apply(net), optimizer, mesh))
    text = step.lower(state, batch).compile().as_text()
    assert text is not None
    return [(operation, num_bytes(kind)) for operation, kind in collectives(text)]


def _mapped(apply: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Returns a step that is written for one device's part of the batch, with the mean of the devices' gradients."""

    def step(state: Any, batch: Any) -> Any:
        def objective(params: Any) -> Any:
            outputs, stats = apply(state.key, params, state.stats, batch[0], train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])
            return jnp.mean(losses), stats

        (loss, stats), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        loss, gradients = jax.lax.pmean((loss, gradients), _AXIS)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(step=state.step + 1, params=params, stats=stats, opt_state=opt_state), loss

    spec = jax.sharding.PartitionSpec
    return jax.shard_map(step, mesh=mesh, in_specs=(spec(), spec(_AXIS)), out_specs=(spec(), spec()), check_vma=False)
