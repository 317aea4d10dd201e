"""group_norm and instance_norm: the oracle, what they become at the ends, isolation, exactness, what is kept, and errors."""

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

from jaxnorm import (
    AffineParams,
    batch_norm,
    group_norm,
    init_batch_norm,
    init_group_norm,
    init_instance_norm,
    instance_norm,
    layer_norm,
    tracked_instance_norm,
)
from jaxnorm.benchmarks._costs import residuals

NONE = AffineParams(None, None)
compiled = jax.jit(group_norm, static_argnames=("num_groups", "group_size", "channel_axis", "reduction_axes", "activation"))
compiled_instance = jax.jit(instance_norm, static_argnames=("channel_axis", "reduction_axes", "activation"))


def parameters(*shape: int) -> AffineParams:
    random = np.random.default_rng(1)
    return AffineParams(*(jnp.asarray(random.uniform(low, 3, shape), jnp.float32) for low in (0.5, -2)))


def normal(shape: tuple[int, ...], mean: float = 0.0, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 1, shape).astype(np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"num_groups": 1},
        {"num_groups": 3},
        {"num_groups": 6},
        {"num_groups": None, "group_size": 3},
        {"num_groups": 2, "channel_axis": 1},
        {"num_groups": 2, "channel_axis": 2, "reduction_axes": (1, 3)},
        {"num_groups": 2, "channel_axis": 0, "reduction_axes": (1, 2, 3)},
        {"num_groups": 3, "reduction_axes": ()},
        {"num_groups": 2, "reduction_axes": -1},
        {"num_groups": 2, "channel_axis": 1, "reduction_axes": (1,)},
        {"num_groups": 3, "reduction_axes": (0, 1, 2)},
    ],
    ids=str,
)
def test_equals_the_oracle_on_every_axis(options: dict[str, Any]) -> None:
    """Pitfall 112."""
    x = data((4, 2, 4, 6))
    params = parameters(x.shape[options.get("channel_axis", -1)])
    y = compiled(params, x, **options, epsilon=1e-3)
    assert_allclose(y, oracles.group_norm(params, x, **options, epsilon=1e-3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"channel_axis": 1}, {"channel_axis": (1, 3)}, {"channel_axis": 2, "reduction_axes": (0, 3)}],
    ids=str,
)
def test_instances_equal_the_oracle_on_every_axis(options: dict[str, Any]) -> None:
    x = data((4, 2, 4, 6))
    axes = options.get("channel_axis", -1)
    params = parameters(*(x.shape[a] for a in ((axes,) if isinstance(axes, int) else axes)))
    y = compiled_instance(params, x, **options, epsilon=1e-3)
    assert_allclose(y, oracles.instance_norm(params, x, **options, epsilon=1e-3), rtol=1e-5, atol=1e-5)


def test_float64_has_the_oracle_to_1e_12() -> None:
    with jax.enable_x64(True):
        x = data((4, 5, 6), dtype=jnp.float64) + 100
        params = jax.tree.map(lambda a: a.astype(jnp.float64), parameters(6))
        assert_allclose(group_norm(params, x, 3), oracles.group_norm(params, x, 3), rtol=1e-12, atol=1e-12)
        assert_allclose(instance_norm(params, x), oracles.instance_norm(params, x), rtol=1e-12, atol=1e-12)


def test_one_group_is_layer_norm_of_the_whole_example_and_many_are_instance_norm() -> None:
    """Pitfall 111."""
    x, params = normal((4, 5, 6, 8), 3.0), parameters(8)
    whole = layer_norm(params, x, reduction_axes=(1, 2, 3))
    assert_allclose(group_norm(params, x, 1), whole, rtol=1e-6, atol=1e-6)
    for many in (group_norm(params, x, 8), group_norm(params, x, None, group_size=1)):
        assert_allclose(many, instance_norm(params, x), rtol=1e-6, atol=1e-6)


def test_instance_norm_of_one_example_is_batch_norm() -> None:
    x, params = normal((1, 5, 6, 8), 3.0), parameters(8)
    y, _ = batch_norm(params, init_batch_norm(8)[1], x, train=True, epsilon=1e-6)
    assert_allclose(instance_norm(params, x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 1, 1, 3)], ids=str)
def test_instances_of_one_position_are_the_bias_in_batches_of_any_size(shape: tuple[int, ...]) -> None:
    """Pitfall 30."""
    x, params = normal(shape, 3.0), parameters(3)
    _, state = init_batch_norm(3)
    trained, _ = tracked_instance_norm(params, state, x, train=True)
    for y in (instance_norm(params, x), group_norm(params, x, 3), trained):
        assert_array_equal(y, jnp.broadcast_to(params.bias, shape))


def test_a_group_does_not_depend_on_the_others() -> None:
    """Of 48 channels in 16 groups (methods.md 3.12): values and gradients of a group, whatever is in the others.

    Pitfall 112.
    """
    x, params = normal((3, 4, 48)), parameters(48)
    other = (jnp.arange(48) < 6) | (jnp.arange(48) >= 9)
    run = lambda x: jax.value_and_grad(lambda x: jnp.sum(jnp.sin(compiled(params, x, 16)[..., 6:9])))(x)  # noqa: E731
    expected = run(x)
    got = run(jnp.where(other[None, None], 1e4 * x, x))
    assert_array_equal(got[0], expected[0])
    assert_array_equal(got[1], expected[1])
    assert_array_equal(expected[1][..., other], 0)


def test_an_example_does_not_depend_on_the_others() -> None:
    x, params = normal((8, 4, 16)), parameters(16)
    others = x.at[3:].set(jnp.nan)
    assert_array_equal(compiled(params, x, 4)[:3], compiled(params, others, 4)[:3])


@pytest.mark.parametrize("mean", [0.0, 1e4, -1e6], ids=str)
@pytest.mark.parametrize("reduction_axes", [None, ()], ids=["positions", "none"])
def test_no_mean_is_too_far(mean: float, reduction_axes: Any) -> None:
    x = normal((4, 64, 64), mean)
    y = compiled(NONE, x, 2, reduction_axes=reduction_axes)
    rounding = abs(mean) * np.finfo(np.float32).eps
    wanted = oracles.group_norm(NONE, x, 2, reduction_axes=reduction_axes)
    assert_allclose(y, wanted, rtol=2e-5, atol=1e-5 + rounding)


def test_channels_whose_means_differ_by_far_are_pooled_exactly() -> None:
    x = normal((4, 64, 6)) + jnp.asarray([1e4, 1e4 + 3, -2, 5, -1e3, 1e3], jnp.float32)[None, None]
    assert_allclose(compiled(NONE, x, 3), oracles.group_norm(NONE, x, 3), rtol=2e-5, atol=2e-3)


def test_the_gradient_is_that_of_the_formula() -> None:
    x, params, weights = normal((3, 7, 8), 2.0), parameters(8), normal((3, 7, 8), seed=3)

    def formula(params: AffineParams, x: jax.Array) -> jax.Array:
        groups = x.reshape(3, 7, 2, 4)
        mean = groups.mean((1, 3), keepdims=True)
        normal = (groups - mean) / jnp.sqrt(jnp.mean((groups - mean) ** 2, (1, 3), keepdims=True) + 1e-6)
        return normal.reshape(x.shape) * params.scale[None, None] + params.bias[None, None]

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x, weights))
        expected = jax.vjp(formula, *wide[:2])[1](wide[2])
    for reduction_axes in (None, (1,)):
        got = jax.jit(
            lambda p, x, r=reduction_axes: jax.vjp(lambda p, x: group_norm(p, x, 2, reduction_axes=r), p, x)[1](weights)
        )
        for part, wanted in zip(jax.tree.leaves(got(params, x)), jax.tree.leaves(expected), strict=True):
            assert_allclose(part, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("whose", ["group", "instance"])
def test_the_gradient_keeps_x_and_numbers_of_the_statistics(dtype: Any, whose: str) -> None:
    x, params = data((64, 16, 16, 32), dtype=dtype), parameters(32)
    norm = {"group": lambda p, x: group_norm(p, x, 8, activation=jax.nn.relu), "instance": instance_norm}[whose]
    kept = residuals(lambda params, x: (norm(params, x), None), params, x)
    assert kept.keeps_input
    assert kept.nbytes <= 12 * 4 * 64 * 32  # a few numbers for each channel of an example


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 6)], ids=["positions", "vectors"])
def test_a_residual_block_in_one_step(shape: tuple[int, ...]) -> None:
    x, shortcut, params = normal(shape, 3.0), normal(shape, seed=2), parameters(6)
    for norm in (lambda **then: group_norm(params, x, 2, **then), lambda **then: instance_norm(params, x, **then)):
        y = norm(residual=shortcut, activation=jax.nn.relu)
        assert_allclose(y, jax.nn.relu(norm() + shortcut), rtol=1e-6, atol=1e-6)


# What counts


@pytest.mark.parametrize("channel", [False, True], ids=["shared", "channel"])
def test_what_does_not_count_is_normalized_with_the_rest(channel: bool) -> None:
    x, where = data(), counted()
    if channel:
        where = where | (jnp.arange(3).reshape(1, 1, 1, 3) == 1)
    params = parameters(3)
    some = np.broadcast_to(where, x.shape).any((1, 2, 3))
    y = compiled(params, x, 1, where=where)
    assert_allclose(y[some], oracles.group_norm(params, x, 1, where=where)[some], rtol=1e-5, atol=1e-5)


def test_images_of_different_sizes_in_one_batch_are_normalized_as_if_alone() -> None:
    sizes, params = ((5, 6), (3, 2), (1, 4)), parameters(8)
    images = [normal((1, *size, 8), 3.0, seed) for seed, size in enumerate(sizes)]
    padded = jnp.concatenate(
        [jnp.pad(i, [(0, 0), (0, 5 - i.shape[1]), (0, 6 - i.shape[2]), (0, 0)], constant_values=jnp.nan) for i in images]
    )
    rows, columns = (np.arange(n) < np.asarray([size[k] for size in sizes])[:, None] for k, n in enumerate((5, 6)))
    where = jnp.asarray(rows[:, :, None, None] & columns[:, None, :, None])
    y = compiled(params, padded, 2, where=where)
    for image, got in zip(images, y, strict=True):
        assert_allclose(got[: image.shape[1], : image.shape[2]], group_norm(params, image, 2)[0], rtol=1e-5, atol=1e-5)


def test_a_group_of_which_nothing_counts_gives_the_bias_without_gradient() -> None:
    x, params = normal((3, 4, 8), 50.0), parameters(8)
    where = jnp.asarray([True, False, True])[:, None, None]
    for reduction_axes in (None, ()):
        f = lambda x, r=reduction_axes: compiled(params, x, 2, where=where, epsilon=0.0, reduction_axes=r)  # noqa: E731
        y, pullback = jax.vjp(f, x)
        assert_array_equal(y[1], jnp.broadcast_to(params.bias, (4, 8)))
        (gradient,) = pullback(jnp.cos(y))
        assert_array_equal(gradient[1], jnp.zeros((4, 8)))
        assert (gradient[0] != 0).any()


# Several devices


@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
def test_divided_positions_are_pooled_by_their_counts(masked: bool) -> None:
    x, params = normal((6, 16, 4), 3.0), parameters(4)
    where = (jnp.arange(16)[None] < jnp.asarray([16, 5, 3, 1, 9, 16])[:, None])[..., None] if masked else None
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def run(params: AffineParams, x: jax.Array, where: jax.Array | None) -> Any:
        y, pullback = jax.vjp(lambda params, x: group_norm(params, x, 2, where=where, axis_name="d"), params, x)
        return y, pullback(jnp.cos(y))

    specs = (P(), P(None, "d"), P(None, "d"))
    y, gradient = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(specs[1], specs[:2])))(params, x, where)
    expected, pullback = jax.vjp(lambda params, x: group_norm(params, x, 2, where=where), params, x)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for part, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(pullback(jnp.cos(expected))), strict=True):
        assert_allclose(part, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", [P("d"), P(None, "d"), P(None, None, "d")], ids=["batch", "positions", "channels"])
@pytest.mark.parametrize("reduction_axes", [None, ()], ids=["positions", "none"])
def test_sharded_arrays_of_either_kind_of_axis(axis_type: AxisType, spec: P, reduction_axes: Any) -> None:
    x, params = data((8, 8, 16)), parameters(16)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    weights = jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    norm = lambda params, x: group_norm(params, x, 4, reduction_axes=reduction_axes)  # noqa: E731
    expected = jax.vjp(norm, params, x)
    with jax.set_mesh(mesh):
        sharded, weights_here = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (x, weights))
        here = jax.device_put(params, NamedSharding(mesh, P()))

        def run(params: AffineParams, x: jax.Array, weights: jax.Array) -> Any:
            y, pullback = jax.vjp(norm, params, x)
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
        ({"num_groups": 4}, ValueError, "num_groups must divide the number of channels, 6, got 4"),
        ({"num_groups": 12}, ValueError, "num_groups must divide the number of channels, 6, got 12"),
        ({"num_groups": 0}, ValueError, "num_groups must be at least 1, got 0"),
        ({"num_groups": 2.0}, TypeError, "num_groups must be an int"),
        ({"num_groups": None}, ValueError, "num_groups or group_size must be given, and not both, got None and None"),
        ({"group_size": 3}, ValueError, "num_groups or group_size must be given, and not both, got 2 and 3"),
        ({"num_groups": None, "group_size": 4}, ValueError, "group_size must divide the number of channels, 6, got 4"),
        ({"channel_axis": (1, 2)}, ValueError, r"channel_axis must be one axis, got \(1, 2\)"),
        ({"channel_axis": 0}, ValueError, "channel_axis must not be the first axis, that of the batch, unless reduction_axes"),
        ({"channel_axis": 5}, ValueError, "channel_axis is out of range for an array of rank 3, got 5"),
        ({"channel_axis": 1}, ValueError, r"params.scale must have shape \[4\] \(the channels of x\), got \[6\]"),
        ({"reduction_axes": 3}, ValueError, "reduction_axes is out of range"),
        ({"epsilon": -1.0}, ValueError, r"epsilon must be in \[0, inf\), got -1.0"),
        ({"where": jnp.ones((3, 4, 6))}, TypeError, "where must be an array of bool"),
        ({"residual": jnp.ones(6)}, ValueError, r"residual must have shape \[3, 4, 6\] \(that of x\), got \[6\]"),
        ({"activation": 3}, TypeError, r"activation must be a function of an array, got 3 \(int\)"),
        ({"activation": jnp.sum}, ValueError, "activation must map .* to an array of the same shape"),
        ({"axis_name": "nowhere"}, ValueError, "axis_name 'nowhere' is not bound"),
        ({"dtype": jnp.int32}, TypeError, "dtype must be a type of floating point numbers"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    """Pitfall 112."""
    with pytest.raises(kind, match=message):
        group_norm(parameters(6), data((3, 4, 6)), **{"num_groups": 2, **options})


def test_instances_may_not_reduce_their_channels() -> None:
    with pytest.raises(ValueError, match=r"reduction_axes must not name an axis of the channels, -1, got \(1, 2\)"):
        instance_norm(parameters(6), data((3, 4, 6)), reduction_axes=(1, 2))


def test_a_symbolic_number_of_channels_is_named() -> None:
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 4, c"), jnp.float32)
    with pytest.raises(ValueError, match="num_groups must divide the number of channels, c, got 2"):
        jax.export.export(jax.jit(lambda x: group_norm(NONE, x, 2)))(x)


def test_parameters_have_the_sizes_of_the_channels() -> None:
    """Pitfall 112."""
    assert [part.shape for part in init_instance_norm((2, 3)) if part is not None] == [(2, 3)] * 2
    assert [part.shape for part in init_group_norm(6) if part is not None] == [(6,)] * 2  # whatever the groups
    assert init_group_norm(3, use_scale=False, use_bias=False) == NONE
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        init_group_norm(0)
