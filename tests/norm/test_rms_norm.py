"""rms_norm and gated_rms_norm: the oracle, closed forms, invariances, conventions of public models, what is kept, and errors."""

import functools
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

from jaxnorm import AffineParams, gated_rms_norm, init_gated_rms_norm, init_rms_norm, layer_norm, rms_norm
from jaxnorm.benchmarks._costs import residuals

NONE = AffineParams(None, None)
compiled = jax.jit(rms_norm, static_argnames=("reduction_axes", "feature_axes", "fraction"))


def parameters(*shape: int, bias: bool = False) -> AffineParams:
    random = np.random.default_rng(1)
    scale, offset = (jnp.asarray(random.uniform(low, 3, shape), jnp.float32) for low in (0.5, -2))
    return AffineParams(scale, offset if bias else None)


def normal(shape: tuple[int, ...], mean: float = 0.0, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 1, shape).astype(np.float32))


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ((-1, -1), {}),
        ((1, 1), {"scale_offset": 1.0}),
        (((1, 3), (-1, -3)), {}),
        ((-1, 1), {"fraction": 0.5}),
        ((2, (0, 1, 2, 3)), {"fraction": 0.7}),
        (((0, 1, 2, 3), ()), {}),
    ],
    ids=str,
)
def test_equals_the_oracle_on_every_axis(axes: Any, options: dict[str, Any]) -> None:
    x = data((4, 2, 3, 5))
    features = (axes[1],) if isinstance(axes[1], int) else axes[1]
    params = parameters(*(x.shape[a] for a in sorted(a % 4 for a in features)), bias=True)
    options = {"reduction_axes": axes[0], "feature_axes": axes[1], "epsilon": 1e-3, **options}
    assert_allclose(compiled(params, x, **options), oracles.rms_norm(params, x, **options), rtol=1e-5, atol=1e-5)


def test_float64_has_the_oracle_to_1e_12() -> None:
    with jax.enable_x64(True):
        x = data(dtype=jnp.float64)
        params = jax.tree.map(lambda a: a.astype(jnp.float64), parameters(3))
        assert_allclose(rms_norm(params, x), oracles.rms_norm(params, x), rtol=1e-12, atol=1e-12)


def test_closed_forms_of_the_normalized_example() -> None:
    """methods.md 3.11: the squares of y add up to the number of features, and without a mean it is layer norm."""
    x = normal((5, 32), 2.0)
    y = np.float64(rms_norm(NONE, x, epsilon=0.0))
    assert_allclose((y**2).sum(-1), 32, rtol=1e-6)
    centered = x - x.mean(-1, keepdims=True)
    assert_allclose(rms_norm(NONE, centered), layer_norm(NONE, centered), rtol=1e-5, atol=1e-5)


def test_scaling_an_example_changes_nothing_and_shifting_it_does() -> None:
    x, factor = normal((6, 16)), jnp.linspace(0.5, 8, 6)[:, None]
    assert_allclose(rms_norm(NONE, x * factor, epsilon=0.0), rms_norm(NONE, x, epsilon=0.0), rtol=1e-5, atol=1e-6)
    assert jnp.abs(rms_norm(NONE, x + 1) - rms_norm(NONE, x)).max() > 0.3


@pytest.mark.parametrize(("fraction", "first"), [(0.0625, 1), (0.01, 1), (0.25, 4), (0.3, 4), (0.999, 15), (1, 16)])
def test_a_fraction_squares_the_first_features(fraction: float, first: int) -> None:
    """Pitfall 13: squares, and not the variance."""
    x = normal((6, 16), 3.0)
    wanted = np.float64(x) / np.sqrt((np.float64(x)[:, :first] ** 2).mean(-1, keepdims=True) + 1e-6)
    assert_allclose(rms_norm(NONE, x, fraction=fraction), wanted, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_formula() -> None:
    x, params, weights = normal((32, 24), 2.0), parameters(24), normal((32, 24), seed=3)

    def formula(params: AffineParams, x: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * (1 + params.scale[None])

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x, weights))
        expected = jax.vjp(formula, *wide[:2])[1](wide[2])
    norm = lambda params, x: rms_norm(params, x, scale_offset=1.0)  # noqa: E731
    got = jax.jit(lambda params, x: jax.vjp(norm, params, x)[1](weights))(params, x)
    for part, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(part, wanted, rtol=1e-5, atol=2e-5)


def test_a_half_scale_beside_an_offset_keeps_its_digits() -> None:
    """Gemma's: 1 + scale in bfloat16 would round scales below 1/128 away."""
    x, scale = normal((8, 64)), jnp.full(64, 2**-9, jnp.bfloat16)
    y = rms_norm(AffineParams(scale, None), x, scale_offset=1.0)
    assert_allclose(y, (1 + 2**-9) * rms_norm(NONE, x), rtol=1e-6)


@pytest.mark.parametrize("scale_dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
def test_rounding_before_the_scale_gives_what_t5_and_llama_do(scale_dtype: Any) -> None:
    x, params = normal((8, 64)).astype(jnp.bfloat16), AffineParams(parameters(64).scale.astype(scale_dtype), None)
    weights = normal((8, 64), seed=3).astype(jnp.bfloat16)

    def formula(params: AffineParams, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        hidden = (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)
        return params.scale.astype(x.dtype)[None] * hidden

    norm = functools.partial(rms_norm, round_before_scale=True)
    assert_array_equal(norm(params, x), formula(params, x))
    assert (norm(params, x) != rms_norm(params, x)).any()
    got, expected = (jax.jit(lambda *a, f=f: jax.vjp(f, *a)[1](weights))(params, x) for f in (norm, formula))
    assert_allclose(np.float32(got[0].scale), np.float32(expected[0].scale), rtol=0.02, atol=0.05)
    assert_allclose(np.float32(got[1]), np.float32(expected[1]), rtol=0.02, atol=0.02)


def test_rounding_before_the_scale_with_all_other_options() -> None:
    """Where the type is x's own, nothing is rounded: any axes, a mask, an offset and a bias."""
    x, where = data((4, 2, 3, 5)), counted()[:1, :1, :1, :1] | (jnp.arange(5).reshape(1, 1, 1, 5) != 2)
    options = {"reduction_axes": (2, 3), "feature_axes": (1, 3), "where": where, "scale_offset": 0.5, "epsilon": 1e-3}
    params = parameters(2, 5, bias=True)
    assert_allclose(rms_norm(params, x, round_before_scale=True, **options), rms_norm(params, x, **options), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rounded", [False, True], ids=["at_once", "rounded_before"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
def test_the_gradient_keeps_x_and_numbers_of_the_statistics(dtype: Any, rounded: bool) -> None:
    x, params = data((64, 16, 128), dtype=dtype), parameters(128)
    norm = functools.partial(rms_norm, scale_offset=1.0, round_before_scale=rounded)
    kept = residuals(lambda params, x: (norm(params, x), None), params, x)
    assert kept.keeps_input
    assert kept.nbytes <= 4 * (4 * 64 * 16) + 2 * 4 * 128


@pytest.mark.parametrize("norm", [rms_norm, layer_norm], ids=["rms", "layer"])
def test_a_residual_block_keeps_one_array(norm: Any) -> None:
    """Before the norm a branch is added, as in every transformer: the sum is kept, and nothing besides."""
    x, params = data((64, 16, 128)), parameters(128)
    kept = residuals(lambda params, x: (norm(params, x + jax.lax.stop_gradient(x)), None), params, x)
    assert not kept.keeps_input
    assert kept.nbytes <= x.nbytes + 4 * (4 * 64 * 16) + 2 * 4 * 128


def test_what_does_not_count_is_divided_with_the_rest() -> None:
    x, where = data(), counted() | (jnp.arange(3).reshape(1, 1, 1, 3) < 2)
    y = compiled(parameters(3), x, where=where)
    assert_allclose(y, oracles.rms_norm(parameters(3), x, where=where), rtol=1e-5, atol=1e-5)


def test_an_example_of_which_nothing_counts_gives_the_bias_without_gradient() -> None:
    x, params = normal((3, 8), 50.0), parameters(8, bias=True)
    where = jnp.asarray([True, False, True])[:, None]
    y, pullback = jax.vjp(lambda x: compiled(params, x, where=where, epsilon=0.0), x)
    assert_array_equal(y[1], params.bias)
    (gradient,) = pullback(jnp.cos(y))
    assert_array_equal(gradient[1], jnp.zeros(8))
    assert (gradient[0] != 0).any()


@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
def test_divided_features_are_pooled_by_their_counts(masked: bool) -> None:
    x, params = normal((6, 16), 3.0), parameters(16)
    where = jnp.arange(16)[None] < jnp.asarray([16, 5, 3, 1, 9, 16])[:, None] if masked else None
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def run(params: AffineParams, x: jax.Array, where: jax.Array | None) -> Any:
        y, pullback = jax.vjp(lambda params, x: rms_norm(params, x, where=where, axis_name="d"), params, x)
        return y, pullback(jnp.cos(y))

    specs = (P("d"), P(None, "d"), P(None, "d"))
    y, gradient = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(specs[1], specs[:2])))(params, x, where)
    expected, pullback = jax.vjp(lambda params, x: rms_norm(params, x, where=where), params, x)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for part, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(pullback(jnp.cos(expected))), strict=True):
        assert_allclose(part, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", [P("d"), P(None, "d"), P(None, None, "d")], ids=["batch", "time", "features"])
@pytest.mark.parametrize("gate_first", [None, False, True], ids=["rms", "gate_after", "gate_first"])
def test_sharded_arrays_of_either_kind_of_axis(axis_type: AxisType, spec: P, gate_first: bool | None) -> None:
    x, params = data((8, 8, 16)), parameters(16)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    weights = jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)

    def norm(params: AffineParams, x: jax.Array, gate: jax.Array) -> jax.Array:
        if gate_first is None:
            return rms_norm(params, x, fraction=0.5)
        return gated_rms_norm(params, x, gate, gate_first=gate_first)

    expected = jax.vjp(norm, params, x, weights)
    with jax.set_mesh(mesh):
        sharded, weights_here = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (x, weights))
        here = jax.device_put(params, NamedSharding(mesh, P()))

        def run(params: AffineParams, x: jax.Array, weights: jax.Array) -> Any:
            y, pullback = jax.vjp(norm, params, x, weights)
            return y, pullback(weights)

        y, gradient = jax.jit(run)(here, sharded, weights_here)
        assert y.sharding.is_equivalent_to(sharded.sharding, 3)
    assert_allclose(jax.device_get(y), expected[0], rtol=1e-5, atol=1e-5)
    for part, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected[1](weights)), strict=True):
        assert_allclose(jax.device_get(part), wanted, rtol=1e-5, atol=2e-5)


# With a gate


@pytest.mark.parametrize("gate_first", [False, True], ids=["after", "first"])
def test_the_gated_norm_equals_the_oracle(gate_first: bool) -> None:
    x, gate, params = data(), data(seed=4), parameters(3, bias=True)
    options = {"gate_first": gate_first, "epsilon": 1e-3, "scale_offset": 0.5}
    y = gated_rms_norm(params, x, gate, **options)
    assert_allclose(y, oracles.gated_rms_norm(params, x, gate, **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate_first", [False, True], ids=["after", "first"])
def test_the_gated_norm_is_rounded_once_and_keeps_x_and_the_gate(gate_first: bool) -> None:
    x, gate, params = (data((64, 16, 128), dtype=jnp.bfloat16, seed=seed) for seed in (0, 4)), None, parameters(128)
    x, gate = x
    y = gated_rms_norm(params, x, gate, gate_first=gate_first)
    exact = oracles.gated_rms_norm(params, x, gate, gate_first=gate_first)
    assert_allclose(np.float64(y), exact, rtol=2.0**-8, atol=1e-6)
    kept = residuals(lambda params, x: (gated_rms_norm(params, x, gate, gate_first=gate_first), None), params, x)
    assert kept.keeps_input
    assert kept.nbytes <= gate.nbytes + 4 * (4 * 64 * 16) + 2 * 4 * 128


@pytest.mark.parametrize("gate_first", [False, True], ids=["after", "first"])
def test_padding_of_x_and_gate_that_is_not_finite_reaches_nothing(gate_first: bool) -> None:
    x, gate, params = normal((6, 8)), normal((6, 8), seed=2), parameters(8)
    where = jnp.arange(8)[None] < jnp.asarray([8, 5, 3, 1, 2, 8])[:, None]

    def run(x: jax.Array, gate: jax.Array) -> Any:
        norm = lambda params, x, gate: gated_rms_norm(params, x, gate, gate_first=gate_first, where=where)  # noqa: E731
        y, pullback = jax.vjp(norm, params, x, gate)
        return jnp.where(where, y, 0), pullback(jnp.where(where, jnp.cos(y), 0))

    poisoned, clean = (run(jnp.where(where, x, bad), jnp.where(where, gate, bad)) for bad in (jnp.nan, 0.0))
    jax.tree.map(assert_array_equal, poisoned, clean)


# Errors


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"fraction": 0}, ValueError, "fraction must be above 0, got 0"),
        ({"fraction": 1.5}, ValueError, r"fraction must be in \[0, 1\], got 1.5"),
        ({"fraction": "half"}, TypeError, r"fraction must be a number in \[0, 1\], got 'half'"),
        ({"fraction": 0.5, "reduction_axes": (1, 3)}, ValueError, "fraction must be 1 for several reduction_axes"),
        ({"scale_offset": jnp.ones(2)}, ValueError, "scale_offset must have shape"),
        ({"round_before_scale": 1}, TypeError, "round_before_scale must be True or False"),
        ({"scale_offset": None}, TypeError, "scale_offset must be a number"),
        ({"epsilon": -1e-3}, ValueError, r"epsilon must be in \[0, inf\), got -0.001"),
        ({"reduction_axes": 4}, ValueError, "reduction_axes is out of range for an array of rank 4, got 4"),
        ({"feature_axes": 1}, ValueError, r"params.scale must have shape \[2\] \(the features of x\), got \[3\]"),
        ({"where": jnp.ones((3,), bool)}, ValueError, "where must have the rank of x"),
        ({"axis_name": "nowhere"}, ValueError, "axis_name 'nowhere' is not bound"),
        ({"dtype": jnp.int32}, TypeError, "dtype must be a type of floating point numbers"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        rms_norm(parameters(3), data(), **options)


@pytest.mark.parametrize(
    ("gate", "options", "kind", "message"),
    [
        (jnp.ones(3), {}, ValueError, r"gate must have shape \[8, 2, 4, 3\] \(that of x\), got \[3\]"),
        (jnp.ones((8, 2, 4, 3), jnp.int32), {}, TypeError, "gate must be an array of floating point numbers, got int32"),
        (data(), {"gate_first": 1}, TypeError, "gate_first must be True or False"),
        (data(), {"activation": "silu"}, TypeError, "activation must be a function of an array, got 'silu'"),
        (data(), {"activation": None}, TypeError, "activation must be a function of an array, got None"),
        (data(), {"activation": jnp.sum}, ValueError, "activation must map .* to an array of the same shape"),
    ],
)
def test_bad_gates_are_named(gate: Any, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        gated_rms_norm(parameters(3), data(), gate, **options)


def test_what_shapes_the_program_must_be_known() -> None:
    with pytest.raises(TypeError, match="gate_first must be known when the function is traced"):
        jax.jit(lambda first: gated_rms_norm(NONE, data(), data(), gate_first=first))(True)
    with pytest.raises(TypeError, match="fraction must be known when the function is traced"):
        jax.jit(lambda fraction: rms_norm(NONE, data(), fraction=fraction))(0.5)


def test_parameters_begin_at_what_makes_the_scale_1() -> None:
    assert_array_equal(init_rms_norm(3, scale_offset=1.0).scale, jnp.zeros(3))
    params = init_gated_rms_norm((2, 3), use_bias=True, param_dtype=jnp.bfloat16)
    assert all(part is not None and part.shape == (2, 3) and part.dtype == jnp.bfloat16 for part in params)
    assert init_rms_norm(3, use_scale=False) == NONE
