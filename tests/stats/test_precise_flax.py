"""Precise statistics of linen and nnx models, of ours and of Flax's layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks_of_norms import WIDTH, data
from tiers import then_slow

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.statistics import linen_update, nnx_update, precise_stats

LINEN = {"flax": (nn.BatchNorm, nn.Dropout), "ours": (jaxnorm.linen.BatchNorm, jaxnorm.linen.Dropout)}
NNX = {"flax": (nnx.BatchNorm, nnx.Dropout), "ours": (jaxnorm.nnx.BatchNorm, jaxnorm.nnx.Dropout)}


class Net(nn.Module):
    norm: Any
    drop: Any
    depth: int = 3

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        for _ in range(self.depth):
            x = self.drop(0.5, deterministic=not train)(nn.Dense(WIDTH)(x))
            x = nn.relu(self.norm(use_running_average=not train)(x, mask=mask))
        return x


class NnxNet(nnx.Module):
    def __init__(self, norm, drop, depth=3):
        rngs = nnx.Rngs(0)
        self.dense = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(depth)])
        self.norms = nnx.List([norm(WIDTH, rngs=rngs) for _ in range(depth)])
        self.drop = drop(0.5, rngs=rngs)

    def __call__(self, x, mask=None):
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = nnx.relu(norm(self.drop(dense(x)), mask=mask))
        return x


def oracle(kernels: list[Any], x: Any, counted: Any = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of each layer's input, layer by layer, in float64."""
    h = np.asarray(x, np.float64).reshape(-1, WIDTH)
    h = h if counted is None else h[np.asarray(counted).reshape(-1)]
    found = []
    for kernel in kernels:
        h = h @ np.asarray(kernel, np.float64)
        found.append((h.mean(0), h.var(0)))
        h = np.maximum((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5), 0)
    return found


def assert_close(found: list[Any], wanted: Any) -> None:
    for own, (mean, var) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(own["mean"], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(own["var"], var, rtol=2e-5)


def linen_parts(net: nn.Module, x: jax.Array) -> tuple[dict[str, Any], list[Any]]:
    variables = jax.jit(lambda x: net.init(jax.random.key(0), x, train=False))(x)
    return variables, [variables["params"][f"Dense_{i}"]["kernel"] for i in range(3)]


def linen_layers(stats: Any) -> list[Any]:
    return [stats[name] for name in sorted(stats)]


@pytest.mark.parametrize("of", then_slow(list(LINEN)))
@pytest.mark.parametrize("train", then_slow([True, False]))
def test_linen_in_both_modes_whatever_the_model_is_told(of: str, train: bool) -> None:
    """The noise is off and batch statistics are on, with `train=True` of the model, which is both, and with False."""
    net, x = Net(*LINEN[of]), data()
    variables, kernels = linen_parts(net, x[0])
    update = linen_update(net, variables, train=train)
    given = variables["batch_stats"]
    found = precise_stats(update, given, x, layer_by_layer=True)
    assert_close(linen_layers(found), oracle(kernels, x))
    whole = precise_stats(update, given, x.reshape(1, -1, WIDTH))
    assert_close(linen_layers(whole), oracle(kernels, x))
    in_batches = linen_layers(precise_stats(update, given, x))
    np.testing.assert_allclose(in_batches[0]["var"], oracle(kernels, x)[0][1], rtol=1e-5)
    assert np.abs(in_batches[2]["var"] / oracle(kernels, x)[2][1] - 1).max() > 0.01
    for tree in (found, whole, update(given, x[0])):
        assert jax.tree.structure(tree) == jax.tree.structure(given)
    spoilt = jax.tree.map(lambda part: jnp.full_like(part, jnp.nan), given)
    assert_close(linen_layers(precise_stats(update, spoilt, x, layer_by_layer=True)), oracle(kernels, x))
    np.testing.assert_array_equal(given["_".join((type_name(LINEN[of][0]), "0"))]["mean"], 0.0)


def type_name(kind: Any) -> str:
    return kind.__name__


@pytest.mark.parametrize("of", then_slow(list(NNX)))
def test_nnx_in_both_modes(of: str) -> None:
    net, x = NnxNet(*NNX[of]), data()
    net.train()
    kernels = [dense.kernel[...] for dense in net.dense]
    state = nnx.state(net, nnx.BatchStat)
    for stats in (state, nnx.to_pure_dict(state)):
        found = precise_stats(nnx_update(net), stats, x, layer_by_layer=True)
        assert jax.tree.structure(found) == jax.tree.structure(stats)
    assert_close([found["norms"][i] for i in range(3)], oracle(kernels, x))
    in_batches = precise_stats(nnx_update(net), state, x)
    np.testing.assert_allclose(in_batches["norms"][0]["var"][...], oracle(kernels, x)[0][1], rtol=1e-5)
    np.testing.assert_array_equal(net.norms[0].mean[...], 0.0)
    assert type(net.norms[0]) is NNX[of][0]
    assert not net.norms[0].use_running_average
    nnx.update(net, in_batches)
    np.testing.assert_array_equal(net.norms[2].var[...], in_batches["norms"][2]["var"][...])


@pytest.mark.parametrize("of", then_slow(["ours", "flax"]))
def test_masks_and_other_arguments_of_a_batch(of: str) -> None:
    """Every batch counts what its mask does, and one that is masked whole nothing, with our layers and with Flax's."""
    x = data(4, 8)
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, (4, 8)).at[1].set(False)
    batches = [(jnp.where(m[:, None], own, 1e3), m[:, None]) for own, m in zip(x, mask, strict=True)]
    net = Net(*LINEN[of])
    variables, kernels = linen_parts(net, x[0])
    update = linen_update(net, variables, method=lambda net, batch: net(batch[0], train=False, mask=batch[1]))
    found = precise_stats(update, variables["batch_stats"], batches, layer_by_layer=True, progress=False)
    assert_close(linen_layers(found), oracle(kernels, x, mask))
    net = NnxNet(*NNX[of])
    update = nnx_update(net, method=lambda net, batch: net(batch["x"], mask=batch["mask"]))
    stacked = {name: jnp.stack(parts) for name, parts in zip(("x", "mask"), zip(*batches, strict=True), strict=True)}
    found = precise_stats(update, nnx.state(net, nnx.BatchStat), stacked, layer_by_layer=True)
    kernels = [dense.kernel[...] for dense in net.dense]
    assert_close([found["norms"][i] for i in range(3)], oracle(kernels, x, mask))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.Dense(WIDTH, use_bias=False)(x)
        return nn.relu(jaxnorm.linen.BatchNorm(use_running_average=True)(x)), None


@pytest.mark.parametrize("remat", then_slow([True, False]))
def test_linen_layers_under_scan_and_remat(remat: bool) -> None:
    block = nn.remat(Block) if remat else Block
    axes = {"params": 0, "batch_stats": 0}
    net = nn.scan(block, variable_axes=axes, split_rngs={"params": True}, length=3)()
    x = data()
    variables = net.init(jax.random.key(0), x[0], None)
    update = linen_update(net, variables, method=lambda net, x: net(x, None))
    found = precise_stats(update, variables["batch_stats"], x, layer_by_layer=True)
    stats, params = found["BatchNorm_0"], variables["params"]["Dense_0"]["kernel"]
    assert_close([jax.tree.map(lambda part, i=i: part[i], stats) for i in range(3)], oracle(list(params), x))


@pytest.mark.slow
def test_nnx_layers_under_scan() -> None:
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.norm(self.dense(x)))

    class Deep(nnx.Module):
        def __init__(self):
            @nnx.split_rngs(splits=3)
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def make(rngs):
                return Layer(rngs)

            self.layers = make(nnx.Rngs(0))

        def __call__(self, x):
            return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)

    net, x = Deep(), data()
    found = precise_stats(nnx_update(net), nnx.state(net, nnx.BatchStat), x, layer_by_layer=True)
    stats = nnx.to_pure_dict(found)["layers"]["norm"]
    kernels = list(net.layers.dense.kernel[...])
    assert_close([jax.tree.map(lambda part, i=i: part[i], stats) for i in range(3)], oracle(kernels, x))


@pytest.mark.parametrize("by_layer", then_slow([True, False]))
def test_a_norm_that_is_called_twice_pools_both_calls(by_layer: bool) -> None:
    class Siamese(nn.Module):
        @nn.compact
        def __call__(self, pair):
            norm = jaxnorm.linen.BatchNorm(use_running_average=True)
            return norm(pair[0]), norm(pair[1])

    x = data(4)
    pairs = [(x[0], x[1][:3]), (x[2], x[3])]
    net = Siamese()
    variables = net.init(jax.random.key(0), pairs[0])
    rows = np.concatenate([np.asarray(part, np.float64) for pair in pairs for part in pair])
    found = precise_stats(linen_update(net, variables), variables["batch_stats"], pairs, layer_by_layer=by_layer, progress=False)
    assert_close([found["BatchNorm_0"]], [(rows.mean(0), rows.var(0))])


@pytest.mark.slow
def test_domains_of_a_batch_are_counted_by_themselves() -> None:
    class Domains(nn.Module):
        @nn.compact
        def __call__(self, batch):
            return jaxnorm.linen.DomainBatchNorm(num_domains=3, use_running_average=True)(batch["x"], batch["domains"])

    x = data()
    domains = jax.random.randint(jax.random.key(0), x.shape[:2], 0, 2)
    batches = {"x": x, "domains": domains}
    net = Domains()
    variables = net.init(jax.random.key(0), jax.tree.map(lambda a: a[0], batches))
    found = precise_stats(linen_update(net, variables), variables["batch_stats"], batches)["DomainBatchNorm_0"]
    for domain in range(2):
        rows = np.asarray(x, np.float64)[np.asarray(domains) == domain]
        np.testing.assert_allclose(found["var"][domain], rows.var(0), rtol=1e-5)
        np.testing.assert_allclose(found["mean"][domain], rows.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["mean"][2], 0.0)  # which no batch has
    np.testing.assert_array_equal(found["var"][2], 1.0)


class Mixed(nn.Module):
    """Norms of other kinds, some of whose variables in the collection are no statistics."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = jaxnorm.linen.SpectralNorm(nn.Dense(WIDTH))(x, update_stats=train)
        x = jaxnorm.linen.FrozenBatchNorm()(x)
        x = jaxnorm.linen.BatchRenorm(use_running_average=not train, momentum=0.9)(x)
        return jaxnorm.linen.BatchNorm(use_running_average=not train, unbiased=True)(x)


def test_other_norms_and_what_is_no_statistic() -> None:
    net, x = Mixed(), data()
    variables = net.init(jax.random.key(0), x[0])
    given = variables["batch_stats"]
    found = precise_stats(linen_update(net, variables), given, x)
    for name in ("SpectralNorm_0", "FrozenBatchNorm_0"):
        jax.tree.map(np.testing.assert_array_equal, found[name], given[name])
    assert abs(found["BatchRenorm_0"]["std"] - 1).max() > 0.1
    one = precise_stats(linen_update(net, variables), given, x.reshape(1, -1, WIDTH))["BatchNorm_0"]["var"]
    np.testing.assert_allclose(one, 1.0, atol=1e-3)  # of normalized data: the biased variance


def test_norms_that_were_frozen_stay() -> None:
    x = data()
    net, _ = jaxnorm.nnx.freeze(NnxNet(*NNX["ours"]), paths="norms/0")
    given = nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))
    found = precise_stats(nnx_update(net), given, x)["norms"]
    jax.tree.map(np.testing.assert_array_equal, found[0], given["norms"][0])
    assert abs(found[1]["var"] - 1).max() > 0.1


@pytest.mark.slow
def test_partitioned_statistics_stay_boxed() -> None:
    x = data()
    net = nn.BatchNorm(use_running_average=True)
    variables = net.init(jax.random.key(0), x[0])
    boxed = jax.tree.map(lambda part: nn.Partitioned(part, names=("features",)), variables["batch_stats"])
    found = precise_stats(linen_update(net, {**variables, "batch_stats": boxed}), boxed, x)
    assert jax.tree.structure(found) == jax.tree.structure(boxed)
    np.testing.assert_allclose(found["var"].value, np.asarray(x, np.float64).reshape(-1, WIDTH).var(0), rtol=1e-5)


@pytest.mark.slow
def test_attention_without_its_noise() -> None:
    class Attending(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, deterministic=not train)(x, x)
            return jaxnorm.linen.BatchNorm(use_running_average=not train)(x)

    net, x = Attending(), data(2, 4)[:, None]
    variables = net.init(jax.random.key(0), x[0], train=False)
    found, again = (
        precise_stats(linen_update(net, variables, train=train), variables["batch_stats"], x) for train in (True, False)
    )
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_statistics_after_averaging_the_weights() -> None:
    """The mean of two networks' weights has no running statistics of its own: those of either are wrong."""
    net, x = Net(*LINEN["ours"]), data()
    variables, _ = linen_parts(net, x[0])
    others = net.init(jax.random.key(5), x[0], train=False)
    averaged = jax.tree.map(lambda a, b: (a + b) / 2, variables["params"], others["params"])
    update = linen_update(net, {**variables, "params": averaged}, train=False)
    found = precise_stats(update, variables["batch_stats"], x, layer_by_layer=True)
    assert_close(linen_layers(found), oracle([averaged[f"Dense_{i}"]["kernel"] for i in range(3)], x))


def test_nothing_is_compiled_anew_for_other_weights() -> None:
    net, x = Net(*LINEN["ours"], depth=1), data()
    variables = net.init(jax.random.key(0), x[0], train=False)
    traced = []

    def method(net, x):
        traced.append(1)
        return net(x, train=False)

    counts = []
    for factor in (1.0, 2.0):
        params = jax.tree.map(lambda part, factor=factor: factor * part, variables["params"])
        precise_stats(linen_update(net, {**variables, "params": params}, method=method), variables["batch_stats"], x)
        counts.append(len(traced))
    assert counts[0] == counts[1]


def test_a_linen_model_that_compiles_itself_is_run_as_asked() -> None:
    """What `nn.jit` compiled for one mode is not taken for the other, nor for the model outside."""

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.relu(nn.BatchNorm(use_running_average=True)(x)))

    x = data()[0]
    variables = Two().init(jax.random.key(0), x)
    for by_stats in (True, False):
        wanted, got = (
            linen_update(net, variables).found(variables["batch_stats"], x, by_stats) for net in (Two(), nn.jit(Two)())
        )
        np.testing.assert_allclose(got["BatchNorm_1"].layer["var"], wanted["BatchNorm_1"].layer["var"], rtol=1e-5)
