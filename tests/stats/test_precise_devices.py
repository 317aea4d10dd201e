"""Precise statistics of batches that are spread over eight devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from networks_of_norms import WIDTH, data, network, update_of
from tiers import then_slow

import jaxnorm
import jaxnorm.linen
from jaxnorm.statistics import blended_batch_norm, eval_batch_norm, linen_update, precise_stats


def assert_equal(found, wanted) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("kind", then_slow([AxisType.Explicit, AxisType.Auto]))
@pytest.mark.parametrize("by_stats", then_slow([True, False]))
def test_sharded_arrays(kind: AxisType, by_stats: bool) -> None:
    params, stats = network(2)
    x = data()
    alone = precise_stats(update_of(params, by_stats=by_stats), stats, x, layer_by_layer=by_stats)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        replicated = NamedSharding(mesh, P())
        params, stats = jax.device_put((params, stats), replicated)
        stacked = jax.device_put(x, NamedSharding(mesh, P(None, "data")))
        update = update_of(params, by_stats=by_stats)
        found = precise_stats(update, stats, stacked, layer_by_layer=by_stats)
        assert_equal(found, alone)
        batches = [jax.device_put(batch, NamedSharding(mesh, P("data"))) for batch in np.asarray(x)]
        assert_equal(precise_stats(update, stats, batches, layer_by_layer=by_stats, progress=False), alone)


@pytest.mark.parametrize("by_stats", then_slow([True, False]))
def test_inside_shard_map_with_uneven_masks(by_stats: bool) -> None:
    """Statistics are pooled over devices by the layer, whose count is that of all devices."""
    params, state = jaxnorm.init_batch_norm(WIDTH)
    x = data()
    mask = (jnp.arange(16) % 5 < 3)[None] & (jnp.arange(5) != 2)[:, None]

    def update(_: jaxnorm.RunningStats, batch: dict[str, jax.Array], axis_name: str | None) -> jaxnorm.Moments:
        _, new = jaxnorm.batch_norm(
            params, state, batch["x"], train=True, momentum=0.0, where=batch["mask"][:, None], axis_name=axis_name
        )
        n = batch["mask"].sum()
        return jaxnorm.Moments(*new, n if axis_name is None else jax.lax.psum(n, axis_name))

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    batches = {"x": x, "mask": mask}
    mapped = jax.shard_map(
        lambda batches: precise_stats(functools.partial(update, axis_name="data"), state, batches, layer_by_layer=by_stats),
        mesh=mesh,
        in_specs=P(None, "data"),
        out_specs=P(),
    )
    found = jax.jit(mapped)(batches)
    rows = np.asarray(x, np.float64)[np.asarray(mask)]
    assert_equal(found, (rows.mean(0), rows.var(0)))


@pytest.mark.slow
def test_a_flax_model_inside_shard_map() -> None:
    net = jaxnorm.linen.BatchNorm(use_running_average=False, axis_name="data")
    x = data()
    variables = net.init(jax.random.key(0), x[0])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    given = variables["batch_stats"]
    found = jax.jit(
        jax.shard_map(
            lambda x: precise_stats(linen_update(net, variables), given, x), mesh=mesh, in_specs=P(None, "data"), out_specs=P()
        )
    )(x)
    alone = precise_stats(linen_update(nn.BatchNorm(use_running_average=False), variables), given, x)
    assert_equal(found, alone)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("shape", [(16, WIDTH), (16, 3, WIDTH)])
def test_layers_on_sharded_arrays(kind: AxisType, shape: tuple[int, ...]) -> None:
    params, state = jaxnorm.init_batch_norm(WIDTH)
    x = jax.random.normal(jax.random.key(0), shape) + 1
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    layers = (
        lambda x: blended_batch_norm(params, state, x, 0.3),
        lambda x: blended_batch_norm(params, state, x, 0.3, per="example", mixture=True),
        lambda x: eval_batch_norm(params, state, x, 4, var_of_means=jnp.full(WIDTH, 0.2)),
    )
    for layer in layers:
        wanted, (mapped,) = layer(x), jax.vmap(layer)(x[None])
        np.testing.assert_allclose(mapped, wanted, rtol=1e-5, atol=1e-6)
        with jax.set_mesh(mesh):
            sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
            y = jax.jit(layer)(sharded)
            assert y.sharding.is_equivalent_to(sharded.sharding, x.ndim)
            np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
