"""Moments and their union against the oracle, in all shapes, masks and groups."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm._moments import Moments, combine_moments, moments
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
