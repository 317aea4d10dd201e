"""The modules of `jaxnorm.nnx`: state, flags, streams of keys, and the transformations of nnx."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, nnx
from flax_layers import batch, close, flax_masks

import jaxnorm.nnx as jx

PACKAGES = {"jaxnorm": jx, "flax": nnx}


def arrays(state: Any) -> Any:
    """Returns a state with keys as numbers, so that it can be compared."""

    def data(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(data, nnx.to_pure_dict(state))


class Network(nnx.Module):
    """A network of one package's layers."""

    def __init__(self, package: Any, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = package.BatchNorm(4, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.drop = package.Dropout(0.5, rngs=rngs, **flax_masks(package))
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


class Block(nnx.Module):
    """Both layers without any of Flax's."""

    def __init__(self, *, rngs: nnx.Rngs, axis_name: str | None = None):
        self.norm = jx.BatchNorm(3, momentum=0.9, axis_name=axis_name, rngs=rngs)
        self.drop = jx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(x) + 3)


# State and checkpoints


def test_state_is_that_of_flax():
    ours, flaxs = (nnx.state(Network(package, rngs=nnx.Rngs(0))) for package in (jx, nnx))
    jax.tree.map(np.testing.assert_array_equal, arrays(ours), arrays(flaxs))
    assert jax.tree.map(lambda a: a.dtype, arrays(ours)) == jax.tree.map(lambda a: a.dtype, arrays(flaxs))
    for kind in (nnx.Param, nnx.BatchStat, nnx.RngState):
        kinds = (nnx.state(Network(package, rngs=nnx.Rngs(0)), kind) for package in (jx, nnx))
        ours, flaxs = (jax.tree.structure(arrays(state)) for state in kinds)
        assert ours == flaxs


@pytest.mark.parametrize(("writer", "reader"), [("flax", "jaxnorm"), ("jaxnorm", "flax")])
def test_checkpoints_load_both_ways(writer, reader):
    written, read = Network(PACKAGES[writer], rngs=nnx.Rngs(0)), Network(PACKAGES[reader], rngs=nnx.Rngs(1))
    written(batch((8, 3)))
    nnx.update(read, nnx.state(written))
    for _ in range(3):  # the streams of keys go on together
        close(read(batch((8, 3))), written(batch((8, 3))))
    written.eval()
    read.eval()
    close(read(batch((8, 3), seed=2)), written(batch((8, 3), seed=2)))
    jax.tree.map(close, arrays(nnx.state(read)), arrays(nnx.state(written)))


def test_gradients_equal_those_with_flax():
    def gradients(package):
        @nnx.jit
        def step(model, x):
            return nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model)

        model = Network(package, rngs=nnx.Rngs(0))
        return [arrays(step(model, batch((8, 3), seed=seed))) for seed in range(2)], arrays(nnx.state(model))

    close(gradients(jx), gradients(nnx), atol=1e-5)


def test_metadata_of_parameters_is_kept():
    norm = jx.BatchNorm(3, rngs=nnx.Rngs(0), scale_metadata={"layer": "a"}, bias_metadata={"layer": "b"})
    assert norm.scale.get_metadata()["layer"] == "a"
    assert norm.bias.get_metadata()["layer"] == "b"


def test_keys_for_parameters_are_drawn_as_in_flax():
    def draws(package, **fields):
        rngs = nnx.Rngs(0)
        norm = package.BatchNorm(
            3, scale_init=nnx.initializers.normal(), bias_init=nnx.initializers.normal(), rngs=rngs, **fields
        )
        return arrays(nnx.state(norm)), rngs.params.count[...]

    for fields in ({}, {"use_scale": False}, {"use_bias": False}, {"use_scale": False, "use_bias": False}):
        close(draws(jx, **fields), draws(nnx, **fields))


@pytest.mark.parametrize("num_features", [0, (3, 0)], ids=str)
def test_num_features_is_checked(num_features):
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        jx.BatchNorm(num_features, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="num_features must be an int"):
        jx.BatchNorm(3.0, rngs=nnx.Rngs(0))


def test_mean_is_complex_from_the_start_with_a_complex_dtype():
    norm = jx.BatchNorm(3, dtype=jnp.complex64, momentum=0.0, rngs=nnx.Rngs(0))
    x = batch((8, 3), dtype=np.complex64) * np.complex64(1 + 2j)
    assert (norm.mean.dtype, norm.var.dtype) == (jnp.complex64, jnp.float32)
    assert norm(x).dtype == jnp.complex64
    close(norm.mean[...], np.asarray(x).mean(0), atol=1e-5)
    close(norm.var[...], np.asarray(x).var(0), atol=2e-5)


# Flags


def test_train_eval_and_attributes_set_the_flags():
    block, x = Block(rngs=nnx.Rngs(0)), batch((8, 3))
    block.eval()
    assert (block.norm.use_running_average, block.drop.deterministic) == (True, True)
    close(block(x), block.norm(x) + 3)
    block.train()
    assert (block.norm.use_running_average, block.drop.deterministic) == (False, False)
    block.set_attributes(deterministic=True)
    assert (block(x) != 0).all()


@pytest.mark.parametrize("name", ["Dropout", "GaussianDropout", "UniformDropout"])
def test_view_shares_variables_and_not_flags(name):
    drop = getattr(jx, name)(0.5, rngs=nnx.Rngs(0))
    norm = jx.BatchNorm(3, rngs=nnx.Rngs(0))
    still, frozen = nnx.view(drop, deterministic=True), nnx.view(norm, use_running_average=True)
    x = batch((8, 3))
    assert still(x) is x
    assert drop(x) is not x
    norm(x)
    np.testing.assert_array_equal(frozen.mean[...], norm.mean[...])
    assert (norm.use_running_average, frozen.use_running_average) == (False, True)
    assert f"{name}:\n  deterministic: bool | None = None\n    if True" in nnx.view_info(drop)


def test_argument_goes_before_the_attribute():
    norm, drop, x = jx.BatchNorm(3, rngs=nnx.Rngs(0)), jx.Dropout(0.5), batch((8, 3))
    norm(x, use_running_average=True)
    np.testing.assert_array_equal(norm.mean[...], jnp.zeros(3))
    assert drop(x, deterministic=True) is x


def test_flag_given_nowhere_raises():
    with pytest.raises(ValueError, match="No `use_running_average` argument was provided to BatchNorm"):
        jx.BatchNorm(3, use_running_average=None, rngs=nnx.Rngs(0))(batch((8, 3)))
    with pytest.raises(ValueError, match="No `deterministic` argument was provided to UniformDropout"):
        jx.UniformDropout(0.5, deterministic=None)(batch((8, 3)))


# Streams of keys


def test_streams_fork_and_count_as_in_flax():
    def draws(package):
        rngs = nnx.Rngs(0, dropout=1)
        new = functools.partial(package.Dropout, 0.5, **flax_masks(package))
        layers = [new(rngs=rngs), new(rngs=rngs.dropout), new(rng_collection="other", rngs=rngs)]
        out = []
        for layer in layers:
            for rate, deterministic in ((0.5, False), (0.0, False), (1.0, False), (0.5, True), (0.2, False)):
                layer.rate = rate
                out.append(layer(jnp.ones((3, 4)), deterministic=deterministic) != 0)
        out.append(new()(jnp.ones((3, 4)), rngs=rngs) != 0)
        out.append(new()(jnp.ones((3, 4)), rngs=rngs.dropout) != 0)
        out.append(new()(jnp.ones((3, 4)), rngs=jax.random.key(5)) != 0)
        return out, [layer.rngs.count[...] for layer in layers], arrays(nnx.state(rngs))

    jax.tree.map(np.testing.assert_array_equal, draws(jx), draws(nnx))


@pytest.mark.parametrize("name", ["Dropout", "GaussianDropout", "UniformDropout"])
def test_nothing_to_draw_with_raises(name):
    layer = getattr(jx, name)
    with pytest.raises(ValueError, match=f"`deterministic` is False, but no `rngs` argument was provided to {name}"):
        layer(0.5)(batch((8, 3)))
    with pytest.raises(TypeError, match=r"rngs must be a Rngs, RngStream or None, but got <class 'int'>"):
        layer(0.5, rngs=3)
    with pytest.raises(TypeError, match=r"rngs must be a Rngs, RngStream or jax.Array, but got <class 'int'>"):
        layer(0.5)(batch((8, 3)), rngs=3)


# Transformations


def test_split_and_merge_go_on_where_they_were():
    block, x = Block(rngs=nnx.Rngs(0)), batch((8, 3))
    block(x)
    copy = nnx.merge(*nnx.split(nnx.clone(block)))
    np.testing.assert_array_equal(copy(x), block(x))
    jax.tree.map(np.testing.assert_array_equal, arrays(nnx.state(copy)), arrays(nnx.state(block)))


def test_jit_updates_the_state_as_without():
    jitted, plain = Block(rngs=nnx.Rngs(0)), Block(rngs=nnx.Rngs(0))
    step = nnx.jit(lambda block, x: block(x))
    for seed in range(3):
        close(step(jitted, batch((8, 3), seed=seed)), plain(batch((8, 3), seed=seed)))
    close(arrays(nnx.state(jitted)), arrays(nnx.state(plain)))


def test_variables_that_are_references_are_updated_under_a_bare_jit():
    plain, x = Block(rngs=nnx.Rngs(0)), batch((8, 3))
    with nnx.var_defaults(ref=True):
        referring = Block(rngs=nnx.Rngs(0))
        y = jax.jit(lambda block, x: block(x))(referring, x)
    close(y, plain(x))
    close(referring.norm.mean[...], plain.norm.mean[...])


def test_remat_averages_once_and_draws_the_same_mask():
    """Pitfall 58."""

    def run(wrap):
        block, x = Block(rngs=nnx.Rngs(0)), batch((8, 3))
        grads = nnx.grad(lambda block: jnp.sum(wrap(lambda block, x: block(x))(block, x) ** 2))(block)
        return arrays(grads), arrays(nnx.state(block))

    rematted, plain = run(nnx.remat), run(lambda fn: fn)
    close(rematted, plain, atol=1e-5)
    close(rematted[1]["norm"]["mean"], 0.1 * batch((8, 3)).mean(0))
    assert rematted[1]["drop"]["rngs"]["count"] == 1


def test_scan_over_layers_stacks_statistics_and_draws_anew():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def layers(rngs):
        return Block(rngs=rngs)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def run(x, block):
        y = block(x)
        return y, y == 0

    x, stacked = batch((16, 3)), layers(nnx.Rngs(0))
    _, masks = run(x, stacked)
    assert stacked.norm.mean.shape == (3, 3)
    close(stacked.norm.mean[0], 0.1 * x.mean(0))
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[1], masks[2])


def test_scan_carries_the_state_over_steps():
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def run(block, x):
        return block, block(x)

    scanned, plain = Block(rngs=nnx.Rngs(0)), Block(rngs=nnx.Rngs(0))
    xs = batch((4, 8, 3))
    scanned, ys = run(scanned, xs)
    close(ys, jnp.stack([plain(x) for x in xs]), atol=3e-6)
    close(arrays(nnx.state(scanned)), arrays(nnx.state(plain)))


def test_vmap_over_models_gives_each_its_own_statistics():
    @nnx.split_rngs(splits=4)
    @nnx.vmap(in_axes=0)
    def models(rngs):
        return jx.BatchNorm(3, momentum=0.0, rngs=rngs)

    norms, x = models(nnx.Rngs(0)), batch((4, 64, 3))
    nnx.vmap(lambda norm, x: norm(x))(norms, x)
    close(norms.mean[...], x.mean(1))


def test_vmap_with_axis_name_pools_the_lanes():
    pooled, whole = (jx.BatchNorm(3, axis_name=name, rngs=nnx.Rngs(0)) for name in ("lanes", None))
    x = batch((4, 6, 3))
    y = nnx.vmap(lambda norm, x: norm(x), in_axes=(None, 0), axis_name="lanes")(pooled, x)
    close(y, whole(x), atol=3e-6)
    close(arrays(nnx.state(pooled)), arrays(nnx.state(whole)))


def test_eval_shape_makes_and_applies_a_model_without_numbers():
    block = nnx.eval_shape(lambda: Block(rngs=nnx.Rngs(0)))
    assert block.norm.mean.get_value() == jax.ShapeDtypeStruct((3,), jnp.float32)
    y = nnx.eval_shape(lambda block, x: block(x), Block(rngs=nnx.Rngs(0)), batch((8, 3)))
    assert (y.shape, y.dtype) == ((8, 3), jnp.float32)


def test_state_is_not_captured_by_a_bare_jit():
    """Pitfall 64."""
    block = Block(rngs=nnx.Rngs(0))
    with pytest.raises(errors.TraceContextError, match="trace"):
        jax.jit(block.__call__)(batch((8, 3)))


def test_one_compilation_serves_scheduled_rates_and_both_modes():
    traces = []

    @nnx.jit
    def apply(norm, rngs, x, rate, frozen):
        traces.append(rate)
        y = jx.Dropout(rate)(x, deterministic=frozen, rngs=rngs)
        return norm(y, use_running_average=frozen)

    norm, rngs, x = jx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Rngs(1), batch((8, 3))
    for step in range(4):
        y = apply(norm, rngs, x, jnp.float32(step / 4), jnp.array(step == 3))
    assert len(traces) == 1
    close(y, norm(x, use_running_average=True))


@pytest.mark.parametrize("name", ["Dropout", "GaussianDropout", "UniformDropout"])
def test_noise_in_a_model_differs_from_call_to_call(name):
    layer = getattr(jx, name)(0.5, rngs=nnx.Rngs(0))
    step = nnx.jit(lambda layer, x: layer(x))
    x = batch((8, 3))
    assert not np.array_equal(step(layer, x), step(layer, x))
