import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxnorm
from jaxnorm.training import fit, init_train_state, linen_apply, make_eval_step, make_train_step, nnx_apply, shuffled_batches


class LinenNet(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, *, train, rate=None):
        x = nn.Dense(7, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, use_fast_variance=False, momentum=0.9, name="norm")(x)
        x = nn.relu(x)
        x = nn.Dropout(self.rate, deterministic=not train)(x) if rate is None else x * (1 - rate)
        return nn.Dense(3, name="last")(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs, rate=0.0):
        self.first, self.last = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(7, use_fast_variance=False, momentum=0.9, rngs=rngs)
        self.drop = nnx.List([nnx.Dropout(rate, rngs=rngs), nnx.Dropout(rate, rngs=rngs)])

    def __call__(self, x):
        return self.last(self.drop[1](self.drop[0](nnx.relu(self.norm(self.first(x))))))


def bare(key, params, stats, x, *, train):
    x = x @ params["first"]["kernel"] + params["first"]["bias"]
    norm = jaxnorm.AffineParams(params["norm"]["scale"], params["norm"]["bias"])
    x, new = jaxnorm.batch_norm(norm, jaxnorm.RunningStats(**stats["norm"]), x, train=train, momentum=0.9)
    return jax.nn.relu(x) @ params["last"]["kernel"] + params["last"]["bias"], {"norm": new._asdict()}


def test_three_ways_train_the_same(data):
    # The bias before the batch norm has a gradient of rounding errors only, which Adam would blow up.
    module, optimizer = LinenNet(), optax.sgd(0.1, momentum=0.9)
    variables = module.init(jax.random.key(0), data[0], train=False)
    apply_nnx, params_nnx, stats_nnx = nnx_apply(NnxNet(nnx.Rngs(3)))
    params, stats = variables["params"], variables["batch_stats"]
    chex.assert_trees_all_equal_shapes_and_dtypes(params, params_nnx)
    chex.assert_trees_all_equal(stats, stats_nnx)

    batches = shuffled_batches(jax.random.key(1), *data, batch_size=30, drop_remainder=True)
    results = []
    for apply in (bare, linen_apply(module), apply_nnx):
        state = init_train_state(jax.random.key(2), params, stats, optimizer)
        arguments = {"evaluate": make_eval_step(apply), "eval_batches": [data], "epochs": 7, "progress": False}
        results.append(fit(state, make_train_step(apply, optimizer), batches, **arguments))
    (ours, rows), *others = results
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    for state, history in others:
        chex.assert_trees_all_close(state._replace(key=None), ours._replace(key=None), rtol=1e-4, atol=1e-5)
        for name in rows[0]:
            np.testing.assert_allclose([r[name] for r in history], [r[name] for r in rows], rtol=1e-5, err_msg=name)


def linen_dropout(rate):
    module = LinenNet(rate)
    variables = module.init(jax.random.key(0), jnp.ones((2, 5)), train=False)
    return linen_apply(module), variables["params"], variables["batch_stats"]


@pytest.mark.parametrize("make", [linen_dropout, lambda rate: nnx_apply(NnxNet(nnx.Rngs(3), rate))], ids=["linen", "nnx"])
@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey])
def test_the_key_drives_the_dropout_and_nothing_else_does(make, key, data):
    apply, params, stats = make(0.5)

    @jax.jit
    def outputs(key):
        return apply(key, params, stats, data[0], train=True)[0]

    np.testing.assert_array_equal(outputs(key(0)), outputs(key(0)))
    assert np.abs(outputs(key(0)) - outputs(key(1))).max() > 0.1
    np.testing.assert_array_equal(apply(key(0), params, stats, data[0], train=True)[0].shape, (90, 3))
    still = [apply(key(i), params, stats, data[0], train=False) for i in range(2)]
    chex.assert_trees_all_equal(*still)
    chex.assert_trees_all_equal(still[0][1], stats)


def test_each_dropout_of_an_nnx_model_has_its_own_mask():
    class Masks(nnx.Module):
        def __init__(self, rngs):
            self.shared, self.drops = nnx.Rngs(9), nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(3)])

        def __call__(self, x):
            extra = [jax.random.bernoulli(self.shared.noise(), 0.5, x.shape).astype(x.dtype) for _ in range(2)]
            return jnp.stack([drop(x) / 2 for drop in self.drops] + extra)

    apply, params, stats = nnx_apply(Masks(nnx.Rngs(dropout=0)))
    assert params == {} == stats
    masks, _ = jax.jit(lambda key: apply(key, params, stats, jnp.ones(4000), train=True))(jax.random.key(0))
    agreement = np.array([[np.mean(a == b) for b in masks] for a in masks])
    assert np.all(np.abs(agreement[~np.eye(5, dtype=bool)] - 0.5) < 0.05), "6 standard deviations"


def test_layers_stacked_by_nnx_vmap_have_their_own_masks():
    @nnx.split_rngs(splits=4)
    @nnx.vmap
    def make(rngs):
        return nnx.Dropout(0.5, rngs=rngs)

    class Stack(nnx.Module):
        def __init__(self):
            self.drops = make(nnx.Rngs(0))

        def __call__(self, x):
            return nnx.vmap(lambda drop, x: drop(x), in_axes=(0, None))(self.drops, x)

    apply, params, stats = nnx_apply(Stack())
    masks, _ = apply(jax.random.key(5), params, stats, jnp.ones(4000), train=True)
    agreement = [np.mean(masks[i] == masks[j]) for i in range(4) for j in range(i)]
    assert np.all(np.abs(np.array(agreement) - 0.5) < 0.05)


def test_the_nnx_model_itself_stays_and_can_be_given_the_trained_values(data):
    model = NnxNet(nnx.Rngs(3), 0.5)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState))))
    apply, params, stats = nnx_apply(model)
    state = init_train_state(jax.random.key(0), params, stats, optax.sgd(0.1))
    step = jax.jit(make_train_step(apply, optax.sgd(0.1)))
    for _ in range(3):
        state, _ = step(state, data)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState))), before)
    nnx.update(model, state.params, state.stats)
    model.eval()
    expected, _ = apply(state.key, state.params, state.stats, data[0], train=False)
    np.testing.assert_allclose(model(data[0]), expected, rtol=1e-6, atol=1e-6)
    assert np.abs(expected).max() > 0


def test_models_without_statistics(data):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(3)(x)

    plain = Plain()
    variables = plain.init(jax.random.key(0), data[0], train=False)
    for apply, params, stats in (
        (linen_apply(plain), variables["params"], {}),
        nnx_apply(nnx.Linear(5, 3, rngs=nnx.Rngs(0))),
    ):
        state = init_train_state(jax.random.key(0), params, stats, optax.sgd(0.1))
        new, metrics = jax.jit(make_train_step(apply, optax.sgd(0.1)))(state, data)
        assert new.stats == {}
        assert np.isfinite(metrics["loss"])


def test_forgotten_statistics_are_an_error(data):
    module = LinenNet()
    params = module.init(jax.random.key(0), data[0], train=False)["params"]
    state = init_train_state(jax.random.key(0), params, {}, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"the stats that apply returns .*\['norm'\]\['mean'\] \(float32\[7\]\) is unexpected"):
        make_train_step(linen_apply(module), optax.sgd(0.1))(state, data)
    apply, params, _ = nnx_apply(NnxNet(nnx.Rngs(0)))
    with pytest.raises(ValueError, match="stats must have the tree of the model's"):
        apply(jax.random.key(0), params, {}, data[0], train=True)


def test_scheduled_arguments_reach_the_module(data):
    apply, params, stats = linen_dropout(0.0)
    step = make_train_step(apply, optax.sgd(0.0), schedules={"rate": optax.linear_schedule(1.0, 0.0, 1)})
    state = init_train_state(jax.random.key(0), params, stats, optax.sgd(0.0))
    losses = []
    for _ in range(2):
        state, metrics = step(state, data)
        losses.append(metrics["loss"])
    np.testing.assert_allclose(losses[0], np.log(3), rtol=1e-6)
    assert abs(losses[1] - np.log(3)) > 0.01


@pytest.mark.parametrize("adapt", [linen_apply, nnx_apply])
def test_what_is_no_model(adapt):
    with pytest.raises(TypeError, match="must be Module, got <function"):
        adapt(lambda x: x)
