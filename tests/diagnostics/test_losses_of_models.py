"""Every measurement of a loss of linen and nnx models, for several seeds in one program."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics import (
    gradient_noise,
    gradient_norms,
    internal_covariate_shift,
    layer_names,
    loss_landscape,
    model_loss,
    model_outputs,
    scale_invariance,
)
from jaxnorm.training import cross_entropy, linen_apply, nnx_apply

X, LABELS = jax.random.normal(jax.random.key(9), (12, 4)), jnp.arange(12) % 3


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(jaxnorm.linen.BatchNorm(use_running_average=not train, epsilon=1e-10)(nn.Dense(6)(x)))
        return nn.Dense(3)(jaxnorm.linen.Dropout(0.3, deterministic=not train)(x))


def linen_model(seed: Any) -> tuple[Any, Any, Any]:
    net = Net()
    variables = net.init(jax.random.key(seed), X, train=False)
    return linen_apply(net), variables["params"], variables["batch_stats"]


def nnx_model(seed: Any) -> tuple[Any, Any, Any]:
    rngs = nnx.Rngs(jax.random.key(seed))
    norm, drop = jaxnorm.nnx.BatchNorm(6, epsilon=1e-10, rngs=rngs), jaxnorm.nnx.Dropout(0.3, rngs=rngs)
    net = nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), norm, nnx.relu, drop, nnx.Linear(6, 3, rngs=rngs))
    return nnx_apply(net)


MODELS = [
    pytest.param(linen_model, (("Dense_0", "BatchNorm_0"), "Dense_1"), "Dense_0/kernel", id="linen"),
    pytest.param(nnx_model, (("layers/0", "layers/1"), "layers/4"), "layers/0/kernel", id="nnx"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "layers", "kernel"), MODELS)
def test_layers_of_a_model_are_named_by_their_paths(make: Callable[..., Any], layers: Any, kernel: str) -> None:
    @jax.jit
    def run(seed: jax.Array) -> Any:
        apply, params, stats = make(seed)
        loss = model_loss(apply, jax.random.key(7), stats, train=True)
        return gradient_norms(loss, params, (X, LABELS), layers=layers), jax.grad(loss)(params, (X, LABELS))

    found, gradient = run(1)
    assert_allclose(found.norms, [sizes(gradient, layer) for layer in layers], rtol=1e-4)
    assert_allclose(found.ratio, found.norms[0] / found.norms[1], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "layers", "kernel"), MODELS)
def test_measurements_of_a_model_for_several_seeds(make: Callable[..., Any], layers: Any, kernel: str) -> None:
    batch = X, LABELS

    @jax.jit
    @jax.vmap
    def measure(seed: jax.Array) -> Any:
        apply, params, stats = make(seed)
        loss = model_loss(apply, jax.random.key(7), stats, train=True)
        updated = jax.tree.map(lambda w, g: w - 0.1 * g, params, jax.grad(loss)(params, batch))
        predict = model_outputs(apply, jax.random.key(7), stats, train=True)
        return (
            gradient_norms(loss, params, batch, layers=layers),
            internal_covariate_shift(loss, params, updated, batch, layers=layers),
            loss_landscape(loss, params, batch, [0.0, 0.1]),
            gradient_noise(jax.random.key(8), loss, params, batch, (4, 12), 3),
            scale_invariance(predict, params, batch, {kernel: 4.0}),
            loss(updated, batch),
        )

    norms, shift, landscape, noise, invariance, after = measure(jnp.arange(2))
    assert norms.norms.shape == shift.cosine.shape == (2, 2)
    assert (shift.difference[:, 0] == 0).all()
    assert (shift.difference[:, 1] > 0).all()
    assert_allclose(landscape.losses[:, 1], after, rtol=1e-5)
    assert_allclose((norms.norms**2).sum(1), noise.square_norm, rtol=1e-5)
    assert invariance.change.max() < 1e-4
    assert_allclose(invariance.gradient_ratio[:, 0], 0.25, rtol=1e-3)


def sizes(gradient: Any, layer: str | tuple[str, ...]) -> float:
    """The norm of a layer's gradient."""
    total = 0.0
    for path in (layer,) if isinstance(layer, str) else layer:
        own = gradient
        for part in path.split("/"):
            own = own[int(part) if part.isdigit() else part]
        total += sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(own))
    return total**0.5


@pytest.mark.parametrize(("make", "layers", "kernel"), MODELS)
@pytest.mark.parametrize("train", [True, False])
def test_a_loss_is_that_of_the_model(make: Callable[..., Any], layers: Any, kernel: str, train: bool) -> None:
    apply, params, stats = make(0)
    first, last = layers
    assert layer_names(params, layers=layers) == (first[0], last)

    @jax.jit
    def run(params: Any) -> Any:
        outputs = apply(jax.random.key(3), params, stats, X, train=train)[0]
        loss = model_loss(apply, jax.random.key(3), stats, train=train)
        predicted = model_outputs(apply, jax.random.key(3), stats, train=train)(params, X)
        return outputs, predicted, loss(params, (X, LABELS)), cross_entropy(outputs, LABELS).mean()

    outputs, predicted, loss, wanted = run(params)
    assert_allclose(predicted, outputs, rtol=1e-6)
    assert_allclose(loss, wanted, rtol=1e-6)


def test_a_loss_of_its_own() -> None:
    apply = lambda key, params, stats, x, *, train: (x @ params, stats)  # noqa: E731
    loss = model_loss(apply, jax.random.key(0), None, train=True, loss=lambda outputs, y: ((outputs - y) ** 2).sum(1))
    assert_allclose(loss(jnp.eye(4), (X, 0 * X)), (X**2).sum(1).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: model_loss(linen_apply(Net()), jax.random.key(0), {}, train=1), TypeError, "train must be True or False"),  # type: ignore
        (
            lambda: model_loss(lambda *_, train: (X, None), jax.random.key(0), {}, train=True)({}, X),
            TypeError,
            "batch must be a pair",
        ),
        (
            lambda: model_loss(lambda *_, train: (X, None), jax.random.key(0), {}, train=True, loss=lambda a, b: a)({}, (X, X)),
            ValueError,
            "loss must return one value for each example",
        ),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
