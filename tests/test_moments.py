"""Moments and their union against the oracle, in all shapes, masks and groups."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from jax import export
from numpy.testing import assert_allclose, assert_array_equal
from promises import assert_higher_derivatives

from jaxnorm._moments import combine_moments, moments, to_average
from jaxnorm._running import update_running
from jaxnorm._types import Moments, RunningStats, real_dtype, wide_dtype


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2), (0, 1, 2, 3), (3,), ()], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64], ids=["float32", "complex64"])
def test_moments_equal_the_oracle(axes: tuple[int, ...], masked: bool, dtype: Any) -> None:
    x, where = data(dtype=dtype), counted() if masked else None
    got = jax.jit(lambda x: moments(x, axes, where=where))(x)
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    mean, var, n = oracles.moments(x, axes, where)
    assert [leaf.shape for leaf in got] == [kept] * 3
    assert_allclose(got.mean, mean.reshape(kept), rtol=1e-5, atol=1e-6)
    assert_allclose(got.var, var.reshape(kept), rtol=1e-5, atol=1e-6)
    assert_array_equal(got.n, np.broadcast_to(n, mean.shape).reshape(kept))


@pytest.mark.parametrize("counts", [(5, 3, 8, 1), (4, 0), (0, 4), (0, 0), (1, 1, 1), (7,)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64], ids=["float32", "complex64"])
def test_moments_of_a_union(counts: tuple[int, ...], dtype: Any) -> None:
    whole = data((sum(counts), 3), dtype) + 100
    starts = np.cumsum((0, *counts))
    parts = [moments(whole[a:b], (0,)) for a, b in itertools.pairwise(starts)]
    together = combine_moments(Moments(*(jnp.stack(leaves) for leaves in zip(*parts, strict=True))))
    mean, var, n = oracles.moments(whole, (0,))
    assert_allclose(together.mean, mean[0], rtol=1e-6)
    assert_allclose(together.var, var[0], rtol=1e-5, atol=1e-6)
    assert_array_equal(together.n, np.broadcast_to(n[0], (3,)))


def test_a_union_of_parts_far_from_zero_and_far_from_each_other() -> None:
    """The variance of parts is pooled with the distance of their means, and none of it cancels."""
    random = np.random.default_rng(0)
    whole = np.concatenate([random.normal(1e4, 1, (50, 3)), random.normal(1e4 + 7, 1, (9, 3))]).astype(np.float32)
    parts = [moments(jnp.asarray(part), (0,)) for part in (whole[:50], whole[50:])]
    together = combine_moments(Moments(*(jnp.stack(leaves) for leaves in zip(*parts, strict=True))))
    mean, var, _ = oracles.moments(whole, (0,))
    assert_allclose(together.mean, mean[0], rtol=1e-7)
    assert_allclose(together.var, var[0], rtol=1e-3)


def test_a_union_of_equal_constants_has_no_variance() -> None:
    constant = jnp.full((4, 3), 123456789.0)
    parts = Moments(constant, jnp.zeros((4, 3)), jnp.asarray([[5.0] * 3, [3.0] * 3, [8.0] * 3, [1.0] * 3]))
    together = combine_moments(parts)
    assert_array_equal(together.mean, constant[0])
    assert_array_equal(together.var, jnp.zeros(3))


def test_types_of_statistics() -> None:
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        assert wide_dtype(dtype) == jnp.float32
    assert wide_dtype(jnp.float64) == np.float64
    assert wide_dtype(jnp.complex64) == np.complex64
    assert real_dtype(jnp.complex64) == np.float32
    assert real_dtype(jnp.float64) == np.float64


@pytest.mark.parametrize("unbiased, expected", [(False, 2), (True, 2 * 4 / 3)], ids=["biased", "unbiased"])
def test_the_variance_to_average(unbiased: bool, expected: float) -> None:
    batch = Moments(jnp.zeros(2), jnp.full(2, 2.0), jnp.asarray([4.0, 1.0]))
    assert_allclose(to_average(batch.var, batch.n, unbiased), [expected, 2])


def test_running_update_keeps_what_is_not_trusted() -> None:
    state = RunningStats(jnp.full(3, 3.0), jnp.full(3, 7.0))
    batch = RunningStats(jnp.asarray([1.0, jnp.nan, 1]), jnp.asarray([2, 2, jnp.inf]))
    trusted = RunningStats(*[jnp.asarray([True, False, False])] * 2)
    new = update_running(state, batch, trusted, (np.float32(0.5), np.float32(0.5)))
    assert_allclose(new.mean, [2, 3, 3])
    assert_allclose(new.var, [4.5, 7, 7])


GUESSES = {
    "none": None,
    "0": 0.0,
    "near": "mean",
    "beside": 13.0,
    "far": 1e4,
    "farther": -1e30,
    "huge": 3e38,
    "nan": np.nan,
    "inf": -np.inf,
}
guesses = pytest.mark.parametrize("near", GUESSES.values(), ids=GUESSES.keys())
platforms = pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])


def moments_of(
    x: Any, axes: tuple[int, ...], *, near: Any, platform: str = "cpu", where: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance from a guess of this value, by the program that this platform is given."""
    x = jnp.asarray(x)
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    if near == "mean":
        near = oracles.moments(x, axes, where)[0].reshape(kept)
    guess = None if near is None else jnp.broadcast_to(jnp.asarray(near, x.dtype), kept)
    run = jax.jit(lambda x, guess, where: moments(x, axes, near=guess, where=where)[:2])
    exported = export.export(run, platforms=[platform])(x, guess, where)
    mean, var = dataclasses.replace(exported, platforms=("cpu",)).call(x, guess, where)
    return np.asarray(mean), np.asarray(var)


@platforms
@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2, 3), (3,), ()], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64], ids=["float32", "complex64"])
def test_every_platform_s_moments_equal_the_oracle(platform: str, axes: tuple[int, ...], dtype: Any) -> None:
    """Pitfall 27: by the programs, on this CPU."""
    x = data(dtype=dtype)
    mean, var, _ = oracles.moments(x, axes)
    got_mean, got_var = moments_of(x, axes, near=1.0, platform=platform)
    assert_allclose(got_mean, np.squeeze(mean, axes), rtol=1e-5, atol=1e-6)
    assert_allclose(got_var, np.squeeze(var, axes), rtol=1e-5, atol=1e-6)


@platforms
@guesses
def test_only_what_counts_is_counted(platform: str, near: Any) -> None:
    x, where = data(), jnp.broadcast_to(counted(), (8, 2, 4, 3))
    bad = jnp.where(where, x, jnp.asarray([jnp.nan, jnp.inf, 1e38], jnp.float32))
    mean, var, _ = oracles.moments(x, (1, 2), where)
    has_some = np.asarray(where.any((1, 2)))
    got = moments_of(bad, (1, 2), near=0.5 if near == "mean" else near, platform=platform, where=where)
    for ours, theirs in zip(got, (mean, var), strict=True):
        assert_allclose(ours[has_some], np.squeeze(theirs, (1, 2))[has_some], rtol=1e-5, atol=1e-6)


@guesses
@pytest.mark.parametrize("mean", [0.0, 1e4, -1e5, 1e6], ids=str)
@pytest.mark.parametrize("outlier", ["none", "first", "zeros", "corners"])
def test_nothing_cancels_whatever_the_guess(near: Any, mean: float, outlier: str) -> None:
    """Neither for a mean far from zero nor where some elements are remote from the others."""
    x = np.random.default_rng(0).normal(mean, 1, (64, 32, 32, 4)).astype(np.float32)
    if outlier == "first":
        x[0, 0, 0] = 1e4 - mean
    if outlier == "zeros":
        x[:4] = 0
    if outlier == "corners":
        x[:, 0, 0] = 0
    exact_mean, exact_var, _ = oracles.moments(x, (0, 1, 2))
    got_mean, got_var = moments_of(x, (0, 1, 2), near=near)
    assert_allclose(got_mean, np.squeeze(exact_mean), rtol=3e-7, atol=1e-5 * float(np.sqrt(exact_var.max())))
    assert_allclose(got_var, np.squeeze(exact_var), rtol=2e-5)


@pytest.mark.parametrize("deviations", [1.0, 2.7, 2.9, 16.0, 256.0, 4096.0])
def test_the_guess_is_good_or_the_sums_are_taken_again(deviations: float) -> None:
    """On both sides of the distance that decides, the variance is within a few roundings of a sum of so many numbers."""
    x = np.random.default_rng(0).normal(7, 3, (64, 32, 32, 4)).astype(np.float32)
    _, exact, _ = oracles.moments(x, (0, 1, 2))
    _, var = moments_of(x, (0, 1, 2), near=7 + 3 * deviations)
    assert_allclose(var, np.squeeze(exact), rtol=5e-6)


@platforms
@pytest.mark.parametrize("near", [None, 0.1, 1e4, np.nan], ids=str)
@pytest.mark.parametrize("value", [123456789.0, -3.3, 0.0, 1e30], ids=str)
def test_a_constant_has_no_variance(platform: str, near: Any, value: float) -> None:
    mean, var = moments_of(np.full((64, 32, 3), value, np.float32), (0, 1), near=near, platform=platform)
    assert_array_equal(mean, np.full(3, value, np.float32))
    overflows = near is None and value == 1e30  # the square of what the first sum is rounded by
    assert_array_equal(var, np.full(3, np.inf if overflows else 0))


@platforms
def test_what_is_not_finite_is_told(platform: str) -> None:
    x = np.array(data((64, 3)))
    x[5, 0], x[7, 1] = np.nan, np.inf
    mean, var = moments_of(x, (0,), near=0.3, platform=platform)
    assert not np.isfinite(mean[:2]).any()
    assert not np.isfinite(var[:2]).any()
    assert np.isfinite([mean[2], var[2]]).all()


def test_lanes_of_vmap_are_exact_each_from_its_own_guess() -> None:
    x = jnp.stack([data((64, 3)), data((64, 3)) + 1e4, data((64, 3), seed=1) - 1e6])
    guesses = jnp.asarray([[0.0] * 3, [0.0] * 3, [jnp.nan] * 3])
    got = jax.vmap(lambda x, guess: moments(x, (0,), near=guess))(x, guesses)
    mean, var, _ = oracles.moments(x, (1,))
    assert_allclose(got.mean, mean[:, 0], rtol=1e-6, atol=1e-5)
    assert_allclose(got.var, var[:, 0], rtol=1e-5)


@pytest.mark.parametrize("near", [pytest.param(0.0, marks=pytest.mark.slow), 1e4], ids=["near", "far"])
def test_derivatives_in_both_modes_through_both_branches(near: float) -> None:
    with jax.enable_x64(True):
        x, where = data((6, 4, 3), jnp.float64), counted((6, 4, 3))
        weights = jnp.asarray([0.3, -1, 2])

        def f(x: jax.Array) -> jax.Array:
            mean, var, _ = moments(x, (0, 1), near=jnp.full(3, near), where=where)
            return jnp.sum(weights * (jnp.sin(mean) + var**1.5))

        assert_higher_derivatives(f, x)


def test_no_gradient_flows_into_the_guess() -> None:
    gradient = jax.grad(lambda near: jnp.sum(moments(data((64, 3)), (0,), near=near).var))(jnp.asarray([3.0, 0.5, 1e4]))
    assert_array_equal(gradient, jnp.zeros(3))
