"""batch_norm with `where`: the statistics of what counts, and nothing of what does not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import AffineParams, RunningStats, batch_norm

PARAMS = AffineParams(jnp.asarray([0.5, 2, 3], jnp.float32), jnp.asarray([1, -1, 4], jnp.float32))
STATE = RunningStats(jnp.full(3, 5.0), jnp.full(3, 4.0))
compiled = jax.jit(batch_norm, static_argnames=("train", "unbiased"))


@pytest.mark.parametrize("unbiased", [False, True], ids=["biased", "unbiased"])
@pytest.mark.parametrize(
    "shape", [(8, 2, 4, 3), (8, 1, 4, 1), (8, 2, 1, 1), (8, 1, 1, 1), (1, 2, 4, 3), (1, 1, 1, 3), (1, 1, 1, 1)], ids=str
)
def test_statistics_are_those_of_the_counted_elements(shape: tuple[int, ...], unbiased: bool) -> None:
    """A mask of fewer elements counts for all that it is broadcast to. Pitfall 43."""
    where = jnp.asarray(np.random.default_rng(1).random(shape) < 0.6).at[0].set(True)
    x = data()
    y, state = compiled(PARAMS, STATE, x, train=True, where=where, momentum=0.8, unbiased=unbiased)
    expected = oracles.batch_norm(PARAMS, STATE, x, train=True, where=where, momentum=0.8, unbiased=unbiased)
    assert_allclose(y, expected.y, rtol=1e-5, atol=2e-5)
    assert_allclose(state.mean, expected.mean, rtol=1e-6, atol=1e-6)
    assert_allclose(state.var, expected.var, rtol=1e-6)


def test_one_counted_element_in_a_channel() -> None:
    x = data((5, 3))
    where = jnp.zeros((5, 1), bool).at[2].set(True)
    y, state = compiled(PARAMS, STATE, x, train=True, where=where, momentum=0.5, unbiased=True)
    assert_allclose(y[2], PARAMS.bias)
    assert_allclose(state.mean, 0.5 * STATE.mean + 0.5 * x[2], rtol=1e-6)
    assert_allclose(state.var, 0.5 * STATE.var)


def test_an_outlier_that_does_not_count_does_not_move_the_statistics() -> None:
    """Pitfall 44."""
    x = data((6, 3)).at[4].set(1e6)
    where = jnp.ones((6, 1), bool).at[4].set(False)
    _, state = compiled(PARAMS, STATE, x, train=True, where=where)
    _, expected = compiled(PARAMS, STATE, jnp.delete(x, 4, axis=0), train=True)
    assert_allclose(state.mean, expected.mean, rtol=1e-6, atol=1e-6)
    assert_allclose(state.var, expected.var, rtol=1e-6)
    _, counted_too = compiled(PARAMS, STATE, x, train=True)
    assert (jnp.abs(counted_too.mean - state.mean) > 100).all()


@pytest.mark.parametrize("padding", [np.nan, np.inf, -np.inf, 1e38, -3e38], ids=str)
@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
def test_padding_reaches_neither_outputs_nor_gradients(padding: float, train: bool) -> None:
    """Pitfall 40."""
    x, where = data(), counted()
    everywhere = jnp.broadcast_to(where, x.shape)
    dy = data(seed=8)

    @jax.jit
    def run(x: jax.Array) -> Any:
        def loss(params: AffineParams, x: jax.Array) -> Any:
            y, state = batch_norm(params, STATE, x, train=train, where=where)
            return jnp.sum(jnp.where(where, y, 0) * dy), (y, state)

        return jax.grad(loss, (0, 1), has_aux=True)(PARAMS, x)

    (dparams, dx), (y, state) = run(jnp.where(where, x, padding))
    (zero_dparams, zero_dx), (zero_y, zero_state) = run(jnp.where(where, x, 0))
    assert_array_equal(y[everywhere], zero_y[everywhere])
    assert_array_equal(dx, zero_dx)
    assert not dx[~everywhere].any()
    for got, right in zip(jax.tree.leaves((state, dparams)), jax.tree.leaves((zero_state, zero_dparams)), strict=True):
        assert_array_equal(got, right)


@pytest.mark.parametrize("padding", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
def test_what_neither_counts_nor_is_finite_gives_the_bias_and_no_gradient(padding: float, train: bool) -> None:
    x, where = data(), counted()
    everywhere = jnp.broadcast_to(where, x.shape)
    filled = jnp.where(where, x, padding)

    def loss(x: jax.Array) -> Any:
        y, _ = batch_norm(PARAMS, STATE, x, train=train, where=where)
        return jnp.sum(jnp.square(y)), y  # the loss sees padding too

    dx, y = jax.jit(jax.grad(loss, has_aux=True))(filled)
    assert_array_equal(y[~everywhere], jnp.broadcast_to(PARAMS.bias, x.shape)[~everywhere])
    assert not dx[~everywhere].any()
    assert jnp.isfinite(dx).all()
    assert dx[everywhere].any()


def test_a_nan_that_counts_is_seen_in_the_output() -> None:
    """It is an error of the caller's, and must not be hidden."""
    x = data((6, 3)).at[1, 2].set(jnp.nan)
    y, _ = compiled(PARAMS, STATE, x, train=True, where=jnp.ones((6, 1), bool))
    assert jnp.isnan(y[1, 2])


@pytest.mark.parametrize("fill", [None, np.nan], ids=["finite", "nan"])
def test_nothing_counted_leaves_the_state_and_uses_it(fill: float | None) -> None:
    """Pitfalls 37 and 38."""
    x = data((6, 3)) if fill is None else jnp.full((6, 3), fill)
    where = jnp.zeros((6, 1), bool)

    def loss(params: AffineParams, x: jax.Array) -> Any:
        y, state = batch_norm(params, STATE, x, train=True, where=where)
        return jnp.sum(jnp.square(y)), (y, state)

    gradient, (y, state) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(PARAMS, x)
    assert_array_equal(state.mean, STATE.mean)
    assert_array_equal(state.var, STATE.var)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, y)))
    if fill is None:
        assert_allclose(y, batch_norm(PARAMS, STATE, x, train=False)[0], rtol=1e-6, atol=1e-6)


def test_one_channel_without_a_counted_element() -> None:
    x = data((6, 3))
    where = jnp.ones((6, 3), bool).at[:, 1].set(False)
    y, state = compiled(PARAMS, STATE, x, train=True, where=where)
    assert (state.mean[1], state.var[1]) == (5, 4)
    assert (state.mean[jnp.array([0, 2])] != 5).all()
    assert_allclose(y[:, 1], batch_norm(PARAMS, STATE, x, train=False)[0][:, 1], rtol=1e-6)


def test_no_gradient_reaches_the_running_statistics_that_stand_in() -> None:
    where = jnp.ones((6, 3), bool).at[:, 1].set(False)

    def loss(state: RunningStats) -> jax.Array:
        return jnp.sum(jnp.sin(batch_norm(PARAMS, state, data((6, 3)), train=True, where=where)[0]))

    for leaf in jax.grad(loss)(STATE):
        assert_array_equal(leaf, jnp.zeros(3))


def test_a_mask_changes_nothing_in_inference_of_finite_numbers() -> None:
    x = data()
    y, _ = compiled(PARAMS, STATE, x, train=False, where=counted())
    assert_allclose(y, compiled(PARAMS, STATE, x, train=False)[0], rtol=1e-6, atol=1e-6)


def test_padding_with_uncounted_rows_changes_nothing() -> None:
    x = data((6, 3))
    padded = jnp.concatenate([x, jnp.full((3, 3), 77.0)])
    y, state = compiled(PARAMS, STATE, padded, train=True, where=(jnp.arange(9) < 6)[:, None])
    expected, expected_state = compiled(PARAMS, STATE, x, train=True)
    assert_allclose(y[:6], expected, rtol=1e-6, atol=1e-6)
    assert_allclose(state.var, expected_state.var, rtol=1e-6)


def test_counts_above_what_float32_counts_one_by_one() -> None:
    """A running sum of ones in float32 stops at 2^24 = 16,777,216."""
    rows = 2**24 + 2**20
    where = jnp.arange(rows)[:, None] % 16 != 0
    x = jnp.where(where, jnp.asarray(2.0), 500.0)
    _, state = compiled(
        AffineParams(None, None), RunningStats(jnp.zeros(1), jnp.ones(1)), x, train=True, where=where, momentum=0.0
    )
    assert_allclose(state.mean, [2.0], rtol=1e-6)
    assert_allclose(state.var, [0.0], atol=1e-10)
