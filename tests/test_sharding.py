"""Layers on sharded arrays and inside shard_map: what several devices compute together is what one computes alone."""

import math
import re
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import SHAPE, Case, counted, data
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal
from promises import check_vma, each_layer, each_random, each_stateful

from jaxnorm import AffineParams, RunningStats, batch_norm, dropout

axis_types = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
PLACES = (
    (AxisType.Auto, P(None, "b", "a")),
    (AxisType.Explicit, P(None, "b", "a")),
    (AxisType.Auto, P(("a", "b"))),
    (AxisType.Explicit, P("b", None, "a")),
)
STATE = RunningStats(jnp.full(3, 5.0), jnp.full(3, 4.0))
PARAMS = AffineParams(jnp.asarray([0.5, 2, 3], jnp.float32), jnp.asarray([1, -1, 4], jnp.float32))


class Drawn(NamedTuple):
    """What a draw takes on a device: collectives, and for each element of its part, its largest array and temporary bits."""

    collectives: list[str]
    largest: float
    temporaries: float


def new_key() -> jax.Array:
    return jax.random.key(3)


def make_mesh(axis_type: AxisType, shape: tuple[int, ...] = (4, 2)) -> jax.sharding.Mesh:
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, ("a", "b")[: len(shape)], axis_types=(axis_type,) * len(shape), devices=devices)


def placed(mesh: jax.sharding.Mesh, case: Case, arguments: dict[str, Any], spec: P) -> dict[str, Any]:
    """Puts x and what goes with it onto the mesh as `spec` says where sizes allow, and the rest onto all of it."""

    def place(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        wanted = tuple(spec)[: None if leaf.ndim == arguments["x"].ndim else 1] if name in case.batched else ()
        parts = [part if leaf.shape[axis] > 1 else None for axis, part in enumerate(wanted[: leaf.ndim])]
        return jax.device_put(leaf, NamedSharding(mesh, P(*parts)))

    return {name: jax.tree.map(lambda leaf, name=name: place(name, leaf), value) for name, value in arguments.items()}


@each_layer
@pytest.mark.parametrize(("axis_type", "spec"), PLACES, ids=str)
def test_jit_on_sharded_arrays_equals_one_device(case: Case, axis_type: AxisType, spec: P) -> None:
    arguments = case.arguments()
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        sharded = placed(mesh, case, arguments, spec)
        program = jax.jit(case.__call__).lower(new_key(), sharded).compile()
        y, state = program(new_key(), sharded)
        own = jax.typeof(sharded["x"]).sharding.spec if axis_type == AxisType.Explicit else spec
        divided = any(part is not None for axis, part in enumerate(own) if axis in case.resized)
        if axis_type == AxisType.Explicit:
            assert list(jax.typeof(y).sharding.spec) == [None if axis in case.resized else part for axis, part in enumerate(own)]
        if not divided:
            assert y.sharding.is_equivalent_to(sharded["x"].sharding, y.ndim)
    chex.assert_trees_all_close((y, state), case(new_key(), arguments), rtol=3e-6, atol=3e-6)
    if (
        case.is_random and not case.is_stateful and not case.exchanges and not divided
    ):  # drawn where it is needed: nothing is gathered, nothing sent
        assert not [name for name in COLLECTIVES if name in program.as_text()]
    for leaf in jax.tree.leaves(state):
        parts: dict[str, np.ndarray] = {}
        for shard in leaf.addressable_shards:  # devices that hold the same part hold the same bits
            assert_array_equal(parts.setdefault(str(shard.index), np.asarray(shard.data)), shard.data)


@each_random
@pytest.mark.parametrize("shape", [(2,), (8,), (2, 4)], ids=str)
def test_a_draw_does_not_depend_on_the_number_of_devices(case: Case, shape: tuple[int, ...]) -> None:
    """Pitfall 92."""
    arguments = case.arguments()
    expected, _ = case(new_key(), arguments)
    mesh = make_mesh(AxisType.Auto, shape)
    spec = P("a") if len(shape) == 1 else P("b", "a")
    y, _ = jax.jit(case.__call__)(new_key(), placed(mesh, case, arguments, spec))
    assert_array_equal(y == 0, expected == 0)
    assert_allclose(y, expected, rtol=3e-6, atol=3e-6)


def drawn_on_a_device(axis_type: AxisType, shape: tuple[int, ...], spec: P, bits: int, dims: tuple[int, ...]) -> Drawn:
    """What the compiled forward and backward pass of dropout of a sharded array takes on every device."""

    def forward_and_backward(x: jax.Array, dy: jax.Array) -> Any:
        y, pullback = jax.vjp(lambda x: dropout(new_key(), x, 0.3, broadcast_dims=dims, bits=bits), x)
        return y, pullback(dy)[0]

    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones(shape), NamedSharding(mesh, spec))
        compiled = jax.jit(forward_and_backward).lower(x, x).compile()
        y, gradient = compiled(x, x)
    assert y.sharding.is_equivalent_to(x.sharding, x.ndim)
    assert_array_equal(y, gradient)
    assert_array_equal(y, dropout(new_key(), jnp.ones(shape), 0.3, broadcast_dims=dims, bits=bits))
    text = compiled.as_text()
    program = text[text.index("ENTRY") :].split("\n}")[0]  # what is inside a fusion is never in memory
    sizes = [math.prod(int(n) for n in dims.split(",") if n) for dims in re.findall(r" = \w+\[([\d,]*)\]", program)]
    part = math.prod(x.sharding.shard_shape(shape))
    temporaries = 8 * compiled.memory_analysis().temp_size_in_bytes / part
    return Drawn([name for name in COLLECTIVES if name in text], max(sizes) / part, temporaries)


# Of the last axis whole groups of 8, 16 or 32 elements on every device; or rows that are not cut.
WHOLE_GROUPS = [
    ((64, 16, 256), P("a", None, "b")),
    ((64, 16, 256), P(None, None, ("a", "b"))),
    ((64, 16, 250), P(("a", "b"))),
    ((2**18,), P("a")),
]
PARTS_OF_GROUPS = [
    ((64, 16, 250), P("a", None, "b")),
    ((64, 16, 248), P(None, None, ("a", "b"))),
    ((2**18 + 4,), P("a")),
]
ids_of_parts = [f"{shape}-{spec}" for shape, spec in PARTS_OF_GROUPS]


@axis_types
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("shape, spec", WHOLE_GROUPS, ids=str)
def test_every_device_draws_its_own_part_only(axis_type: AxisType, bits: int, shape: tuple[int, ...], spec: P) -> None:
    """Nothing is sent, no array is larger than the part, and the packed mask has as many bits as the part on its own."""
    drawn = drawn_on_a_device(axis_type, shape, spec, bits, ())
    assert drawn.collectives == []
    assert drawn.largest <= 1
    assert drawn.temporaries <= (1.3 if shape[-1] % 32 == 0 else 2.3)  # with the row that each is multiplied by


@axis_types
@pytest.mark.parametrize("bits", [16, 32])
def test_every_device_draws_its_own_part_of_a_shared_draw(axis_type: AxisType, bits: int) -> None:
    drawn = drawn_on_a_device(axis_type, (64, 16, 256), P("a", None, "b"), bits, (1,))
    assert drawn == ([], 1, pytest.approx(0.5, abs=0.2))  # a byte for sixteen


@pytest.mark.parametrize(
    "axis_type, bits",
    [(AxisType.Explicit, 16), (AxisType.Explicit, 32), (AxisType.Auto, 32)],
    ids=["explicit-16", "explicit-32", "auto-32"],
)
@pytest.mark.parametrize("shape, spec", PARTS_OF_GROUPS, ids=ids_of_parts)
def test_devices_that_would_share_groups_draw_their_own_part_too(
    axis_type: AxisType, bits: int, shape: tuple[int, ...], spec: P
) -> None:
    """Without a packed mask."""
    drawn = drawn_on_a_device(axis_type, shape, spec, bits, ())
    assert drawn.collectives == []
    assert drawn.largest <= 1
    assert drawn.temporaries < 0.3  # the row that each is multiplied by


@pytest.mark.parametrize("shape, spec", PARTS_OF_GROUPS, ids=ids_of_parts)
def test_devices_that_share_groups_of_16_bits_by_an_automatic_sharding_draw_whole_rows(shape: tuple[int, ...], spec: P) -> None:
    """On CPUs: what devices that share a row need of it, each of them draws; nothing is sent."""
    shards = {"b": 2, "a": 4, ("a", "b"): 8}[spec[-1]]
    drawn = drawn_on_a_device(AxisType.Auto, shape, spec, 16, ())
    assert drawn.collectives == []
    assert drawn.largest <= 1
    assert drawn.temporaries <= shards * 2 + 0.3


@axis_types
def test_forward_and_backward_masks_agree_on_sharded_arrays(axis_type: AxisType) -> None:
    """Pitfall 92."""
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones(SHAPE), NamedSharding(mesh, P("a", "b")))

        @jax.jit
        def run(x: jax.Array) -> Any:
            y, pullback = jax.vjp(jax.checkpoint(lambda x: dropout(new_key(), x, 0.3)), x)
            return y, pullback(jnp.ones_like(x))[0]

        y, gradient = run(x)
    assert_array_equal(y, gradient)
    assert_array_equal(y, dropout(new_key(), jnp.ones(SHAPE), 0.3))


@axis_types
@pytest.mark.parametrize("spec", [P("a", None, "b"), P(None, None, "b"), P(None, "b", "a"), P(None, None, ("a", "b"))], ids=str)
@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("follow", [True, False], ids=["state_sharded", "state_whole"])
def test_the_channel_axis_may_be_sharded(axis_type: AxisType, spec: P, train: bool, follow: bool) -> None:
    x = data((8, 6, 16))
    random = np.random.default_rng(0)
    params, state = (
        kind(*(jnp.asarray(random.uniform(0.5, 3, 16), jnp.float32) for _ in range(2))) for kind in (AffineParams, RunningStats)
    )
    expected = oracles.batch_norm(params, state, x, train=train, momentum=0.8)
    mesh = make_mesh(axis_type)
    features = NamedSharding(mesh, P(spec[2]) if follow else P())
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, spec))
        params, state = jax.device_put((params, state), features)
        y, new = jax.jit(lambda params, state, x: batch_norm(params, state, x, train=train, momentum=0.8))(params, state, x)
        assert y.sharding.is_equivalent_to(x.sharding, 3)
        if axis_type == AxisType.Explicit:
            assert [jax.typeof(leaf).sharding for leaf in new] == [jax.typeof(leaf).sharding for leaf in state]
            gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(batch_norm(params, state, x, train=train)[0]))))(x)
            assert gradient.sharding.is_equivalent_to(x.sharding, 3)
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(new.mean, expected.mean, rtol=1e-5, atol=1e-6)
    assert_allclose(new.var, expected.var, rtol=1e-5)


@each_stateful
def test_a_scan_over_explicitly_sharded_state_keeps_its_type(case: Case) -> None:
    mesh = make_mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        arguments = placed(mesh, case, case.arguments(), P("a"))

        def step(state: Any, _: None) -> Any:
            y, state = case(new_key(), {**arguments, "state": state})
            return state, y

        traced = jax.jit(lambda state: jax.lax.scan(step, state, None, 2)[0]).trace(arguments["state"])
        assert traced.jaxpr.out_avals == [jax.typeof(leaf) for leaf in jax.tree.leaves(arguments["state"])]


@axis_types
def test_gradients_on_sharded_arrays_equal_one_device(axis_type: AxisType) -> None:
    where = counted()

    def loss(params: AffineParams, x: jax.Array, where: jax.Array) -> jax.Array:
        y, _ = batch_norm(params, STATE, x, train=True, where=where)
        y = dropout(new_key(), y, 0.3, broadcast_dims=(1,))
        return jnp.sum(jnp.sin(y))

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    expected = gradient(PARAMS, data(), where)
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        x = jax.device_put(data(), NamedSharding(mesh, P("a", None, "b")))
        spread = jax.device_put(where, NamedSharding(mesh, P("a", None, "b")))
        got = gradient(jax.device_put(PARAMS, NamedSharding(mesh, P())), x, spread)
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-5)


# shard_map and vmap with named axes: uneven counts


def uneven(counts: tuple[int, ...], rows: int, features: int = 3) -> tuple[jax.Array, jax.Array]:
    """Rows for every device, of which the first few count; the rest are far away."""
    where = np.concatenate([np.arange(rows) < count for count in counts])[:, None]
    x = np.where(where, data((len(counts) * rows, features)) * 2 + 1, 1e3)
    return jnp.asarray(x, jnp.float32), jnp.asarray(where)


def reference(x: jax.Array, where: jax.Array, dy: jax.Array) -> tuple[Any, ...]:
    expected = oracles.batch_norm(PARAMS, STATE, x, train=True, momentum=0.7, where=where)
    return expected, oracles.batch_norm_gradient(x, PARAMS.scale, dy, epsilon=1e-5, where=where)


def synced(mode: str, devices: int, check_vma: bool = True) -> Any:
    """A training step `(params, x, where, dy) -> (y, state of each device), gradients` over rows of several devices."""

    def part(params: AffineParams, x: jax.Array, where: jax.Array) -> Any:
        y, state = batch_norm(params, STATE, x, train=True, momentum=0.7, where=where, axis_name="d")
        return y, state

    def mapped(params: AffineParams, x: jax.Array, where: jax.Array) -> Any:
        if mode == "vmap":
            split = lambda a: a.reshape(devices, -1, *a.shape[1:])  # noqa: E731
            y, state = jax.vmap(part, (None, 0, 0), axis_name="d")(params, split(x), split(where))
            return y.reshape(x.shape), state
        mesh = jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        run = lambda *args: (lambda y, state: (y, jax.tree.map(lambda a: a[None], state)))(*part(*args))  # noqa: E731
        return jax.shard_map(run, mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=(P("d"), P("d")), check_vma=check_vma)(
            params, x, where
        )

    def step(params: AffineParams, x: jax.Array, where: jax.Array, dy: jax.Array) -> Any:
        def loss(params: AffineParams, x: jax.Array) -> Any:
            y, states = mapped(params, x, where)
            return jnp.sum(y * dy), (y, states)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    return jax.jit(step)


@pytest.mark.parametrize("mode, check_vma", [("vmap", True), ("shard_map", True), ("shard_map", False)], ids=str)
@pytest.mark.parametrize("counts", [(4, 1), (4, 0), (1, 1), (5, 3, 8, 1), (5, 3, 8, 1, 0, 2, 7, 4)], ids=str)
def test_uneven_counts_weigh_what_they_hold(mode: str, check_vma: bool, counts: tuple[int, ...]) -> None:
    """Pitfalls 41 and 67 to 70."""
    x, where = uneven(counts, max(counts))
    dy = jnp.where(where, data(x.shape, seed=4), 0.5)
    (params, dx), (y, states) = synced(mode, len(counts), check_vma)(PARAMS, x, where, dy)
    expected, (right_dx, right_dscale, right_dbias) = reference(x, where, dy)
    assert_allclose(y, expected.y, rtol=2e-6, atol=2e-6)
    for states_of, right in ((states.mean, expected.mean), (states.var, expected.var)):
        assert all(np.array_equal(states_of[0], other) for other in states_of)  # on every device, to the bit
        assert_allclose(states_of[0], right, rtol=1e-6)
    scale = np.abs(right_dx).max()
    assert_allclose(dx, right_dx, atol=2e-5 * scale)
    assert_allclose(params.scale, right_dscale, rtol=1e-5, atol=1e-4)
    assert_allclose(params.bias, right_dbias, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode, check_vma", [("vmap", True), ("shard_map", True), ("shard_map", False)], ids=str)
def test_no_counted_row_on_any_device_leaves_the_state(mode: str, check_vma: bool) -> None:
    """Pitfalls 41 and 69."""
    x, where = uneven((0, 0), 4)
    gradients, (y, states) = synced(mode, 2, check_vma)(PARAMS, x, where, jnp.ones_like(x))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, y)))
    assert_array_equal(states.mean, jnp.full((2, 3), 5.0))
    assert_array_equal(states.var, jnp.full((2, 3), 4.0))


@pytest.mark.parametrize("mode", ["vmap", "shard_map"])
def test_what_is_not_finite_on_one_device_is_kept_out_by_all(mode: str) -> None:
    x, where = uneven((4, 4), 4)
    _, (_, states) = synced(mode, 2)(PARAMS, x.at[1, 0].set(jnp.nan), where, jnp.ones_like(x))
    _, (_, clean) = synced(mode, 2)(PARAMS, x, where, jnp.ones_like(x))
    for got, right, start in zip(states, clean, STATE, strict=True):
        assert_array_equal(got[:, 0], jnp.full(2, start[0]))
        assert_array_equal(got[:, 1:], right[:, 1:])


@pytest.mark.parametrize("padding", [np.nan, np.inf])
def test_padding_on_another_device_reaches_nothing(padding: float) -> None:
    x, where = uneven((4, 1), 4)
    dy = jnp.where(where, data(x.shape, seed=4), 0)
    step = synced("shard_map", 2)
    (params, dx), (y, states) = step(PARAMS, jnp.where(where, x, padding), where, dy)
    (zero_params, zero_dx), (zero_y, zero_states) = step(PARAMS, jnp.where(where, x, 0), where, dy)
    counts = np.asarray(where)[:, 0]
    chex.assert_trees_all_equal((params, dx, states), (zero_params, zero_dx, zero_states))
    assert_array_equal(np.asarray(y)[counts], np.asarray(zero_y)[counts])


def test_one_row_on_each_of_two_devices_is_a_batch_of_two() -> None:
    """Pitfall 28."""
    x = jnp.asarray([[1, 2, 3], [4, 6, 9.0]])
    y, state = jax.vmap(
        lambda x: batch_norm(PARAMS, STATE, x, train=True, unbiased=True, axis_name="d", momentum=0.0), axis_name="d"
    )(x[:, None])
    expected = oracles.batch_norm(PARAMS, STATE, x, train=True, unbiased=True, momentum=0.0)
    assert_allclose(y[:, 0], expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(state.var[0], expected.var, rtol=1e-6)


def test_one_number_of_every_device_is_pooled() -> None:
    """Pitfall 31: statistics without an axis, of all elements of all devices, or of one element of each."""
    x, state = data((4, 6)), RunningStats(jnp.float32(3), jnp.float32(7))
    call = lambda x, **named: batch_norm(AffineParams(None, None), state, x, train=True, channel_axis=(), **named)  # noqa: E731
    for part in (x, x[:, :1], x[:, 0]):
        y, states = jax.vmap(lambda x: call(x, axis_name="d"), axis_name="d")(part)
        expected, new = call(part)
        assert_allclose(y, expected, rtol=2e-6, atol=2e-6)
        for own, wanted in zip(states, new, strict=True):
            assert_allclose(own, jnp.full(4, wanted), rtol=1e-6)


def test_means_far_from_zero_and_from_each_other_are_pooled_exactly() -> None:
    """One sum of raw squares would lose every digit here."""
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(1e4 + 3 * i, 1, (16, 3)) for i in range(4)]).astype(np.float32)
    no_params = AffineParams(None, None)
    run = jax.vmap(lambda x: batch_norm(no_params, STATE, x, train=True, axis_name="d", momentum=0.0), axis_name="d")
    y, state = run(jnp.asarray(x.reshape(4, 16, 3)))
    expected = oracles.batch_norm(no_params, STATE, x, train=True, momentum=0.0)
    assert_allclose(y.reshape(-1, 3), expected.y, atol=2e-3)
    assert_allclose(state.var[0], expected.var, rtol=1e-3)


def test_complex_numbers_are_pooled() -> None:
    x = data((8, 3), jnp.complex64)
    state = RunningStats(STATE.mean.astype(jnp.complex64), STATE.var)
    run = jax.vmap(lambda x: batch_norm(PARAMS, state, x, train=True, axis_name="d", momentum=0.5), axis_name="d")
    y, new = run(x.reshape(4, 2, 3))
    expected = oracles.batch_norm(PARAMS, state, x, train=True, momentum=0.5)
    assert_allclose(y.reshape(8, 3), expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(new.mean[2], expected.mean, rtol=1e-5)


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3]], [[0, 3], [1, 2]], [[0], [1, 2, 3]], [[2, 0, 1, 3]]], ids=str)
@pytest.mark.parametrize("mode", ["vmap", "shard_map"])
def test_groups_are_runs_of_their_own(groups: list[list[int]], mode: str) -> None:
    """Pitfall 75."""
    x, where = uneven((3, 0, 4, 1), 4)
    x = x.at[4].set(jnp.nan)  # does not count, and must not leak from one group into another

    def part(x: jax.Array, where: jax.Array) -> Any:
        return batch_norm(PARAMS, STATE, x, train=True, where=where, axis_name="d", axis_index_groups=groups)

    rows = (x.reshape(4, 4, 3), where.reshape(4, 4, 1))
    if mode == "vmap":
        ys, states = jax.vmap(part, axis_name="d")(*rows)
    else:
        mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
        alone = lambda x, w: jax.tree.map(lambda a: a[None], part(x[0], w[0]))  # noqa: E731
        ys, states = jax.jit(jax.shard_map(alone, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(*rows)
    for group in groups:
        own = jnp.array(group)
        y, state = batch_norm(PARAMS, STATE, rows[0][own].reshape(-1, 3), train=True, where=rows[1][own].reshape(-1, 1))
        assert_allclose(ys[own].reshape(-1, 3), y, rtol=3e-6, atol=3e-6)
        for i in group:
            assert_allclose(states.mean[i], state.mean, rtol=1e-6)
            assert_allclose(states.var[i], state.var, rtol=1e-6)


def test_a_nan_in_one_group_does_not_reach_the_other() -> None:
    x = data((4, 5, 3)).at[0, 0, 0].set(jnp.nan)
    _, states = jax.vmap(
        lambda x: batch_norm(PARAMS, STATE, x, train=True, axis_name="d", axis_index_groups=[[0, 1], [2, 3]]), axis_name="d"
    )(x)
    assert_array_equal(states.mean[:2, 0], STATE.mean[:2])
    assert (states.mean[2:, 0] != 5).all()
    assert jnp.isfinite(states.mean).all()


@check_vma
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ["a", "b"]], ids=str)
def test_several_axes_are_pooled_together(check_vma: bool, names: Any) -> None:
    x, where = data(), counted()
    run = jax.shard_map(
        lambda x, where: batch_norm(PARAMS, STATE, x, train=True, where=where, axis_name=names),
        mesh=make_mesh(AxisType.Auto),
        in_specs=P("a", "b"),
        out_specs=(P("a", "b"), P()),
        check_vma=check_vma,
    )
    y, state = jax.jit(run)(x, jnp.broadcast_to(where, x.shape))
    expected, expected_state = batch_norm(PARAMS, STATE, x, train=True, where=where)
    assert_allclose(y, expected, rtol=2e-6, atol=3e-6)
    chex.assert_trees_all_close(state, expected_state, rtol=1e-6)


@check_vma
def test_one_of_two_axes_is_pooled_along_it_only(check_vma: bool) -> None:
    x = data()
    run = jax.shard_map(
        lambda x: jax.tree.map(lambda a: a[None], batch_norm(PARAMS, STATE, x, train=True, axis_name="a")),
        mesh=make_mesh(AxisType.Auto),
        in_specs=P("a", "b"),
        out_specs=(P(None, "a", "b"), P("b")),
        check_vma=check_vma,
    )
    y, state = jax.jit(run)(x)
    for column in range(2):
        expected, expected_state = batch_norm(PARAMS, STATE, x[:, column : column + 1], train=True)
        assert_allclose(y[0, :, column : column + 1], expected, rtol=2e-6, atol=2e-6)
        assert_allclose(state.mean[column], expected_state.mean, rtol=1e-6)


def test_pooling_takes_one_collective() -> None:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(
        lambda x: batch_norm(PARAMS, STATE, x, train=True, axis_name="d"), mesh=mesh, in_specs=P("d"), out_specs=(P("d"), P())
    )
    text = jax.jit(run).lower(data()).compile().as_text()
    assert sum(line.count(" all-reduce(") for line in text.splitlines()) == 1
    assert "all-gather" not in text


@check_vma
def test_a_traced_mean_loss_gives_the_global_gradient(check_vma: bool) -> None:
    """A local loss and averaged gradients are the gradient of the global mean. Pitfall 70."""
    x = data((8, 3))
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def local(params: AffineParams, x: jax.Array) -> AffineParams:
        def loss(params: AffineParams) -> jax.Array:
            return jnp.mean(jnp.sin(batch_norm(params, STATE, x, train=True, axis_name="d")[0]))

        if check_vma:
            params = jax.tree.map(lambda a: jax.lax.pcast(a, "d", to="varying"), params)
        return jax.lax.pmean(jax.grad(loss)(params), "d")

    got = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P("d")), out_specs=P(), check_vma=check_vma))(PARAMS, x)
    expected = jax.grad(lambda params: jnp.mean(jnp.sin(batch_norm(params, STATE, x, train=True)[0])))(PARAMS)
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)
