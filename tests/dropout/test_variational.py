"""Variational dropout: its divergences (methods.md 5.1, 5.2), its draws and their moments, pruning, what is kept, limits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import data
from numpy.testing import assert_allclose, assert_array_equal
from promises import assert_higher_derivatives
from scipy.special import dawsn

import jaxnorm
from jaxnorm import (
    SparseVariationalDenseParams,
    VariationalDenseParams,
    VariationalDropoutParams,
    gaussian_dropout,
    init_sparse_variational_dense,
    init_variational_dense,
    init_variational_dropout,
    sparse_variational_dense,
    sparse_variational_dense_mean,
    variational_dense,
    variational_dropout,
)
from jaxnorm._dropout.divergence import divergence
from jaxnorm.benchmarks._costs import residuals

KERNEL, BIAS, X = data((5, 3)), data((3,)), data((7, 5), seed=2)
LOG_VAR = jnp.linspace(-4.0, 3.0, 15).reshape(5, 3)
SPARSE = SparseVariationalDenseParams(KERNEL, BIAS, LOG_VAR)
TYPE_B = VariationalDenseParams(KERNEL, BIAS, LOG_VAR / 2)
TYPE_A = VariationalDropoutParams(jnp.linspace(-3.0, 1.0, 5))
LOG_ALPHAS = np.linspace(-8, 8, 65)
DRAWS = 20_000


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


def words(key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def within_four_sigma(values: np.ndarray, mean: Any) -> bool:
    sigma = values.std(0) / np.sqrt(len(values))
    return bool((np.abs(values.mean(0) - mean) <= 4 * sigma + 1e-6).all())


def kl_of(log_alpha: Any, kind: Any) -> np.ndarray:
    return np.asarray(divergence(jnp.asarray(log_alpha, jnp.float32), kind), np.float64)


# Divergence


def test_divergences_are_those_that_the_reference_lists() -> None:
    """methods.md 5.2: at log alpha of 0, 2 and -2; and how far the fit is off between -5 and 8."""
    assert_allclose(kl_of([0, 2, -2], "exact"), [0.42669, 0.06617, 1.54416], atol=6e-6)
    assert_allclose(kl_of(0, "fit"), 0.43124, atol=6e-6)
    between = np.linspace(-5, 8, 2001)
    assert_allclose(np.abs(kl_of(between, "fit") - kl_of(between, "exact")).max(), 0.0094, atol=6e-5)


def test_the_cubic_is_near_the_exact_divergence_up_to_an_alpha_of_1_and_constant_above() -> None:
    """methods.md 5.1: the spread of the difference for alpha from 0.02 to 1 is 0.028."""
    log_alpha = np.log(np.linspace(0.02, 1, 500))
    difference = kl_of(log_alpha, "cubic") - kl_of(log_alpha, "exact")
    assert_allclose(difference.max() - difference.min(), 0.028, atol=6e-4)
    assert np.abs(difference).max() < 0.023
    assert_array_equal(kl_of([0, 0.5, 8], "cubic"), np.full(3, kl_of(0, "cubic")))


def test_the_exact_divergence_is_the_oracle_s() -> None:
    expected = oracles.log_uniform_divergence(np.exp(LOG_ALPHAS))
    assert_allclose(kl_of(LOG_ALPHAS, "exact"), expected, rtol=2e-6)
    with jax.enable_x64(True):
        assert_allclose(divergence(jnp.asarray(LOG_ALPHAS), "exact"), expected, rtol=1e-11)
    assert_array_equal(kl_of([np.inf, -np.inf], "exact"), [0, np.inf])
    assert np.isnan(kl_of(np.nan, "exact"))


def test_the_slope_of_the_exact_divergence_is_dawson_s_function() -> None:
    root = np.exp(-LOG_ALPHAS / 2) / np.sqrt(2)
    slope = jax.vmap(jax.grad(lambda a: divergence(a, "exact")))(jnp.asarray(LOG_ALPHAS, jnp.float32))
    assert_allclose(slope, -root * dawsn(root), rtol=3e-6)


@pytest.mark.parametrize("kind", ["exact", "fit", "cubic"])
def test_divergences_have_every_derivative(kind: Any) -> None:
    """On both sides of where the series change; the cubic's only below 1."""
    places = np.array([-7.3, -4.2, -4.0, -1.1, -0.3]) + (0 if kind == "cubic" else 1.5 * np.arange(5))
    with jax.enable_x64(True):
        assert_higher_derivatives(lambda a: jnp.sum(divergence(a, kind) ** 2), jnp.asarray(places), third=True)


def test_the_gradient_of_the_exact_divergence_keeps_no_term_of_its_series() -> None:
    kept = residuals(lambda _, a: (divergence(a, "exact"), None), (), jnp.zeros((64, 32)))
    assert kept.nbytes <= 3 * 64 * 32 * 4


@pytest.mark.parametrize("kind", ["fit", "exact", "cubic"])
def test_a_layer_sums_its_divergences(kind: Any) -> None:
    log_alpha = np.asarray(TYPE_A.log_alpha)
    assert_allclose(variational_dropout(new_key(), TYPE_A, X, divergence=kind)[1], kl_of(log_alpha, kind).sum(), rtol=1e-5)
    for shape, times in (((), 5), ((5,), 1)):
        params = VariationalDropoutParams(jnp.full(shape, -1.0))
        kl = variational_dropout(new_key(), params, X, divergence=kind)[1]
        assert_allclose(kl, times * kl_of(np.full(shape or 1, -1.0), kind).sum(), rtol=1e-5)
    for shape in ((), (1, 1), (5, 1), (1, 3), (5, 3)):
        kl = variational_dense(new_key(), TYPE_B._replace(log_alpha=jnp.full(shape, -1.0)), X, divergence=kind)[1]
        assert_allclose(kl, 15 * kl_of(-1, kind), rtol=1e-5)
    kl = sparse_variational_dense(new_key(), SPARSE, X, divergence=kind)[1]
    of_weights = np.asarray(LOG_VAR, np.float64) - np.log(np.asarray(KERNEL, np.float64) ** 2 + 1e-8)
    assert_allclose(kl, kl_of(np.clip(of_weights, -8, 8), kind).sum(), rtol=1e-5)


def test_a_divergence_is_in_single_precision_whatever_the_types() -> None:
    """Pitfall 84."""
    half = jax.tree.map(lambda part: part.astype(jnp.bfloat16), SPARSE)
    y, kl = sparse_variational_dense(new_key(), half, X.astype(jnp.bfloat16))
    assert (y.dtype, kl.dtype) == (jnp.bfloat16, jnp.float32)
    whole = jax.tree.map(lambda part: part.astype(jnp.float32), half)
    assert_allclose(kl, sparse_variational_dense(new_key(), whole, X)[1], rtol=1e-6)


# Draws


@pytest.mark.parametrize("bits", [16, 32])
def test_draws_are_the_oracle_s(bits: int) -> None:
    """The mean, and of the variance in the sum of the weights: local reparameterization."""
    kernel, bias, x, log_var = (np.asarray(a, np.float64) for a in (*SPARSE[:2], X, LOG_VAR))
    noise = oracles.standard_normal(words(new_key()), (7, 3), bits)
    for function, params, var in (
        (sparse_variational_dense, SPARSE, np.exp(log_var)),
        (variational_dense, TYPE_B, np.exp(log_var / 2) * kernel**2),
    ):
        y, _ = function(new_key(), params, X, bits=bits)
        assert_allclose(y, x @ kernel + bias + np.sqrt(x**2 @ var) * noise, rtol=1e-4, atol=1e-4)
        y, _ = function(new_key(), params._replace(bias=None), X, bits=bits)
        assert_allclose(y, x @ kernel + np.sqrt(x**2 @ var) * noise, rtol=1e-4, atol=1e-4)
    std = np.exp(np.asarray(TYPE_A.log_alpha, np.float64) / 2)
    y, _ = variational_dropout(new_key(), TYPE_A, X, bits=bits)
    assert_allclose(y, x * (1 + std * oracles.standard_normal(words(new_key()), (7, 5), bits)), rtol=1e-5, atol=1e-5)


def test_a_fixed_alpha_is_gaussian_dropout() -> None:
    params = init_variational_dropout(5, rate=0.3, shared=True)
    assert_allclose(variational_dropout(new_key(), params, X)[0], gaussian_dropout(new_key(), X, 0.3), rtol=1e-5)


def one_output() -> tuple[np.ndarray, np.ndarray]:
    """Outputs of a dense layer for many keys: by local reparameterization, and by drawing the weights."""
    x = X[:2]
    local = jax.vmap(lambda key: variational_dense(key, TYPE_B, x)[0])(jax.random.split(new_key(), DRAWS))
    noise = np.random.default_rng(0).normal(size=(DRAWS, 5, 3))
    weights = np.asarray(KERNEL) * (1 + np.exp(np.asarray(TYPE_B.log_alpha) / 2) * noise)
    drawn = np.einsum("bi,dio->dbo", np.asarray(x), weights) + np.asarray(BIAS)
    return np.asarray(local, np.float64), drawn


def test_local_reparameterization_has_the_moments_of_drawn_weights() -> None:
    """methods.md 5.1: N(x theta, alpha x^2 theta^2); the examples of a batch are independent, where one W would tie them."""
    local, drawn = one_output()
    kernel, x = np.asarray(KERNEL, np.float64), np.asarray(X[:2], np.float64)
    mean = x @ kernel + np.asarray(BIAS)
    var = x**2 @ (np.exp(np.asarray(TYPE_B.log_alpha, np.float64)) * kernel**2)
    for draws in (local, drawn):
        assert within_four_sigma(draws, mean)
        assert within_four_sigma((draws - mean) ** 2, var)
        assert not within_four_sigma((draws - mean) ** 2, 1.1 * var)  # a control
    both = [np.prod(draws - mean, axis=1) for draws in (local, drawn)]
    assert within_four_sigma(both[0], 0)
    assert not within_four_sigma(both[1], 0)  # a control
    assert within_four_sigma(np.prod((local - mean)[:, 0, :2], -1), 0)  # nor are outputs tied


def test_the_gradient_varies_less_than_with_one_draw_of_the_weights() -> None:
    """methods.md 5.1: what local reparameterization is for."""
    x = data((64, 5), seed=4)

    def local(params: VariationalDenseParams, key: jax.Array) -> jax.Array:
        return jnp.mean(variational_dense(key, params, x)[0] ** 2)

    def drawn(params: VariationalDenseParams, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, KERNEL.shape)
        return jnp.mean((x @ (params.kernel * (1 + jnp.exp(params.log_alpha / 2) * noise)) + params.bias[None]) ** 2)

    keys = jax.random.split(new_key(), 1000)
    gradients = [jax.jit(jax.vmap(jax.grad(f), (None, 0)))(TYPE_B, jax.random.clone(keys)) for f in (local, drawn)]
    spread, other = (np.asarray(gradient.log_alpha, np.float64).var(0).sum() for gradient in gradients)
    assert spread < other / 10


def test_noise_of_activations_has_its_moments() -> None:
    y, _ = variational_dropout(new_key(), TYPE_A, jnp.full((800_000, 5), 3.0))
    y = np.asarray(y, np.float64)
    var = 9 * np.exp(np.asarray(TYPE_A.log_alpha, np.float64))
    assert within_four_sigma(y, 3)
    assert within_four_sigma((y - 3) ** 2, var)
    assert not within_four_sigma((y - 3) ** 2, 1.05 * var)  # a control


def test_gradients_flow_into_the_amount_of_noise_by_the_draw() -> None:
    """The derivative of y by log alpha is half the noise that was added."""
    y, pullback = jax.vjp(lambda params: variational_dropout(new_key(), params, X)[0], TYPE_A)
    assert_allclose(pullback(jnp.ones_like(y))[0].log_alpha, (y - X).sum(0) / 2, rtol=1e-5, atol=1e-5)
    y, pullback = jax.vjp(lambda params: variational_dense(new_key(), params, X)[0], TYPE_B._replace(log_alpha=jnp.zeros(())))
    noise = y - (X @ KERNEL + BIAS[None])
    assert_allclose(pullback(jnp.ones_like(y))[0].log_alpha, noise.sum() / 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["variational_dropout", "variational_dense", "sparse_variational_dense"])
def test_neither_noise_nor_a_variance_is_kept(name: str) -> None:
    """What is kept is of the size of x, the parameters and the key; y's noise would be larger."""
    params = {"variational_dropout": TYPE_A, "variational_dense": TYPE_B, "sparse_variational_dense": SPARSE}[name]

    def run(given: Any, x: jax.Array) -> tuple[jax.Array, None]:
        return getattr(jaxnorm, name)(jax.random.wrap_key_data(given[0]), given[1], x)[0], None

    x = jnp.ones((4096, 5), jnp.bfloat16)
    kept = residuals(run, (np.zeros(2, np.uint32), params), x)
    assert kept.nbytes <= x.nbytes + 256


# Limits


def loss(function: Callable[..., Any], kind: str) -> Callable[..., jax.Array]:
    def run(params: Any, x: jax.Array) -> jax.Array:
        y, kl = function(new_key(), params, x, divergence=kind)
        return jnp.sum(y**2) + kl

    return run


@pytest.mark.parametrize("kind", ["fit", "exact", "cubic"])
@pytest.mark.parametrize("function", [variational_dense, sparse_variational_dense])
def test_derivatives_are_finite_without_weights_and_without_inputs(function: Callable[..., Any], kind: str) -> None:
    """Pitfall 78: no weight has a logarithm then, and no root a derivative."""
    params = TYPE_B if function is variational_dense else SPARSE
    for kernel, x in ((0 * KERNEL, X), (KERNEL, 0 * X), (0 * KERNEL, 0 * X)):
        gradient = jax.grad(loss(function, kind), (0, 1))(params._replace(kernel=kernel), x)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_next_to_no_noise_is_a_dense_layer_and_extreme_amounts_are_finite() -> None:
    mean = X @ KERNEL + BIAS[None]
    for log_var in (-80.0, -200.0):
        y, kl = sparse_variational_dense(new_key(), SPARSE._replace(log_var=0 * LOG_VAR + log_var), X)
        assert_allclose(y, mean, rtol=1e-5, atol=1e-5)
        assert np.isfinite(kl)
    for log_alpha in (-80.0, 30.0):
        for kind in ("fit", "exact"):
            params = VariationalDropoutParams(jnp.asarray(log_alpha))
            gradient = jax.grad(loss(variational_dropout, kind))(params, X)
            assert np.isfinite(gradient.log_alpha)


# Pruning


def test_weights_of_too_much_noise_are_left_out() -> None:
    log_alpha = np.asarray(LOG_VAR, np.float64) - np.log(np.asarray(KERNEL, np.float64) ** 2 + 1e-8)
    for threshold in (-1.0, 0.5, 3.0):
        kernel = np.where(log_alpha > threshold, 0, KERNEL)
        assert 0 < (kernel == 0).sum() < 15 or threshold == 3
        for given in (threshold, jnp.asarray(threshold)):
            y = sparse_variational_dense_mean(SPARSE, X, threshold=given)
            assert_allclose(y, X @ kernel + BIAS[None], rtol=1e-5, atol=1e-5)
    everything = X @ KERNEL + BIAS[None]
    assert_allclose(sparse_variational_dense_mean(SPARSE, X, threshold=np.inf), everything, rtol=1e-5, atol=1e-5)
    traced = jax.jit(lambda threshold: sparse_variational_dense_mean(SPARSE, X, threshold=threshold))
    assert_allclose(traced(np.float32(np.nan)), everything, rtol=1e-5, atol=1e-5)
    pruned = sparse_variational_dense_mean(SPARSE, X, threshold=-np.inf)
    assert_array_equal(pruned, jnp.broadcast_to(BIAS, pruned.shape))


def test_a_weight_that_is_pruned_has_no_gradient() -> None:
    params = SPARSE._replace(log_var=LOG_VAR.at[0, 0].set(jnp.inf))
    assert np.isfinite(sparse_variational_dense_mean(params, X)).all()
    gradient = jax.grad(lambda params: jnp.sum(sparse_variational_dense_mean(params, X)))(params)
    assert gradient.kernel[0, 0] == 0


# Parameters


def test_parameters_start_as_said() -> None:
    assert_allclose(init_variational_dropout(3, rate=0.2).log_alpha, np.full(3, np.log(0.25)), rtol=1e-6)
    assert init_variational_dropout(3, shared=True, param_dtype=jnp.bfloat16).log_alpha.dtype == jnp.bfloat16
    dense = init_variational_dense(new_key(), 400, 100, rate=0.5)
    sparse = init_sparse_variational_dense(new_key(), 400, 100, use_bias=False)
    for params in (dense, sparse):
        assert_allclose(np.asarray(params.kernel).var(), 1 / 400, rtol=0.03)
    assert_array_equal(dense.bias, np.zeros(100))
    assert sparse.bias is None
    assert_array_equal(dense.log_alpha, np.zeros((400, 100)))
    assert_array_equal(sparse.log_var, np.full((400, 100), -10))


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no params": (lambda: variational_dropout(new_key(), (X,), X), TypeError, "params must be VariationalDropoutParams"),
    "other params": (lambda: variational_dense(new_key(), SPARSE, X), TypeError, "params must be VariationalDenseParams"),
    "alphas": (
        lambda: variational_dropout(new_key(), VariationalDropoutParams(jnp.ones(3)), X),
        ValueError,
        r"params.log_alpha must have shape \[5\]",
    ),
    "ints": (
        lambda: variational_dropout(new_key(), VariationalDropoutParams(jnp.ones(5, int)), X),
        TypeError,
        "params.log_alpha must be .*int32",
    ),
    "no features": (lambda: variational_dropout(new_key(), TYPE_A, jnp.ones(())), ValueError, "x must have an axis of features"),
    "alphas of weights": (
        lambda: variational_dense(new_key(), TYPE_B._replace(log_alpha=jnp.ones(3)), X),
        ValueError,
        r"params.log_alpha must be a scalar or have a shape like \[5, 3\]",
    ),
    "variances": (
        lambda: sparse_variational_dense(new_key(), SPARSE._replace(log_var=BIAS), X),
        ValueError,
        r"params.log_var must have shape \[5, 3\]",
    ),
    "kernel": (
        lambda: sparse_variational_dense_mean(SPARSE._replace(kernel=KERNEL.T), X),
        ValueError,
        r"params.kernel must have shape \[5, 5\]",
    ),
    "bias": (
        lambda: variational_dense(new_key(), TYPE_B._replace(bias=X[0]), X),
        ValueError,
        r"params.bias must have shape \[3\]",
    ),
    "divergence": (lambda: variational_dropout(new_key(), TYPE_A, X, divergence="kl"), ValueError, "divergence must be 'fit' or"),
    "8 bits": (lambda: variational_dense(new_key(), TYPE_B, X, bits=8), ValueError, "bits must be 16 or 32, got 8"),
    "integers": (lambda: sparse_variational_dense(new_key(), SPARSE, jnp.ones((2, 5), int)), TypeError, "x must be .*int32"),
    "key": (lambda: variational_dense(None, TYPE_B, X), TypeError, "key must be one key"),
    "NaN": (lambda: sparse_variational_dense_mean(SPARSE, X, threshold=np.nan), ValueError, "threshold must be in .*nan"),
    "thresholds": (lambda: sparse_variational_dense_mean(SPARSE, X, threshold=BIAS), ValueError, "threshold must have shape"),
    "rate 0": (lambda: init_variational_dropout(3, rate=0.0), ValueError, "rate must be above 0, got 0.0"),
    "rate 1": (lambda: init_variational_dense(new_key(), 3, 2, rate=1), ValueError, r"rate must be in \[0, 1\), got 1"),
    "log_var": (lambda: init_sparse_variational_dense(new_key(), 3, 2, log_var=np.nan), ValueError, "log_var must be in .*nan"),
    "features": (lambda: init_sparse_variational_dense(new_key(), 3, 0), ValueError, "out_features must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name: str) -> None:
    """Pitfalls 80, 83, 103."""
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
