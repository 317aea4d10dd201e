"""States and batches over a mesh of devices: where they lie, the same numbers on any number of devices, bad layouts."""

import re

import chex
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from training.many_devices_run import run

import jaxnorm
import jaxnorm.linen as norm_linen
import jaxnorm.nnx as norm_nnx
from jaxnorm.benchmarks._collectives import collectives, num_bytes
from jaxnorm.training import (
    Layout,
    TrainState,
    init_train_state,
    linen_apply,
    make_train_step,
    nnx_apply,
    shard_batch,
    shard_state,
    state_shardings,
)

axis_types = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def mesh_of(axis_type: AxisType = AxisType.Auto, **sizes: int) -> Mesh:
    count = int(np.prod(list(sizes.values())))
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (axis_type,) * len(sizes), devices=jax.devices()[:count])


def specs(tree):
    return jax.tree.map(lambda sharding: sharding.spec, tree)


def trained(apply, state, optimizer, layout, data, steps=3):
    """The state and the losses after a few steps, as `fit` would take them."""
    state = shard_state(state, layout)
    shardings = state_shardings(state, layout)
    step = jax.jit(make_train_step(apply, optimizer), donate_argnums=0, out_shardings=(shardings, None))
    losses = []
    for _ in range(steps):
        given = state
        state, metrics = step(state, shard_batch(data, layout))
        losses.append(metrics["loss"])
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((given.params, given.opt_state)))
    placed = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), state, shardings)
    assert all(jax.tree.leaves(placed))
    return state, jnp.stack(losses)


def host(state: TrainState) -> TrainState:
    return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def test_a_rule_places_a_parameter_and_what_the_optimizer_keeps_of_it():
    params = {"Dense_0": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}, "Dense_1": {"kernel": jnp.ones((6, 4))}}
    stats = {"Norm": {"mean": jnp.zeros(6)}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(0.1), lambda tree: jax.tree.map(jnp.ndim, tree))
    )
    state = init_train_state(jax.random.key(0), params, stats, optimizer)
    rules = [("Dense_0/kernel$", P(None, "model")), ("Norm|kernel", P("model"))]
    found = specs(state_shardings(state, Layout(mesh_of(data=4, model=2), rules=rules)))
    expected = {"Dense_0": {"kernel": P(None, "model"), "bias": P()}, "Dense_1": {"kernel": P("model")}}
    assert (found.step, found.key, found.params, found.stats) == (P(), P(), expected, {"Norm": {"mean": P("model")}})
    adam = found.opt_state[1].inner_state[0]
    assert (adam.count, adam.mu, adam.nu) == (P(), expected, expected)


def test_what_has_another_shape_than_its_parameter_is_replicated():
    state = init_train_state(jax.random.key(0), {"w": jnp.ones((256, 128))}, (), optax.adafactor(0.1))
    found = specs(state_shardings(state, Layout(mesh_of(data=2), rules=[("w", P("data"))])))
    factored = next(part for part in found.opt_state if hasattr(part, "v_row"))
    assert (found.params["w"], factored.v_row["w"], factored.v_col["w"], factored.v["w"]) == (P("data"), P(), P(), P())


def test_the_optimizer_of_a_single_array_and_an_empty_leaf():
    state = init_train_state(jax.random.key(0), jnp.ones((4, 2)), jnp.ones((0, 3)), optax.adam(0.1))
    found = specs(state_shardings(state, Layout(mesh_of(data=4), rules=[("params|stats", P("data"))])))
    assert (found.params, found.opt_state[0].mu, found.opt_state[0].count, found.stats) == (P("data"), P("data"), P(), P())


@axis_types
def test_a_state_keeps_its_values_and_the_given_one_stays(axis_type):
    optimizer = optax.adam(0.1)
    params = {"w": jax.random.normal(jax.random.key(1), (8, 3)), "empty": jnp.ones((0, 2))}
    state = init_train_state(jax.random.key(0), params, (), optimizer)
    layout = Layout(mesh_of(axis_type, data=8), rules=[("w", P("data"))])
    placed = shard_state(state, layout)
    chex.assert_trees_all_equal(host(placed), host(state))
    assert [shard.data.shape for shard in placed.params["w"].addressable_shards] == [(1, 3)] * 8
    assert placed.key.sharding.is_fully_replicated
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf, state), donate_argnums=0)(placed)
    chex.assert_tree_all_finite(host(state))
    again = shard_state(shard_state(state, layout), Layout(mesh_of(axis_type, data=8)))
    assert again.params["w"].sharding.is_fully_replicated


@pytest.fixture(scope="module")
def on_one_device(net, data):
    optimizer = optax.adam(0.1)
    state = init_train_state(jax.random.key(0), net.params, net.stats, optimizer)
    data = (data[0][:80], data[1][:80])
    after, losses = trained(net.apply, state, optimizer, Layout(mesh_of(data=1)), data)
    assert losses[-1] < losses[0]
    return state, optimizer, data, (host(after), losses)


@pytest.mark.parametrize("axis_type, devices", [
    (AxisType.Auto, 8),
    (AxisType.Explicit, 4),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in
      [(AxisType.Auto, 2), (AxisType.Auto, 4), (AxisType.Explicit, 2), (AxisType.Explicit, 8)]),
], ids=str)  # fmt: skip
def test_the_same_numbers_on_any_number_of_devices(axis_type, devices, net, on_one_device):
    state, optimizer, data, expected = on_one_device
    after, losses = trained(net.apply, state, optimizer, Layout(mesh_of(axis_type, data=devices)), data)
    chex.assert_trees_all_close((host(after), losses), expected, rtol=2e-5, atol=2e-6)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.relu(norm_linen.BatchNorm(use_running_average=not train)(linen.Dense(8)(x)))
        return linen.Dense(4)(norm_linen.Dropout(0.3, deterministic=not train)(x))


def models(kind, x):
    if kind == "linen":
        variables = Linen().init(jax.random.key(0), x, train=False)
        return linen_apply(Linen()), variables["params"], variables["batch_stats"], "Dense_0"
    rngs = nnx.Rngs(0)
    parts = (nnx.Linear(5, 8, rngs=rngs), norm_nnx.BatchNorm(8, rngs=rngs), nnx.relu, norm_nnx.Dropout(0.3, rngs=rngs))
    return *nnx_apply(nnx.Sequential(*parts, nnx.Linear(8, 4, rngs=rngs))), "layers/0"


@pytest.mark.parametrize("kind, axis_type", [
    ("nnx", AxisType.Explicit),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in
      [("nnx", AxisType.Auto), ("linen", AxisType.Explicit), ("linen", AxisType.Auto)]),
], ids=str)  # fmt: skip
def test_flax_models_with_split_parameters(kind, axis_type, data):
    data = (data[0][:80], data[1][:80])
    apply, params, stats, first = models(kind, data[0])
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = init_train_state(jax.random.key(1), params, stats, optimizer)
    expected, losses = trained(apply, state, optimizer, Layout(mesh_of(data=1)), data)
    rules = [(f"{first}/kernel", P(None, "model")), (f"{first}/bias", P("model"))]
    layout = Layout(mesh_of(axis_type, data=4, model=2), rules=rules)
    after, many = trained(apply, state, optimizer, layout, data)
    chex.assert_trees_all_close((host(after), many), (host(expected), losses), rtol=2e-5, atol=2e-6)


def test_a_batch_lies_by_its_rows_in_any_tree():
    layout = Layout(mesh_of(data=4, model=2), batch_axes=("data", "model"))
    given = {"image": np.arange(16.0).reshape(8, 2), "label": [jnp.arange(8)]}
    batch = shard_batch(given, layout)
    chex.assert_trees_all_equal(jax.device_get(batch), given)
    for number, shard in enumerate(batch["label"][0].addressable_shards):
        assert (shard.index, shard.data.tolist()) == ((slice(number, number + 1),), [number])


@pytest.mark.parametrize("rules, words", [
    ([("w", P("model", "model"))], "DuplicateSpec"),
    ([("w", P("data"))], "params/w is float32[6,2], which P('data',) cannot split over the mesh (data 4, model 2)"),
    ([("w", P("experts"))], "params/w is float32[6,2], which P('experts',) cannot"),
    ([("w", P(None, None, "model"))], "params/w is float32[6,2], which P(None, None, 'model') cannot"),
    ([("w", P()), ("w$", P())], "got 'w$', which is not"),
    ([("kernel", P("data"))], "got 'kernel', which is not"),
])  # fmt: skip
def test_rules_that_do_not_fit(rules, words):
    state = init_train_state(jax.random.key(0), {"w": jnp.ones((6, 2))}, (), optax.sgd(0.1))
    with pytest.raises(ValueError, match="rules must") as error:
        state_shardings(state, Layout(mesh_of(data=4, model=2), rules=rules))
    assert words in f"{error.value} {type(error.value.__cause__).__name__}".replace("[6, 2]", "[6,2]")


def test_layouts_that_are_none():
    state = init_train_state(jax.random.key(0), jnp.ones((6, 2)), (), optax.sgd(0.1))
    with pytest.raises(ValueError, match=re.escape("batch_axes must be axes of the mesh, data 4, got 'batch'")):
        shard_state(state, Layout(mesh_of(data=4), batch_axes="batch"))
    with pytest.raises(ValueError, match="got 'model'"):
        shard_batch(np.ones(4), Layout(mesh_of(data=4), batch_axes=("data", "model")))
    with pytest.raises(TypeError, match=r"layout\.mesh must be Mesh, got 4"):
        shard_batch(np.ones(4), Layout(4))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="layout must be Layout, got"):
        shard_batch(np.ones(4), mesh_of(data=4))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="state must be TrainState"):
        shard_state({}, Layout(mesh_of(data=4)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="PartitionSpec, got 'data' for 'params'"):
        state_shardings(state, Layout(mesh_of(data=4), rules=[("params", "data")]))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("batch, words", [
    ((np.ones((6, 2)), np.ones(6)), "a multiple of the 4 devices along 'data', got 6: batches with pad_remainder=True or"),
    ((np.ones((8, 2)), np.ones(4)), "the arrays of batch must have the same number of examples, got batch[0] 8, batch[1] 4"),
    ([np.ones(8), 3], "batch[1] must begin with the axis of the examples, got 3"),
    ((), "batch must hold arrays, got none"),
])  # fmt: skip
def test_batches_that_a_mesh_does_not_take(batch, words):
    with pytest.raises(ValueError, match="batch") as error:
        shard_batch(batch, Layout(mesh_of(data=4)))
    assert words in str(error.value)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_statistics_are_a_choice_of_the_layer_not_of_the_layout(devices):
    """Of the whole batch, of eight ghosts, or of what a device holds, on any number of devices."""
    params, stats = jaxnorm.init_batch_norm(3)
    x = (np.random.default_rng(0).normal(size=(16, 5, 3)) + np.arange(16)[:, None, None]).astype(np.float32)

    def normalized(count):
        return np.concatenate([(part - part.mean((0, 1))) / np.sqrt(part.var((0, 1)) + 1e-5) for part in np.split(x, count)])

    layout = Layout(mesh_of(data=devices))
    split = shard_batch(x, layout)
    whole = jax.jit(lambda x: jaxnorm.batch_norm(params, stats, x, train=True)[0])
    np.testing.assert_allclose(whole(split), normalized(1), atol=2e-5)
    ghosts = jax.jit(lambda x: jaxnorm.ghost_batch_norm(params, stats, x, 2, train=True)[0])
    np.testing.assert_allclose(ghosts(split), normalized(8), atol=2e-5)
    for layer, count in ((whole, int(devices > 1)), (ghosts, 0)):
        assert len(collectives(layer.lower(split).compile().as_text())) == count
    for axis_name, count in (("data", 1), (None, devices)):
        per_device = jax.shard_map(
            lambda x, axis_name=axis_name: jaxnorm.batch_norm(params, stats, x, train=True, axis_name=axis_name)[0],
            mesh=layout.mesh, in_specs=P("data"), out_specs=P("data"),
        )  # fmt: skip
        np.testing.assert_allclose(jax.jit(per_device)(x), normalized(count), atol=2e-5)


@pytest.mark.slow
@axis_types
def test_a_conv_net_with_an_uneven_last_batch_on_any_number_of_devices(axis_type):
    expected = run(mesh_of(data=1), 2)
    assert {a.shape for name, a in expected.items() if name == "losses/0"} == {(22,)}
    for devices in (2, 4, 8):
        found = run(mesh_of(axis_type, data=devices), 2)
        assert_same_run(found, expected)
    if axis_type == AxisType.Auto:
        assert_same_run(run(mesh_of(data=8), 2, split_parameters=True), expected)


def assert_same_run(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        if name.startswith("masks"):
            np.testing.assert_array_equal(found[name], expected[name])
            assert 0.7 < np.mean(found[name] > 0) < 0.9
        else:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=2e-6)


class ConvNet(linen.Module):
    norm: type

    @linen.compact
    def __call__(self, x, train):
        for channels in (8, 16):
            x = linen.relu(self.norm(use_running_average=not train)(linen.Conv(channels, (3, 3))(x)))
            x = norm_linen.Dropout(0.2, deterministic=not train)(x)
        return linen.Dense(10)(x.mean((1, 2)))


@pytest.mark.slow
def test_a_step_takes_two_small_sums_for_each_batch_norm_and_one_for_the_gradients():
    data = (np.ones((16, 8, 8, 1), np.float32), np.zeros(16, np.int32))
    layout, optimizer, totals = Layout(mesh_of(data=8)), optax.sgd(0.1), {}
    for norm in (norm_linen.BatchNorm, linen.BatchNorm):
        variables = ConvNet(norm).init(jax.random.key(0), data[0], train=False)
        state = init_train_state(jax.random.key(1), variables["params"], variables["batch_stats"], optimizer)
        step = jax.jit(
            make_train_step(linen_apply(ConvNet(norm)), optimizer), out_shardings=(state_shardings(state, layout), None)
        )
        text = step.lower(shard_state(state, layout), shard_batch(data, layout)).compile().as_text()
        assert text is not None
        found = collectives(text)
        assert {operation for operation, _ in found} == {"all-reduce"}
        *small, gradients = sorted(num_bytes(kind) for _, kind in found)
        totals[norm] = sum(small)
        assert gradients >= 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1)
        if norm is norm_linen.BatchNorm:
            assert small == [2 * 4 * 8] * 2 + [2 * 4 * 16] * 2
    assert totals[norm_linen.BatchNorm] <= totals[linen.BatchNorm]


def test_named_shardings_of_keys_are_placed():
    """A legacy key is an array of two numbers."""
    state = init_train_state(jax.random.PRNGKey(3), jnp.ones(2), (), optax.sgd(0.1))
    placed = shard_state(state, Layout(mesh_of(data=2)))
    assert placed.key.tolist() == [0, 3]
    assert isinstance(placed.key.sharding, NamedSharding)
