"""Samples of noise at test time: equal to separate calls, what has no noise once, bounded memory, and the closed forms.

Weights and inputs are small integers and rates a half where bits are compared, so that every sum is exact in any order.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.experiments._digits import load_digits
from jaxnorm.uncertainty import exact_ensemble, mc_batch_norm, mc_predict, predictive

N = 7


def integers(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), jnp.float32)


X, IN, OUT = integers(8, 6), integers(6, 16, seed=1), integers(16, 3, seed=2)


def separate_calls(model: Callable[[jax.Array, Any], Any], x: Any, count: int = N) -> Any:
    """What as many calls of the model by itself return, with keys by number."""
    keys = jaxnorm.example_keys(jax.random.key(1), np.arange(count))
    one = jax.jit(model)
    found = [one(keys[i], x) for i in range(count)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *found)


def late(key: jax.Array, x: jax.Array) -> jax.Array:
    return jaxnorm.dropout(key, jax.nn.relu(x @ IN), 0.5) @ OUT


def in_scan(key: jax.Array, x: jax.Array) -> jax.Array:
    step = lambda h, key: (jaxnorm.dropout(key, h, 0.5), None)  # noqa: E731
    return jax.lax.scan(step, x @ IN, jax.random.split(key, 3))[0] @ OUT


def in_a_branch(key: jax.Array, x: jax.Array) -> jax.Array:
    h = x @ IN
    return jax.lax.cond(h[0, 0] < 1e6, lambda key, h: jaxnorm.dropout(key, h, 0.5), lambda _, h: h, key, h) @ OUT


@jax.custom_vjp
def stretched(key: jax.Array, h: jax.Array) -> jax.Array:
    return jaxnorm.dropout(key, h, 0.5)


stretched.defvjp(lambda key, h: (stretched(key, h), None), lambda _, g: (None, 5 * g))


def of_jax(key: jax.Array, x: jax.Array) -> jax.Array:
    """Random bits of jax itself, and an output without noise."""
    h = x @ IN
    return {"noisy": jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h, 0) @ OUT, "plain": h}


MODELS = {
    "late": late,
    "jit": jax.jit(late),
    "remat": jax.checkpoint(late),
    "scan": in_scan,
    "branch": in_a_branch,
    "custom_vjp": lambda key, x: stretched(key, x @ IN) @ OUT,
    "jax": of_jax,
}


@pytest.mark.parametrize("batch_size", [3, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 7, 16))])
def test_samples_are_separate_calls_bit_for_bit(batch_size: int) -> None:
    def every_model(key: jax.Array, x: jax.Array) -> dict[str, Any]:
        return {name: model(key, x) for name, model in MODELS.items()}

    with jax.debug_key_reuse(False):  # one key for all models; and a scan over keys is taken for a reuse under any vmap
        found = mc_predict(jax.random.key(1), every_model, X, N, batch_size=batch_size)
        expected = separate_calls(every_model, X)
    for name, y in found.items():
        jax.tree.map(functools.partial(assert_array_equal, err_msg=name), y, expected[name])
        first = np.asarray(jax.tree.leaves(y)[0])
        assert first.shape[0] == len(np.unique(first.reshape(N, -1), axis=0)) == N


def test_the_first_samples_are_those_of_more_and_keys_may_be_of_the_old_kind() -> None:
    """Pitfalls 97 and 103."""
    run = jax.jit(lambda key: mc_predict(key, late, X, N + 4, batch_size=2))
    more = run(jax.random.key(1))
    assert_array_equal(mc_predict(jax.random.PRNGKey(1), late, X, N), more[:N])
    assert_array_equal(run(jax.random.key(1)), more)
    assert not (run(jax.random.key(2)) == more).all((1, 2)).any()


def test_arguments_and_a_prefix_are_handed_on() -> None:
    def head(key: jax.Array, h: dict[str, jax.Array], rate: float) -> jax.Array:
        return jaxnorm.dropout(key, h["h"], rate) @ OUT

    found = mc_predict(jax.random.key(1), head, X, N, prefix=lambda x: {"h": jax.nn.relu(x @ IN)}, rate=0.5)
    assert_array_equal(found, mc_predict(jax.random.key(1), late, X, N))


class Linen(nn.Module):
    dropout: Any = nn.Dropout
    batch_norm: Any = nn.BatchNorm
    inner: Any = lambda module: module

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, running: bool | None = None) -> jax.Array:
        jax.debug.callback(lambda: PASSES.append("prefix"))
        init = lambda _, shape, dtype: integers(*shape, seed=3).astype(dtype)  # noqa: E731
        x = self.inner(nn.Dense)(16, kernel_init=init)(x)
        running = not train if running is None else running
        x = self.batch_norm(use_running_average=running, name="norm", epsilon=0.0)(x)
        x = self.dropout(0.5, deterministic=not train)(nn.relu(x))
        jax.debug.callback(lambda _: PASSES.append("noisy"), x[0, 0])
        return nn.Dense(3, kernel_init=init)(x)


PASSES: list[str] = []
LAYERS = {
    "flax": (nn.Dropout, nn.BatchNorm, nnx.Dropout, nnx.BatchNorm),
    "jaxnorm": (jaxnorm.linen.Dropout, jaxnorm.linen.BatchNorm, jaxnorm.nnx.Dropout, jaxnorm.nnx.BatchNorm),
}

OURS_FIRST = ["jaxnorm", pytest.param("flax", marks=pytest.mark.slow)]


def linen_model(layers: str, **fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A network of one flag, and variables with running statistics of their own."""
    dropout, batch_norm, *_ = LAYERS[layers]
    module = Linen(dropout, batch_norm, **fields)
    variables = module.init(jax.random.key(0), X, train=False)
    return module, {**variables, "batch_stats": {"norm": {"mean": integers(16, seed=4), "var": jnp.full(16, 4.0)}}}


@pytest.mark.parametrize("inner", [lambda module: module, nn.remat], ids=["plain", "remat"])
@pytest.mark.parametrize("layers", LAYERS)
def test_a_linen_model_draws_while_batch_norm_is_in_inference(layers: str, inner: Any) -> None:
    """methods.md 5.5; the model has one flag, which would set batch norm to training."""
    module, variables = linen_model(layers, inner=inner)
    expected = separate_calls(lambda key, x: module.apply(variables, x, train=True, running=True, rngs={"dropout": key}), X)
    jax.effects_barrier()
    PASSES.clear()
    found = mc_predict(jax.random.key(1), module.bind(variables), X, N, batch_size=4, train=True)
    assert_array_equal(found, expected)
    jax.effects_barrier()
    assert (PASSES.count("prefix"), PASSES.count("noisy")) == (1, N)


class Block(nn.Module):
    """A block with a flag of its own, which its batch norm is told in one of three ways."""

    how: str
    batch_norm: Any
    use_running_average: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(6)(x)
        if self.how == "argument":
            return self.batch_norm()(x, self.use_running_average)
        kind = nn.remat(self.batch_norm) if self.how == "remat" else self.batch_norm
        return kind(use_running_average=self.use_running_average)(x)


class Nested(nn.Module):
    how: str
    batch_norm: Any
    running: bool = False

    def setup(self) -> None:
        self.blocks = [Block(self.how, self.batch_norm, running) for running in (self.running, True)]
        self.drop = jaxnorm.linen.Dropout(0.5, deterministic=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.drop(self.blocks[1](self.blocks[0](x)))


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [nn.BatchNorm, jaxnorm.linen.BatchNorm, jaxnorm.linen.BatchRenorm])
@pytest.mark.parametrize("how", ["field", "argument", "remat"])
def test_however_a_batch_norm_of_linen_is_told_its_flag(how: str, batch_norm: Any) -> None:
    module = Nested(how, batch_norm)
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)
    variables = jax.tree.map(lambda value: value + 0.1, variables)
    expected = separate_calls(lambda key, x: Nested(how, batch_norm, running=True).apply(variables, x, rngs={"dropout": key}), X)
    assert_allclose(mc_predict(jax.random.key(1), module.bind(variables), X, N), expected, rtol=1e-4, atol=1e-5)


class Nnx(nnx.Module):
    def __init__(self, layers: str) -> None:
        rngs = nnx.Rngs(0)
        *_, dropout, batch_norm = LAYERS[layers]
        init = lambda _, shape, dtype: integers(*shape, seed=3).astype(dtype)  # noqa: E731
        self.first = nnx.Linear(6, 16, kernel_init=init, rngs=rngs)
        self.last = nnx.Linear(16, 3, kernel_init=init, rngs=rngs)
        self.norm = batch_norm(16, epsilon=0.0, rngs=rngs)
        self.norm.mean[...], self.norm.var[...] = integers(16, seed=4), jnp.full(16, 4.0)
        self.drop = dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: PASSES.append("prefix"))
        x = self.drop(nnx.relu(self.norm(self.first(x))))
        jax.debug.callback(lambda _: PASSES.append("noisy"), x[0, 0])
        return self.last(x)


@pytest.mark.parametrize("layers", OURS_FIRST)
def test_an_nnx_model_draws_while_batch_norm_is_in_inference_and_stays_as_it_is(layers: str) -> None:
    """methods.md 5.5."""
    model = Nnx(layers)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    jax.effects_barrier()
    PASSES.clear()
    found = mc_predict(jax.random.key(1), model, X, N, batch_size=4)
    jax.effects_barrier()
    assert (PASSES.count("prefix"), PASSES.count("noisy")) == (1, N)
    h = jax.nn.relu((X @ integers(6, 16, seed=3) - integers(16, seed=4)[None]) / 2)
    kept = 2 * h @ integers(16, 3, seed=3)
    assert_array_equal(found.shape, (N, 8, 3))
    assert len(np.unique(np.asarray(found).reshape(N, -1), axis=0)) == N
    assert_array_equal(mc_predict(jax.random.key(1), model, X, 2), found[:2])
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    jax.tree.map(assert_array_equal, after, before)
    assert model.norm.use_running_average is False
    mean = mc_predict(jax.random.key(2), model, X, 400).mean(0)
    assert_allclose(mean, kept / 2, atol=4 * float(jnp.abs(kept).max()) / np.sqrt(400))


def test_a_layer_that_would_update_a_collection_is_flaxs_error() -> None:
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            count = self.variable("batch_stats", "count", lambda: jnp.zeros(()))
            count.value = count.value + 1
            return nn.Dropout(0.5, deterministic=False)(x)

    variables = {"batch_stats": {"count": jnp.zeros(())}}
    with pytest.raises(Exception, match='"batch_stats" is immutable'):
        mc_predict(jax.random.key(0), Counting().bind(variables), X, 2)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(jax.jit(f)))])
@pytest.mark.parametrize("outer", [lambda f: f, jax.jit])
def test_what_comes_before_the_first_noise_runs_once(wrap: Any, outer: Any) -> None:
    def model(key: jax.Array, x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda _: PASSES.append("prefix"), x[0, 0])
        h = jax.nn.relu(x @ IN)
        h = jaxnorm.dropout(key, h, 0.5)
        jax.debug.callback(lambda _: PASSES.append("noisy"), h[0, 0])
        return h @ OUT

    PASSES.clear()
    jax.block_until_ready(outer(lambda key, x: mc_predict(key, wrap(model), x, N, batch_size=3))(jax.random.key(0), X))
    jax.effects_barrier()
    assert (PASSES.count("prefix"), PASSES.count("noisy")) == (1, N)


def test_memory_is_that_of_a_batch_of_samples() -> None:
    x = jnp.ones((32, 6))

    def temporaries(samples: int, batch_size: int) -> int:
        run = jax.jit(lambda key, x: mc_predict(key, late, x, samples, batch_size=batch_size))
        return run.lower(jax.random.key(0), x).compile().memory_analysis().temp_size_in_bytes

    few, many, large = temporaries(16, 8), temporaries(1024, 8), temporaries(1024, 64)
    assert many <= few + 1024 * 2 * 4 * 2  # the keys, twice
    assert large > 4 * few


def test_a_key_that_draws_twice_is_seen() -> None:
    """Pitfall 99."""
    twice = lambda key, x: jaxnorm.dropout(key, jaxnorm.dropout(key, x, 0.5), 0.5)  # noqa: E731
    with pytest.raises(jax.errors.KeyReuseError):
        mc_predict(jax.random.key(0), twice, X, 2)


def test_under_vmap_over_keys_and_inputs() -> None:
    keys, x = jax.random.split(jax.random.key(2)), jnp.stack([X, X + 1])
    run = jax.jit(lambda key, x: mc_predict(key, late, x, N, batch_size=3))
    expected = [run(jax.random.clone(key), x) for key, x in zip(keys, x, strict=True)]
    assert_array_equal(jax.vmap(run)(keys, x), jnp.stack(expected))


@pytest.mark.parametrize("kind", [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)])
def test_of_a_sharded_x(kind: Any) -> None:
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(kind,))
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("batch")))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda key, x: mc_predict(key, late, x, N, batch_size=3))(jax.random.key(1), x)
    assert_array_equal(found, mc_predict(jax.random.key(1), late, X, N))
    assert found.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, "batch")), 3)


@pytest.mark.slow
def test_inside_shard_map_with_keys_of_the_examples() -> None:
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))

    def of_examples(key: jax.Array, given: tuple[jax.Array, jax.Array]) -> jax.Array:
        numbers, x = given
        return jax.vmap(late)(jaxnorm.example_keys(key, numbers), x[:, None])[:, 0]

    def run(key: jax.Array, numbers: jax.Array, x: jax.Array) -> jax.Array:
        return mc_predict(key, of_examples, (numbers, x), N, batch_size=3)

    spec = PartitionSpec("batch")
    split = jax.shard_map(run, mesh=mesh, in_specs=(PartitionSpec(), spec, spec), out_specs=PartitionSpec(None, "batch"))
    assert_array_equal(jax.jit(split)(jax.random.key(1), jnp.arange(8), X), run(jax.random.key(1), jnp.arange(8), X))


@pytest.mark.parametrize("name", ["custom_vjp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("late", "remat"))])
def test_gradients_are_those_of_the_calls(name: str) -> None:
    """A derivative of one's own is kept."""
    model = MODELS[name]
    loss = lambda x: jnp.sum(mc_predict(jax.random.key(1), model, x, N, batch_size=3) ** 2)  # noqa: E731
    of_one = jax.jit(jax.grad(lambda x, key: jnp.sum(model(key, x) ** 2)))
    expected = sum(np.asarray(of_one(X, key)) for key in jaxnorm.example_keys(jax.random.key(1), np.arange(N)))
    assert_allclose(jax.grad(loss)(X), expected, rtol=1e-6)


def test_variance_of_a_linear_model_in_closed_form_grows_off_the_data() -> None:
    """methods.md 5.5: of y = dropout(x) w it is r / (1 - r) sum x^2 w^2; the estimate is within 4 sigma, for one 5 % off not."""
    w, rate, count = np.asarray([[0.5], [-1.0], [2.0], [1.5]], np.float32), 0.25, 20_000
    x = np.outer(np.float32([1, 2, 4]), np.float32([1, -0.5, 2, 0.3]))
    model = lambda key, x: jaxnorm.dropout(key, x, rate, broadcast_dims=(0,)) @ w  # noqa: E731
    y = mc_predict(jax.random.key(3), model, x, count, batch_size=1000)
    variance, y = np.asarray(predictive(y, tau=1e12).variance)[:, 0], np.asarray(y)[..., 0]
    exact = rate / (1 - rate) * np.sum(np.square(x) * np.square(w[:, 0]), 1)
    error = 4 * np.std((y - y.mean(0)) ** 2, 0) / np.sqrt(count)
    assert (np.abs(variance - exact) < error).all()
    assert (np.abs(variance - 1.05 * exact) > error).all()
    assert_allclose(variance / variance[0], [1, 4, 16], rtol=1e-3)


def test_samples_tend_to_the_exact_ensemble_as_one_over_the_root_of_their_number() -> None:
    """methods.md 8 row H: the mean of k samples errs by s / sqrt(k)."""
    x, w = integers(5, 8) / 4, integers(8, 3, seed=1) / 2
    exact = exact_ensemble(lambda mask: jnp.where(mask[None], x, 0) / 0.5 @ w, 8, 0.5).arithmetic
    model = lambda key, x: jax.nn.softmax(jaxnorm.dropout(key, x, 0.5, broadcast_dims=(0,)) @ w)  # noqa: E731
    p = np.asarray(mc_predict(jax.random.key(0), model, x, 16_384, batch_size=1024))
    one = p.std(0)
    for k in (16, 256, 4096):
        of_k = p.reshape(-1, k, *p.shape[1:]).mean(1)
        assert (np.abs(of_k[0] - exact) < 5 * one / k**0.5 + 1e-6).all()
        if k < 4096:
            assert_allclose(of_k.std(0), one / k**0.5, rtol=4 * (k / 2 / len(p)) ** 0.5)
    assert (np.abs(p.mean(0) - exact) < 4 * one / len(p) ** 0.5).all()


@pytest.mark.slow
def test_symbolic_sizes() -> None:
    run = jax.jit(lambda key, x: mc_predict(key, late, x, N, batch_size=3))
    shape = jax.export.symbolic_shape("b, 6")
    key = jax.random.key_data(jax.random.key(1))
    exported = jax.export.export(jax.jit(lambda data, x: run(jax.random.wrap_key_data(data), x)))(
        key, jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    assert_array_equal(exported.call(key, X), run(jax.random.key(1), X))


@pytest.mark.slow
@pytest.mark.jax_defaults
def test_a_digits_network_of_12_hidden_units() -> None:
    """methods.md 8 row H lists errors of 11.8 (all masks), 10.8 (scaled), and 52.6, 13.0, 12.2, 11.8 of 1, 10, 50, 500 masks."""
    (x, labels), (test, test_labels) = load_digits()
    keys = jax.random.split(jax.random.key(0), 4)
    params = (0.18 * jax.random.normal(keys[0], (64, 12)), jnp.zeros(12), 0.3 * jax.random.normal(keys[1], (12, 10)))

    def hidden(params: Any, x: Any) -> jax.Array:
        return jax.nn.relu(x @ params[0] + params[1])

    @jax.jit
    @jax.grad
    def gradient(params: Any, key: jax.Array) -> jax.Array:
        of_mask, of_batch = jax.random.split(key)
        chosen = jax.random.randint(of_batch, (64,), 0, len(x))
        logits = jaxnorm.dropout(of_mask, hidden(params, jnp.asarray(x)[chosen]), 0.5) @ params[2]
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)[chosen]).mean()

    optimizer = optax.adam(3e-3)

    def step(state: Any, key: jax.Array) -> tuple[Any, None]:
        updates, of_optimizer = optimizer.update(gradient(state[0], key), state[1])
        return (optax.apply_updates(state[0], updates), of_optimizer), None

    state = params, optimizer.init(params)
    (params, _), _ = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))(state, jax.random.split(keys[2], 1500))
    h = hidden(params, test)
    exact = exact_ensemble(lambda mask: jnp.where(mask[None], 2 * h, 0) @ params[2], 12, 0.5)
    model = lambda key, h: jax.nn.softmax(jaxnorm.dropout(key, h, 0.5, broadcast_dims=(0,)) @ params[2])  # noqa: E731
    samples = np.asarray(mc_predict(keys[3], model, h, 500, batch_size=100))

    def error(p: Any) -> float:
        return 100 * float((np.asarray(p).argmax(-1) != test_labels).mean())

    def of_masks(k: int) -> float:
        return float(np.mean([error(samples[i : i + k].mean(0)) for i in range(0, 500, k)]))

    assert_allclose(exact.geometric, jax.nn.softmax(h @ params[2]), atol=1e-5)
    assert abs(error(exact.geometric) - error(exact.arithmetic)) < 1.5
    by_masks = [of_masks(k) for k in (1, 10, 50, 500)]
    assert by_masks[0] > 10 + error(exact.arithmetic)
    assert (np.diff(by_masks) < 0.2).all()
    assert abs(by_masks[-1] - error(exact.arithmetic)) <= 0.6


# MC batch norm


DATA = integers(32, 6, seed=5)


def bare_batch_norm(batch: jax.Array, x: jax.Array) -> jax.Array:
    params, state = jaxnorm.init_batch_norm(16)
    _, state = jaxnorm.batch_norm(params, state, batch @ integers(6, 16, seed=3), train=True, momentum=0.0)
    y, _ = jaxnorm.batch_norm(params, state, x @ integers(6, 16, seed=3), train=False)
    return jax.nn.relu(y) @ integers(16, 3, seed=3)


class NnxNorm(Nnx):
    def __init__(self, layers: str) -> None:
        super().__init__(layers)
        self.norm.epsilon = 1e-5


@pytest.mark.parametrize("layers", OURS_FIRST)
def test_batch_norm_draws_its_statistics_from_training_batches(layers: str) -> None:
    """Supplement S1.14: all statistics of one batch; bare, linen and nnx alike."""
    arguments = {"examples": 8, "batch_size": 3}
    expected = mc_batch_norm(jax.random.key(1), bare_batch_norm, DATA, X, N, **arguments)
    keys = jaxnorm.example_keys(jax.random.key(1), np.arange(N))
    one = jax.jit(lambda key: bare_batch_norm(DATA[jax.random.choice(key, 32, (8,), replace=False)], X))
    assert_allclose(expected, [one(key) for key in keys], rtol=1e-4, atol=1e-4)
    assert len(np.unique(np.asarray(expected).reshape(N, -1), axis=0)) == N
    model = NnxNorm(layers)
    found = mc_batch_norm(jax.random.key(1), model, DATA, X, N, **arguments)
    assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert_array_equal(model.norm.mean[...], integers(16, seed=4))
    module, variables = linen_model(layers)
    found = mc_batch_norm(jax.random.key(1), module.bind(variables), DATA, X, N, **arguments, train=False)
    assert_allclose(found, expected, rtol=2e-3, atol=2e-3)  # with no epsilon


def test_the_variance_of_a_batch_mean_is_that_of_draws_without_replacement() -> None:
    """s^2 / M (N - M) / (N - 1), 0 for the whole data; within 4 sigma, and that with replacement is not."""
    model = lambda batch, x: x - jnp.mean(batch["a"], 0)  # noqa: E731
    data = {"a": DATA[:, 0]}
    run = lambda examples: mc_batch_norm(  # noqa: E731
        jax.random.key(0), model, data, jnp.zeros(()), 4000, examples=examples, batch_size=500
    )
    of_one = float(np.var(data["a"]))
    found, error = float(run(16).var()), 4 * np.sqrt(2 / 4000)
    assert_allclose(found, of_one / 16 * 16 / 31, rtol=error)
    assert abs(found / (of_one / 16) - 1) > error
    assert_allclose(run(32).var(), 0, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: mc_predict(jax.random.key(0), lambda key, x: x, X, 3), ValueError, "model must draw noise, but .* train=False"),
        (lambda: mc_predict(jax.random.key(0), Nnx("flax").first, X, 3), ValueError, "model must draw noise"),
        (lambda: mc_predict(jax.random.key(0), linen_model("flax")[0], X, 3), ValueError, "got the unbound module Linen"),
        (lambda: mc_predict(jax.random.key(0), 3, X, 3), TypeError, "model must be a function of a key and x, .*, got 3"),
        (lambda: mc_predict(jax.random.key(0), late, X, 0), ValueError, "samples must be at least 1, got 0"),
        (lambda: mc_predict(jax.random.key(0), late, X, 2.0), TypeError, "samples must be an int"),
        (lambda: mc_predict(jax.random.key(0), late, X, 3, batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
        (lambda: mc_predict(jax.random.key(0), late, X, 3, batch_size=None), TypeError, "batch_size must be an int"),
        (lambda: mc_predict(jax.random.key(0), late, X, 3, prefix=X), TypeError, "prefix must be a function"),
        (lambda: mc_predict(0, late, X, 3), TypeError, "key must be one key"),
        (lambda: mc_predict(None, late, X, 3), TypeError, "key must be one key"),
        (lambda: mc_predict(jax.random.split(jax.random.key(0)), late, X, 3), ValueError, "key must be one key"),
        (
            lambda: mc_batch_norm(jax.random.key(0), lambda batch, x: x, DATA, X, 3, examples=4),
            ValueError,
            "model must have stat",
        ),
        (
            lambda: mc_batch_norm(jax.random.key(0), bare_batch_norm, DATA, X, 3, examples=33),
            ValueError,
            "examples must be at mo",
        ),
        (
            lambda: mc_batch_norm(jax.random.key(0), bare_batch_norm, DATA, X, 3, examples=0),
            ValueError,
            "examples must be at lea",
        ),
        (lambda: mc_batch_norm(jax.random.key(0), "net", DATA, X, 3, examples=4), TypeError, "model must be a function of a bat"),
        (
            lambda: mc_batch_norm(jax.random.key(0), bare_batch_norm, (DATA, X), X, 3, examples=4),
            ValueError,
            "data must be arrays of one length",
        ),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
