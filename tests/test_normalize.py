"""Normalization by given statistics, one operation at a time (no compiler rewrites them)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm._normalize import inverse_deviation, rescale

MEAN, VAR = jnp.asarray([1.0, -2, 3]), jnp.asarray([4.0, 0.25, 9])
SCALE, BIAS = jnp.asarray([0.5, 2, 3]), jnp.asarray([1.0, -1, 4])


def apply(x: jax.Array, mean: jax.Array = MEAN, **options: Any) -> jax.Array:
    return rescale(x, mean, inverse_deviation(VAR, 1e-3), SCALE, BIAS, axes=(0,), **options)


def test_formula() -> None:
    x = data((5, 3))
    mean, var, scale, bias = (np.asarray(part, np.float64) for part in (MEAN, VAR, SCALE, BIAS))
    expected = (np.asarray(x, np.float64) - mean) / np.sqrt(var + 1e-3) * scale + bias
    assert_allclose(apply(x), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_neither_counts_nor_is_finite_is_selected_away(bad: float) -> None:
    where = jnp.asarray([True, True, False, False, True])[:, None]
    x = data((5, 3)).at[2].set(bad)
    y, pullback = jax.vjp(lambda x, mean: apply(x, mean, where=where), x, MEAN)
    assert_array_equal(y[2], BIAS)
    assert_array_equal(y[3], apply(x)[3])  # finite: normalized, though it does not count
    dx, dmean = pullback(jnp.ones_like(y))
    assert_array_equal(dx[2], jnp.zeros(3))
    assert (dx[jnp.array([0, 1, 3, 4])] != 0).all()
    # Three rows count, and a fourth is finite: the one that is neither pulls at nothing.
    assert_allclose(dmean, -4 * SCALE / np.sqrt(VAR + 1e-3), rtol=1e-6)


def test_the_mean_is_subtracted_before_anything_else() -> None:
    x = jnp.asarray([[1e6 + 0.0625] * 3])
    y = rescale(x, jnp.full(3, 1e6), inverse_deviation(jnp.full(3, 1e-4), 1e-3), None, None, axes=(0,))
    assert_allclose(y, [[0.0625 / np.sqrt(1.1e-3)] * 3], rtol=1e-5)
