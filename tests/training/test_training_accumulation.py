"""Microbatches: what they give is that of the whole batch, or of steps that follow each other, as is chosen."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.training import accumulate_stats, init_train_state, linen_apply, make_eval_step, make_train_step, nnx_apply

SGD = optax.sgd(1.0)  # the new parameters tell the gradients
PARTS = 4


def random(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def apply(key, params, stats, x, /, *, train, rate=0.0, axis_name=None):
    """Batch norm of x, which may be padded; and a layer with dropout and another batch norm."""
    x, where = x
    x, first = jaxnorm.batch_norm(params["first"], stats[0], x, train=train, momentum=0.9, where=where, axis_name=axis_name)
    x = jnp.tanh(x @ params["w"])
    x = jaxnorm.dropout(key, x, rate) if train else x
    x, second = jaxnorm.batch_norm(params["second"], stats[1], x, train=train, momentum=0.9, axis_name=axis_name)
    return jax.nn.relu(x) @ params["out"], (first, second)


def start(optimizer=SGD):
    (first, first_stats), (second, second_stats) = jaxnorm.init_batch_norm(5), jaxnorm.init_batch_norm(6)
    params = {"first": first, "w": random(1, 5, 6), "second": second, "out": random(2, 6, 3)}
    return init_train_state(jax.random.key(3), params, (first_stats, second_stats), optimizer)


@pytest.fixture(scope="module")
def batch():
    """24 examples off center, of which microbatches see 5, 2, 3 and 6 counted ones."""
    counts = np.asarray([5, 2, 3, 6])
    where = np.arange(24) // PARTS < counts[np.arange(24) % PARTS]
    x = random(4, 24, 5) + np.asarray([4.0, 0.0, -3.0, 0.0, 1.0], np.float32)
    x[~where] = 50.0
    return (x, where[:, None]), np.arange(24, dtype=np.int32) % 3, np.linspace(0.0, 2.0, 24, dtype=np.float32)


def part_of(tree, i):
    return jax.tree.map(lambda a: a[i::PARTS], tree)


def step_of(function=apply, how="micro", **options):
    return jax.jit(make_train_step(function, SGD, microbatches=PARTS, microbatch_stats=how, **options))


def assert_same(got, expected, tolerance=2e-6):
    (got, metrics), (expected, expected_metrics) = got, expected
    for a, b in ((got.params, expected.params), (got.stats, expected.stats), (metrics, expected_metrics)):
        chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)


def test_exact_is_the_whole_batch_with_masks_and_weights(batch):
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(make_train_step(apply, SGD, microbatches=PARTS, microbatch_stats="exact"), 1)
    exact, expected = jax.jit(traced, donate_argnums=0), jax.jit(make_train_step(apply, SGD))(start(), batch)
    assert np.abs(expected[0].params["w"] - start().params["w"]).max() > 1e-2, "there are gradients to be right"
    for _ in range(2):
        assert_same(exact(jax.tree.map(jnp.copy, start()), batch), expected)


@pytest.mark.slow
def test_exact_with_dropout(batch):
    noisy = functools.partial(apply, rate=0.4)

    def of_parts(key, params, stats, x, *, train):
        """The microbatches at once, with the noise of each, and statistics that are pooled over all."""
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(PARTS))
        parts = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(-1, PARTS, *a.shape[1:]), 0, 1), x)
        one = functools.partial(noisy, train=train, axis_name="parts")
        outputs, stats = jax.vmap(one, (0, None, None, 0), (0, None), axis_name="parts")(keys, params, stats, parts)
        return jnp.swapaxes(outputs, 0, 1).reshape(-1, 3), stats

    got = step_of(noisy, "exact")(start(), batch)
    assert_same(got, jax.jit(make_train_step(of_parts, SGD))(start(), batch))


def test_micro_is_one_step_after_the_other(batch):
    x, labels, weights = batch
    state, key = start(), jax.random.fold_in(jax.random.key(3), 0)
    one = jax.jit(functools.partial(apply, train=True, rate=0.3))
    stats, outputs = state.stats, np.zeros((24, 3), np.float32)
    for i in range(PARTS):
        outputs[i::PARTS], stats = one(jax.random.fold_in(key, i), state.params, stats, part_of(x, i))
    new, metrics = step_of(functools.partial(apply, rate=0.3))(state, batch)
    chex.assert_trees_all_close(new.stats, stats, rtol=1e-5, atol=1e-6)
    losses = jax.nn.logsumexp(outputs, axis=1) - outputs[np.arange(24), labels]
    np.testing.assert_allclose(metrics["loss"], (weights * losses).sum() / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (weights * (outputs.argmax(1) == labels)).sum() / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["weight"], weights.sum(), rtol=1e-6)


def norm_alone(key, params, stats, x, /, *, train):
    x, where = x
    return jaxnorm.batch_norm(params, stats, x, train=train, momentum=0.0, where=where)


@pytest.mark.parametrize("how", ["pooled", "exact"])
def test_pooled_statistics_by_counts_and_far_from_zero(how, batch):
    (x, where), labels, _ = batch
    x = x + np.float32(1e4)
    state = init_train_state(jax.random.key(0), *jaxnorm.init_batch_norm(5), SGD)
    new, metrics = step_of(norm_alone, how)(state, ((x, where), labels))
    counted = x[where[:, 0]].astype(np.float64)
    np.testing.assert_allclose(new.stats.mean, counted.mean(0), rtol=1e-6)
    np.testing.assert_allclose(new.stats.var, counted.var(0), rtol=2e-3)  # a mean near 1e4 is rounded to 1e-3
    losses = []
    for i in range(PARTS):
        part, of_part = part_of(x.astype(np.float64), i), part_of(where[:, 0], i)
        seen = part[of_part] if how == "pooled" else counted
        y = (part - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-5)
        losses.append((np.log(np.exp(y).sum(1)) - y[np.arange(6), labels[i::PARTS]]).mean())
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-3)


def variants(key, params, stats, x, /, *, train):
    """A layer of each kind of statistics, one after the other."""
    new = dict(stats)
    for name, norm in NORMS.items():
        x, new[name] = norm(params[name], stats[name], x, train=train)
        x = jnp.tanh(x @ params["w"])
    return x @ params["out"], new


NORMS = {
    "renorm": jaxnorm.batch_renorm,
    "split": jaxnorm.split_batch_norm,
    "decorrelated": functools.partial(jaxnorm.decorrelated_batch_norm, group_size=2),
    "largest": functools.partial(jaxnorm.lp_batch_norm, p=float("inf")),
}


@pytest.mark.slow
def test_exact_with_every_kind_of_statistic():
    made = {
        "renorm": jaxnorm.init_batch_renorm(4),
        "split": jaxnorm.init_split_batch_norm(4),
        "decorrelated": jaxnorm.init_decorrelated_batch_norm(4, group_size=2),
        "largest": jaxnorm.init_lp_batch_norm(4),
    }
    params = {name: params for name, (params, _) in made.items()} | {"w": random(0, 4, 4), "out": random(1, 4, 3)}
    state = init_train_state(jax.random.key(0), params, {name: stats for name, (_, stats) in made.items()}, SGD)
    batch = random(2, 24, 4) * [1.0, 0.1, 3.0, 1.0], np.arange(24) % 3
    assert_same(step_of(variants, "exact")(state, batch), jax.jit(make_train_step(variants, SGD))(state, batch), 5e-6)


class Conv(nn.Module):
    norm: Any = jaxnorm.linen.BatchNorm

    @nn.compact
    def __call__(self, x, *, train):
        for wrap in (lambda norm: norm, nn.remat, nn.jit):
            x = nn.relu(wrap(self.norm)(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(2, 4, rngs=rngs), jaxnorm.nnx.BatchNorm(4, rngs=rngs)
        self.second, self.renorm = nnx.Linear(4, 4, rngs=rngs), jaxnorm.nnx.BatchRenorm(4, dtype=jnp.bfloat16, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.norm(self.first(x)))
        return self.out(nnx.tanh(self.renorm(self.second(x)).astype(jnp.float32)).mean((1, 2)))


def flax_model(kind, **options):
    if kind == "nnx":
        return nnx_apply(Model(nnx.Rngs(0)))
    net = Conv(**options)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), train=False)
    return linen_apply(net), variables["params"], variables["batch_stats"]


@pytest.mark.slow
@pytest.mark.parametrize("kind, tolerance", [("linen", 2e-6), ("nnx", 1e-3)])
def test_exact_with_flax_models(kind, tolerance):
    """Also under nn.remat and nn.jit; what is rounded to bfloat16 between is so of the parts."""
    function, params, stats = flax_model(kind)
    state, batch = init_train_state(jax.random.key(0), params, stats, SGD), (random(3, 16, 4, 4, 2) + 2, np.arange(16) % 3)
    assert_same(step_of(function, "exact")(state, batch), jax.jit(make_train_step(function, SGD))(state, batch), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_exact_on_eight_devices_is_exact_on_one(axis_type, batch):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    (x, where), labels, _ = batch
    large = jax.tree.map(lambda a: np.concatenate([a, a[:8]]), ((x, where), labels))
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    state, step = jax.device_put(start(), whole), step_of(how="exact")
    shared = jax.device_put(large, split)
    assert_same(step(state, shared), step(start(), large))
    text = step.lower(state, shared).compile().as_text()
    assert "all-reduce" in text
    for moved in ("all-gather", "all-to-all", "collective-permute"):
        assert moved not in text, f"{moved}: microbatches are shared by the devices as the batch is"


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [False, True])
def test_exact_within_shard_map(check_vma, batch):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def averaged(grads, _):
        """With checked axes autodiff has summed the gradient of what all devices have."""
        return jax.tree.map(lambda g: g / 2 if check_vma else jax.lax.pmean(g, "data"), grads)

    optimizer = optax.chain(optax.stateless(averaged), SGD)
    function = functools.partial(apply, axis_name="data")
    step = make_train_step(function, optimizer, microbatches=PARTS, microbatch_stats="exact")

    def run(state, batch):
        new, _ = step(state, batch)
        return new.params, new.stats

    specs = PartitionSpec(), PartitionSpec("data")
    got = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=check_vma))(
        start(optimizer), batch[:2]
    )
    expected, _ = jax.jit(make_train_step(apply, SGD))(start(), batch[:2])
    chex.assert_trees_all_close(got, (expected.params, expected.stats), rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_the_memory_is_that_of_a_microbatch():
    """Of what the compiler needs besides arguments and results."""

    def deep(key, params, stats, x, *, train):
        x, stats = jaxnorm.batch_norm(params["norm"], stats, jnp.tanh(x @ params["w"]), train=train)
        return jnp.tanh(x @ params["w"].T) @ params["out"], stats

    norm, stats = jaxnorm.init_batch_norm(64)
    params = {"norm": norm, "w": random(0, 8, 64), "out": random(1, 8, 3)}
    state = init_train_state(jax.random.key(0), params, stats, SGD)
    batch = random(2, 4096, 8), np.arange(4096) % 3

    def temporaries(**options):
        step = jax.jit(make_train_step(deep, SGD, **options))
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(microbatches=16, microbatch_stats="exact") < temporaries() / 8


@pytest.mark.slow
def test_statistics_accumulated_over_calls_are_pooled(batch):
    x, labels, _ = batch
    function, stats = accumulate_stats(apply, start().params, start().stats, part_of(x, 0), every=PARTS)
    optimizer = optax.MultiSteps(SGD, every_k_schedule=PARTS)
    state = init_train_state(jax.random.key(3), start().params, stats, optimizer)
    step, evaluate = jax.jit(make_train_step(function, optimizer), donate_argnums=0), make_eval_step(function)
    expected, _ = step_of(how="pooled")(start(), (x, labels))
    before = make_eval_step(apply)(start(), (x, labels))
    for i in range(PARTS):
        chex.assert_trees_all_equal((state.params, state.stats.stats), (start().params, start().stats))
        chex.assert_trees_all_close(evaluate(state, (x, labels)), before, rtol=1e-6)
        state, _ = step(state, part_of((x, labels), i))
    chex.assert_trees_all_close((state.params, state.stats.stats), (expected.params, expected.stats), rtol=2e-6, atol=2e-6)
    assert state.stats.calls == 0
    assert not any(np.any(part) for part in jax.tree.leaves(state.stats.pooled))
    state, _ = step(state, part_of((x, labels), 0))
    assert state.stats.calls == 1
    assert state.stats.pooled[0].n[0] == x[1][::PARTS].sum()


def test_a_model_without_statistics(batch):
    def linear(key, params, stats, x, *, train):
        return x @ params, stats

    state = init_train_state(jax.random.key(0), random(0, 5, 3), (), SGD)
    data = random(1, 24, 5), batch[1], batch[2]
    expected = jax.jit(make_train_step(linear, SGD))(state, data)
    for how in ("micro", "exact"):
        assert_same(step_of(linear, how)(state, data), expected)


def looped(loop):
    def function(key, params, stats, x, *, train):
        return loop(lambda x: jaxnorm.batch_norm(params, stats, x, train=train), x)

    return function


def branch(norm, x):
    return jax.lax.cond(x[0, 0] > 0, norm, lambda x: (x, norm(x)[1]), x)


def scanned(norm, x):
    return jax.lax.scan(lambda x, _: norm(x), x, None, length=1)[0], norm(x)[1]


def ghosts(key, params, stats, x, *, train):
    return jaxnorm.ghost_batch_norm(params, stats, x, 2, train=train)


@pytest.mark.parametrize(
    "function, message",
    [
        (ghosts, r"stats\.mean are computed otherwise from the examples"),
        (looped(branch), "within a cond: call it outside, .* microbatch_stats='micro'"),
        (looped(scanned), "within a scan: call it outside"),
        (
            looped(lambda norm, x: jax.tree.map(lambda part: part[0], jax.vmap(norm)(x[None]))),
            r"within jax\.vmap \(without its axis_name\)",
        ),
    ],
)
def test_statistics_that_cannot_be_pooled(function, message, batch):
    params, stats = jaxnorm.init_batch_norm(3)
    state, data = init_train_state(jax.random.key(0), params, stats, SGD), (random(0, 24, 3), batch[1])
    for how in ("pooled", "exact"):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(step_of(function, how), state, data)
    jax.eval_shape(step_of(function, "micro"), state, data)

    def accumulated():
        own_function, own = accumulate_stats(function, params, stats, data[0], every=2)
        return jax.eval_shape(functools.partial(own_function, train=True), jax.random.key(0), params, own, data[0])

    with pytest.raises(ValueError, match=message):
        accumulated()


def test_statistics_of_flax_cannot_be_pooled():
    function, params, stats = flax_model("linen", norm=nn.BatchNorm)
    state = init_train_state(jax.random.key(0), params, stats, SGD)
    with pytest.raises(
        ValueError, match=r"stats\['BatchNorm_0'\]\['mean'\] are .*linen\.replacing_layers and jaxnorm\.nnx\.replace_"
    ):
        jax.eval_shape(step_of(function, "pooled"), state, (random(0, 8, 4, 4, 2), np.arange(8) % 3))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"microbatches": 0}, ValueError, "microbatches must be at least 1, got 0"),
        ({"microbatches": 2.0}, TypeError, "microbatches must be an int"),
        ({"microbatch_stats": "whole"}, ValueError, "microbatch_stats must be .*micro.*pooled.*exact.*, got 'whole'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make_train_step(apply, SGD, **options)


def test_microbatches_that_do_not_divide_the_batch(batch):
    with pytest.raises(ValueError, match="microbatches must divide the batch of 24 examples, got 5"):
        make_train_step(apply, SGD, microbatches=5)(start(), batch)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        accumulate_stats(apply, start().params, start().stats, batch[0], every=0)
