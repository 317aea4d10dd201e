"""Alpha dropout: its constants, and that mean and variance stay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import SHAPE, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import alpha_dropout, dropout_mask

SATURATED = -1.7580993408473766
LISTED = {0.1: (0.921285, 0.161971), 0.5: (0.886405, 0.779194), 0.9: (1.626108, 2.572974), 0.05: (0.954844, 0.083936)}


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


@jax.jit
def _pieces(mask: jax.Array, rate: jax.Array, mean: jax.Array, var: jax.Array) -> Any:
    of = lambda value, bits: alpha_dropout(new_key(), jnp.full(mask.shape, value), rate, mean=mean, var=var, bits=bits)  # noqa: E731
    return [(of(0.0, bits), of(1.0, bits)) for bits in (8, 16, 32)]


def pieces(rate: float, mean: float = 0.0, var: float = 1.0) -> list[tuple[float, float, float, float]]:
    """In float64, for 8, 16 and 32 bits: the probability to keep, a, b, and what is dropped to."""
    found = []
    with jax.enable_x64(True):
        for bits, (zero, one) in zip((8, 16, 32), _pieces(jnp.zeros(400), *map(jnp.float64, (rate, mean, var))), strict=True):
            mask = oracles.keep_mask((0, 11), (400,), rate, bits)
            keep = np.ceil(float(oracles.realised(rate, bits)) * 2**23) / 2**23
            values = (np.unique(np.asarray(part)[chosen]) for part, chosen in ((zero, mask), (one, mask), (zero, ~mask)))
            b, a_and_b, dropped = (float(value[0]) for value in values)
            found.append((keep, a_and_b - b, b, dropped))
    return found


@pytest.mark.parametrize("rate", LISTED)
def test_constants_are_those_that_are_listed(rate: float) -> None:
    """Pitfall 107, methods.md 4.11: a and b, and what is dropped becomes `a s + b`."""
    for bits, (keep, a, b, dropped) in zip((8, 16, 32), pieces(rate), strict=True):
        assert_allclose((a, b), LISTED[rate], atol={8: 0.03, 16: 1e-3, 32: 2e-6}[bits])
        assert_allclose(dropped, a * SATURATED + b, rtol=1e-12)
        assert_allclose(b, -a * (1 - keep) * SATURATED, rtol=1e-12)


@pytest.mark.parametrize("mean, var", [(0.0, 1.0), (2.0, 0.5), (-3.0, 4.0)])
def test_mean_and_variance_are_kept_exactly(mean: float, var: float) -> None:
    """Of the probability that the bits realise, over x and the mask: by the law of total variance, and not by a sample."""
    for keep, a, b, dropped in pieces(0.3, mean, var):
        of_kept = a * mean + b
        assert_allclose(keep * of_kept + (1 - keep) * dropped, mean, atol=1e-12)
        assert_allclose(keep * a**2 * var + keep * (1 - keep) * (of_kept - dropped) ** 2, var, rtol=1e-12)


def test_control_constants_of_the_rate_that_is_asked_for_keep_neither_with_few_bits() -> None:
    keep, *_ = pieces(0.3)[0]
    a = (0.7 + SATURATED**2 * 0.7 * 0.3) ** -0.5
    of_kept, dropped = -a * 0.3 * SATURATED, a * SATURATED * 0.7
    assert abs(keep * of_kept + (1 - keep) * dropped) > 1e-3


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_million_normal_numbers_stay_normalized(rate: float) -> None:
    """Pitfall 107: constant inputs and a loose bound would also pass without b."""
    x = jax.random.normal(new_key(1), (10**6,))
    y = np.asarray(jax.jit(lambda rate: alpha_dropout(new_key(), x, rate))(rate), np.float64)
    assert abs(y.mean()) < 4e-3
    assert abs(y.var() - 1) < 1e-2
    keep = float(oracles.realised(rate))
    without_b = y - LISTED[rate][1]
    assert abs(without_b.mean()) > 4e-3
    dropped = np.asarray(~dropout_mask(new_key(), x.shape, rate))
    assert abs(dropped.mean() - (1 - keep)) < 4 * np.sqrt(keep * (1 - keep) / x.size)
    assert len(np.unique(y[dropped])) == 1


@pytest.mark.parametrize("dims", [(), (1, 2)], ids=["elements", "channels"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_values_are_those_of_the_oracle(dims: tuple[int, ...], bits: int) -> None:
    """Pitfall 108: feature alpha dropout has the same constants, and a mask that is constant in space."""
    x, shape = data(), tuple(1 if axis in dims else n for axis, n in enumerate(SHAPE))
    mask = oracles.keep_mask((0, 11), shape, 0.3, bits)
    mean, var = np.float32([1, -2, 0.5]).reshape(1, 1, 1, 3), np.float32([2, 0.5, 1]).reshape(1, 1, 1, 3)
    y = alpha_dropout(new_key(), x, 0.3, mean=mean, var=var, broadcast_dims=dims, bits=bits)
    assert_allclose(y, oracles.alpha_dropout(mask, x, oracles.realised(0.3, bits), mean, var), rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(alpha_dropout(new_key(), x, 0.3, broadcast_dims=dims, bits=bits)))(x)
    assert_array_equal(slope == 0, ~np.broadcast_to(mask, SHAPE))
    assert len(np.unique(slope)) == 2


def test_what_is_dropped_may_be_anything() -> None:
    x = jnp.full((40,), jnp.nan)
    y, pullback = jax.vjp(lambda x: alpha_dropout(new_key(), x, 0.5), x)
    kept = np.asarray(dropout_mask(new_key(), (40,), 0.5))
    assert_array_equal(jnp.isnan(y), kept)
    assert_array_equal(pullback(jnp.ones(40))[0] == 0, ~kept)


@pytest.mark.parametrize("var", [0.0, 1.0])
def test_rate_zero_changes_nothing(var: float) -> None:
    """Pitfall 107: nor is it refused; a variance of 0 neither."""
    x = data().at[0, 0, 0, 0].set(jnp.inf)
    for rate in (0, 0.0, np.float32(0)):
        assert_array_equal(alpha_dropout(new_key(), x, rate, var=var), x)
    assert_array_equal(jax.jit(lambda x, rate: alpha_dropout(new_key(), x, rate, var=var))(x, 0.0), x)
    constant = alpha_dropout(new_key(), jnp.full(50, 3.0), 0.5, mean=3.0, var=0.0)
    assert_allclose(constant, 3, rtol=1e-6)


def test_no_gradient_flows_into_the_moments() -> None:
    total = lambda amounts: jnp.sum(alpha_dropout(new_key(), data(), amounts[0], mean=amounts[1], var=amounts[2]))  # noqa: E731
    assert_array_equal(jax.grad(total)(jnp.array([0.3, 0.1, 2.0])), jnp.zeros(3))


@pytest.mark.parametrize(
    ("name", "bad", "error", "shown"),
    [
        ("var", -0.5, ValueError, "-0.5"),
        ("var", float("nan"), ValueError, "nan"),
        ("var", "1", TypeError, "'1'"),
        ("mean", None, TypeError, "None"),
        ("mean", True, TypeError, "True"),
        ("mean", float("inf"), ValueError, "inf"),
        ("mean", np.zeros(3), ValueError, r"shape \[3\]"),
        ("var", np.ones((8, 2, 4, 2)), ValueError, r"shape \[8, 2, 4, 2\]"),
    ],
    ids=str,
)
def test_bad_moments_are_named(name: str, bad: Any, error: type[Exception], shown: str) -> None:
    with pytest.raises(error, match=rf"^{name} must .*got {shown}"):
        alpha_dropout(new_key(), data(), 0.3, **{name: bad})


def test_a_traced_negative_variance_gives_nan() -> None:
    run = jax.jit(lambda var, rate: alpha_dropout(new_key(), data(), rate, var=var))
    for rate in (0.0, 0.3):
        assert jnp.isnan(run(-1.0, rate)).all()
        assert jnp.isfinite(run(1.0, rate)).all()
