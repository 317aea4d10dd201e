"""Max-norm (methods.md 4.15)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm.training import max_norm


def kernels() -> dict[str, Any]:
    random = np.random.default_rng(0)
    shapes = {"dense": (40, 6), "conv": (3, 3, 4, 5), "bias": (6,), "scalar": ()}
    return {name: jnp.asarray(random.normal(0, 1, shape), jnp.float32) for name, shape in shapes.items()}


def lengths(kernel: jax.Array) -> np.ndarray:
    return np.sqrt(np.sum(np.asarray(kernel, np.float64) ** 2, tuple(range(kernel.ndim - 1))))


def step(transformation: optax.GradientTransformation, params: Any, updates: Any) -> Any:
    return optax.apply_updates(params, transformation.update(updates, transformation.init(params), params)[0])


def test_units_are_shortened_to_the_limit_after_the_update() -> None:
    params, updates = kernels(), jax.tree.map(lambda a: 0.3 * jnp.cos(a), kernels())
    new = jax.jit(lambda *given: step(max_norm(6.2), *given))(params, updates)
    for name, moved in optax.apply_updates(params, updates).items():
        if moved.ndim < 2:
            assert_array_equal(new[name], moved)
            continue
        factor = np.minimum(1, 6.2 / lengths(moved))
        assert (factor == 1).any()
        assert (factor < 1).any()
        assert_allclose(new[name], moved * factor, rtol=1e-5, atol=1e-6)
        assert_array_equal(new[name][..., factor == 1], moved[..., factor == 1])
        assert (lengths(new[name]) < 6.2 * (1 + 1e-6)).all()


def test_it_is_idempotent() -> None:
    still = jax.tree.map(jnp.zeros_like, kernels())
    once = step(max_norm(2.0), kernels(), still)
    for a, b in zip(jax.tree.leaves(step(max_norm(2.0), once, still)), jax.tree.leaves(once), strict=True):
        assert_allclose(a, b, rtol=1e-6)


def test_limits_and_types() -> None:
    params = kernels()["dense"]
    assert_allclose(step(max_norm(0.0), params, params), jnp.zeros((40, 6)), atol=1e-6)
    zeros = jnp.zeros((4, 2))
    assert_array_equal(step(max_norm(0.0), zeros, zeros), zeros)
    half = params.astype(jnp.bfloat16)
    updates, _ = max_norm(2.0).update(0 * half, optax.EmptyState(), half)
    assert updates.dtype == jnp.bfloat16
    assert_allclose(lengths(optax.apply_updates(half, updates)), 2, rtol=0.01)


def test_a_network_is_trained_within_the_limit() -> None:
    x = jax.random.normal(jax.random.key(0), (64, 8))
    target = 9 * x @ jax.random.normal(jax.random.key(1), (8, 3))
    optimizer = optax.chain(optax.adam(0.1), max_norm(4.0))

    def train(carry: Any, _: None) -> Any:
        params, state = carry
        gradient = jax.grad(lambda w: jnp.mean((x @ w - target) ** 2))(params)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = jnp.zeros((8, 3))
    _, path = jax.lax.scan(train, (params, optimizer.init(params)), None, 200)
    found = np.stack([lengths(kernel) for kernel in path])
    assert (found < 4 * (1 + 1e-5)).all()
    assert_allclose(found[-1], 4, rtol=1e-5)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="limit must be in"):
        max_norm(-1.0)
    with pytest.raises(ValueError, match="params must be given to the update of max_norm"):
        max_norm(1.0).update(jnp.ones((2, 2)), optax.EmptyState())
