"""The modules of `jaxnorm.linen`: variables, initialization, keys, and the transformations of linen."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors, serialization
from flax_layers import batch, close, flax_masks

import jaxnorm.linen as jn

PACKAGES = {"jaxnorm": jn, "flax": nn}


def equal(actual: Any, desired: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    jax.tree.map(np.testing.assert_array_equal, actual, desired)


class Network(nn.Module):
    """A network of one package's layers; in training it draws keys and averages statistics."""

    package: Any
    rate: Any = 0.5

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(4)(x)
        x = self.package.BatchNorm(momentum=0.9, use_fast_variance=False)(x, use_running_average=not train)
        x = self.package.Dropout(self.rate, deterministic=not train, **flax_masks(self.package))(nn.relu(x))
        return nn.Dense(2)(x)


def variables_of(package: Any) -> dict:
    return Network(package).init(jax.random.key(0), batch((8, 3)), train=False)


def train_once(network: Network, variables: dict, seed: int = 3) -> tuple:
    return network.apply(variables, batch((8, 3)), train=True, rngs={"dropout": jax.random.key(seed)}, mutable=["batch_stats"])


# Variables and checkpoints


def test_variables_are_those_of_flax():
    ours, flaxs = variables_of(jn), variables_of(nn)
    equal(ours, flaxs)
    assert jax.tree.map(lambda a: a.dtype, ours) == jax.tree.map(lambda a: a.dtype, flaxs)


@pytest.mark.parametrize(("writer", "reader"), [("flax", "jaxnorm"), ("jaxnorm", "flax")])
def test_checkpoints_load_both_ways(writer, reader):
    variables = variables_of(PACKAGES[writer])
    trained, updates = train_once(Network(PACKAGES[writer]), variables)
    saved = serialization.to_bytes({**variables, **updates})
    loaded = serialization.from_bytes(variables_of(PACKAGES[reader]), saved)
    x = batch((5, 3), seed=2)
    close(Network(PACKAGES[reader]).apply(loaded, x, train=False), Network(PACKAGES[writer]).apply(loaded, x, train=False))
    close(train_once(Network(PACKAGES[reader]), variables), (trained, updates))


def test_training_of_a_network_equals_that_with_flax():
    optimizer = optax.sgd(0.1)

    def trained(package):
        variables = variables_of(package)
        params, stats = variables["params"], variables["batch_stats"]
        state = optimizer.init(params)

        @jax.jit
        def step(params, stats, state, seed):
            def loss(params):
                y, updates = train_once(Network(package), {"params": params, "batch_stats": stats}, seed)
                return jnp.sum(y * y), updates["batch_stats"]

            grads, stats = jax.grad(loss, has_aux=True)(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), stats, state

        for seed in range(3):
            params, stats, state = step(params, stats, state, seed)
        return params, stats

    close(trained(jn), trained(nn), atol=1e-5)


# Initialization


def test_initialization_leaves_the_statistics_and_needs_no_axis_name():
    """Pitfall 51."""
    norm = jn.BatchNorm(use_running_average=False, axis_name="devices", axis_index_groups=[[0, 1], [2, 3]])
    x = batch((8, 3))
    y, variables = norm.init_with_output(jax.random.key(0), x)
    equal(variables["batch_stats"], {"mean": jnp.zeros(3), "var": jnp.ones(3)})
    equal(norm.init(jax.random.key(0), 5 * x + 3), variables)
    close(y.mean(0), jnp.zeros(3))
    with pytest.raises(ValueError, match="axis_name 'devices' is not bound"):
        norm.apply(variables, x, mutable=["batch_stats"])


def test_statistics_are_averaged_when_parameters_are_mutable_too():
    """Pitfall 51."""
    norm, x = jn.BatchNorm(use_running_average=False, momentum=0.9), batch((8, 3))
    variables = norm.init(jax.random.key(0), x)
    _, updates = norm.apply(variables, x, mutable=["params", "batch_stats"])
    close(updates["batch_stats"]["mean"], 0.1 * x.mean(0))


@pytest.mark.parametrize(("dtype", "x_dtype"), [(jnp.complex64, np.float32), (None, np.complex64)], ids=["dtype", "x"])
def test_mean_is_complex_from_the_start(dtype, x_dtype):
    norm = jn.BatchNorm(use_running_average=False, dtype=dtype, momentum=0.0)
    x = batch((8, 3), dtype=x_dtype) * np.asarray(1 + 2j if dtype is None else 1, x_dtype)
    variables = norm.init(jax.random.key(0), x)
    y, updates = norm.apply(variables, x, mutable=["batch_stats"])
    for stats in (variables["batch_stats"], updates["batch_stats"]):
        assert (stats["mean"].dtype, stats["var"].dtype) == (jnp.complex64, jnp.float32)
    assert y.dtype == jnp.complex64
    close(updates["batch_stats"]["mean"], np.asarray(x).mean(0), atol=1e-5)
    close(updates["batch_stats"]["var"], np.asarray(x).var(0), atol=2e-5)


def test_inference_writes_nothing_and_training_needs_a_mutable_collection():
    norm, x = jn.BatchNorm(), batch((8, 3))
    variables = norm.init(jax.random.key(0), x, use_running_average=True)
    norm.apply(variables, x, use_running_average=True)
    with pytest.raises(errors.ModifyScopeVariableError):
        norm.apply(variables, x, use_running_average=False)


# Flags and keys


@pytest.mark.parametrize(
    ("layer", "flag"), [(jn.BatchNorm, "use_running_average"), (functools.partial(jn.Dropout, 0.5), "deterministic")]
)
def test_flags_are_given_once(layer, flag):
    with pytest.raises(ValueError, match=f'"{flag}" must be passed to the constructor or at call time'):
        layer().init(jax.random.key(0), batch((4, 3)))
    with pytest.raises(ValueError, match=f'"{flag}" was passed to the constructor and at call time'):
        layer(**{flag: True}).init(jax.random.key(0), batch((4, 3)), **{flag: True})


def test_keys_are_drawn_where_flax_draws_them():
    class Draws(nn.Module):
        package: Any

        @nn.compact
        def __call__(self, x):
            drawn, options = [], flax_masks(self.package)
            for rate, deterministic in ((0.5, True), (0.0, False), (1.0, False), (0.5, False), (0.2, False)):
                x = self.package.Dropout(rate, deterministic=deterministic, parent=self, **options)(x + 1)
                drawn.append((x, jax.random.key_data(self.make_rng("dropout"))))
            shared = self.package.Dropout(0.5, deterministic=False, **options)
            return drawn, [shared(x + 1), shared(x + 1)]

    def masks(package):
        drawn, shared = Draws(package).apply({}, jnp.ones((3, 4)), rngs={"dropout": jax.random.key(1)})
        return jax.tree.map(lambda a: a != 0 if a.dtype == jnp.float32 else a, (drawn, shared))

    equal(masks(jn), masks(nn))


@pytest.mark.parametrize("new_key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "legacy"])
def test_key_and_stream_may_be_given_by_name(new_key):
    x = jnp.ones((3, 4))

    def draw(package):
        layer = package.Dropout(0.5, deterministic=False, rng_collection="noise", **flax_masks(package))
        return layer.apply({}, x, rngs={"noise": new_key(1)}), layer.apply({}, x, rng=new_key(2))

    equal(draw(jn), draw(nn))
    with pytest.raises(errors.InvalidRngError, match="noise"):
        jn.Dropout(0.5, deterministic=False, rng_collection="noise").apply({}, x, rngs={"dropout": new_key(1)})


def test_malformed_key_raises():
    with pytest.raises(TypeError, match="key must be one key"):
        jn.Dropout(0.5, deterministic=False).apply({}, jnp.ones(3), rng=jnp.zeros(2))


# Transformations


def test_a_shared_layer_averages_at_every_call():
    """Pitfall 54."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = jn.BatchNorm(use_running_average=False, momentum=0.9)
            return norm(x), norm(x)

    x = batch((8, 3))
    variables = Twice().init(jax.random.key(0), x)
    (first, second), updates = Twice().apply(variables, x, mutable=["batch_stats"])
    close(first, second)  # but for rounding: each sums around the running mean that it finds
    close(updates["batch_stats"]["BatchNorm_0"]["mean"], 0.19 * x.mean(0))


class Block(nn.Module):
    """A layer of a scanned network."""

    @nn.compact
    def __call__(self, x, _):
        x = jn.BatchNorm(use_running_average=False, momentum=0.9)(x)
        x = jn.Dropout(0.5, deterministic=False)(x + 3)
        return x, x == 0


def test_scan_over_layers_stacks_statistics_and_draws_anew():
    scanned = nn.scan(
        Block, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True, "dropout": True}, length=3
    )()
    x = batch((16, 3))
    variables = scanned.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, None)
    (_, masks), updates = scanned.apply(variables, x, None, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"])
    means = updates["batch_stats"]["BatchNorm_0"]["mean"]
    assert means.shape == (3, 3)
    close(means[0], 0.1 * x.mean(0))
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[1], masks[2])


def test_scan_carries_statistics_over_steps():
    scanned = nn.scan(
        Block, variable_broadcast="params", variable_carry="batch_stats", split_rngs={"params": False, "dropout": True}, length=4
    )()
    x = batch((16, 3))
    variables = Block().init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, None)
    (y, _), updates = scanned.apply(variables, x, None, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"])
    assert y.shape == x.shape
    old, new = variables["batch_stats"]["BatchNorm_0"], updates["batch_stats"]["BatchNorm_0"]
    assert jax.tree.map(jnp.shape, old) == jax.tree.map(jnp.shape, new)
    assert (new["mean"] != old["mean"]).all()


def test_vmap_with_axis_name_pools_the_lanes():
    fields = {"use_running_average": False, "momentum": 0.9}
    x = batch((4, 6, 3))
    lanes = nn.vmap(
        jn.BatchNorm, variable_axes={"params": None, "batch_stats": None}, split_rngs={"params": False}, axis_name="lanes"
    )
    variables = jn.BatchNorm(**fields).init(jax.random.key(0), x)
    got = lanes(**fields, axis_name="lanes").apply(variables, x, mutable=["batch_stats"])
    close(got, jn.BatchNorm(**fields).apply(variables, x, mutable=["batch_stats"]), atol=3e-6)


def test_vmap_without_axis_name_gives_each_lane_its_own_statistics():
    lanes = nn.vmap(jn.BatchNorm, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True})(
        use_running_average=False, momentum=0.0
    )
    x = batch((4, 64, 3))
    variables = lanes.init(jax.random.key(0), x)
    _, updates = lanes.apply(variables, x, mutable=["batch_stats"])
    close(updates["batch_stats"]["mean"], x.mean(1))


def test_remat_averages_once_and_draws_the_same_mask():
    """Pitfall 58."""

    class Rematted(nn.Module):
        wrap: Any

        @nn.compact
        def __call__(self, x):
            return self.wrap(Block)(name="block")(x, None)

    x = batch((16, 3))
    variables = Rematted(lambda block: block).init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)

    def run(wrap):
        def loss(params):
            tree = {**variables, "params": params}
            (y, mask), updates = Rematted(wrap).apply(tree, x, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"])
            return jnp.sum(y * y), (mask, updates)

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    (grads, (mask, updates)), (plain_grads, (plain_mask, plain_updates)) = run(nn.remat), run(lambda block: block)
    close((grads, updates), (plain_grads, plain_updates), atol=1e-5)
    equal(mask, plain_mask)
    close(updates["batch_stats"]["block"]["BatchNorm_0"]["mean"], 0.1 * x.mean(0))


def test_one_compilation_serves_scheduled_rates_and_both_modes():
    traces = []

    @jax.jit
    def apply(variables, x, rate, frozen, seed):
        traces.append(rate)
        y = jn.Dropout(rate, deterministic=frozen).apply({}, x, rngs={"dropout": jax.random.key(seed)})
        return jn.BatchNorm(use_running_average=frozen).apply(variables, y, mutable=["batch_stats"])

    x = batch((8, 3))
    variables = jn.BatchNorm(use_running_average=True).init(jax.random.key(0), x)
    for step in range(5):
        y, _ = apply(variables, x, step / 5, step == 4, step)
    assert len(traces) == 1
    close(y, jn.BatchNorm(use_running_average=True).apply(variables, x))


def test_shard_map_pools_devices():
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    x = batch((16, 3))
    norm = jn.BatchNorm(use_running_average=False, axis_name="devices")
    variables = norm.init(jax.random.key(0), x)

    def apply(variables, x):
        return norm.apply(variables, x, mutable=["batch_stats"])

    sharded = jax.shard_map(apply, mesh=mesh, in_specs=(spec(), spec("devices")), out_specs=(spec("devices"), spec()))
    whole = jn.BatchNorm(use_running_average=False).apply(variables, x, mutable=["batch_stats"])
    close(jax.jit(sharded)(variables, x), whole)


def test_tabulate_lists_the_layers():
    table = nn.tabulate(Network(jn), jax.random.key(0), console_kwargs={"width": 200})(batch((8, 3)), train=False)
    assert "BatchNorm_0" in table
    assert "Dropout_0" in table
