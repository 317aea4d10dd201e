"""Meters of activations: NumPy in float64, masks, axes, limits, and errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tiers import then_slow

from jaxnorm.diagnostics import (
    activation_percentiles,
    activation_sparsity,
    dead_units,
    saturated_share,
    unit_redundancy,
)

C = 5
METERS = {
    "percentiles": activation_percentiles,
    "redundancy": unit_redundancy,
    "sparsity": lambda x, **options: jnp.stack(activation_sparsity(x, **options)),
    "dead": dead_units,
    "saturated": lambda x, **options: saturated_share(x, bound=1.0, **options),
}


def data(*shape: int, seed: int = 0) -> np.ndarray:
    """Units of different distributions; of the last axis the first is dead, the third a replica of the second."""
    x = np.random.default_rng(seed).normal(size=shape) * np.linspace(0.5, 3, shape[-1])
    x[..., 0] = -np.abs(x[..., 0])
    x[..., 2] = 1 - 2 * x[..., 1]
    return x.astype(np.float32)


def by_numpy(name: str, x: np.ndarray) -> np.ndarray:
    """What a meter says of rows `[n, C]`."""
    x = x.astype(np.float64)
    if name == "redundancy":
        r = np.abs(np.corrcoef(x.T))
        np.fill_diagonal(r, 0)
        return r.max(0)
    return {
        "dead": lambda: (x <= 0).all(0),
        "sparsity": lambda: np.stack([x.mean(0), (x <= 0).mean(0)]),
        "saturated": lambda: (np.abs(x) > 1).mean(0),
        "percentiles": lambda: np.percentile(x, (15, 50, 85), axis=0),
    }[name]()


each = pytest.mark.parametrize("name", METERS)
some = pytest.mark.parametrize("name", then_slow(list(METERS), 2))


@each
def test_meters_are_those_of_numpy(name: str) -> None:
    x = data(40, 3, C)
    assert_allclose(jax.jit(METERS[name])(x), by_numpy(name, x.reshape(-1, C)), rtol=2e-5, atol=1e-6)
    first = METERS[name](np.moveaxis(x, -1, 0), channel_axis=0)
    assert_allclose(first, METERS[name](x), rtol=1e-5, atol=1e-6)


@each
def test_only_what_counts_is_measured(name: str) -> None:
    x, counts = data(40, 3, C), np.random.default_rng(1).random((40, 1, 1)) < 0.6
    spoilt = np.where(counts, x, np.nan)
    got = jax.jit(METERS[name])(spoilt, where=jnp.asarray(counts))
    assert_allclose(got, by_numpy(name, x[counts[:, 0, 0]].reshape(-1, C)), rtol=2e-5, atol=1e-6)


@some
def test_all_channels_or_several_axes_of_them(name: str) -> None:
    x = data(40, 3, C)
    assert_allclose(
        METERS[name](x, channel_axis=(1, 2)), by_numpy(name, x.reshape(40, -1)).reshape(-1, 3, C).squeeze(), rtol=2e-5, atol=1e-6
    )
    if name != "redundancy":
        assert_allclose(METERS[name](x, channel_axis=()), by_numpy(name, x.reshape(-1, 1))[..., 0], rtol=2e-5, atol=1e-6)
    else:
        assert METERS[name](x, channel_axis=()) == 0


@each
def test_of_nothing_nothing_is_said(name: str) -> None:
    nothing = 0.0 if name in ("dead", "redundancy") else np.nan
    for x, where in ((jnp.ones((4, C)), jnp.zeros((4, 1), bool)), (jnp.ones((0, C)), None)):
        got = METERS[name](x, where=where)
        assert_array_equal(got, np.full(got.shape, nothing))


@some
def test_narrow_numbers_are_measured_in_float32(name: str) -> None:
    x = jnp.asarray(data(64, C), jnp.bfloat16)
    got = METERS[name](x)
    assert got.dtype == (bool if name == "dead" else jnp.float32)
    assert_allclose(got, by_numpy(name, np.asarray(x, np.float32)), rtol=2e-5, atol=1e-6)


def test_a_tree_of_activations() -> None:
    found = jax.tree.map(dead_units, {"a": data(8, 3), "b": [data(8, 4)]})
    assert_array_equal(found["a"], [True, False, False])
    assert_array_equal(found["b"][0], [True, False, False, False])


def test_a_mask_of_single_elements() -> None:
    x = jnp.array([[1.0, -1.0], [-2.0, 3.0], [-3.0, -5.0]])
    where = jnp.array([[False, True], [True, False], [True, True]])
    assert_array_equal(dead_units(x, where=where), [True, True])
    assert_array_equal(saturated_share(x, where=where), [0.0, 0.5])
    assert_array_equal(activation_percentiles(x, percentiles=(0, 50, 100), where=where), [[-3, -5], [-2.5, -3], [-2, -1]])
    assert_array_equal(activation_sparsity(x, where=where).mean, [-2.5, -3.0])


def test_tolerance_is_what_must_be_exceeded() -> None:
    x = jnp.array([[1e-6, 0.1], [0.0, 0.0]])
    assert_array_equal(dead_units(x), [False, False])
    assert_array_equal(jax.jit(lambda x, t: dead_units(x, tolerance=t))(x, 1e-3), [True, False])
    assert_array_equal(activation_sparsity(x, tolerance=1e-3).inactive, [1.0, 0.5])


def test_a_unit_that_is_no_number_is_not_dead_nor_like_others() -> None:
    x = np.stack([np.full(4, np.nan), np.arange(4.0), np.arange(4.0) * 2], -1).astype(np.float32)
    assert_array_equal(dead_units(x), [False] * 3)
    assert_array_equal(np.isnan(activation_percentiles(x)), [[True, False, False]] * 3)
    assert_allclose(unit_redundancy(x), [np.nan, 1, 1], rtol=1e-6)


def test_percentiles_between_infinities() -> None:
    x = jnp.array([-jnp.inf, 1.0, 2.0, jnp.inf])[:, None]
    assert_array_equal(activation_percentiles(x, percentiles=(0, 50, 100))[:, 0], [-np.inf, 1.5, np.inf])


def test_percentiles_of_many_end_at_the_largest() -> None:
    """100 (n - 1) / 100 is above n - 1 in float32 for some n."""
    numbers = np.arange(1, 2**20, 997)
    rounded = np.float32(100) * numbers.astype(np.float32) / np.float32(100)
    n = int(numbers[np.argmax(rounded > numbers)]) + 1
    assert rounded[(n - 2) // 997] > n - 1
    x = np.arange(n, dtype=np.float32)[:, None]
    assert_array_equal(activation_percentiles(x, percentiles=(0, 100)), [[0], [n - 1]])
    where = np.broadcast_to(np.arange(n)[:, None] > 0, x.shape)
    assert_array_equal(activation_percentiles(x, percentiles=(0, 100), where=where), [[1], [n - 1]])


def test_percentiles_may_be_traced() -> None:
    x = data(20, C)
    got = jax.jit(lambda x, q: activation_percentiles(x, percentiles=q))(x, jnp.array([10.0, 90.0]))
    assert_allclose(got, np.percentile(x, [10, 90], axis=0), rtol=1e-5)


def test_redundancy_far_from_zero_and_at_any_scale() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 500))
    x = np.stack([a, 1e-18 * (a + b), 1e4 + b, np.full(500, 1e4)], -1).astype(np.float32)
    expected = np.abs(np.corrcoef(np.stack([a, a + b, b])))
    np.fill_diagonal(expected, 0)
    assert_allclose(unit_redundancy(x), [*expected.max(0), 0], rtol=1e-3)


X = jnp.ones((4, 2))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: dead_units([1.0]), TypeError, "x must be an array of floating point numbers"),
        (lambda: dead_units(X.astype(jnp.int32)), TypeError, "x must be an array of floating point numbers, got int32"),
        (lambda: dead_units(X.astype(jnp.complex64)), TypeError, "x must be real"),
        (lambda: dead_units(X, tolerance=jnp.zeros(2)), ValueError, r"tolerance must have shape \[\]"),
        (lambda: dead_units(X, channel_axis=2), ValueError, "channel_axis is out of range for an array of rank 2, got 2"),
        (lambda: dead_units(X, where=jnp.ones(4, bool)), ValueError, r"where must have the rank of x .* got shape \[4\]"),
        (lambda: dead_units(X, where=jnp.ones((4, 1))), TypeError, "where must be an array of bool"),
        (lambda: saturated_share(X, bound=-1.0), ValueError, "bound must be in .* got -1.0"),
        (lambda: saturated_share("x"), TypeError, "preactivations must be an array of floating point numbers, got 'x'"),
        (lambda: activation_percentiles(X, percentiles=(15, 101)), ValueError, r"percentiles must be in \[0, 100\]"),
        (lambda: activation_percentiles(X, percentiles=50), ValueError, r"percentiles must be a list of numbers, got shape \[\]"),
        (lambda: activation_percentiles(X, percentiles="low"), TypeError, "percentiles must be a real number"),
        (lambda: unit_redundancy(X, where=jnp.ones((4, 2), bool)), ValueError, r"where must have size 1 along the channels"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
