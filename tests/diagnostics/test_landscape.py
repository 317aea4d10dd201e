"""The loss along its gradient, against quadratic losses, of which it is known exactly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxnorm.diagnostics import loss_landscape

RANDOM = np.random.default_rng(0)
ROOT = RANDOM.normal(size=(6, 6)) / 2
H = ROOT @ ROOT.T
W = RANDOM.normal(size=6)
STEPS = np.array([0.1, 0.5, 2.0])


def quadratic(params: Any, hessian: jax.Array) -> jax.Array:
    w = jnp.concatenate(params)
    return w @ hessian @ w / 2


PARAMS = [jnp.asarray(W[:2], jnp.float32), jnp.asarray(W[2:], jnp.float32)]
HESSIAN = jnp.asarray(H, jnp.float32)


RUN = jax.jit(lambda steps: loss_landscape(quadratic, PARAMS, HESSIAN, steps))


def test_is_that_of_a_quadratic_loss() -> None:
    g = H @ W
    moved = W - STEPS[:, None] * g
    losses, changes = (moved @ H * moved).sum(1) / 2, STEPS * np.linalg.norm(H @ g)
    found = RUN(STEPS.astype(np.float32))
    assert_allclose(found.losses, losses, rtol=1e-5)
    assert_allclose(found.loss_band, [losses.min(), losses.max()], rtol=1e-5)
    assert_allclose(found.gradient_changes, changes, rtol=1e-5)
    assert_allclose(found.gradient_band, changes[[0, -1]], rtol=1e-5)
    assert_allclose(found.smoothness, np.linalg.norm(H @ g) / np.linalg.norm(g), rtol=1e-5)
    assert found.smoothness <= np.linalg.eigvalsh(H).max() * (1 + 1e-5)


def test_a_step_of_zero_gives_the_loss_itself() -> None:
    found = RUN(jnp.asarray([0.0, 0.5, 0.5]))
    assert_allclose(found.losses[0], W @ H @ W / 2, rtol=1e-5)
    assert found.gradient_changes[0] == 0
    assert_allclose(found.smoothness, RUN(jnp.full(3, 0.5)).smoothness, rtol=1e-5)


def test_a_linear_loss_is_as_smooth_as_can_be_and_one_without_a_gradient_has_no_smoothness() -> None:
    run = jax.jit(lambda a: loss_landscape(lambda w, a: w @ a, jnp.ones(3), a, [1.0]).smoothness)
    assert run(jnp.arange(3.0)) == 0
    assert jnp.isnan(run(jnp.zeros(3)))


def test_traced_steps_compile_once_and_seeds_are_lanes() -> None:
    count = 0

    def loss(w: Any, hessian: jax.Array) -> jax.Array:
        nonlocal count
        count += 1
        return quadratic(w, hessian)

    run = jax.jit(jax.vmap(lambda w, steps: loss_landscape(loss, w, HESSIAN, steps), (0, None)))
    lanes = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), PARAMS)
    found = run(lanes, jnp.asarray([0.1, 0.2, 0.3]))
    traced = count
    run(lanes, jnp.asarray([1.0, 2.0, 3.0]))
    assert count == traced
    own = RUN(jnp.asarray([0.1, 0.2, 0.3]))
    assert_allclose(found.losses, np.stack([own.losses, 4 * np.asarray(own.losses)]), rtol=1e-5)


def test_half_precision_moves_by_what_it_can_hold() -> None:
    params = jnp.ones(4, jnp.bfloat16)
    found = jax.jit(lambda w: loss_landscape(lambda w, _: jnp.sum(w * w), w, None, [0.25]))(params)
    assert found.losses.dtype == found.gradient_changes.dtype == jnp.float32
    assert_allclose([found.losses[0], found.gradient_changes[0], found.smoothness], [1, 2, 2])


@pytest.mark.parametrize(
    ("steps", "error", "said"),
    [
        (0.1, ValueError, r"step_sizes must have shape \[steps\], at least one, got \[\]"),
        ([], ValueError, "step_sizes must have shape"),
        ([0.1, -1.0], ValueError, "step_sizes must be in"),
        ([True], TypeError, "step_sizes must be a real number"),
    ],
)
def test_bad_input_is_named(steps: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        loss_landscape(quadratic, PARAMS, HESSIAN, steps)
