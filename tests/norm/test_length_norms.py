"""Unit, scale and cosine norm: the oracles, closed forms, what is kept, devices, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import AffineParams, cosine_norm, init_scale_norm, rms_norm, scale_norm, unit_norm
from jaxnorm.benchmarks._costs import residuals

SCALE = AffineParams(jnp.float32(1.7), jnp.float32(-0.4))


@pytest.mark.parametrize(("axes", "shape"), [(-1, (8, 5)), (-1, (8, 3, 4, 5)), ((1, 3), (8, 3, 4, 5)), (0, (8, 3))], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize("k", [0.0, 0.6, 1.0])
def test_equal_the_oracles(axes: Any, shape: tuple[int, ...], masked: bool, k: float) -> None:
    x = data(shape)
    where = jnp.asarray(np.random.default_rng(5).uniform(size=shape) < 0.6) if masked else None
    options = {"reduction_axes": axes, "where": where}
    assert_allclose(unit_norm(x, k=k, **options), oracles.unit_norm(x, k=k, **options), rtol=1e-5, atol=1e-6)
    assert_allclose(scale_norm(SCALE, x, **options), oracles.scale_norm(SCALE, x, **options), rtol=1e-5, atol=1e-6)


def test_powers_of_the_number_of_features() -> None:
    """Supplement S1.9 and methods 3.18: k = 0 is the unit sphere, k = 1 RMS norm, and so is a new scale norm."""
    x, plain = data((8, 3, 6)), AffineParams(None, None)
    rms = rms_norm(plain, x, epsilon=0.0)
    assert_allclose(jnp.linalg.norm(unit_norm(x, k=0.0), axis=-1), 1, rtol=1e-6)
    assert_allclose(unit_norm(x), rms, rtol=1e-5)
    assert_allclose(scale_norm(init_scale_norm(6), x), rms, rtol=1e-5)
    assert_allclose(jnp.linalg.norm(scale_norm(SCALE._replace(bias=None), x), axis=-1), 1.7, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_a_vector_of_0_gives_0_and_a_finite_gradient(epsilon: float) -> None:
    """Supplement S1.9."""
    x = data((4, 5)).at[2].set(0)
    kernel = data((5, 3), seed=2).at[:, 1].set(0)
    y = unit_norm(x, epsilon=epsilon)
    assert_array_equal(y[2], jnp.zeros(5))
    assert jnp.isfinite(jax.grad(lambda x: jnp.sum(jnp.cos(unit_norm(x, epsilon=epsilon))))(x)).all()
    z = cosine_norm(kernel, x, epsilon=epsilon)
    assert_array_equal(z[2], jnp.zeros(3))
    assert_array_equal(z[:, 1], jnp.zeros(4))
    gradient = jax.grad(lambda k, x: jnp.sum(jnp.sin(cosine_norm(k, x, epsilon=epsilon))), (0, 1))(kernel, x)
    assert all(jnp.isfinite(part).all() for part in gradient)


def test_short_vectors_are_divided_by_epsilon() -> None:
    x = jnp.asarray([[3e-4, 4e-4], [3.0, 4.0]])
    assert_allclose(unit_norm(x, k=0.0, epsilon=1e-3), [[0.3, 0.4], [0.6, 0.8]], rtol=1e-6)


def test_what_nothing_counts_in_gives_0_and_the_bias() -> None:
    x = data((4, 5)).at[1].set(jnp.nan)
    where = jnp.asarray([True, False, True, True])[:, None]
    for k in (0.0, 1.0):
        for given in (x, x.at[1].set(3.0)):
            assert_array_equal(unit_norm(given, k=k, where=where)[1], jnp.zeros(5))
    assert_array_equal(scale_norm(SCALE, x, where=where)[1], jnp.full(5, -0.4, jnp.float32))


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
@pytest.mark.parametrize("shape", [(5,), (8, 5), (2, 3, 5)], ids=str)
def test_cosine_equals_the_oracle(centered: bool, shape: tuple[int, ...]) -> None:
    x, kernel = data(shape), data((5, 4), seed=2)
    y = cosine_norm(kernel, x, centered=centered)
    assert_allclose(y, oracles.cosine_norm(kernel, x, centered=centered), rtol=1e-5, atol=1e-6)
    assert y.shape == (*shape[:-1], 4)
    assert jnp.abs(y).max() <= 1 + 1e-6


def test_cosine_is_1_for_the_kernel_itself_and_a_correlation_if_centered() -> None:
    """Methods 3.18 and supplement, correction 7."""
    kernel = data((6, 4), seed=2)
    assert_allclose(jnp.diagonal(cosine_norm(kernel, kernel.T)), 1, rtol=1e-6)
    x = data((3, 6))
    y = cosine_norm(kernel, 5 * x + 100, centered=True)
    for i in range(3):
        for j in range(4):
            assert_allclose(y[i, j], np.corrcoef(np.float64(x[i]), np.float64(kernel[:, j]))[0, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_x_is_kept_for_the_gradient_and_a_number_an_example(dtype: Any) -> None:
    x = data((64, 256), dtype)
    for function in (lambda params, x: (scale_norm(params, x), None), lambda params, x: (unit_norm(x), None)):
        kept = residuals(function, SCALE, x)
        assert kept.keeps_input
        assert kept.nbytes <= 10 * 4 * 64


def test_divided_features_give_what_whole_ones_give() -> None:
    x, where = data((8, 6)), counted((8, 6, 1))[..., 0]
    parts = [jnp.moveaxis(a.reshape(8, 3, 2), 1, 0) for a in (x, where)]
    for function in (unit_norm, lambda x, **options: scale_norm(SCALE, x, **options)):
        y = jax.vmap(lambda x, where, f=function: f(x, where=where, axis_name="d"), axis_name="d")(*parts)
        assert_allclose(jnp.moveaxis(y, 0, 1).reshape(8, 6), function(x, where=where), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x: unit_norm(x, k=-1.0), ValueError, r"k must be in \[0, inf\), got -1"),
        (lambda x: unit_norm(x, epsilon=-1.0), ValueError, r"epsilon must be in \[0, inf\), got -1"),
        (lambda x: unit_norm(x, reduction_axes=2), ValueError, "reduction_axes is out of range"),
        (lambda x: scale_norm(AffineParams(jnp.ones(5), None), x), ValueError, r"params.scale must have shape \[\]"),
        (lambda x: cosine_norm(jnp.ones((4, 3)), x), ValueError, r"kernel must have shape \[5, 3\]"),
        (lambda x: cosine_norm(jnp.ones(5), x), ValueError, r"kernel must have shape \[5, 5\]"),
        (lambda x: cosine_norm(jnp.ones((5, 3), int), x), TypeError, "kernel must be an array of floating point numbers"),
        (lambda x: cosine_norm(jnp.ones((5, 3)), x[0, 0]), ValueError, "x must have an axis of features"),
        (lambda _: init_scale_norm(0), ValueError, "num_features must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(data((8, 5)))
