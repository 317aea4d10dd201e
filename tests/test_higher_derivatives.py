"""Derivatives of high order along a line, by nested `jax.jvp`: what stands in for `jax.experimental.jet`, which lacks rules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import data
from jax.experimental.jet import jet

import jaxnorm

ORDER = 3
EPSILON = 1e-3


def derivatives(f: Callable[[jax.Array], jax.Array], x: jax.Array, v: jax.Array) -> list[jax.Array]:
    """Returns `f(x + t v)` and its first three derivatives in t at 0, each the tangent of a nest of one `jax.jvp` more."""

    def along(t: jax.Array) -> jax.Array:
        return f(x + t * v)

    found = []
    for _ in range(ORDER + 1):
        found.append(jax.jit(along)(jnp.zeros((), x.dtype)))
        along = lambda t, g=along: jax.jvp(g, (t,), (jnp.ones_like(t),))[1]  # noqa: E731
    return found


def direction(x: jax.Array) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=x.shape), x.dtype)


def taylor_of_inverse_root(q: np.ndarray) -> np.ndarray:
    """Returns the coefficients of `q(t)^(-1/2)` for a quadratic q, from `2 q r' + q' r = 0`."""
    r = [q[0] ** -0.5]
    for k in range(ORDER):
        before = r[k - 1] if k else np.zeros_like(r[0])
        r.append(-((2 * k + 1) * q[1] * r[k] + 2 * k * q[2] * before) / (2 * (k + 1) * q[0]))
    return np.stack(r)


def test_the_series_of_the_oracle() -> None:
    """(4 + 4 t + t^2)^(-1/2) = 1 / (2 + t)."""
    np.testing.assert_allclose(taylor_of_inverse_root(np.array([4.0, 4.0, 1.0])), [1 / 2, -1 / 4, 1 / 8, -1 / 16])


def batch_norm(x: jax.Array) -> jax.Array:
    params, state = jaxnorm.init_batch_norm(x.shape[-1], param_dtype=x.dtype, dtype=x.dtype)
    return jaxnorm.batch_norm(params, state, x, train=True, epsilon=EPSILON)[0]


def layer_norm(x: jax.Array) -> jax.Array:
    return jaxnorm.layer_norm(jaxnorm.init_layer_norm(x.shape[-1], param_dtype=x.dtype), x, epsilon=EPSILON)


@pytest.mark.parametrize(("norm", "axes"), [(batch_norm, (0, 1, 2)), (layer_norm, (3,))], ids=["batch", "layer"])
@pytest.mark.parametrize(("offset", "dtype"), [(0, jnp.float64), (1e3, jnp.float64), (1e3, jnp.float32)], ids=str)
def test_norms(norm: Callable[[jax.Array], jax.Array], axes: tuple[int, ...], offset: float, dtype: Any) -> None:
    """With x + t v, y is linear in t over the root of a quadratic in t. Pitfalls 6 and 61."""
    with jax.enable_x64(dtype == jnp.float64):
        x = data(dtype=dtype) + dtype(offset)
        v = direction(x)
        found = derivatives(norm, x, v)
        x, v = np.float64(x), np.float64(v)

    def mean(a: np.ndarray) -> np.ndarray:
        return a.mean(axes, keepdims=True)

    centered = [a - mean(a) for a in (x, v)]
    var = np.stack([mean(centered[0] ** 2) + EPSILON, 2 * mean(centered[0] * centered[1]), mean(centered[1] ** 2)])
    root = taylor_of_inverse_root(var)
    factorial = 1
    for k in range(ORDER + 1):
        factorial *= max(k, 1)
        expected = centered[0] * root[k] + (centered[1] * root[k - 1] if k else 0)
        tolerance = 1e-9 if dtype == jnp.float64 else 2e-3 * np.abs(factorial * expected).max()
        np.testing.assert_allclose(found[k], factorial * expected, rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_dropout_of_a_cubic(bits: int) -> None:
    """The mask is the same in every order: the derivatives are those of the cubic, where it is kept."""
    with jax.enable_x64(True):
        x = data(dtype=jnp.float64)
        v = direction(x)
        key_data = jax.random.key_data(jax.random.key(3))
        f = lambda x: jaxnorm.dropout(jax.random.wrap_key_data(key_data), x * x * x - 2 * x, 0.25, bits=bits)  # noqa: E731
        found = derivatives(f, x, v)
        kept = np.asarray(jaxnorm.dropout(jax.random.wrap_key_data(key_data), jnp.ones_like(x), 0.25, bits=bits))
    assert 0 < (kept == 0).mean() < 1
    x, v = np.asarray(x), np.asarray(v)
    expected = (x**3 - 2 * x, (3 * x**2 - 2) * v, 6 * x * v**2, 6 * v**3)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, kept * wanted, rtol=1e-12, atol=1e-12)


def test_jet_has_no_rules_for_the_layers() -> None:
    """As the documentation says: once it has, that should say so too. Which error it raises, depends on the rule."""
    params, state = jaxnorm.init_batch_norm(3)
    x, v = data(), direction(data())
    layers = (
        lambda x: jaxnorm.batch_norm(params, state, x, train=True)[0],
        lambda x: jaxnorm.dropout(jax.random.key(0), x, 0.3),
        jax.nn.relu,
    )
    for layer in layers:
        with pytest.raises(Exception):  # noqa: B017, PT011
            jet(layer, (x,), ((v, jnp.zeros_like(v)),))
