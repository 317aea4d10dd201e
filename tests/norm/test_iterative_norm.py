"""Iterative normalization: the oracle, its limit, bad conditions, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import AffineParams, CovarianceStats, decorrelated_batch_norm, init_iterative_norm, iterative_norm

PLAIN = AffineParams(None, None)


def affine(channels: int) -> AffineParams:
    random = np.random.default_rng(1)
    return AffineParams(*(jnp.asarray(random.uniform(low, 3, channels), jnp.float32) for low in (0.5, -2)))


def state_of(channels: int, size: int) -> CovarianceStats:
    matrix = jnp.asarray(np.random.default_rng(6).normal(size=(channels // size, size, size)), jnp.float32)
    return CovarianceStats(jnp.linspace(-1, 2, channels), matrix @ matrix.mT + jnp.eye(size)[None])


def conditioned(condition: float, size: int = 8, dtype: Any = np.float64) -> jax.Array:
    """Vectors whose covariance has this condition number."""
    random = np.random.default_rng(3)
    directions, _ = np.linalg.qr(random.normal(size=(size, size)))
    white = random.normal(size=(512, size))
    white = np.linalg.qr(white - white.mean(0))[0] * np.sqrt(512)
    return jnp.asarray((white * np.sqrt(np.geomspace(1, 1 / condition, size))) @ directions.T + 2, dtype)


@pytest.mark.parametrize("size", [1, 3, 6])
@pytest.mark.parametrize("iterations", [1, 5, 9])
@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
def test_equals_the_oracle(size: int, iterations: int, train: bool, masked: bool) -> None:
    x, params, state = data((8, 3, 4, 6)), affine(6), state_of(6, size)
    options = {"train": train, "group_size": size, "iterations": iterations, "momentum": 0.8, "epsilon": 1e-3}
    options |= {"where": counted((8, 3, 4, 6)) if masked else None, "unbiased": masked}
    y, new = iterative_norm(params, state, x, **options)
    expected = oracles.iterative_norm(params, state, x, **options)
    assert_allclose(y, expected.y, rtol=1e-4, atol=5e-5)
    assert_allclose(new.mean, expected.mean, rtol=1e-5, atol=1e-6)
    assert_allclose(new.cov, expected.cov, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e6])
def test_many_iterations_are_zca_and_stay(condition: float) -> None:
    """Methods 3.17: the coupled form converges to the root, and does not leave it, at a condition number of 1e6."""
    with jax.enable_x64(True):
        x, state = conditioned(condition), CovarianceStats(jnp.zeros(8), jnp.eye(8)[None])
        wanted, _ = decorrelated_batch_norm(PLAIN, state, x, train=True, group_size=8, epsilon=0.0)
        for iterations in (40, 80):
            y, _ = iterative_norm(PLAIN, state, x, train=True, group_size=8, iterations=iterations, epsilon=0.0)
            assert_allclose(y, wanted, rtol=1e-7, atol=1e-7)
            assert_allclose(np.cov(np.asarray(y).T, bias=True), np.eye(8), atol=1e-7)


def test_whitened_variances_grow_with_the_iterations_up_to_1() -> None:
    """Methods 3.17."""
    x, state = conditioned(1e4, dtype=np.float32), CovarianceStats(jnp.zeros(8), jnp.eye(8)[None])
    before = np.zeros(8)
    for iterations in range(1, 12):
        y, _ = iterative_norm(PLAIN, state, x, train=True, group_size=8, iterations=iterations, epsilon=0.0)
        values = np.linalg.eigvalsh(np.cov(np.float64(y).T, bias=True))
        assert (values >= before - 1e-4).all()
        assert values.max() <= 1 + 1e-4
        before = values


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
def test_a_singular_covariance_is_finite_and_so_is_its_gradient(epsilon: float) -> None:
    x, state = data((3, 6)), state_of(6, 6)

    def run(x: jax.Array) -> jax.Array:
        return iterative_norm(PLAIN, state, x, train=True, group_size=6, epsilon=epsilon)[0]

    for given in (x, jnp.full_like(x, 2.0)):
        assert jnp.isfinite(run(given)).all()
        assert jnp.isfinite(jax.grad(lambda x: jnp.sum(jnp.sin(run(x))))(given)).all()


def test_a_new_one_is_the_identity_but_for_what_is_left_of_the_iterations() -> None:
    params, state = init_iterative_norm(6, group_size=3)
    x = data((8, 6))
    assert_allclose(iterative_norm(params, state, x, train=False, group_size=3, iterations=20, epsilon=0.0)[0], x, rtol=1e-5)
    assert_array_equal(state.cov, jnp.tile(jnp.eye(3), (2, 1, 1)))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        ({"iterations": 2.0}, TypeError, "iterations must be an int of at least 1, got 2.0"),
        ({"group_size": 4}, ValueError, "group_size must divide the number of channels, 6, got 4"),
        ({"where": jnp.ones((8, 6), bool)}, ValueError, "where must have size 1 along the channels"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        iterative_norm(affine(6), state_of(6, 3), data((8, 6)), **{"train": True, "group_size": 3, **options})
