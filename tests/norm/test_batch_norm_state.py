"""The running statistics: the formula, what leaves them alone, and what must not harm them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import AffineParams, RunningStats, batch_norm, init_batch_norm

compiled = jax.jit(batch_norm, static_argnames=("train", "unbiased"))
NO_PARAMS = AffineParams(None, None)


def state_of(mean: float, var: float, features: int = 3) -> RunningStats:
    return RunningStats(jnp.full(features, mean, jnp.float32), jnp.full(features, var, jnp.float32))


def rows(*numbers: float) -> jax.Array:
    return jnp.asarray(numbers, jnp.float32)[:, None]


@pytest.mark.parametrize("traced", [False, True], ids=["static", "traced"])
def test_momentum_is_the_weight_of_the_old_statistics(traced: bool) -> None:
    """Pitfall 45."""
    x = rows(8, 12)  # mean 10, variance 4
    for momentum, mean, var in ((0.9, 1.0, 1.3), (0.0, 10.0, 4.0), (1.0, 0.0, 1.0)):
        given = jnp.float32(momentum) if traced else momentum
        call = compiled if traced else batch_norm
        _, state = call(NO_PARAMS, state_of(0, 1, 1), x, train=True, momentum=given)
        assert_allclose(state.mean, [mean], rtol=1e-6)
        assert_allclose(state.var, [var], rtol=1e-6)
    _, state = batch_norm(NO_PARAMS, state_of(0, 1, 1), x, train=True)
    assert_allclose(state.mean, [0.1], rtol=1e-6)


def test_both_statistics_move_from_a_state_that_is_not_fresh() -> None:
    """Pitfall 50."""
    x = data((64, 3))
    _, state = compiled(NO_PARAMS, state_of(3, 7), x, train=True, momentum=0.75)
    mean, var, _ = oracles.moments(x, (0,))
    assert_allclose(state.mean, 0.75 * 3 + 0.25 * mean[0], rtol=1e-6)
    assert_allclose(state.var, 0.75 * 7 + 0.25 * var[0], rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
def test_variance_is_biased_unless_it_is_asked_not_to_be(masked: bool) -> None:
    """Pitfall 46."""
    x = rows(1, 2, 3, 4, *([1e6] if masked else []))
    where = jnp.asarray([True] * 4 + [False])[:, None] if masked else None
    for call in (batch_norm, compiled):
        for unbiased, var in ((False, 1.25), (True, 5 / 3)):
            _, state = call(NO_PARAMS, state_of(3, 7, 1), x, train=True, momentum=0.0, unbiased=unbiased, where=where)
            assert_allclose(state.var, [var], rtol=1e-6)


def test_variance_is_as_biased_in_every_rank_and_on_several_devices() -> None:
    """Pitfall 46."""
    for unbiased, var in ((False, 1.25), (True, 5 / 3)):
        train = functools.partial(batch_norm, NO_PARAMS, state_of(3, 7, 1), train=True, momentum=0.0, unbiased=unbiased)
        for shape in ((2, 2, 1), (1, 2, 2, 1), (1, 4, 1, 1, 1)):
            assert_allclose(train(rows(1, 2, 3, 4).reshape(shape))[1].var, [var], rtol=1e-6)
        where = jnp.asarray([[[True]] * 3, [[True], [False], [False]]])
        for parts in ((rows(1, 2, 3, 4).reshape(2, 2, 1),), (rows(1, 2, 3, 4, 1e6, 1e6).reshape(2, 3, 1), where)):
            part = lambda x, where=None, train=train: train(x, where=where, axis_name="d")[1].var  # noqa: E731
            assert_allclose(jax.vmap(part, axis_name="d")(*parts), [[var]] * 2, rtol=1e-6)


def test_normalization_itself_is_never_unbiased() -> None:
    y, _ = batch_norm(NO_PARAMS, state_of(3, 7, 1), rows(1, 2, 3, 4), train=True, unbiased=True, epsilon=0.0)
    assert_allclose(y, (rows(1, 2, 3, 4) - 2.5) / np.sqrt(1.25), rtol=1e-6)


def test_inference_returns_the_state_itself() -> None:
    state = state_of(3, 7)
    _, new = compiled(NO_PARAMS, state, data((5, 3)), train=False)
    assert_array_equal(new.mean, state.mean)
    assert_array_equal(new.var, state.var)


def test_a_mean_of_all_batches_needs_no_counter() -> None:
    """Pitfall 57."""
    batches = [data((6, 3), seed=seed) for seed in range(4)]
    state = state_of(3, 7)
    for step, x in enumerate(batches):
        _, state = compiled(NO_PARAMS, state, x, train=True, momentum=step / (step + 1))
    means, variances = zip(*(oracles.moments(x, (0,))[:2] for x in batches), strict=True)
    assert_allclose(state.mean, np.mean(means, 0)[0], rtol=1e-5)
    assert_allclose(state.var, np.mean(variances, 0)[0], rtol=1e-5)


def test_averages_start_from_the_state_that_is_given_without_correction() -> None:
    """Pitfall 49: and nothing counts the steps."""
    x = jnp.full((4, 1), 10.0)
    _, state = init_batch_norm(1)
    for _ in range(10):
        _, state = compiled(NO_PARAMS, state, x, train=True, momentum=0.99)
    assert_allclose(state.mean, [10 * (1 - 0.99**10)], rtol=1e-5)
    assert_allclose(state.var, [0.99**10], rtol=1e-5)
    step = lambda _, state: batch_norm(NO_PARAMS, state, x, train=True, momentum=0.99)[1]  # noqa: E731
    state = jax.jit(lambda state: jax.lax.fori_loop(0, 20_000, step, state))(state)  # until 0.99^n is below all numbers
    assert_allclose(state.mean, [10], rtol=1e-5)
    assert 0 <= state.var[0] < 1e-30


def test_two_calls_in_a_row_and_two_calls_of_the_same_state() -> None:
    """Pitfall 54."""
    x = data((6, 1))
    once = batch_norm(NO_PARAMS, state_of(0, 1, 1), x, train=True, momentum=0.9)[1]
    twice = batch_norm(NO_PARAMS, once, x, train=True, momentum=0.9)[1]
    mean, _, _ = oracles.moments(x, (0,))
    assert_allclose(once.mean, 0.1 * mean[0], rtol=1e-5)
    assert_allclose(twice.mean, 0.19 * mean[0], rtol=1e-5)


def test_no_derivative_averages_once_more() -> None:
    """Pitfall 58."""
    x, old = data((6, 3)), state_of(3, 7)
    _, once = batch_norm(NO_PARAMS, old, x, train=True, momentum=0.9)

    def loss(x: jax.Array) -> tuple[jax.Array, RunningStats]:
        y, state = batch_norm(NO_PARAMS, old, x, train=True, momentum=0.9)
        return jnp.sum(jnp.sin(y)), state

    def gradient(x: jax.Array) -> tuple[jax.Array, RunningStats]:
        return jax.grad(loss, has_aux=True)(x)

    found = [
        jax.vjp(loss, x, has_aux=True)[2],
        jax.jvp(loss, (x,), (x,), has_aux=True)[2],
        jax.linearize(loss, x, has_aux=True)[2],
        jax.value_and_grad(jax.checkpoint(loss), has_aux=True)(x)[0][1],
        jax.jvp(gradient, (x,), (x,), has_aux=True)[2],
        jax.vjp(gradient, x, has_aux=True)[2],
    ]
    for state in found:
        jax.tree.map(assert_array_equal, state, once)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=["float32", "bfloat16", "float16"])
def test_a_thousand_small_updates_arrive(dtype: Any) -> None:
    """Pitfall 20."""
    x = (data((16, 3)) + 1).astype(dtype)
    mean, var, _ = oracles.moments(np.asarray(x, np.float64), (0,))

    def step(state: RunningStats, _: None) -> tuple[RunningStats, None]:
        return batch_norm(NO_PARAMS, state, x, train=True, momentum=0.99)[1], None

    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, None, 1000))(state_of(0, 1))
    assert (state.mean.dtype, state.var.dtype) == (jnp.float32, jnp.float32)
    assert np.all(np.abs(state.mean - mean[0]) <= 1e-3 * (1 + np.abs(mean[0])))
    assert np.all(np.abs(state.var - var[0]) <= 1e-3 * (1 + np.abs(var[0])))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("unbiased", [False, True], ids=["biased", "unbiased"])
def test_what_is_not_finite_in_one_channel_harms_only_the_step_of_that_channel(bad: float, unbiased: bool) -> None:
    """Pitfall 53."""
    x = data((6, 3))
    for row in (0, 3):
        _, state = compiled(NO_PARAMS, state_of(3, 7), x.at[row, 1].set(bad), train=True, unbiased=unbiased)
        _, clean = compiled(NO_PARAMS, state_of(3, 7), x, train=True, unbiased=unbiased)
        for got, start, right in zip(state, state_of(3, 7), clean, strict=True):
            assert got[1] == start[1]
            assert_array_equal(got[jnp.array([0, 2])], right[jnp.array([0, 2])])
            assert (got[jnp.array([0, 2])] != start[jnp.array([0, 2])]).all()


def test_a_variance_that_overflows_leaves_mean_and_variance() -> None:
    """A finite mean does not move alone: the two belong together."""
    x = data((6, 3)).at[0, 0].set(1e20)
    _, state = compiled(NO_PARAMS, state_of(3, 7), x, train=True)
    assert (state.mean[0], state.var[0]) == (3, 7)
    assert jnp.isfinite(state.var).all()


def test_an_all_nan_batch_changes_nothing_and_the_next_one_counts() -> None:
    """Pitfall 53."""
    x = data((6, 3))
    _, state = compiled(NO_PARAMS, state_of(3, 7), jnp.full_like(x, jnp.nan), train=True)
    assert_array_equal(state.mean, jnp.full(3, 3.0))
    assert_array_equal(state.var, jnp.full(3, 7.0))
    _, after = compiled(NO_PARAMS, state, x, train=True)
    _, expected = compiled(NO_PARAMS, state_of(3, 7), x, train=True)
    assert_array_equal(after.mean, expected.mean)


def test_initial_values_types_and_parts() -> None:
    params, state = init_batch_norm(5, param_dtype=jnp.bfloat16)
    assert_array_equal(params.scale, jnp.ones(5, jnp.bfloat16))
    assert_array_equal(params.bias, jnp.zeros(5, jnp.bfloat16))
    assert (params.scale.dtype, params.bias.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert_array_equal(state.mean, jnp.zeros(5))
    assert_array_equal(state.var, jnp.ones(5))
    assert init_batch_norm(2, use_scale=False)[0].scale is None
    assert init_batch_norm(2, use_bias=False)[0].bias is None
    _, complex_state = init_batch_norm(2, dtype=jnp.complex64)
    assert (complex_state.mean.dtype, complex_state.var.dtype) == (jnp.complex64, jnp.float32)
