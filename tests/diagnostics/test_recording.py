"""Activations of linen and nnx models by layer: those of the model's own arithmetic, whatever is around the layers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from tiers import then_slow

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics import dead_units, linen_activations, nnx_activations

X = jax.random.normal(jax.random.key(0), (8, 3))
HIDDEN = 4


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(jaxnorm.linen.BatchNorm(use_running_average=not train)(nn.Dense(HIDDEN)(x)))
        again = nn.Dense(HIDDEN, name="again")
        x = again(nn.relu(again(x)))
        return jaxnorm.linen.Dropout(0.5, deterministic=not train)(x)


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(3, HIDDEN, rngs=rngs)
        self.norm = jaxnorm.nnx.BatchNorm(HIDDEN, rngs=rngs)
        self.again = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.drop = jaxnorm.nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        return self.drop(self.again(nnx.relu(self.again(x))))


def by_hand(first: Any, again: Any) -> dict[str, np.ndarray]:
    """What leaves each layer of either net in inference with new statistics."""
    (kernel, bias), (again_kernel, again_bias) = (map(np.asarray, part) for part in (first, again))
    dense = np.asarray(X) @ kernel + bias
    norm = dense / np.sqrt(1 + 1e-5)
    one = np.maximum(norm, 0) @ again_kernel + again_bias
    two = np.maximum(one, 0) @ again_kernel + again_bias
    return {"first": dense, "norm": norm, "again": one, "again (call 2)": two, "drop": two}


NET = Net()
VARIABLES = jax.jit(NET.init)(jax.random.key(1), X)
LINEN_NAMES = {
    "first": "Dense_0",
    "norm": "BatchNorm_0",
    "again": "again",
    "again (call 2)": "again (call 2)",
    "drop": "Dropout_0",
}


def linen_by_hand() -> dict[str, np.ndarray]:
    params = VARIABLES["params"]
    found = by_hand(*((params[name]["kernel"], params[name]["bias"]) for name in ("Dense_0", "again")))
    return {LINEN_NAMES[name]: value for name, value in found.items()}


def assert_same(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def test_what_leaves_layers_of_linen() -> None:
    wanted = linen_by_hand()
    layers = [nn.Dense, "Batch*", jaxnorm.linen.Dropout]
    assert_same(jax.jit(lambda v, x: linen_activations(NET, v, x, layers=layers))(VARIABLES, X), wanted)
    assert_same(linen_activations(NET, VARIABLES, X, layers="Batch*"), {"BatchNorm_0": wanted["BatchNorm_0"]})


def test_what_leaves_layers_of_nnx() -> None:
    net = NnxNet()
    net.eval()
    wanted = by_hand(*((dense.kernel[...], dense.bias[...]) for dense in (net.first, net.again)))
    got = jax.jit(lambda x: nnx_activations(net, x, layers=[nnx.Linear, "norm", jaxnorm.nnx.Dropout]))(X)
    assert_same(got, wanted)
    assert type(net.first) is nnx.Linear
    assert not jax.tree.leaves(nnx.state(net, nnx.Intermediate))


def test_what_enters_layers() -> None:
    wanted = linen_by_hand()
    relu = {name: np.maximum(value, 0) for name, value in wanted.items()}
    entering = {"Dense_0": X, "again": relu["BatchNorm_0"], "again (call 2)": relu["again"]}
    assert_same(linen_activations(NET, VARIABLES, X, layers=nn.Dense, side="input"), entering)
    net = NnxNet()
    net.eval()
    found = jax.jit(lambda x: nnx_activations(net, x, layers="*", side="input", method=lambda net, x: net(x=x)))(X)
    assert_array_equal(found["first"], X)
    assert_array_equal(found[""], X)
    assert_allclose(found["again"], np.maximum(nnx_activations(net, X, layers="norm")["norm"], 0), rtol=1e-5, atol=1e-6)
    dead = jax.tree.map(dead_units, {"again": found["again"]})
    assert_array_equal(dead["again"], (np.asarray(found["again"]) <= 0).all(0))


def test_training_as_the_model_is_told() -> None:
    rngs = {"dropout": jax.random.key(2)}
    layers = ["Batch*", "Drop*"]
    found = jax.jit(lambda x: linen_activations(NET, VARIABLES, x, layers=layers, train=True, rngs=rngs))(X)
    assert_allclose(found["BatchNorm_0"].mean(0), np.zeros(HIDDEN), atol=1e-6)
    assert np.any(found["Dropout_0"] == 0)
    net = NnxNet()
    found = jax.jit(lambda x: nnx_activations(net, x, layers=["norm", "drop"]))(X)
    assert_allclose(found["norm"].mean(0), np.zeros(HIDDEN), atol=1e-6)
    assert np.any(found["drop"] == 0)
    assert_array_equal(net.norm.mean[...], np.zeros(HIDDEN))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(3)(x)), None


def call_block(net: nn.Module, x: jax.Array) -> Any:
    return net(x, None)  # pyright: ignore


def test_linen_layers_under_scan() -> None:
    def net(**carried: int) -> nn.Module:
        return nn.scan(Block, variable_axes={"params": 0, **carried}, split_rngs={"params": True}, length=2)()

    variables = jax.jit(net().init)(jax.random.key(0), X, None)
    found = linen_activations(net(intermediates=0), variables, X, layers=nn.Dense, method=call_block)["Dense_0"]
    assert found.shape == (2, *X.shape)
    assert_allclose(found[0], X @ variables["params"]["Dense_0"]["kernel"][0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"got Dense_0 under a transformation .* variable_axes={'intermediates': 0}"):
        linen_activations(net(), variables, X, layers=nn.Dense, method=call_block)


@pytest.mark.parametrize("around", then_slow([nn.jit, nn.remat]))
def test_linen_layers_under_other_transformations(around: Any) -> None:
    """Also where the program of another call was compiled before."""
    net = around(Block)()
    variables = net.init(jax.random.key(0), X, None)
    out = net.apply(variables, X, None)[0]
    entering = linen_activations(net, variables, X, layers=nn.Dense, side="input", method=call_block)["Dense_0"]
    leaving = linen_activations(net, variables, X, layers=nn.Dense, method=call_block)["Dense_0"]
    assert_array_equal(entering, X)
    assert_allclose(np.maximum(leaving, 0), out, rtol=1e-6)


@pytest.mark.parametrize("around", then_slow([nnx.jit, nnx.remat]))
def test_nnx_layers_under_transformations(around: Any) -> None:
    class Outer(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(3, HIDDEN, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return nnx.relu(around(lambda layer, x: layer(x))(self.first, x))

    net = Outer()
    found = nnx_activations(net, X, layers="first")["first"]
    assert_allclose(np.maximum(found, 0), net(X), rtol=1e-6)


NNX_NET = NnxNet()


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (
            lambda: linen_activations(NET, VARIABLES, X, layers=nn.Conv),
            ValueError,
            r"the model calls, .* with Dense_0 \(Dense\), ",
        ),
        (lambda: nnx_activations(NNX_NET, X, layers="dense"), ValueError, r"got 'dense' for a model with .*first \(Linear\)"),
        (lambda: linen_activations(NET, VARIABLES, X, layers=3), TypeError, "layers must be classes or patterns of paths, got 3"),
        (lambda: nnx_activations(NNX_NET, X, layers=[nnx.Linear, 3]), TypeError, "layers must be classes or patterns"),
        (lambda: nnx_activations(NNX_NET, X, layers="*", side="in"), ValueError, "side must be 'input' or 'output', got 'in'"),
        (lambda: linen_activations(NNX_NET, VARIABLES, X, layers="*"), TypeError, "module must be Module, got"),
        (lambda: nnx_activations(NET, X, layers="*"), TypeError, "model must be Module, got"),
        (lambda: nnx_activations(NNX_NET, X, layers="*", method=3), TypeError, "method must be a function of the module"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
