"""Properties that hold for all inputs, over inputs that hypothesis finds; the same ones in every run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import AffineParams, RunningStats, batch_norm, classic_dropout, dropout, uniform_dropout

SHAPES = ((1,), (5,), (9, 1), (7, 5), (0, 3), (4, 0, 3), (2, 3, 5), (1, 1, 3), (3, 2, 4, 5), (2, 1, 3, 2, 3))
NO_PARAMS = AffineParams(None, None)

shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**32 - 1)
momenta = st.floats(0, 1, width=32)
scales = st.sampled_from([1e-3, 0.3, 1.0, 30.0, 1e6])
offsets = st.sampled_from([0.0, -3.0, 100.0, 1e4])
rates = st.one_of(st.sampled_from([0.0, 1.0, 1e-7, 0.3, 0.999999]), st.floats(0, 1, width=32))
compiled = jax.jit(batch_norm, static_argnames=("train", "unbiased"))


def numbers(seed: int, shape: tuple[int, ...], offset: float = 0.0, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(offset, scale, shape), jnp.float32)


def some(seed: int, shape: tuple[int, ...]) -> jax.Array:
    """A mask with any share of True, none and all among them."""
    random = np.random.default_rng(seed)
    return jnp.asarray(random.random(shape) < random.choice([0, 0.1, 0.5, 0.9, 1]))


@jax.jit
def pooled(x: jax.Array, where: jax.Array) -> tuple[jax.Array, RunningStats]:
    def part(x: jax.Array, where: jax.Array) -> tuple[jax.Array, RunningStats]:
        return batch_norm(NO_PARAMS, state_of(3), x, train=True, where=where, axis_name="part")

    return jax.vmap(part, axis_name="part")(x, where)


def state_of(features: int) -> RunningStats:
    return RunningStats(jnp.full(features, 3.0), jnp.full(features, 7.0))


def train(x: jax.Array, **options: Any) -> tuple[jax.Array, RunningStats]:
    return compiled(NO_PARAMS, state_of(x.shape[-1]), x, train=True, **options)


@given(shapes, seeds, offsets, scales, momenta, st.booleans())
def test_training_is_the_oracle_s(shape: Any, seed: int, offset: float, scale: float, momentum: float, unbiased: bool) -> None:
    x, where = numbers(seed, shape, offset * scale, scale), some(seed, shape)
    y, state = train(x, where=where, momentum=momentum, unbiased=unbiased)
    features = shape[-1]
    expected = oracles.batch_norm(NO_PARAMS, state_of(features), x, train=True, where=where, momentum=momentum, unbiased=unbiased)
    axes = tuple(range(len(shape) - 1))
    mean, var, n = (np.reshape(part, -1) for part in oracles.moments(x, axes, where))
    counted = np.broadcast_to(n > 0, features)
    assert_allclose(state.mean, np.where(counted, expected.mean, 3), rtol=1e-5, atol=1e-5 * scale)
    assert_allclose(state.var, np.where(counted, expected.var, 7), rtol=1e-4, atol=1e-5 * scale**2)
    # An error of one rounding of x, as y sees it.
    tolerance = 1e-5 + 16 * 2**-23 * (np.abs(mean) + np.abs(x)) / np.sqrt(var + 1e-5)
    assert (np.abs(y - expected.y) <= np.where(counted, tolerance, np.inf)).all()
    assert jnp.isfinite(y).all()


@given(shapes, seeds, offsets, scales)
def test_inference_is_the_oracle_s_and_a_function_of_each_element(shape: Any, seed: int, offset: float, scale: float) -> None:
    x = numbers(seed, shape, offset, scale)
    y, state = compiled(NO_PARAMS, state_of(shape[-1]), x, train=False)
    assert_allclose(y, oracles.batch_norm(NO_PARAMS, state_of(shape[-1]), x, train=False).y, rtol=1e-5, atol=1e-6)
    assert_array_equal(state.mean, state_of(shape[-1]).mean)
    reversed_y, _ = compiled(NO_PARAMS, state_of(shape[-1]), x[::-1], train=False)
    if len(shape) > 1:
        assert_array_equal(reversed_y, y[::-1])


@given(seeds, st.integers(-1000, 1000))
def test_a_shift_of_x_shifts_the_mean_alone(seed: int, shift: int) -> None:
    """By integers of numbers on a grid, so that the sum itself is not rounded."""
    x = jnp.round(numbers(seed, (7, 5), 2, 3) * 64) / 64
    (y, state), (moved, moved_state) = train(x, momentum=0.0), train(x + shift, momentum=0.0)
    assert_allclose(moved, y, rtol=1e-4, atol=2e-4)
    assert_allclose(moved_state.mean, state.mean + shift, rtol=1e-6, atol=1e-5)
    assert_allclose(moved_state.var, state.var, rtol=1e-5)


@given(seeds, st.sampled_from([2.0**-6, 0.5, 4.0, 2.0**10]))
def test_a_factor_of_x_and_of_the_root_of_epsilon_changes_nothing(seed: int, factor: float) -> None:
    x = numbers(seed, (7, 5), 2, 3)
    (y, state), (scaled, scaled_state) = train(x, epsilon=1e-3), train(x * factor, epsilon=1e-3 * factor**2, momentum=0.99)
    assert_allclose(scaled, y, rtol=1e-5, atol=1e-5)
    assert_allclose(scaled_state.mean - 0.99 * 3, (state.mean - 0.99 * 3) * factor, rtol=1e-3, atol=1e-5)


@given(seeds)
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    x, where = numbers(seed, (9, 4, 3), 5), some(seed, (9, 1, 1))
    order = np.random.default_rng(seed).permutation(9)
    (y, state), (other, other_state) = train(x, where=where), train(x[order], where=where[order])
    assert_allclose(other, y[order], rtol=1e-5, atol=1e-5)
    assert_allclose(other_state.var, state.var, rtol=1e-5)


@given(seeds, st.sampled_from([0.0, 1e30, -1e30, np.nan, np.inf]))
def test_padding_does_not_matter(seed: int, padding: float) -> None:
    x = numbers(seed, (6, 3), 5)
    padded = jnp.concatenate([jnp.full((2, 3), padding), x, jnp.full((1, 3), padding)])
    where = ((jnp.arange(9) >= 2) & (jnp.arange(9) < 8))[:, None]
    (y, state), (other, other_state) = train(x), train(padded, where=where)
    assert_allclose(other[2:8], y, rtol=1e-5, atol=1e-5)
    assert_allclose(other_state.mean, state.mean, rtol=1e-6)
    assert_allclose(other_state.var, state.var, rtol=1e-5)


@given(seeds, offsets)
def test_parts_pooled_by_name_are_the_whole(seed: int, offset: float) -> None:
    x, where = numbers(seed, (4, 6, 3), offset, 2), some(seed, (4, 6, 1))
    y, states = pooled(x, where)
    whole, state = train(x.reshape(24, 3), where=where.reshape(24, 1))
    assert_allclose(y.reshape(24, 3), whole, rtol=1e-5, atol=1e-5 * (1 + offset / 10))
    assert all(np.array_equal(states.mean[0], other) for other in states.mean)
    assert_allclose(states.mean[0], state.mean, rtol=1e-6)
    assert_allclose(states.var[0], state.var, rtol=1e-5)


@given(shapes, seeds, rates, st.sampled_from([16, 32]))
def test_dropout_gives_zero_or_the_quotient_as_the_oracle_chooses(shape: Any, seed: int, rate: float, bits: int) -> None:
    x = numbers(seed, shape, 3, 2)
    y = dropout(jax.random.key(seed), x, rate, bits=bits)
    drawn = 32 if 0 < min(rate, 1 - rate) < 2**-12 else bits
    mask = oracles.keep_mask(jax.random.key_data(jax.random.key(seed)), shape, rate, drawn)
    assert_array_equal(y != 0, mask)
    kept = np.asarray(x, np.float64)[mask] / oracles.realised(rate, drawn)
    assert_allclose(np.asarray(y)[mask], kept, rtol=3e-7)
    assert_array_equal(classic_dropout(jax.random.key(seed), x, rate, bits=bits), np.where(mask, x, np.float32(0)))


@given(seeds, st.sets(st.integers(0, 3)), rates)
@settings(max_examples=15)
def test_shared_axes_repeat_one_draw(seed: int, dims: set[int], rate: float) -> None:
    x = jnp.ones((3, 2, 4, 5))
    y = dropout(jax.random.key(seed), x, rate, broadcast_dims=tuple(dims))
    once = dropout(jax.random.key(seed), jnp.ones(tuple(1 if a in dims else n for a, n in enumerate(x.shape))), rate)
    assert_array_equal(y, jnp.broadcast_to(once, x.shape))


@given(seeds, st.floats(0, 1, width=32))
def test_uniform_noise_stays_within_its_width(seed: int, beta: float) -> None:
    y = uniform_dropout(jax.random.key(seed), jnp.ones((50, 3)), beta)
    assert (np.abs(np.asarray(y, np.float64) - 1) <= beta + 2e-7).all()
