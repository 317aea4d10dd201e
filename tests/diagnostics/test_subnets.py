"""Networks with units removed: exactly so many, of bare functions, linen and nnx models."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics import masked_model, random_subnet_accuracy

UNITS = 20
SCALES = ((True, 20 / 15), (False, 1.0))
X, ZEROS = jnp.zeros((UNITS, 1)), jnp.zeros(UNITS, jnp.int32)


def counts(masks: Any, x: jax.Array, least: float = 0.5) -> jax.Array:
    """A network that is right about example i if unit i counts for more than `least`."""
    return jnp.stack([masks, jnp.full(UNITS, least)], 1)


def test_as_many_units_as_asked_are_removed() -> None:
    shares = np.array([[0, 0.05, 0.49], [0.5, 0.51, 1]], np.float32)
    found = jax.jit(lambda x: random_subnet_accuracy(jax.random.key(0), counts, UNITS, (x, ZEROS), shares, 5))(X)
    assert found.shape == (2, 3, 5)
    assert_allclose(found, np.broadcast_to((1 - np.round(shares * 20) / 20)[..., None], (2, 3, 5)), atol=1e-6)


def test_what_is_left_is_scaled_up_unless_told() -> None:
    @jax.jit
    def run(x: jax.Array) -> Any:
        def accuracies(least: float, rescale: bool) -> jax.Array:
            predict = lambda masks, x: counts(masks, x, least)  # noqa: E731
            return random_subnet_accuracy(jax.random.key(0), predict, UNITS, (x, ZEROS), 0.25, 2, rescale=rescale)

        return [[accuracies(least, rescale) for least in (scale - 1e-3, scale + 1e-3)] for rescale, scale in SCALES]

    assert_allclose(run(X), [[[0.75] * 2, [0] * 2]] * 2)


def test_draws_and_layers_are_different_and_a_larger_share_removes_more_of_the_same() -> None:
    def unit(masks: Any, x: jax.Array) -> jax.Array:
        return jnp.stack([masks["a"][:1], jnp.full(1, 0.5)], 1)

    def alike(masks: Any, x: jax.Array) -> jax.Array:
        return jnp.stack([(masks["a"] == masks["b"]).astype(jnp.float32), jnp.full(UNITS, 0.5)], 1)

    @jax.jit
    def run(x: jax.Array) -> Any:
        units, shares = {"a": UNITS, "b": UNITS}, jnp.linspace(0, 1, 11)
        kept = random_subnet_accuracy(jax.random.key(0), unit, units, (x[:1], ZEROS[:1]), shares, 200)
        return kept, random_subnet_accuracy(jax.random.key(0), alike, units, (x, ZEROS), 0.5, 20)

    kept, same = run(X)
    assert (np.diff(kept, axis=0) <= 0).all()
    assert_allclose(kept.mean(1), 1 - np.linspace(0, 1, 11), atol=0.15)
    assert (same < 1).all()


def test_traced_shares_compile_once() -> None:
    run = jax.jit(lambda shares: random_subnet_accuracy(jax.random.key(0), counts, UNITS, (X, ZEROS), shares, 1))
    assert_allclose(run(jnp.asarray([0.5, 0.0]))[:, 0], [0.5, 1])
    assert_allclose(run(jnp.asarray([0.0, 1.0]))[:, 0], [1, 0])
    assert run._cache_size() == 1


class Net(nn.Module):
    norm: Any
    drop: Any

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(self.norm(use_running_average=not train)(nn.Dense(6)(x)))
        return nn.Dense(3)(self.drop(0.5, deterministic=not train)(x))


def nnx_net(norm: Any, drop: Any) -> nnx.Sequential:
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(4, 6, rngs=rngs), norm(6, rngs=rngs), nnx.relu, drop(0.5, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
    return nnx.Sequential(*layers)


DATA = jax.random.normal(jax.random.key(5), (7, 4))
MASK = jnp.asarray([1.0, 0, 2, 0, 1, 1])


@pytest.mark.parametrize("layers", [(nn.BatchNorm, nn.Dropout), (jaxnorm.linen.BatchNorm, jaxnorm.linen.Dropout)])
def test_units_of_a_linen_model_are_those_that_its_dropout_drops(layers: Any) -> None:
    net = Net(*layers)
    variables = net.init(jax.random.key(0), DATA, train=False)
    predict, units = masked_model(net.bind(variables), DATA[:1], "*Dropout_0", train=False)
    assert units == {"Dropout_0": 6}
    kernel, bias = variables["params"]["Dense_1"].values()
    _, seen = net.apply(variables, DATA, train=False, capture_intermediates=True)
    h = seen["intermediates"]["Dropout_0"]["__call__"][0]
    assert_allclose(predict({"Dropout_0": MASK}, DATA), h * MASK[None] @ kernel + bias[None], rtol=1e-5, atol=1e-6)
    assert_allclose(predict({}, DATA), net.apply(variables, DATA, train=False), rtol=1e-6)


def test_units_of_a_part_that_was_compiled_before_are_those_of_each_call() -> None:
    net = nn.Sequential([nn.jit(nn.Dense)(6), nn.Dense(3)])
    variables = net.init(jax.random.key(0), DATA)
    expected = net.apply(variables, DATA)
    predict, units = masked_model(net.bind(variables), DATA[:1], "layers_0")
    assert units == {"layers_0": 6}
    last = variables["params"]["layers_1"]
    h = nn.Dense(6).apply({"params": variables["params"]["layers_0"]}, DATA)
    for mask in (MASK, jnp.zeros(6), jnp.ones(6)):
        found = predict({"layers_0": mask}, DATA)
        assert_allclose(found, h * mask[None] @ last["kernel"] + last["bias"][None], rtol=1e-5, atol=1e-6)
    assert_allclose(net.apply(variables, DATA), expected, rtol=1e-6)


@pytest.mark.parametrize("layers", [(nnx.BatchNorm, nnx.Dropout), (jaxnorm.nnx.BatchNorm, jaxnorm.nnx.Dropout)])
def test_units_of_an_nnx_model_are_those_that_its_dropout_drops(layers: Any) -> None:
    net = nnx_net(*layers)
    predict, units = masked_model(net, DATA[:1], "layers/3")
    assert units == {"layers/3": 6}
    net.eval()
    h = nnx.Sequential(*net.layers[:4])(DATA)
    assert_allclose(predict({"layers/3": MASK}, DATA), net.layers[4](h * MASK[None]), rtol=1e-5, atol=1e-6)
    assert_allclose(predict({}, DATA), net(DATA), rtol=1e-6)
    assert type(net.layers[3]) is layers[1]


@pytest.mark.slow
def test_channels_of_a_convolution_are_units_and_seeds_are_lanes() -> None:
    net = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(3)])
    x, labels = jax.random.normal(jax.random.key(1), (6, 5, 5, 2)), jnp.arange(6) % 3

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> jax.Array:
        variables = net.init(key, x)
        predict, units = masked_model(net.bind(variables), x, "layers_0")
        assert units == {"layers_0": 4}
        return random_subnet_accuracy(jax.random.key(2), predict, units, (x, labels), [0.0, 0.5], 3)

    keys = jax.random.split(jax.random.key(0), 2)
    own = jnp.argmax(net.apply(net.init(keys[1], x), x), -1) == labels
    found = run(keys)
    assert found.shape == (2, 2, 3)
    assert_allclose(found[1, 0], own.mean())


def bound() -> Any:
    net = Net(nn.BatchNorm, nn.Dropout)
    return net.bind(net.init(jax.random.key(0), DATA, train=False))


def accuracy(**changed: Any) -> Any:
    given = {"predict": counts, "units": UNITS, "batch": (X, ZEROS), "shares": 0.5, "draws": 2} | changed
    return random_subnet_accuracy(jax.random.key(0), **given)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: accuracy(shares=[0.5, 1.5]), ValueError, r"shares must be in \[0, 1\]"),
        (lambda: accuracy(draws=0), ValueError, "draws must be at least 1"),
        (lambda: accuracy(units={"a": 3.0}), TypeError, "units must be an int"),
        (lambda: accuracy(units={}), ValueError, "units must hold the number of units of at least one layer"),
        (lambda: accuracy(predict=lambda masks, x: masks), ValueError, r"predict must return \[B, classes\] .* got \[20\]"),
        (lambda: accuracy(batch=(X, X)), TypeError, "labels must be integers, got float32"),
        (
            lambda: masked_model(bound(), DATA, "Dropot_0", train=False),
            ValueError,
            "match no module that the model calls, as Dense_0",
        ),
        (lambda: masked_model(Net(nn.BatchNorm, nn.Dropout), DATA, "*"), ValueError, "model must be bound to its variables"),
        (lambda: masked_model(counts, DATA, "*"), TypeError, "model must be a linen module that is bound .* or an nnx module"),
        (
            lambda: masked_model(bound(), DATA, "Dense_0", train=False).predict({"Dense_1": MASK}, DATA),
            ValueError,
            "got one of Dense_1",
        ),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
