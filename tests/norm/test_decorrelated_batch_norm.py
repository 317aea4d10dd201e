"""decorrelated_batch_norm: the oracle, what whitening is, its derivatives, singular and ill-conditioned batches, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import (
    AffineParams,
    CovarianceStats,
    RunningStats,
    batch_norm,
    decorrelated_batch_norm,
    init_decorrelated_batch_norm,
    iterative_norm,
)
from jaxnorm._covariance import covariances
from jaxnorm._inverse_root import inverse_root

NONE = AffineParams(None, None)
compiled = jax.jit(decorrelated_batch_norm, static_argnames=("train", "group_size", "channel_axis", "unbiased"))


def parameters(features: int, group_size: int) -> tuple[AffineParams, CovarianceStats]:
    random = np.random.default_rng(1)
    scale, bias, mean = (jnp.asarray(random.uniform(low, 3, features), jnp.float32) for low in (0.5, -2, 1))
    roots = random.normal(size=(features // group_size, group_size, group_size))
    cov = jnp.asarray(roots @ np.swapaxes(roots, 1, 2) + 2 * np.eye(group_size), jnp.float32)
    return AffineParams(scale, bias), CovarianceStats(mean, cov)


def correlated(shape: tuple[int, ...], mean: Any = 0.0, seed: int = 0) -> np.ndarray:
    """Gaussian vectors of dependent channels."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(shape[-1], shape[-1])) + np.eye(shape[-1])
    return (random.normal(size=shape) @ mixing + mean).astype(np.float32)


def test_the_derivative_of_a_covariance_is_a_covariance() -> None:
    """Symmetric by itself, and not only where a root is taken of it."""
    x = jnp.asarray(correlated((7, 2, 3), 5.0))
    counts = counted((7, 1, 3))[..., :1]

    def plain(x: jax.Array) -> jax.Array:
        weight = counts.astype(x.dtype) / jnp.sum(counts, dtype=x.dtype)
        centered = x - jnp.sum(weight * x, 0, keepdims=True)
        return jnp.einsum("nga,ngb->gab", weight * centered, centered)

    def ours(x: jax.Array) -> jax.Array:
        return covariances(x, (0,), near=jnp.zeros((2, 3)), where=counts).cov

    for got, expected in zip(jax.jvp(ours, (x,), (x**2,)), jax.jvp(plain, (x,), (x**2,)), strict=True):
        assert_allclose(got, expected, rtol=2e-5, atol=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize(
    ("group_size", "axis", "unbiased"), [(1, -1, False), (2, 1, True), (3, 0, False), (6, -1, True), (3, -2, False)], ids=str
)
def test_equals_the_oracle(group_size: int, axis: int, unbiased: bool) -> None:
    x = jnp.moveaxis(jnp.asarray(correlated((9, 2, 4, 6), 5.0)), -1, axis)
    params, state = parameters(6, group_size)
    for train in (True, False):
        options = {"train": train, "group_size": group_size, "channel_axis": axis, "momentum": 0.8, "epsilon": 1e-3}
        y, new = compiled(params, state, x, unbiased=unbiased, **options)
        expected = oracles.decorrelated_batch_norm(
            params, state, jnp.moveaxis(x, axis, -1), **options | {"channel_axis": -1}, unbiased=unbiased
        )
        assert_allclose(jnp.moveaxis(y, axis, -1), expected.y, rtol=2e-5, atol=5e-5)
        assert_allclose(new.mean, expected.mean, rtol=1e-6, atol=1e-6)
        assert_allclose(new.cov, expected.cov, rtol=1e-5, atol=1e-5)


def test_float64_has_the_oracle_to_1e_11() -> None:
    with jax.enable_x64(True):
        params, state = jax.tree.map(lambda a: a.astype(jnp.float64), parameters(6, 3))
        x = jnp.asarray(correlated((64, 6), 100.0), jnp.float64)
        y, new = decorrelated_batch_norm(params, state, x, train=True, group_size=3)
        expected = oracles.decorrelated_batch_norm(params, state, x, train=True, group_size=3)
        assert_allclose(y, expected.y, rtol=1e-11, atol=1e-11)
        assert_allclose(new.cov, expected.cov, rtol=1e-12, atol=1e-12)


def test_the_output_is_decorrelated_within_groups_and_no_further() -> None:
    x = correlated((4096, 8), 3.0)
    _, state = init_decorrelated_batch_norm(8, group_size=4)
    y = np.float64(compiled(NONE, state, jnp.asarray(x), train=True, group_size=4, epsilon=1e-6)[0])
    assert_allclose(y.mean(0), 0, atol=1e-5)
    cov = y.T @ y / len(y)
    for part in (slice(0, 4), slice(4, 8)):
        assert_allclose(cov[part, part], np.eye(4), atol=2e-5)
    assert np.abs(cov[:4, 4:]).max() > 0.1


def test_epsilon_shrinks_the_covariance_as_the_closed_form_says() -> None:
    x = correlated((512, 3))
    _, state = init_decorrelated_batch_norm(3, group_size=3)
    y = np.float64(compiled(NONE, state, jnp.asarray(x), train=True, group_size=3, epsilon=0.5)[0])
    before = np.cov(np.float64(x).T, bias=True)
    assert_allclose(y.T @ y / len(y), before @ np.linalg.inv(before + 0.5 * np.eye(3)), atol=2e-6)


def test_a_group_of_one_is_batch_norm_with_its_gradient() -> None:
    x, (params, state) = data(), parameters(3, 1)
    running = RunningStats(state.mean, state.cov[:, 0, 0])
    weights = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    ours, our_new = compiled(params, state, x, train=True, group_size=1)
    plain, new = batch_norm(params, running, x, train=True)
    assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
    assert_allclose(our_new.cov[:, 0, 0], new.var, rtol=1e-6)
    got = jax.vjp(lambda params, x: compiled(params, state, x, train=True, group_size=1)[0], params, x)[1](weights)
    expected = jax.vjp(lambda params, x: batch_norm(params, running, x, train=True)[0], params, x)[1](weights)
    for part, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(part, wanted, rtol=1e-4, atol=1e-4)


def test_the_matrix_is_symmetric_so_that_no_channel_takes_the_place_of_another() -> None:
    x = correlated((256, 4)) + 10 * np.random.default_rng(3).normal(size=(256, 4)).astype(np.float32)
    _, state = init_decorrelated_batch_norm(4, group_size=4)
    y, _ = compiled(NONE, state, jnp.asarray(x), train=True, group_size=4)
    across = np.corrcoef(np.float64(y).T, np.float64(x).T)[:4, 4:]
    assert (np.diagonal(across) > 0.9).all()


@pytest.mark.parametrize("mean", [1e3, -1e5], ids=str)
def test_means_far_from_zero_and_from_the_running_mean_cost_no_digits(mean: float) -> None:
    x = correlated((512, 4), mean)
    _, state = init_decorrelated_batch_norm(4, group_size=2)
    y, new = compiled(NONE, state, jnp.asarray(x), train=True, group_size=2, momentum=0.0)
    expected = oracles.decorrelated_batch_norm(NONE, state, x, train=True, group_size=2, momentum=0.0)
    assert_allclose(new.cov, expected.cov, rtol=1e-4, atol=1e-5)
    assert_allclose(y, expected.y, atol=1e-4 + 2 * abs(mean) * np.finfo(np.float32).eps)


# Derivatives


@pytest.mark.parametrize(("equal", "order"), [(False, 1), (True, 2)], ids=["any", "equal eigenvalues"])
def test_derivatives_of_the_inverse_root(equal: bool, order: int) -> None:
    with jax.enable_x64(True):
        root = np.random.default_rng(0).normal(size=(2, 3, 3))
        s = jnp.asarray(np.broadcast_to(2.0 * np.eye(3), (2, 3, 3)) if equal else root @ np.swapaxes(root, 1, 2) + np.eye(3))
        # Of a symmetric matrix alone it is the inverse root.
        check_grads(jax.jit(lambda a: inverse_root((a + a.mT) / 2)), (s,), order=order, rtol=1e-5)
        w = inverse_root(s)
        assert_allclose(w @ s @ w, np.broadcast_to(np.eye(3), (2, 3, 3)), atol=1e-12)


def test_the_gradient_is_that_of_the_oracle() -> None:
    with jax.enable_x64(True):
        params, state = jax.tree.map(lambda a: a.astype(jnp.float64), parameters(4, 2))
        x = jnp.asarray(correlated((6, 4), 2.0), jnp.float64)
        weights = np.random.default_rng(4).normal(size=(6, 4))
        options = {"train": True, "group_size": 2, "epsilon": 1e-3}
        gradient = jax.grad(lambda x: jnp.sum(weights * compiled(params, state, x, **options)[0]))(x)
        step, flat = 1e-6, np.asarray(x).ravel()
        for i in range(flat.size):
            ahead, behind = (
                np.sum(
                    weights
                    * oracles.decorrelated_batch_norm(
                        params, state, (flat + sign * step * np.eye(flat.size)[i]).reshape(6, 4), **options
                    ).y
                )
                for sign in (1, -1)
            )
            assert_allclose(gradient.ravel()[i], (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


def test_channels_of_equal_variance_without_correlation_have_a_gradient() -> None:
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)  # the covariance is exactly I
    _, state = init_decorrelated_batch_norm(2, group_size=2)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    run = lambda x: jnp.sum(weights * compiled(NONE, state, x, train=True, group_size=2, epsilon=0.0)[0])  # noqa: E731
    gradient = jax.grad(run)(jnp.asarray(corners))
    assert jnp.isfinite(gradient).all()
    # To the first order W - I is -1/2 of the change of the covariance.
    centered = weights - weights.mean(0, keepdims=True)
    expected = centered - corners @ np.asarray(weights.T @ corners + corners.T @ weights) / 8
    assert_allclose(gradient, expected, atol=1e-5)


# Batches that are singular, ill-conditioned, not finite or not counted


def test_fewer_vectors_than_channels_are_finite_with_epsilon_and_0_where_nothing_varies_without() -> None:
    x = jnp.asarray(correlated((4, 8), 2.0))
    _, state = init_decorrelated_batch_norm(8, group_size=8)
    for epsilon in (1e-5, 0.0):
        run = lambda x, epsilon=epsilon: compiled(NONE, state, x, train=True, group_size=8, epsilon=epsilon)  # noqa: E731
        y, pullback, new = jax.vjp(run, x, has_aux=True)
        assert all(bool(jnp.isfinite(part).all()) for part in (y, *new, *pullback(jnp.cos(y))))
        # Rank 3: of eight directions three have variance 1, and the others none.
        assert_allclose(np.linalg.eigvalsh(np.float64(y).T @ np.float64(y) / 4), [0] * 5 + [1] * 3, atol=2e-3)


@pytest.mark.parametrize("constant", [0.0, -7.25], ids=str)
def test_a_constant_batch_gives_the_bias(constant: float) -> None:
    params, state = parameters(4, 2)
    y, new = compiled(params, state, jnp.full((8, 4), constant), train=True, group_size=2, momentum=0.0, epsilon=0.0)
    assert_array_equal(y, jnp.broadcast_to(params.bias, (8, 4)))
    assert_array_equal(new.cov, jnp.zeros((2, 2, 2)))


def ill_conditioned(dtype: Any, smallest: float) -> np.ndarray:
    """Variances of the output along the principal axes of an input whose deviations fall to this one."""
    random = np.random.default_rng(0)
    turn, _ = np.linalg.qr(random.normal(size=(16, 16)))
    vectors = random.normal(size=(4096, 16)) * np.geomspace(1, smallest, 16) @ turn
    with jax.enable_x64(dtype == np.float64):
        _, state = init_decorrelated_batch_norm(16, dtype=dtype)
        y, _ = decorrelated_batch_norm(NONE, state, jnp.asarray(vectors, dtype), train=True, epsilon=0.0)
    y = np.float64(y) @ turn.T
    return y.T @ y / len(y)


@pytest.mark.parametrize(
    ("dtype", "smallest", "tolerance"), [(np.float32, 1e-2, 5e-3), (np.float64, 1e-3, 1e-9)], ids=["float32", "float64"]
)
def test_condition_numbers_of_ten_thousand_and_of_a_million_are_whitened(dtype: Any, smallest: float, tolerance: float) -> None:
    assert_allclose(ill_conditioned(dtype, smallest), np.eye(16), atol=tolerance)


def test_float32_whitens_what_it_resolves_of_a_condition_number_of_a_million() -> None:
    cov = ill_conditioned(np.float32, 1e-3)
    assert_allclose(cov[:12, :12], np.eye(12), atol=0.02)
    assert (np.diagonal(cov) < 1.5).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_a_batch_that_is_not_finite_harms_its_group_alone_and_no_state(bad: float) -> None:
    (params, state), x = parameters(6, 2), jnp.asarray(correlated((16, 6)))
    y, new = compiled(params, state, x.at[3, 2].set(bad), train=True, group_size=2)
    clean, clean_new = compiled(params, state, x, train=True, group_size=2)
    assert_array_equal(new.cov[1], state.cov[1])
    assert_array_equal(new.mean[2:4], state.mean[2:4])
    for group in (0, 2):
        assert_array_equal(new.cov[group], clean_new.cov[group])
        part = slice(2 * group, 2 * group + 2)
        assert_array_equal(new.mean[part], clean_new.mean[part])
        assert_allclose(y[:, part], clean[:, part], rtol=1e-6, atol=1e-6)


def test_what_does_not_count_is_whitened_with_the_rest() -> None:
    (params, state), x = parameters(3, 3), data()
    options = {"train": True, "group_size": 3, "epsilon": 1e-2, "where": counted()}
    y, new = compiled(params, state, x, **options)
    expected = oracles.decorrelated_batch_norm(params, state, x, **options)
    assert_allclose(y, expected.y, rtol=1e-4, atol=1e-4)
    assert_allclose(new.cov, expected.cov, rtol=1e-5, atol=1e-5)


def test_padding_that_is_not_finite_reaches_nothing() -> None:
    (params, state), x, where = parameters(3, 3), data(), counted()

    def run(x: jax.Array) -> Any:
        f = lambda params, x: compiled(params, state, x, train=True, group_size=3, where=where)  # noqa: E731
        y, pullback, new = jax.vjp(f, params, x, has_aux=True)
        return jnp.where(where, y, 0), new, pullback(jnp.where(where, jnp.cos(y), 0))

    poisoned, clean = (run(jnp.where(where, x, bad)) for bad in (jnp.nan, 0.0))
    jax.tree.map(assert_array_equal, poisoned, clean)


def test_without_a_counted_element_the_running_statistics_are_used_and_kept() -> None:
    (params, state), x = parameters(3, 3), data()
    y, new = compiled(params, state, x, train=True, group_size=3, where=jnp.zeros((8, 1, 1, 1), bool))
    assert_allclose(y, compiled(params, state, x, train=False, group_size=3)[0], rtol=1e-6, atol=1e-6)
    jax.tree.map(assert_array_equal, new, state)


# Devices


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    ("spec", "group_size"),
    [(P("d"), 8), (P(None, None, "d"), 2), (P(None, None, "d"), 8)],
    ids=["batch", "a group a device", "groups over devices"],
)
@pytest.mark.parametrize("function", [decorrelated_batch_norm, iterative_norm], ids=lambda function: function.__name__)
def test_sharded_arrays_of_either_kind_of_axis(axis_type: AxisType, spec: P, group_size: int, function: Any) -> None:
    x, (params, state) = jnp.asarray(correlated((8, 8, 16), 2.0)), parameters(16, group_size)
    weights = jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)

    def run(params: AffineParams, state: CovarianceStats, x: jax.Array, weights: jax.Array) -> Any:
        f = lambda params, x: function(params, state, x, train=True, group_size=group_size)  # noqa: E731
        y, pullback, new = jax.vjp(f, params, x, has_aux=True)
        return y, new, pullback(weights)

    expected = run(params, state, x, weights)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        sharded, weights_here = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (x, weights))
        here = jax.device_put((params, state), NamedSharding(mesh, P()))
        got = jax.jit(run)(*here, sharded, weights_here)
        assert got[0].sharding.is_equivalent_to(sharded.sharding, 3)
    for part, wanted in zip(jax.tree.leaves(jax.device_get(got)), jax.tree.leaves(expected), strict=True):
        assert_allclose(part, wanted, rtol=1e-4, atol=1e-4 * float(jnp.abs(wanted).max()))


# Errors


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"group_size": 2}, ValueError, "group_size must divide the number of channels, 3, got 2"),
        ({"group_size": 0}, ValueError, "group_size must be at least 1, got 0"),
        ({"group_size": 1.0}, TypeError, "group_size must be an int"),
        ({"group_size": 1}, ValueError, r"state.cov must have shape \[3, 1, 1\]"),
        ({"channel_axis": (1, 3)}, ValueError, r"channel_axis must be one axis, got \(1, 3\)"),
        ({"channel_axis": 4}, ValueError, "channel_axis is out of range"),
        ({"where": jnp.ones((8, 2, 4, 3), bool)}, ValueError, "where must have size 1 along the channels"),
        ({"epsilon": -1.0}, ValueError, "epsilon must be in"),
        ({"axis_name": "nowhere"}, ValueError, "axis_name 'nowhere' is not bound"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    params, state = parameters(3, 3)
    with pytest.raises(kind, match=message):
        decorrelated_batch_norm(params, state, data(), **{"train": True, "group_size": 3, **options})


def test_a_symbolic_number_of_channels_is_named() -> None:
    (c,) = export.symbolic_shape("c")
    x = jax.ShapeDtypeStruct((4, c), jnp.float32)
    state = CovarianceStats(jax.ShapeDtypeStruct((c,), jnp.float32), jax.ShapeDtypeStruct((1, 3, 3), jnp.float32))  # type: ignore[arg-type]
    run = jax.jit(lambda state, x: decorrelated_batch_norm(NONE, state, x, train=True, group_size=3))
    with pytest.raises(ValueError, match="group_size must divide the number of channels, c, got 3"):
        export.export(run)(state, x)


def test_a_new_layer_checks_its_sizes() -> None:
    with pytest.raises(ValueError, match="group_size must divide the number of channels, 24, got 16"):
        init_decorrelated_batch_norm(24)
    params, state = init_decorrelated_batch_norm(6, group_size=3, use_bias=False)
    assert params.bias is None
    assert_array_equal(state.cov, np.broadcast_to(np.eye(3), (2, 3, 3)))
