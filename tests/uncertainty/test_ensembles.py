"""All networks of a dropout: by enumeration, against weight scaling, and the closed moments of their sums."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxnorm
from jaxnorm.uncertainty import exact_ensemble, fast_dropout_dense, relu_moments, sigmoid_mean

RANDOM = np.random.default_rng(0)
X, W, B = RANDOM.normal(size=(3, 5)), RANDOM.normal(size=(5, 4)), RANDOM.normal(size=4)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def network(mask: jax.Array) -> jax.Array:
    """A layer behind a mask, whose ReLU makes more of it than a softmax layer."""
    x, w, b = (jnp.asarray(a, jnp.result_type(float)) for a in (X, W, B[None]))
    return jax.nn.relu(jnp.where(mask[None], x, 0) @ w + b) * 3


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_mask_counts_with_its_probability(rate: float, batch_size: int) -> None:
    masks = np.array(list(itertools.product([0, 1], repeat=5)))
    weights = ((1 - rate) ** masks * rate ** (1 - masks)).prod(1)
    p = softmax(np.maximum((masks[:, None] * X) @ W + B, 0) * 3)
    geometric = np.exp(np.einsum("m,mbk->bk", weights, np.log(p)))
    with jax.enable_x64(True):
        found = exact_ensemble(network, 5, rate, batch_size=batch_size)
    assert_allclose(found.arithmetic, np.einsum("m,mbk->bk", weights, p), rtol=1e-12)
    assert_allclose(found.geometric, geometric / geometric.sum(-1, keepdims=True), rtol=1e-12)


def test_weight_scaling_is_the_geometric_mean_of_a_softmax_layer() -> None:
    """methods.md 4.1: to 1e-15, and the arithmetic mean is another."""
    with jax.enable_x64(True):
        found = exact_ensemble(lambda mask: jnp.where(mask[None], X, 0) @ jnp.asarray(W) + jnp.asarray(B)[None], 5, 0.5)
    assert_allclose(found.geometric, softmax(0.5 * X @ W + B), rtol=1e-14)
    assert np.abs(found.arithmetic - found.geometric).max() > 0.01


def test_sampled_masks_tend_to_the_arithmetic_mean() -> None:
    x, w = jnp.asarray(X, jnp.float32), jnp.asarray(W, jnp.float32)
    exact = exact_ensemble(lambda mask: jnp.where(mask[None], x, 0) / 0.7 @ w, 5, 0.3).arithmetic
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = lambda key: jax.nn.softmax(jaxnorm.dropout(key, x, 0.3, broadcast_dims=(0,)) @ w)  # noqa: E731
    drawn = jax.vmap(draw)(keys)
    assert (np.abs(drawn.mean(0) - exact) < 4 * drawn.std(0) / np.sqrt(len(keys))).all()


def test_a_traced_rate_compiles_once_and_a_wrong_one_is_nan() -> None:
    run = jax.jit(lambda rate: exact_ensemble(network, 5, rate))
    assert_allclose(run(jnp.float32(0.3)).arithmetic, exact_ensemble(network, 5, 0.3).arithmetic, rtol=1e-6)
    assert jnp.all(jnp.isnan(run(jnp.float32(1.5)).geometric))


def test_moments_of_a_dense_layer_are_those_of_all_masks() -> None:
    """methods.md 5.4, for inputs that are known."""
    rate = 0.3
    masks = np.array(list(itertools.product([0, 1], repeat=5)))
    weights = ((1 - rate) ** masks * rate ** (1 - masks)).prod(1)
    y = (masks[:, None] * X) / (1 - rate) @ W + B
    mean = np.einsum("m,mbk->bk", weights, y)
    found = fast_dropout_dense(*(jnp.asarray(a, jnp.float32) for a in (X, 0 * X, W, B)), rate)
    assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-5)
    assert_allclose(found.var, np.einsum("m,mbk->bk", weights, (y - mean) ** 2), rtol=1e-5)


@pytest.mark.slow
def test_moments_through_two_layers_are_those_of_draws() -> None:
    """To the Gaussian approximation of sums of many inputs, and of units as if they were independent."""
    random = np.random.default_rng(1)
    x, first, second = (jnp.asarray(random.normal(size=s) / 16, jnp.float32) for s in ((1, 256), (256, 256), (256, 8)))
    hidden = relu_moments(*fast_dropout_dense(16 * x, 0 * x, first, None, 0.5))
    found = fast_dropout_dense(*hidden, second, None, 0.5)

    def draw(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        h = jax.nn.relu(jaxnorm.dropout(keys[0], 16 * x, 0.5) @ first)
        return jaxnorm.dropout(keys[1], h, 0.5) @ second

    y = jax.lax.map(draw, jax.random.split(jax.random.key(0), 20_000), batch_size=500)
    assert_allclose(found.mean, y.mean(0), atol=0.05 * float(y.std()))
    assert_allclose(found.var, y.var(0), rtol=0.1)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (2.0, 0.5), (-1.5, 1.0), (1e4, 1.0), (-30.0, 1.0), (0.3, 1e-3)])
def test_moments_of_a_relu_are_those_of_the_integral(mean: float, std: float) -> None:
    """methods.md 5.4."""
    nodes = np.linspace(-12, 12, 200_001)
    weights = np.exp(-(nodes**2) / 2)
    y = np.maximum(mean + std * nodes, 0)
    weights = weights / weights.sum()
    found = relu_moments(jnp.float32(mean), jnp.float32(std**2))
    expected = (weights * y).sum()
    assert_allclose(found.mean, expected, rtol=1e-5, atol=1e-7)
    assert_allclose(found.var, (weights * (y - expected) ** 2).sum(), rtol=1e-4, atol=1e-7)


def test_known_inputs_have_no_variance_and_finite_gradients() -> None:
    found = relu_moments(jnp.asarray([-1.0, 0, 2]), jnp.zeros(3))
    assert_allclose(found, [[0, 0, 2], [0, 0, 0]])
    gradient = jax.grad(lambda m, v: relu_moments(m, v).mean.sum() + sigmoid_mean(m, v).sum(), (0, 1))
    assert all(jnp.all(jnp.isfinite(part)) for part in gradient(jnp.asarray([-1.0, 0, 2]), jnp.zeros(3)))


@pytest.mark.parametrize("mean", [-3.0, 0.0, 1.0, 5.0])
@pytest.mark.parametrize("std", [0.0, 1.0, 3.0])
def test_the_mean_of_a_sigmoid_is_near_that_of_the_integral(mean: float, std: float) -> None:
    """methods.md 5.4: to 0.02."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    expected = (weights / weights.sum() / (1 + np.exp(-(mean + std * nodes)))).sum()
    assert_allclose(sigmoid_mean(jnp.float32(mean), jnp.float32(std**2)), expected, atol=0.02)


MEAN = jnp.ones((2, 5))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: exact_ensemble(jnp.float32, 24, 0.5), ValueError, r"h must be at most 20, got 24: 16777216 networks, .* MiB"),
        (lambda: exact_ensemble(network, 0, 0.5), ValueError, "h must be at least 1, got 0"),
        (lambda: exact_ensemble(network, 5, 1.5), ValueError, "rate must be"),
        (lambda: exact_ensemble(network, 5, 0.5, batch_size=0), ValueError, "batch_size must be at least 1"),
        (
            lambda: exact_ensemble(lambda mask: mask, 5, 0.5),
            TypeError,
            "apply must give logits, floating point numbers, got bool",
        ),
        (lambda: fast_dropout_dense(MEAN, MEAN, jnp.ones((4, 3)), None, 0.5), ValueError, r"kernel must have shape \[C, D\]"),
        (lambda: fast_dropout_dense(MEAN, MEAN[:1], jnp.ones((5, 3)), None, 0.5), ValueError, "var must have shape"),
        (lambda: fast_dropout_dense(MEAN, MEAN, jnp.ones((5, 3)), jnp.ones(2), 0.5), ValueError, "bias must have shape"),
        (lambda: fast_dropout_dense(MEAN, MEAN, jnp.ones((5, 3)), None, 1.0), ValueError, "rate must be"),
        (lambda: relu_moments(MEAN, MEAN.astype(jnp.int32)), TypeError, "var must be an array of floating point numbers"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
