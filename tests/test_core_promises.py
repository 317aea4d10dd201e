"""The core of the promises for every row of the case table; the whole of them is tested behind the marker `slow`.

Programs take most of the time to compile, so one serves many promises: with the amounts as lanes under `vmap` it returns the
output, the new state, the gradient and a forward derivative, and these are compared with eager calls, with finite differences in
float64, with a scan, and with sharded and exported programs. What is around the layer is NumPy's, which compiles nothing.
"""

import collections
import functools
import inspect
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Arguments, Case, data
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from promises import (
    assert_equal_but_for_rounding,
    core,
    finite,
    mesh,
    new_key,
    signature,
    specs,
    varied_and_rest,
    weights,
)

import jaxnorm

LANES = 3


class Outcome(NamedTuple):
    """What one step gives: output, new state, gradient, derivative of the output along a direction, and what must be 0."""

    y: jax.Array
    state: Any
    gradient: Arguments
    tangent: jax.Array
    through_the_state: Arguments


def direction(varied: Arguments, amounts: tuple[str, ...]) -> Arguments:
    """A direction that moves every number but the amounts."""

    def along(name: str, a: jax.Array) -> np.ndarray:
        moved = np.zeros(a.size) if name in amounts else np.sin(1 + np.arange(a.size))
        return moved.reshape(a.shape).astype(a.dtype)

    return {name: jax.tree.map(functools.partial(along, name), value) for name, value in varied.items()}


def stacked(lanes: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *lanes)


class Row:
    """A row of the table, its lanes, and the one program for all of them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.traces: collections.Counter[np.dtype] = collections.Counter()  # of each type: `wide` is a trace of its own
        self._run = jax.jit(jax.vmap(self._step))

    @property
    def keys(self) -> jax.Array:
        """The keys of the lanes, unused so far."""
        return jax.random.split(new_key(), LANES)

    def lane(self, i: int, dtype: Any = jnp.float32) -> Arguments:
        """Arguments of a lane: its amounts, and an x of its own."""
        arguments = jax.device_get(self.case.arguments(dtype))
        amounts = {name: np.asarray(values[i], np.float32) for name, values in self.case.amounts.items()}
        return {**arguments, **amounts, "x": arguments["x"] * (1 + i) + i}

    def lanes(self, dtype: Any = jnp.float32) -> Arguments:
        return stacked([self.lane(i, dtype) for i in range(LANES)])

    def _split(self, arguments: Arguments) -> tuple[Arguments, Arguments]:
        """What is differentiated, the amounts too but for epsilon, and the rest."""
        varied, rest = varied_and_rest(arguments)
        amounts = {name: rest.pop(name) for name in self.case.amounts if name != "epsilon"}
        return {**varied, **amounts}, rest

    def _step(self, key: jax.Array, arguments: Arguments) -> Outcome:
        self.traces[arguments["x"].dtype] += 1
        varied, rest = self._split(arguments)
        call = lambda varied: self.case(jax.random.clone(key), {**rest, **varied})  # noqa: E731
        y, pullback, state = jax.vjp(call, varied, has_aux=True)
        (gradient,) = pullback(weights(y))
        _, tangent = jax.jvp(lambda varied: call(varied)[0], (varied,), (direction(varied, tuple(self.case.amounts)),))
        from_batch = {name: value for name, value in varied.items() if name != "state"}
        new, through = jax.vjp(lambda part: call({**varied, **part})[1], from_batch)
        return Outcome(y, state, gradient, tangent, *through(jax.tree.map(jnp.ones_like, new)))

    def run(self, arguments: Arguments) -> Outcome:
        return jax.device_get(self._run(self.keys, arguments))

    def alone(self, i: int, arguments: Arguments) -> Outcome:
        """The outcome of these arguments with the key of a lane, by the program of all lanes."""
        return in_lane(self.run(stacked([arguments] * LANES)), i)

    def eager(self, i: int, arguments: Arguments) -> Any:
        return self.case(self.keys[i], arguments)

    @functools.cached_property
    def outcome(self) -> Outcome:
        return self.run(self.lanes())

    @functools.cached_property
    def wide(self) -> Outcome:
        """The outcome in float64."""
        with jax.enable_x64(True):
            return self.run(self.lanes(jnp.float64))


@pytest.fixture(scope="module", params=core)
def row(request: pytest.FixtureRequest) -> Row:
    return Row(request.param)


def in_lane(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def assert_same_zeros(case: Case, got: Any, expected: Any) -> None:
    if case.is_random:
        np.testing.assert_array_equal(np.asarray(got) == 0, np.asarray(expected) == 0)


def test_one_program_for_all_steps_and_amounts_gives_what_eager_calls_give(row: Row) -> None:
    """Pitfalls 56, 59 and 63."""
    lanes = row.lanes()
    for outcome in (row.outcome, None):
        outcome = outcome or row.run(lanes)
        for i in range(LANES):
            alone = in_lane(lanes, i)
            y, state = row.eager(i, alone)
            assert_equal_but_for_rounding((outcome.y[i], in_lane(outcome.state, i)), (y, state), 3e-6)
            assert_same_zeros(row.case, outcome.y[i], y)
            assert y.dtype == alone["x"].dtype
            if row.case.is_stateful:
                assert signature(state) == signature(alone["state"])
        lanes = {**lanes, "x": 2 - lanes["x"], **({"state": outcome.state} if row.case.is_stateful else {})}
    assert row.traces[lanes["x"].dtype] == 1


def test_derivatives_are_finite_without_variance(row: Row) -> None:
    """Pitfalls 1, 4 and 14; and no running variance is below 0."""
    lanes = row.lanes()
    assert finite(row.outcome)
    for value in (0, -11, -11 + 3e-6, 1e4 / 3):
        outcome = row.run({**lanes, "x": np.full_like(lanes["x"], value)})
        assert finite(outcome)
        if row.case.is_stateful:
            assert all((getattr(outcome.state, name, np.zeros(1)) >= 0).all() for name in ("var", "std", "scale", "sigma"))


def test_numbers_far_from_zero_keep_the_digits_they_have(row: Row) -> None:
    """Pitfalls 2, 3, 7 and 9: beside float64; in inference the running mean is as far, and nothing cancels."""
    narrow, offset = row.lanes(), np.float32(1e4)
    held = () if row.case.options.get("train") else ("state", "constants", "reference")
    has_mean = lambda part: "mean" in getattr(part, "_fields", ())  # noqa: E731
    move = lambda part: part._replace(mean=part.mean + offset) if has_mean(part) else part  # noqa: E731
    far = {name: jax.tree.map(move, narrow[name], is_leaf=has_mean) for name in held if name in narrow}
    with_own = (jaxnorm.virtual_batch_norm, jaxnorm.batch_instance_norm, jaxnorm.switchable_norm)
    tolerance = 1e-6 if far and row.case.function not in with_own else 1e-3
    far["x"] = narrow["x"] + offset
    got = row.run({**narrow, **far})
    with jax.enable_x64(True):
        expected = row.run({**row.lanes(jnp.float64), **jax.tree.map(np.float64, far)})
    for i in range(LANES):
        assert finite(in_lane(got, i))
        assert_equal_but_for_rounding(in_lane(got.y, i), in_lane(expected.y, i), tolerance)
        assert_equal_but_for_rounding(in_lane(got.state, i), in_lane(expected.state, i), 3e-4)
        assert_equal_but_for_rounding(got.gradient["x"][i], expected.gradient["x"][i], 3e-3)


def test_what_is_not_finite_and_does_not_count_reaches_nothing(row: Row) -> None:
    """Pitfalls 40 and 44; nor does what is finite and huge."""
    lanes = row.lanes()
    if "where" not in lanes:
        return
    counts = np.broadcast_to(lanes["where"], lanes["x"].shape)
    assert not counts.all()
    spoiled, others, huge, zero = (
        row.run({**lanes, "x": np.where(counts, lanes["x"], bad).astype(np.float32)}) for bad in (np.nan, -np.inf, 1e38, 0)
    )
    jax.tree.map(np.testing.assert_array_equal, (huge.y[counts], huge.state), (zero.y[counts], zero.state))
    assert finite(spoiled)
    jax.tree.map(np.testing.assert_array_equal, spoiled, others)
    np.testing.assert_array_equal(spoiled.gradient["x"][~counts], 0)
    expected = np.where(counts, row.outcome.y, spoiled.y)
    assert_equal_but_for_rounding((spoiled.y, spoiled.state), (expected, row.outcome.state))


def test_nothing_counted_leaves_the_state(row: Row) -> None:
    """Pitfalls 37 and 38: a state that is not fresh stays, and nothing is NaN."""
    lanes = row.lanes()
    none = {name: np.zeros_like(lanes[name]) for name in ("where", "style_where") if name in lanes}
    if none:
        outcome = row.run({**lanes, **none})
        assert finite(outcome)
        jax.tree.map(np.testing.assert_array_equal, outcome.state, lanes["state"] if row.case.is_stateful else None)


@pytest.mark.slow
def test_a_mask_of_fewer_elements_counts_for_all_that_it_stands_for(row: Row) -> None:
    """Pitfall 43."""
    lane = row.lane(1)
    if hasattr(lane.get("state"), "cov"):  # a mask counts its channels together
        return
    if "where" in lane and lane["where"].size < lane["x"].size:
        whole = {**lane, "where": np.broadcast_to(lane["where"], lane["x"].shape).copy()}
        assert_equal_but_for_rounding(row.eager(1, whole), row.eager(1, lane), 3e-6)


def test_momentum_is_the_weight_of_the_old_statistics(row: Row) -> None:
    """Pitfalls 45 and 50: with 0 nothing of them is left, with 1 they stay; and every part of the state moves."""
    case, old = row.case, row.lane(1).get("state")
    if not case.is_stateful or "momentum" not in case.amounts:
        return
    momenta = np.asarray([0, 0.7, 1], np.float32)
    lanes = {**stacked([row.lane(1)] * LANES), "momentum": momenta}
    new = row.run(lanes).state
    if case.options["train"] is False:
        jax.tree.map(np.testing.assert_array_equal, new, lanes["state"])
        return
    other = row.run({**lanes, "state": jax.tree.map(lambda part: part * np.float32(1.5), lanes["state"])}).state
    assert_equal_but_for_rounding(in_lane(other, 0), in_lane(new, 0), 1e-5)
    jax.tree.map(np.testing.assert_array_equal, in_lane(new, 2), old)
    assert all((a[1] != b).all() for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True))
    if case.function is not jaxnorm.ghost_batch_norm:  # which averages once for every ghost
        expected = jax.tree.map(lambda old, new: np.float32(0.7) * old + np.float32(0.3) * new[0], old, new)
        assert_equal_but_for_rounding(in_lane(new, 1), expected)


def test_what_is_not_finite_and_counts_harms_no_state(row: Row) -> None:
    """Pitfall 53: that of other channels is the same to the bit, and that of its own goes on from where it was."""
    case, lanes = row.case, row.lanes()
    if not case.options.get("train"):
        return
    first = (slice(None), 0, 0, 0, 0)[: lanes["x"].ndim]
    for bad in (np.nan, np.inf):
        x = lanes["x"].copy()
        x[first] = bad
        assert not np.isfinite(x).all()
        state = row.run({**lanes, "x": x}).state
        assert finite(state)
        if case.input == "x" and not hasattr(state, "cov"):  # whose channels are whitened together
            own = (..., *[0] * len(case.feature_axes))
            for got, clean in zip(state, row.outcome.state, strict=True):
                others = np.ones(got.shape, bool)
                others[own] = False
                np.testing.assert_array_equal(got[others], clean[others])
        after = row.run({**lanes, "state": state})
        assert finite(after)


def test_derivatives_in_both_modes_are_those_of_finite_differences(row: Row) -> None:
    """Pitfalls 59 and 60: no gradient into the new state, into an amount, or in training from the old state."""
    narrow, wide = row.outcome, row.wide
    if row.case.options.get("train"):
        for part in jax.tree.leaves(narrow.gradient.get("state")):
            np.testing.assert_array_equal(part, np.zeros_like(part))
    for part in jax.tree.leaves((narrow.through_the_state, [narrow.gradient[n] for n in row.case.amounts if n != "epsilon"])):
        np.testing.assert_array_equal(part, np.zeros_like(part))
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves((wide.y, wide.state)))
    step = 1e-5
    with jax.enable_x64(True):
        varied, rest = row._split(row.lanes(jnp.float64))
        along = stacked([direction(in_lane(varied, i), tuple(row.case.amounts)) for i in range(LANES)])
        ahead, behind = (
            row.run({**rest, **jax.tree.map(lambda a, d, sign=sign: a + (sign * step * d).astype(a.dtype), varied, along)}).y
            for sign in (1, -1)
        )
    for i in range(LANES):
        difference = (ahead[i] - behind[i]) / (2 * step)
        if not row.case.own_derivative:
            assert_equal_but_for_rounding(wide.tangent[i], difference, 1e-6)
        forward = np.vdot(weights(difference), wide.tangent[i])
        products = jax.tree.leaves(jax.tree.map(lambda g, d, i=i: float(np.vdot(g[i], d[i])), wide.gradient, along))
        np.testing.assert_allclose(sum(products), forward, rtol=0, atol=1e-9 * (sum(map(abs, products)) + 1e-6))
        assert_equal_but_for_rounding(in_lane(narrow, i), in_lane(wide, i), 1e-4)


def test_every_amount_changes_what_the_layer_gives_or_is_said_not_to(row: Row) -> None:
    case, arguments = row.case, row.lane(1)
    for name, (lowest, _, highest) in case.amounts.items():
        low, high = (case(row.keys[1], {**arguments, name: np.asarray(value, np.float32)}) for value in (lowest, highest))
        changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), low, high)
        assert any(jax.tree.leaves(changed)) == (name not in case.idle), name


def test_every_key_draws_anew(row: Row) -> None:
    if row.case.is_random:
        ys = [row.case(key, row.lane(1))[0] for key in row.keys]
        assert len({np.asarray(y).tobytes() for y in ys}) == LANES


def test_float64_has_digits_that_float32_has_not(row: Row) -> None:
    with jax.enable_x64(True):
        lanes = row.lanes(jnp.float64)
        for i in range(LANES):
            y, _ = row.eager(i, in_lane(lanes, i))
            assert_equal_but_for_rounding(row.wide.y[i], y, 1e-12)
    new = jax.tree.leaves(row.wide.state) if row.case.options.get("train") else []
    assert all(np.any(part[1] != np.float32(part[1])) for part in (row.wide.y, *new))


def test_a_scan_over_checkpointed_steps_is_a_loop(row: Row) -> None:
    """Pitfalls 56 and 58."""
    case = row.case
    start = row.lane(1)
    xs = np.stack([start["x"], 2 - start["x"]])

    def step(state: Any, key_and_x: Any) -> Any:
        y, state = case(key_and_x[0], {**start, "x": key_and_x[1], **({"state": state} if case.is_stateful else {})})
        return state, y

    def total(xs: jax.Array, keys: jax.Array) -> Any:
        state, ys = jax.lax.scan(jax.checkpoint(step), start.get("state"), (keys, xs))
        return sum(jnp.sum(y * weights(y)) for y in ys), (ys, state)

    (_, (ys, state)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(xs, row.keys[1:3])
    looped = start.get("state")
    for i in range(2):
        looped, y = step(looped, (row.keys[1 + i], xs[i]))
        assert_equal_but_for_rounding(ys[i], y)
        assert_same_zeros(case, ys[i], y)
    assert_equal_but_for_rounding(state, looped)
    assert_equal_but_for_rounding(gradient[0], row.outcome.gradient["x"][1], 1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_single_precision_rounded_once(row: Row, dtype: Any) -> None:
    """Pitfalls 22 to 25; also of numbers whose squares are too large for it."""
    arguments = row.lane(1, dtype)

    @jax.jit
    def program(key: jax.Array, arguments: Arguments) -> Any:
        y, pullback, state = jax.vjp(lambda x: row.case(key, {**arguments, "x": x}), arguments["x"], has_aux=True)
        return y, pullback(weights(y))[0], state

    y, dx, state = jax.device_get(program(row.keys[1], arguments))
    expected = row.alone(1, row.case.widened(arguments))
    for half, whole in ((y, expected.y), (dx, expected.gradient["x"])):
        assert half.dtype == dtype
        np.testing.assert_allclose(np.float64(half), np.float64(whole), rtol=float(jnp.finfo(dtype).eps), atol=1e-6)
        assert np.mean(half == whole.astype(dtype)) > 0.98
    assert_equal_but_for_rounding(state, expected.state)
    if dtype == jnp.float16 and row.case.input == "x":
        large = {**arguments, "x": arguments["x"] * dtype(64)}
        assert np.abs(np.float64(large["x"])).max() > 256
        got, _, _ = program(row.keys[1], large)
        whole = row.alone(1, row.case.widened(large)).y
        np.testing.assert_allclose(np.float64(got), np.float64(whole), rtol=float(jnp.finfo(dtype).eps), atol=1e-6)


def test_sharded_arrays_and_shard_map_give_what_one_device_gives(row: Row) -> None:
    case, arguments, devices = row.case, row.lane(1), mesh(4)
    spec = specs(case, arguments)
    sharded = {
        name: jax.tree.map(lambda leaf, name=name: jax.device_put(leaf, NamedSharding(devices, spec[name])), value)
        for name, value in arguments.items()
    }
    y, state = jax.jit(case.__call__)(row.keys[1], sharded)
    assert y.sharding.is_equivalent_to(sharded["x"].sharding, y.ndim)
    expected = (row.outcome.y[1], in_lane(row.outcome.state, 1))
    assert_equal_but_for_rounding(jax.device_get((y, state)), expected, 3e-6)
    assert_same_zeros(case, y, expected[0])

    options = {"axis_name": "d"} if case.is_synced else {}
    part = lambda key, arguments: jax.tree.map(lambda a: a[None], case(key, arguments, **options))  # noqa: E731
    run = jax.shard_map(part, mesh=devices, in_specs=(P(), spec), out_specs=P("d"))
    y, state = jax.jit(run)(row.keys[1], arguments)
    if case.is_synced:
        assert_equal_but_for_rounding((y.reshape(expected[0].shape), in_lane(state, 3)), expected, 3e-6)
        return
    rows = arguments["x"].shape[0] // 4
    for i in range(4):
        own = {name: a[rows * i : rows * (i + 1)] if name in case.batched else a for name, a in arguments.items()}
        own_y, own_state = row.case(row.keys[1], own)
        assert_equal_but_for_rounding((y[i], in_lane(state, i)), (own_y, own_state), 3e-6)
        assert_same_zeros(case, y[i], own_y)


AXES = ("channel_axis", "feature_axes", "reduction_axes", "broadcast_dims")


def test_an_axis_has_two_spellings(row: Row) -> None:
    """Pitfall 33: the same one from either end and in any order; one that is not there, or there twice, is refused."""
    case, lane = row.case, row.lane(1)
    rank = lane["x"].ndim
    for name in set(AXES) & set(case.parameters):
        usual = inspect.signature(case.function).parameters[name].default
        for bad in (rank, -rank - 1, (0, -rank), (1, 1)):
            with pytest.raises(ValueError, match=name):
                case(row.keys[1], lane, **{name: bad})
        axes = case.options.get(name, usual)
        if axes is None:
            continue
        turned = lambda axis: axis - rank if axis >= 0 else axis + rank  # noqa: E731
        other = turned(axes) if isinstance(axes, int) else tuple(turned(axis) for axis in reversed(axes))
        got, expected = case(row.keys[1], lane, **{name: other}), row.eager(1, lane)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_bad_states_are_refused(row: Row) -> None:
    """Pitfalls 20 and 55: one of half precision, or of another length."""
    case, arguments = row.case, row.case.arguments()
    if not case.is_stateful:
        return
    for i, (name, part) in enumerate(arguments["state"]._asdict().items()):
        shapes = {(), (*part.shape, 1), *((*part.shape[:-1], n) for n in (part.shape or (2,))[-1:] for n in (n - 1, n + 1, 1))}
        for bad in [part.astype(jnp.bfloat16), *(np.ones(shape, np.float32) for shape in shapes - {part.shape})]:
            state = type(arguments["state"])(*(bad if i == j else other for j, other in enumerate(arguments["state"])))
            kind, what = (TypeError, "bfloat16") if bad.dtype == jnp.bfloat16 else (ValueError, r"shape|\[")
            with pytest.raises(kind, match=rf"state\.{name}.*{what}"):
                case(new_key(), {**arguments, "state": state})


def test_bad_input_is_refused(row: Row) -> None:
    """Pitfall 75: groups of devices of no axis too."""
    case, arguments = row.case, row.case.arguments()
    if "axis_index_groups" in case.parameters:
        with pytest.raises(ValueError, match="axis_index_groups needs an axis_name"):
            case(new_key(), arguments, axis_index_groups=[[0]])
    for dtype in (jnp.int8, jnp.int32, jnp.uint8, bool):
        with pytest.raises(TypeError, match=f"{re.escape(case.input)} must be .*{np.dtype(dtype).name}"):
            case(new_key(), {**arguments, "x": np.ones(arguments["x"].shape, dtype)})
    if not case.takes_complex:
        with pytest.raises(TypeError, match=f"{re.escape(case.input)} must be real, got complex64"):
            case(new_key(), {**arguments, "x": data(dtype=jnp.complex64)})


def test_key_reuse_is_seen(row: Row) -> None:
    if not row.case.is_random:
        return
    key, arguments = new_key(), row.case.arguments()
    row.case(key, arguments)
    with pytest.raises(jax.errors.KeyReuseError):
        row.case(key, arguments)
