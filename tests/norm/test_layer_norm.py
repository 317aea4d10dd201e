"""layer_norm: the oracle, its closed forms and invariances, exactness, what is kept, divided features, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal
from promises import assert_higher_derivatives

import jaxnorm
from jaxnorm import AffineParams, init_layer_norm, layer_norm
from jaxnorm.benchmarks._costs import residuals

NONE = AffineParams(None, None)
compiled = jax.jit(layer_norm, static_argnames=("reduction_axes", "feature_axes"))


def parameters(*shape: int) -> AffineParams:
    random = np.random.default_rng(1)
    return AffineParams(*(jnp.asarray(random.uniform(low, 3, shape), jnp.float32) for low in (0.5, -2)))


def normal(shape: tuple[int, ...], mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("reduction_axes", "feature_axes"),
    [
        (-1, -1),
        (0, -1),
        (1, 1),
        (-1, 1),
        ((1, 3), (-1, -3)),
        ((-1, 1), 3),
        ((3, 0), (1, 2)),
        (2, (0, 1, 2, 3)),
        ((0, 1, 2, 3), (1, 3)),
        ((1, 2), ()),
        ((), -1),
    ],
    ids=str,
)
def test_equals_the_oracle_on_every_axis(reduction_axes: Any, feature_axes: Any) -> None:
    """Pitfall 33."""
    x = data((4, 2, 3, 5))
    axes = (feature_axes,) if isinstance(feature_axes, int) else feature_axes
    params = parameters(*(x.shape[a] for a in sorted(a % 4 for a in axes)))
    options = {"reduction_axes": reduction_axes, "feature_axes": feature_axes, "epsilon": 1e-3}
    y = compiled(params, x, **options)
    assert_allclose(y, oracles.layer_norm(params, x, **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_scale_and_bias_may_be_absent(used: tuple[bool, bool]) -> None:
    x = data()
    params = AffineParams(*(part if use else None for part, use in zip(parameters(3), used, strict=True)))
    y, pullback = jax.vjp(lambda params, x: compiled(params, x), params, x)
    assert_allclose(y, oracles.layer_norm(params, x), rtol=1e-5, atol=1e-5)
    gradient, _ = pullback(jnp.ones_like(y))
    assert [part is not None for part in gradient] == list(used)


def test_float64_has_the_oracle_to_1e_13() -> None:
    with jax.enable_x64(True):
        x = data(dtype=jnp.float64) + 100
        params = jax.tree.map(lambda a: a.astype(jnp.float64), parameters(3))
        assert_allclose(layer_norm(params, x), oracles.layer_norm(params, x), rtol=1e-12, atol=1e-12)


def test_closed_forms_of_the_normalized_example() -> None:
    x = normal((5, 32))
    y = np.float64(layer_norm(NONE, jnp.asarray(x), epsilon=0.25))
    var = x.astype(np.float64).var(-1)
    assert_allclose(y.sum(-1), 0, atol=1e-5)
    assert_allclose((y**2).sum(-1), 32 * var / (var + 0.25), rtol=1e-6)


def test_shifting_and_scaling_an_example_changes_nothing() -> None:
    x = jnp.asarray(normal((6, 16)))
    shift, factor = jnp.linspace(-20, 30, 6)[:, None], jnp.linspace(0.5, 8, 6)[:, None]
    assert_allclose(layer_norm(NONE, x * factor + shift, epsilon=0), layer_norm(NONE, x, epsilon=0), rtol=1e-4, atol=3e-5)


def test_scaling_all_weights_and_shifting_each_row_of_them_before_it_changes_nothing() -> None:
    x, weights = jnp.asarray(normal((6, 8))), jnp.asarray(normal((8, 16), seed=1))
    moved = 3 * weights + jnp.linspace(-1, 1, 8)[:, None]
    before, after = (layer_norm(NONE, x @ w, epsilon=0) for w in (weights, moved))
    assert_allclose(after, before, rtol=1e-4, atol=3e-5)


def test_an_example_does_not_depend_on_the_others() -> None:
    x, params = jnp.asarray(normal((8, 16))), parameters(16)
    others = x.at[3:].set(jnp.nan)
    assert_array_equal(compiled(params, x)[:3], compiled(params, others)[:3])
    gradient = jax.grad(lambda x: jnp.sum(jnp.cos(compiled(params, x)[:3])))(x)
    assert_array_equal(gradient[3:], jnp.zeros((5, 16)))


@pytest.mark.parametrize("mean", [0.0, 30.0, 1e4, -1e6], ids=str)
@pytest.mark.parametrize("features", [7, 4096, 8192], ids=str)
@pytest.mark.parametrize("spoiled", [False, True], ids=["plain", "outlier"])
def test_no_mean_is_too_far_and_no_first_element_too_odd(mean: float, features: int, spoiled: bool) -> None:
    x = normal((4, features), mean)
    if spoiled:
        x[:, 0] += 1000
    y = compiled(NONE, jnp.asarray(x))
    # The mean itself is a float32: that is what the tolerance grows with.
    rounding = np.abs(mean) * np.finfo(np.float32).eps
    assert_allclose(y, oracles.layer_norm(NONE, x), rtol=2e-5, atol=1e-5 + rounding)


def test_a_constant_example_gives_the_bias_whatever_it_is() -> None:
    x = jnp.asarray([0.0, -7.3, 1e6, 3e38, 1e-40])[:, None] * jnp.ones((5, 48))
    params = parameters(48)
    y, pullback = jax.vjp(lambda x: compiled(params, x, epsilon=1e-12), x)
    assert_array_equal(y, jnp.broadcast_to(params.bias, y.shape))
    assert jnp.isfinite(pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0]).all()


def test_one_feature_gives_the_bias() -> None:
    assert_array_equal(layer_norm(parameters(1), data((4, 1))), jnp.broadcast_to(parameters(1).bias, (4, 1)))


def test_an_empty_batch_stays_empty() -> None:
    assert layer_norm(parameters(3), jnp.ones((0, 3))).shape == (0, 3)
    assert layer_norm(AffineParams(*[jnp.ones(0)] * 2), jnp.ones((3, 0))).shape == (3, 0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_only_the_output_is_rounded(dtype: Any) -> None:
    """Pitfall 18."""
    x = jnp.asarray(100.3 + 0.1 * normal((64, 32)))
    params = parameters(32)
    exact = oracles.layer_norm(params, x)
    y = layer_norm(params, x, dtype=dtype)
    assert y.dtype == dtype
    assert_allclose(np.float64(y), exact, rtol=float(jnp.finfo(dtype).eps), atol=1e-3)


@pytest.mark.slow
def test_derivatives_of_what_counts_in_part() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(1, 2, (3, 4)))
        params = jax.tree.map(lambda a: a.astype(jnp.float64), parameters(4))
        where = jnp.asarray([[True, True, False, True], [True, True, True, True], [False, True, True, True]])
        f = lambda given: jnp.sum(jnp.sin(layer_norm(*given, where=where, epsilon=1.0)))  # noqa: E731
        assert_higher_derivatives(f, (params, x), tolerance=1e-6)


def test_the_gradient_is_that_of_the_formula() -> None:
    x, params = jnp.asarray(normal((32, 24), 2.0)), parameters(24)
    weights = jnp.asarray(normal((32, 24), seed=3))

    def formula(params: AffineParams, x: jax.Array) -> jax.Array:
        var = jnp.mean((x - x.mean(-1, keepdims=True)) ** 2, -1, keepdims=True)
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(var + 1e-6) * params.scale[None] + params.bias[None]

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x, weights))
        expected = jax.vjp(formula, *wide[:2])[1](wide[2])
    got = jax.jit(lambda params, x: jax.vjp(layer_norm, params, x)[1](weights))(params, x)
    for part, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(part, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
def test_the_gradient_keeps_x_and_numbers_of_the_statistics(dtype: Any) -> None:
    x, params = data((64, 16, 128), dtype=dtype), parameters(128)
    kept = residuals(lambda params, x: (layer_norm(params, x), None), params, x)
    assert kept.keeps_input
    assert kept.nbytes <= 4 * (4 * 64 * 16) + 2 * 4 * 128  # four numbers an example, two a feature


# What counts


def test_what_does_not_count_is_normalized_with_the_rest() -> None:
    x, where = data(), counted() | (jnp.arange(3).reshape(1, 1, 1, 3) < 2)
    y = compiled(parameters(3), x, where=where)
    assert_allclose(y, oracles.layer_norm(parameters(3), x, where=where), rtol=1e-5, atol=1e-5)


def test_padding_that_is_not_finite_reaches_nothing() -> None:
    x, params = jnp.asarray(normal((6, 8))), parameters(8)
    where = jnp.arange(8)[None] < jnp.asarray([8, 5, 3, 1, 2, 8])[:, None]

    def run(x: jax.Array) -> Any:
        y, pullback = jax.vjp(lambda params, x: compiled(params, x, where=where), params, x)
        return jnp.where(where, y, 0), pullback(jnp.where(where, jnp.cos(y), 0))

    poisoned, clean = (run(jnp.where(where, x, bad)) for bad in (jnp.nan, 0.0))
    jax.tree.map(assert_array_equal, poisoned, clean)


def test_an_example_of_which_nothing_counts_gives_the_bias_without_gradient() -> None:
    x, params = jnp.asarray(normal((3, 8), 50.0)), parameters(8)
    where = jnp.asarray([True, False, True])[:, None]
    y, pullback = jax.vjp(lambda x: compiled(params, x, where=where, epsilon=0.0), x)
    assert_array_equal(y[1], params.bias)
    (gradient,) = pullback(jnp.cos(y))
    assert_array_equal(gradient[1], jnp.zeros(8))
    assert (gradient[0] != 0).any()
    second = jax.jvp(jax.grad(lambda x: jnp.sum(jnp.cos(compiled(params, x, where=where)))), (x,), (x,))[1]
    assert jnp.isfinite(second).all()


# Features divided over devices


@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
def test_divided_features_are_pooled_by_their_counts(masked: bool) -> None:
    x, params = jnp.asarray(normal((6, 16), 3.0)), parameters(16)
    where = jnp.arange(16)[None] < jnp.asarray([16, 5, 3, 1, 9, 16])[:, None] if masked else None
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def run(params: AffineParams, x: jax.Array, where: jax.Array | None) -> Any:
        y, pullback = jax.vjp(lambda params, x: layer_norm(params, x, where=where, axis_name="d"), params, x)
        return y, pullback(jnp.cos(y))

    specs = (P("d"), P(None, "d"), P(None, "d"))
    y, gradient = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(specs[1], specs[:2])))(params, x, where)
    expected, pullback = jax.vjp(lambda params, x: layer_norm(params, x, where=where), params, x)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for part, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(pullback(jnp.cos(expected))), strict=True):
        assert_allclose(part, wanted, rtol=1e-5, atol=1e-5)


def test_groups_of_parts_are_normalized_apart() -> None:
    groups = [[0, 3], [1, 2]]
    x = jnp.asarray(normal((4, 6, 5), 3.0)) * jnp.asarray([1.0, 2, 3, 4])[:, None, None]
    y = jax.vmap(lambda x: layer_norm(NONE, x, axis_name="d", axis_index_groups=groups), axis_name="d")(x)
    for group in groups:
        whole = layer_norm(NONE, jnp.concatenate([x[i] for i in group], -1))
        assert_allclose(jnp.concatenate([y[i] for i in group], -1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", [P("d"), P(None, "d"), P(None, None, "d")], ids=["batch", "time", "features"])
def test_sharded_arrays_of_either_kind_of_axis(axis_type: AxisType, spec: P) -> None:
    x, params = data((8, 8, 16)), parameters(16)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    weights = jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    expected = jax.vjp(layer_norm, params, x)
    with jax.set_mesh(mesh):
        sharded, weights_here = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (x, weights))
        here = jax.device_put(params, NamedSharding(mesh, P()))

        def run(params: AffineParams, x: jax.Array, weights: jax.Array) -> Any:
            y, pullback = jax.vjp(layer_norm, params, x)
            return y, pullback(weights)

        y, gradient = jax.jit(run)(here, sharded, weights_here)
        assert y.sharding.is_equivalent_to(sharded.sharding, 3)
    assert_allclose(jax.device_get(y), expected[0], rtol=1e-5, atol=1e-5)
    for part, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected[1](weights)), strict=True):
        assert_allclose(jax.device_get(part), wanted, rtol=1e-5, atol=2e-5)


# Errors


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"epsilon": -1e-3}, ValueError, r"epsilon must be in \[0, inf\), got -0.001"),
        ({"epsilon": jnp.ones(2)}, ValueError, "epsilon must have shape"),
        ({"reduction_axes": 4}, ValueError, "reduction_axes is out of range for an array of rank 4, got 4"),
        ({"reduction_axes": (1, -3)}, ValueError, r"reduction_axes names an axis twice, got \(1, -3\)"),
        ({"feature_axes": -5}, ValueError, "feature_axes is out of range"),
        ({"feature_axes": "last"}, TypeError, "feature_axes must be an int or a sequence of ints"),
        ({"feature_axes": 1}, ValueError, r"params.scale must have shape \[2\] \(the features of x\), got \[3\]"),
        ({"where": jnp.ones((8, 2, 4, 3))}, TypeError, "where must be an array of bool"),
        ({"where": jnp.ones((3,), bool)}, ValueError, "where must have the rank of x"),
        ({"axis_name": "nowhere"}, ValueError, "axis_name 'nowhere' is not bound"),
        ({"axis_index_groups": [[0]]}, ValueError, "axis_index_groups needs an axis_name"),
        ({"dtype": jnp.int32}, TypeError, "dtype must be a type of floating point numbers"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        layer_norm(parameters(3), data(), **options)


def test_parameters_of_another_kind_or_size_are_named() -> None:
    with pytest.raises(TypeError, match="params must be AffineParams, got"):
        layer_norm((jnp.ones(3), None), data())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"params.bias must have shape \[3\]"):
        layer_norm(AffineParams(None, jnp.ones(1)), data())
    with pytest.raises(TypeError, match="dtype must be complex or None for an x of complex64, got float32"):
        layer_norm(NONE, data(dtype=jnp.complex64), dtype=jnp.float32)


@pytest.mark.parametrize(("size", "kind"), [(0, ValueError), ((3, -1), ValueError), (2.0, TypeError), (True, TypeError)], ids=str)
def test_sizes_are_checked(size: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="num_features must be"):
        init_layer_norm(size)


def test_parameters_have_the_sizes_of_the_features() -> None:
    params = init_layer_norm((2, 3), param_dtype=jnp.bfloat16)
    assert all(part is not None and part.shape == (2, 3) and part.dtype == jnp.bfloat16 for part in params)
    assert init_layer_norm(3, use_scale=False, use_bias=False) == NONE


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_pre_norm_block_keeps_the_sum_of_shortcut_and_branch_alone(norm: str, dtype: Any) -> None:
    """The sum is a step of the same loop, and is what the block goes on with: neither summand is kept, nor what is normalized."""
    function = {"layer": jaxnorm.layer_norm, "rms": jaxnorm.rms_norm}[norm]
    params = getattr(jaxnorm, f"init_{norm}_norm")(256)
    branch = data((64, 256), dtype=dtype, seed=2)

    def block(params: Any, x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        total = x + branch
        return (total, function(params, total)), None

    kept = residuals(block, params, data((64, 256), dtype=dtype))
    assert kept.nbytes <= data((64, 256), dtype=dtype).nbytes + 8 * 4 * 64 + 4 * 4 * 256
