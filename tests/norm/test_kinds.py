"""Conditional, domain-specific and split batch norm: the oracles, the case of one kind, gradients, devices, and errors."""

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
    RunningStats,
    batch_norm,
    conditional_batch_norm,
    domain_batch_norm,
    init_conditional_batch_norm,
    init_domain_batch_norm,
    init_split_batch_norm,
    split_batch_norm,
)
from jaxnorm.benchmarks._costs import residuals

STATIC = ("train", "channel_axis", "unbiased")
conditional, domain, split = (
    jax.jit(f, static_argnames=STATIC) for f in (conditional_batch_norm, domain_batch_norm, split_batch_norm)
)
KINDS = jnp.asarray([0, 2, 0, 2, 1, 2, 2, 0])
SHAPES = [(8, 5), (8, 3, 4, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def parameters(*shape: int, seed: int = 1) -> AffineParams:
    random = np.random.default_rng(seed)
    return AffineParams(*(jnp.asarray(random.uniform(low, 3, shape), jnp.float32) for low in (0.5, -2)))


def statistics(*shape: int) -> RunningStats:
    return RunningStats(*parameters(*shape, seed=2)._replace(bias=jnp.linspace(0.5, 3, int(np.prod(shape))).reshape(shape)))


def assert_equals(got: tuple[jax.Array, RunningStats], expected: oracles.Normalized) -> None:
    y, state = got
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(state.mean, expected.mean, rtol=1e-5, atol=1e-6)
    assert_allclose(state.var, expected.var, rtol=1e-5)


def in_rows(table: jax.Array | None, kind: int) -> jax.Array | None:
    return None if table is None else table[kind]


@each_shape
@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, False)], ids=str)
def test_equal_the_oracles(shape: tuple[int, ...], train: bool, masked: bool, used: tuple[bool, bool]) -> None:
    x = data(shape)
    params = AffineParams(*(part if use else None for part, use in zip(parameters(3, 5), used, strict=True)))
    where = None
    if masked:  # one domain of which nothing counts, and examples of which a part does
        where = counted(shape) if len(shape) > 2 else jnp.asarray([1, 0, 1, 1, 1, 0, 1, 1], bool)[:, None]
        where = where & (KINDS != 1).reshape(-1, *[1] * (len(shape) - 1))
    options = {"train": train, "momentum": 0.8, "epsilon": 1e-3, "where": where}
    state, of_kinds = statistics(5), statistics(3, 5)
    assert_equals(
        conditional(params, state, x, KINDS, **options), oracles.conditional_batch_norm(params, state, x, KINDS, **options)
    )
    assert_equals(domain(params, of_kinds, x, KINDS, **options), oracles.domain_batch_norm(params, of_kinds, x, KINDS, **options))
    two = jax.tree.map(lambda a: a[:2], (params, of_kinds))
    assert_equals(split(*two, x, **options), oracles.split_batch_norm(*two, x, **options))


@each_shape
def test_domains_may_share_their_parameters_and_be_one_for_all(shape: tuple[int, ...]) -> None:
    x, params, state = data(shape), parameters(5), statistics(3, 5)
    assert_equals(domain(params, state, x, KINDS, train=True), oracles.domain_batch_norm(params, state, x, KINDS, train=True))
    for number in (2, jnp.asarray(2), np.int64(2)):
        y, new = domain(params, state, x, number, train=True, momentum=0.8)
        wanted, own = batch_norm(params, RunningStats(*(part[2] for part in state)), x, train=True, momentum=0.8)
        assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
        for part, row, old in zip(new, own, state, strict=True):
            assert_allclose(part[2], row, rtol=1e-6, atol=1e-6)
            assert_array_equal(part[:2], old[:2])


@each_shape
def test_alike_classes_and_one_part_are_batch_norm(shape: tuple[int, ...]) -> None:
    x, params, state = data(shape), parameters(5), statistics(5)
    wanted = batch_norm(params, state, x, train=True, unbiased=True)
    alike = jax.tree.map(lambda a: jnp.tile(a, (3, 1)), params)
    one, one_state = (jax.tree.map(lambda a: a[None], tree) for tree in (params, state))
    for y, new in (
        conditional(alike, state, x, KINDS, train=True, unbiased=True),
        split(one, one_state, x, train=True, unbiased=True),
        domain(one, one_state, x, 0, train=True, unbiased=True),
    ):
        assert_allclose(y, wanted[0], rtol=1e-5, atol=1e-5)
        for part, row in zip(new, wanted[1], strict=True):
            assert_allclose(part.reshape(row.shape), row, rtol=1e-6)


@pytest.mark.parametrize(("shape", "channel_axis"), [((8, 5, 3), 1), ((8, 2, 3), (1, 2)), ((8, 2, 6, 3), (1, 3))], ids=str)
def test_channels_on_other_axes(shape: tuple[int, ...], channel_axis: Any) -> None:
    axes = (channel_axis,) if isinstance(channel_axis, int) else channel_axis
    sizes = tuple(shape[a] for a in axes)
    x, params, state = data(shape), parameters(3, *sizes), statistics(3, *sizes)
    y, new = domain(params, state, x, KINDS, train=True, channel_axis=channel_axis)
    z, _ = conditional(params, statistics(*sizes), x, KINDS, train=True, channel_axis=channel_axis)
    plain, _ = batch_norm(AffineParams(None, None), statistics(*sizes), x, train=True, channel_axis=channel_axis)
    for kind in range(3):
        some, own = np.asarray(KINDS) == kind, AffineParams(*(in_rows(part, kind) for part in params))
        wanted, row = batch_norm(
            own, RunningStats(*(part[kind] for part in state)), x[some], train=True, channel_axis=channel_axis
        )
        assert_allclose(y[some], wanted, rtol=1e-5, atol=1e-5)
        assert_allclose(new.var[kind], row.var, rtol=1e-6)
        positions = tuple(a for a in range(1, len(shape)) if a not in axes)
        scale, bias = (np.expand_dims(part, (0, *positions)) for part in own)
        assert_allclose(z[some], plain[some] * scale + bias, rtol=1e-5, atol=1e-5)


@each_shape
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_the_gradient_is_that_of_the_domains_alone(shape: tuple[int, ...], shared: bool) -> None:
    x, params, state = data(shape), parameters(*(() if shared else (3,)), 5), statistics(3, 5)
    weights = jnp.cos(data(shape, seed=3))

    def together(params: AffineParams, x: jax.Array) -> jax.Array:
        return jnp.sum(weights * domain(params, state, x, KINDS, train=True, epsilon=1e-2)[0])

    def apart(params: AffineParams, x: jax.Array) -> jax.Array:
        total = jnp.float32(0)
        for kind in range(3):
            some = np.flatnonzero(np.asarray(KINDS) == kind)
            own = params if shared else jax.tree.map(lambda a, kind=kind: a[kind], params)
            y, _ = batch_norm(own, RunningStats(*(part[kind] for part in state)), x[some], train=True, epsilon=1e-2)
            total += jnp.sum(weights[some] * y)
        return total

    got, expected = (jax.grad(f, (0, 1))(params, x) for f in (together, apart))
    for part, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(part, wanted, rtol=1e-4, atol=2e-5)


def test_only_classes_of_the_batch_get_a_gradient() -> None:
    x, params, state = data((8, 3, 5)), parameters(4, 5), statistics(5)
    gradient = jax.grad(lambda params: jnp.sum(jnp.sin(conditional(params, state, x, KINDS, train=True)[0])))(params)
    for part in gradient:
        assert_array_equal(part[3], jnp.zeros(5))
        assert (part[:3] != 0).all()


@each_shape
@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1])
def test_a_kind_that_there_is_not_gives_nan_for_its_example_alone(shape: tuple[int, ...], bad: int) -> None:
    x, params, state = data(shape), parameters(3, 5), statistics(3, 5)
    kinds = KINDS.at[3].set(bad)
    others = np.arange(8) != 3
    y, new = domain(params, state, x, kinds, train=True)
    wanted, wanted_state = domain(params, state, x[others], kinds[others], train=True)
    assert jnp.isnan(y[3]).all()
    assert_allclose(y[others], wanted, rtol=1e-5, atol=1e-5)
    for part, row in zip(new, wanted_state, strict=True):
        assert_allclose(part, row, rtol=1e-6)
    z, new = conditional(params, statistics(5), x, kinds, train=True)
    assert jnp.isnan(z[3]).all()
    assert jnp.isfinite(z[others]).all()
    assert jnp.isfinite(new.mean).all()


def test_a_domain_that_is_not_finite_spoils_no_other() -> None:
    x, params, state = data((8, 5)), parameters(3, 5), statistics(3, 5)
    y, new = domain(params, state, x.at[4, 2].set(jnp.inf), KINDS, train=True)
    wanted, wanted_state = domain(params, state, x, KINDS, train=True)
    others = np.asarray(KINDS) != 1
    assert_array_equal(y[others], wanted[others])
    assert_array_equal(new.mean[1, 2], state.mean[1, 2])
    assert_array_equal(new.mean[::2], wanted_state.mean[::2])


@pytest.mark.parametrize("shape", [(64, 16, 16, 32), (512, 256)], ids=str)
def test_the_gradient_keeps_x_and_numbers_of_the_statistics(shape: tuple[int, ...]) -> None:
    x, kinds = data(shape, dtype=jnp.bfloat16), jnp.arange(shape[0]) % 3
    params, state = parameters(3, shape[-1]), statistics(3, shape[-1])
    kept = residuals(lambda params, x: domain_batch_norm(params, state, x, kinds, train=True), params, x)
    assert kept.keeps_input
    assert kept.nbytes <= 30 * 4 * 64 * shape[-1]


# Several devices


@pytest.mark.parametrize("shape", [(12, 5), (12, 4, 5)], ids=str)
@pytest.mark.parametrize("devices", [2, 3, 4])
def test_a_divided_batch_gives_what_the_whole_one_gives(shape: tuple[int, ...], devices: int) -> None:
    x, params, state, kinds = data(shape), parameters(3, 5), statistics(3, 5), jnp.arange(12) % 3
    parts, kinds_of_parts = (a.reshape(devices, -1, *a.shape[1:]) for a in (x, kinds))
    own = statistics(5)
    options = {"train": True, "momentum": 0.8}
    calls = {
        conditional: lambda x, kinds: conditional_batch_norm(params, own, x, kinds, axis_name="d", **options),
        domain: lambda x, kinds: domain_batch_norm(params, state, x, kinds, axis_name="d", **options),
        split: lambda x, _: split_batch_norm(params, state, x, axis_name="d", **options),
    }
    for whole, call in calls.items():
        given = (params, own, x, kinds) if whole is conditional else (params, state, x, kinds)[: 3 if whole is split else 4]
        expected, expected_state = whole(*given, **options)
        y, new = jax.jit(jax.vmap(call, axis_name="d"))(parts, kinds_of_parts)
        assert_allclose(y.reshape(shape), expected, rtol=1e-5, atol=1e-5)
        for part, wanted in zip(new, expected_state, strict=True):
            assert_allclose(part, jnp.broadcast_to(wanted, part.shape), rtol=1e-5, atol=1e-6)


def test_groups_of_devices_are_split_apart() -> None:
    x, params, state = data((4, 3, 5)), parameters(2, 5), statistics(2, 5)
    groups = [[0, 2], [1, 3]]
    call = lambda x: split_batch_norm(params, state, x, train=True, axis_name="d", axis_index_groups=groups)  # noqa: E731
    y, new = jax.vmap(call, axis_name="d")(x)
    for group in groups:
        expected, expected_state = split(params, state, jnp.concatenate([x[i] for i in group]), train=True)
        assert_allclose(jnp.concatenate([y[i] for i in group]), expected, rtol=1e-5, atol=1e-5)
        assert_allclose(new.var[group[1]], expected_state.var, rtol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("shape", [(16, 24), (16, 8, 24)], ids=str)
@pytest.mark.parametrize("axis", [0, -1], ids=["batch", "channels"])
def test_sharded_arrays_of_either_kind_of_axis(axis_type: AxisType, shape: tuple[int, ...], axis: int) -> None:
    x, params, state, own, kinds = data(shape), parameters(2, 24), statistics(2, 24), statistics(24), jnp.arange(16) % 2
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    spec = P("d") if axis == 0 else P(*[None] * (len(shape) - 1), "d")

    def run(params: AffineParams, x: jax.Array, kinds: jax.Array) -> Any:
        def all_three(params: AffineParams, x: jax.Array) -> Any:
            y, first = domain_batch_norm(params, state, x, kinds, train=True)
            z, second = conditional_batch_norm(params, own, x, kinds, train=True)
            w, third = split_batch_norm(params, state, x, train=True)
            return (y, z, w), (first, second, third)

        outputs, pullback, new = jax.vjp(all_three, params, x, has_aux=True)
        return outputs, new, pullback(tuple(jnp.cos(y) for y in outputs))

    expected = jax.jit(run)(params, x, kinds)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, spec))
        here = jax.device_put(params, NamedSharding(mesh, P()))
        kinds_here = jax.device_put(kinds, NamedSharding(mesh, P("d") if axis == 0 else P()))
        outputs, *others = jax.jit(run)(here, sharded, kinds_here)
        assert all(y.sharding.is_equivalent_to(sharded.sharding, x.ndim) for y in outputs)
    got = jax.device_get((outputs, *others))
    for part, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(part, wanted, rtol=1e-4, atol=5e-5)


# Errors


@pytest.mark.parametrize(
    ("kinds", "kind", "message"),
    [
        (jnp.arange(7), ValueError, r"labels must be an array of ints of shape \[8\], the batch's, got shape \[7\]"),
        (jnp.zeros((8, 1), int), ValueError, r"labels must be an array of ints of shape \[8\], the batch's, got shape \[8, 1\]"),
        (jnp.zeros(8), TypeError, "labels must be an array of ints"),
        (jnp.zeros(8, bool), TypeError, "labels must be an array of ints"),
        ([0] * 8, TypeError, "labels must be an array of ints"),
        (1, TypeError, r"labels must be an array of ints of shape \[8\], the batch's, got 1"),
    ],
)
def test_bad_labels_are_named(kinds: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        conditional_batch_norm(parameters(3, 5), statistics(5), data((8, 5)), kinds, train=True)


@pytest.mark.parametrize(
    ("kinds", "kind", "message"),
    [
        (jnp.arange(7), ValueError, r"domains must be an array of ints of shape \[8\], the batch's, or an int, got shape \[7\]"),
        (-1, ValueError, "domains must be at least 0, got -1"),
        (1.0, TypeError, "domains must be an array of ints"),
        (True, TypeError, "domains must be an array of ints"),
    ],
)
def test_bad_domains_are_named(kinds: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        domain_batch_norm(parameters(3, 5), statistics(3, 5), data((8, 5)), kinds, train=True)


def test_shapes_that_do_not_fit_are_named() -> None:
    x = data((8, 5))
    with pytest.raises(ValueError, match=r"params.scale must have shape \[3, 5\] \(the channels of x\), got \[3, 4\]"):
        conditional_batch_norm(parameters(3, 4), statistics(5), x, KINDS, train=True)
    with pytest.raises(ValueError, match=r"params.scale must have shape \[3, 5\] \(the channels of x\), got \[2, 5\]"):
        domain_batch_norm(parameters(2, 5), statistics(3, 5), x, KINDS, train=True)
    with pytest.raises(ValueError, match=r"params.bias must have shape \[3, 5\]"):
        conditional_batch_norm(parameters(3, 5)._replace(bias=jnp.ones((2, 5))), statistics(5), x, KINDS, train=True)
    with pytest.raises(ValueError, match=r"state.mean must have shape \[5, 5\] \(the channels of x\), got \[5\]"):
        domain_batch_norm(parameters(5), statistics(5), x, KINDS, train=True)
    with pytest.raises(TypeError, match="state must be RunningStats"):
        split_batch_norm(parameters(2, 5), None, x, train=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="params must be AffineParams"):
        split_batch_norm(None, statistics(2, 5), x, train=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channel_axis must leave the first axis to the batch, got 0"):
        conditional_batch_norm(parameters(3, 8), statistics(8), x, KINDS, train=True, channel_axis=0)


def test_parts_must_come_out_even_in_training() -> None:
    """Pitfall 36."""
    params, state = parameters(3, 5), statistics(3, 5)
    with pytest.raises(ValueError, match="x must have a batch that the 3 parts of the state divide, got 8 examples"):
        split_batch_norm(params, state, data((8, 5)), train=True)
    assert split_batch_norm(params, state, data((8, 5)), train=False)[0].shape == (8, 5)


def test_parameters_and_statistics_have_a_row_for_each_kind() -> None:
    params, state = init_conditional_batch_norm(5, num_classes=3)
    assert [a.shape for a in jax.tree.leaves((params, state))] == [(3, 5)] * 2 + [(5,)] * 2
    params, state = init_domain_batch_norm(5, num_domains=3, shared=True, use_bias=False)
    assert [a.shape for a in jax.tree.leaves((params, state))] == [(5,)] + [(3, 5)] * 2
    params, state = init_split_batch_norm(5, use_scale=False)
    assert [a.shape for a in jax.tree.leaves((params, state))] == [(2, 5)] * 3
    for init, name in ((init_conditional_batch_norm, "num_classes"), (init_domain_batch_norm, "num_domains")):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            init(5, **{name: 0})
    with pytest.raises(TypeError, match="num_splits must be an int"):
        init_split_batch_norm(5, num_splits=2.0)  # type: ignore[arg-type]
