"""Moments and their union against the oracle, in all shapes, masks and groups."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm._moments import Moments, _in_one_pass, _in_two_passes, _strides, combine_moments, moments
from jaxnorm._running import update_running
from jaxnorm._types import RunningStats, real_dtype, wide_dtype


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


def test_running_update_keeps_untrusted_channels() -> None:
    state = RunningStats(jnp.full(5, 3.0), jnp.full(5, 7.0))
    batch = Moments(jnp.asarray([1, jnp.nan, 1, 1, 1]), jnp.asarray([2, 2, jnp.inf, 2, 2.0]), jnp.asarray([4, 4, 4, 0, 1.0]))
    weights = (np.float32(0.5), np.float32(0.5))
    new = update_running(state, batch, weights, unbiased=True)
    assert_allclose(new.mean, [2, 3, 3, 3, 2])
    assert_allclose(new.var, [3.5 + 0.5 * 2 * 4 / 3, 7, 7, 7, 4.5])


FORMS = pytest.mark.parametrize("form", [_in_one_pass, _in_two_passes], ids=["one_pass", "two_passes"])


def of_form(form: Callable[..., Any], x: Any, axes: tuple[int, ...], where: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """What one form computes, whatever machine the tests run on."""
    x = jnp.asarray(x)
    n = jnp.full((1,) * x.ndim, np.prod([x.shape[a] for a in axes]), jnp.float32)
    if where is not None:
        n = jnp.sum(where, axes, keepdims=True).astype(jnp.float32)
    mean, var = jax.jit(lambda x, n: form(x, n, where, axes=axes))(x, n)
    return np.squeeze(mean, axes), np.squeeze(var, axes)


@FORMS
@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2), (0, 1, 2, 3), (3,), ()], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64], ids=["float32", "complex64"])
def test_every_form_equals_the_oracle(form: Callable[..., Any], axes: tuple[int, ...], dtype: Any) -> None:
    x = data(dtype=dtype)
    mean, var, _ = oracles.moments(x, axes)
    got_mean, got_var = of_form(form, x, axes)
    assert_allclose(got_mean, np.squeeze(mean, axes), rtol=1e-5, atol=1e-6)
    assert_allclose(got_var, np.squeeze(var, axes), rtol=1e-5, atol=1e-6)


@FORMS
def test_every_form_counts_only_what_counts(form: Callable[..., Any]) -> None:
    x, where = data(), jnp.broadcast_to(counted(), (8, 2, 4, 3))
    bad = jnp.where(where, x, jnp.nan)
    mean, var, _ = oracles.moments(x, (1, 2), where)
    has_some = np.asarray(where.any((1, 2)))
    got = of_form(form, bad, (1, 2), where)
    for ours, theirs in zip(got, (mean, var), strict=True):
        assert_allclose(ours[has_some], np.squeeze(theirs, (1, 2))[has_some], rtol=1e-5, atol=1e-6)


@FORMS
@pytest.mark.parametrize("mean", [0.0, 1e4, 1e6], ids=str)
@pytest.mark.parametrize("outlier", ["none", "first", "zeros", "corners"])
def test_no_form_cancels(form: Callable[..., Any], mean: float, outlier: str) -> None:
    """Neither for a mean far from zero nor where elements that are looked at are remote from the others."""
    x = np.random.default_rng(0).normal(mean, 1, (64, 32, 32, 4)).astype(np.float32)
    if outlier == "first":
        x[0, 0, 0] = 1e4 - mean
    if outlier == "zeros":
        x[:4] = 0
    if outlier == "corners":
        x[:, 0, 0] = 0
    exact_mean, exact_var, _ = oracles.moments(x, (0, 1, 2))
    got_mean, got_var = of_form(form, x, (0, 1, 2))
    assert_allclose(got_mean, np.squeeze(exact_mean), rtol=3e-7, atol=1e-5 * float(np.sqrt(exact_var.max())))
    assert_allclose(got_var, np.squeeze(exact_var), rtol=2e-5)


@FORMS
@pytest.mark.parametrize("value", [123456789.0, -3.3, 0.0, 1e30], ids=str)
def test_every_form_finds_no_variance_in_a_constant(form: Callable[..., Any], value: float) -> None:
    mean, var = of_form(form, np.full((64, 32, 3), value, np.float32), (0, 1))
    assert_array_equal(mean, np.full(3, value, np.float32))
    assert_array_equal(var, np.zeros(3))


@FORMS
def test_every_form_tells_what_is_not_finite(form: Callable[..., Any]) -> None:
    x = np.array(data((64, 3)))
    x[5, 0], x[7, 1] = np.nan, np.inf
    mean, var = of_form(form, x, (0,))
    assert not np.isfinite(mean[:2]).any()
    assert not np.isfinite(var[:2]).any()
    assert np.isfinite([mean[2], var[2]]).all()


@pytest.mark.parametrize("shape", [(64, 56, 56, 3), (7, 3), (2, 2, 2, 3), (1000, 5), (1, 1, 3), (63, 65, 3)], ids=str)
def test_a_sample_is_small_and_holds_every_channel(shape: tuple[int, ...]) -> None:
    axes = tuple(range(len(shape) - 1))
    strides = _strides(shape, axes, 64)
    taken = [-(-n // step) for n, step in zip(shape, strides, strict=True)]
    assert taken[-1] == shape[-1]
    assert 1 <= np.prod(taken[:-1]) <= 64
    assert np.prod(taken[:-1]) >= min(16, np.prod(shape[:-1]))
    assert all(kept > 1 for kept, n in zip(taken[:-1], shape[:-1], strict=True) if n > 1)
