"""ghost_batch_norm: the oracle, its ends (batch norm, the bias), remainders, devices, the order of averaging, and errors."""

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

from jaxnorm import AffineParams, RunningStats, batch_norm, ghost_batch_norm, init_ghost_batch_norm
from jaxnorm.benchmarks._costs import residuals

compiled = jax.jit(ghost_batch_norm, static_argnames=("ghost_size", "train", "channel_axis", "unbiased"))
SHAPES = [(8, 5), (8, 3, 4, 5), (8, 6, 5)]


def parameters(*shape: int) -> tuple[AffineParams, RunningStats]:
    random = np.random.default_rng(1)
    scale, bias, mean, var = (jnp.asarray(random.uniform(low, 3, shape), jnp.float32) for low in (0.5, -2, 1, 0.3))
    return AffineParams(scale, bias), RunningStats(mean, var)


def assert_equals(got: tuple[jax.Array, RunningStats], expected: oracles.Normalized) -> None:
    y, state = got
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(state.mean, expected.mean, rtol=1e-5, atol=1e-6)
    assert_allclose(state.var, expected.var, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ghost_size", [1, 2, 3, 4, 7, 8, 100])
@pytest.mark.parametrize("unbiased", [False, True], ids=["biased", "unbiased"])
def test_equals_the_oracle_with_any_remainder(shape: tuple[int, ...], ghost_size: int, unbiased: bool) -> None:
    """Pitfall 36: the last ghost is a smaller one."""
    x, (params, state) = data(shape), parameters(5)
    options = {"train": True, "momentum": 0.8, "epsilon": 1e-3, "unbiased": unbiased}
    got = compiled(params, state, x, ghost_size, **options)
    assert_equals(got, oracles.ghost_batch_norm(params, state, x, ghost_size, **options))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ghost_size", [2, 3])
def test_equals_the_oracle_with_a_mask(shape: tuple[int, ...], ghost_size: int) -> None:
    """Of examples that count in part, and ghosts of which nothing does."""
    x, (params, state) = data(shape), parameters(5)
    where = counted(shape) if len(shape) > 2 else jnp.asarray([1, 0, 1, 1, 0, 1, 1, 1], bool)[:, None]
    where = where & (jnp.arange(8) >= ghost_size).reshape(-1, *[1] * (len(shape) - 1))
    options = {"train": True, "momentum": 0.8, "where": where}
    assert_equals(
        compiled(params, state, x, ghost_size, **options), oracles.ghost_batch_norm(params, state, x, ghost_size, **options)
    )


@pytest.mark.parametrize(("shape", "channel_axis"), [((8, 5, 3), 1), ((8, 2, 3), (1, 2)), ((8, 2, 6, 3), (1, 3))], ids=str)
def test_equals_the_oracle_on_every_channel_axis(shape: tuple[int, ...], channel_axis: Any) -> None:
    axes = (channel_axis,) if isinstance(channel_axis, int) else channel_axis
    x, (params, state) = data(shape), parameters(*(shape[a] for a in axes))
    options = {"train": True, "momentum": 0.8, "channel_axis": channel_axis}
    assert_equals(compiled(params, state, x, 3, **options), oracles.ghost_batch_norm(params, state, x, 3, **options))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_ghost_is_batch_norm_and_inference_is_that_of_batch_norm(shape: tuple[int, ...]) -> None:
    """Pitfall 36."""
    x, (params, state) = data(shape), parameters(5)
    for train, size in ((True, 8), (True, 9), (False, 2)):
        got = compiled(params, state, x, size, train=train)
        expected = batch_norm(params, state, x, train=train)
        for part, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert_allclose(part, wanted, rtol=1e-5, atol=1e-5)


def test_ghosts_of_one_vector_give_the_bias_and_permuted_ghosts_the_same() -> None:
    x, (params, state) = data((8, 5)), parameters(5)
    assert_array_equal(compiled(params, state, x, 1, train=True)[0], jnp.broadcast_to(params.bias, (8, 5)))
    order = jnp.asarray([4, 5, 0, 1, 6, 7, 2, 3])
    assert_allclose(
        compiled(params, state, x[order], 2, train=True)[0], compiled(params, state, x, 2, train=True)[0][order], rtol=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ghost_size", [2, 3])
def test_the_gradient_is_that_of_the_ghosts_alone(shape: tuple[int, ...], ghost_size: int) -> None:
    x, (params, state) = data(shape), parameters(5)
    weights = jnp.cos(data(shape, seed=3))

    def together(params: AffineParams, x: jax.Array) -> jax.Array:
        return jnp.sum(weights * compiled(params, state, x, ghost_size, train=True)[0])

    def apart(params: AffineParams, x: jax.Array) -> jax.Array:
        ghosts = [x[first : first + ghost_size] for first in range(0, 8, ghost_size)]
        return jnp.sum(weights * jnp.concatenate([batch_norm(params, state, ghost, train=True)[0] for ghost in ghosts]))

    got, expected = (jax.grad(f, (0, 1))(params, x) for f in (together, apart))
    for part, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(part, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [(64, 16, 16, 32), (512, 256), (500, 256)], ids=str)
def test_the_gradient_keeps_x_and_numbers_of_the_statistics(shape: tuple[int, ...]) -> None:
    x, (params, state) = data(shape, dtype=jnp.bfloat16), parameters(shape[-1])
    kept = residuals(lambda params, x: ghost_batch_norm(params, state, x, 16, train=True), params, x)
    assert kept.nbytes <= 14 * 4 * 64 * shape[-1] + (0 if kept.keeps_input else x.nbytes)


def test_a_ghost_that_is_not_finite_is_skipped_by_the_state() -> None:
    x, (params, state) = data((8, 5)), parameters(5)
    _, new = compiled(params, state, x.at[3, 2].set(jnp.inf), 2, train=True, momentum=0.7)
    _, others = compiled(params, state, jnp.concatenate([x[:2], x[4:]]), 2, train=True, momentum=0.7)
    _, whole = compiled(params, state, x, 2, train=True, momentum=0.7)
    for part, without, with_all in zip(new, others, whole, strict=True):
        assert_allclose(part[2], without[2], rtol=1e-6)
        assert_allclose(part[:2], with_all[:2], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_the_last_ghosts_weigh_most(momentum: float) -> None:
    x, (params, state) = data((9, 5)), parameters(5)
    mean = np.float64(state.mean)
    for first in (0, 3, 6):
        mean = momentum * mean + (1 - momentum) * np.float64(x[first : first + 3]).mean(0)
    assert_allclose(compiled(params, state, x, 3, train=True, momentum=momentum)[1].mean, mean, rtol=1e-6)


def test_an_empty_batch_changes_nothing() -> None:
    params, state = parameters(5)
    y, new = compiled(params, state, jnp.ones((0, 3, 5)), 2, train=True)
    assert y.shape == (0, 3, 5)
    jax.tree.map(assert_array_equal, new, state)


# Several devices


@pytest.mark.parametrize("shape", [(12, 5), (12, 4, 5)], ids=str)
@pytest.mark.parametrize("devices", [2, 3, 4, 6])
@pytest.mark.parametrize("ghost_size", [2, 4, 5])
def test_ghosts_do_not_depend_on_the_number_of_devices(shape: tuple[int, ...], devices: int, ghost_size: int) -> None:
    x, (params, state) = data(shape), parameters(5)
    expected, expected_state = compiled(params, state, x, ghost_size, train=True, momentum=0.8)
    call = lambda x: ghost_batch_norm(params, state, x, ghost_size, train=True, momentum=0.8, axis_name="d")  # noqa: E731
    y, new = jax.jit(jax.vmap(call, axis_name="d"))(x.reshape(devices, -1, *shape[1:]))
    assert_allclose(y.reshape(shape), expected, rtol=1e-5, atol=1e-5)
    for part, wanted in zip(new, expected_state, strict=True):
        assert_allclose(part, jnp.broadcast_to(wanted, part.shape), rtol=1e-6, atol=1e-6)


def test_groups_of_devices_have_batches_of_their_own() -> None:
    x, (params, state) = data((4, 3, 5)), parameters(5)
    groups = [[0, 2], [1, 3]]
    call = lambda x: ghost_batch_norm(params, state, x, 4, train=True, axis_name="d", axis_index_groups=groups)  # noqa: E731
    y, new = jax.vmap(call, axis_name="d")(x)
    for group in groups:
        expected, expected_state = compiled(params, state, jnp.concatenate([x[i] for i in group]), 4, train=True)
        assert_allclose(jnp.concatenate([y[i] for i in group]), expected, rtol=1e-5, atol=1e-5)
        for i in group:
            assert_allclose(new.var[i], expected_state.var, rtol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("shape", [(16, 24), (16, 8, 24)], ids=str)
@pytest.mark.parametrize("axis", [0, -1], ids=["batch", "channels"])
@pytest.mark.parametrize("ghost_size", [3, 4])
def test_sharded_arrays_of_either_kind_of_axis(axis_type: AxisType, shape: tuple[int, ...], axis: int, ghost_size: int) -> None:
    x, (params, state) = data(shape), parameters(24)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    spec = P("d") if axis == 0 else P(*[None] * (len(shape) - 1), "d")

    def run(params: AffineParams, x: jax.Array) -> Any:
        call = lambda p, x: ghost_batch_norm(p, state, x, ghost_size, train=True, epsilon=1e-2)  # noqa: E731
        y, pullback, new = jax.vjp(call, params, x, has_aux=True)
        return y, new, pullback(jnp.cos(y))

    expected = jax.jit(run)(params, x)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, spec))
        y, *others = jax.jit(run)(jax.device_put(params, NamedSharding(mesh, P())), sharded)
        assert y.sharding.is_equivalent_to(sharded.sharding, x.ndim)
    got = jax.device_get((y, *others))
    for part, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(part, wanted, rtol=1e-5, atol=2e-5)


# Errors


@pytest.mark.parametrize(
    ("ghost_size", "options", "kind", "message"),
    [
        (0, {}, ValueError, "ghost_size must be at least 1, got 0"),
        (2.0, {}, TypeError, r"ghost_size must be an int of at least 1, got 2.0 \(float\)"),
        (True, {}, TypeError, "ghost_size must be an int"),
        (2, {"channel_axis": 0}, ValueError, r"params.scale must have shape \[8\]"),
        (2, {"channel_axis": (0, 1)}, ValueError, "params.scale must have shape"),
        (2, {"momentum": 1.5}, ValueError, r"momentum must be in \[0, 1\], got 1.5"),
        (2, {"axis_name": "nowhere"}, ValueError, "axis_name 'nowhere' is not bound"),
    ],
)
def test_bad_options_are_named(ghost_size: Any, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ghost_batch_norm(*parameters(5), data((8, 5)), ghost_size, train=True, **options)


def test_the_first_axis_is_the_batch() -> None:
    with pytest.raises(ValueError, match="channel_axis must leave the first axis to the batch, got 0"):
        ghost_batch_norm(*parameters(8), data((8, 5)), 2, train=True, channel_axis=0)


def test_parameters_are_those_of_batch_norm() -> None:
    params, state = init_ghost_batch_norm(3, use_bias=False, dtype=jnp.complex64)
    assert params.bias is None
    assert (state.mean.dtype, state.var.dtype) == (jnp.complex64, jnp.float32)
