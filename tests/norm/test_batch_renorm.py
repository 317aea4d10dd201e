"""batch_renorm: the oracle, its two limits (the running statistics' norm and batch norm), gradient, state and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import AffineParams, RenormStats, RunningStats, batch_norm, batch_renorm, init_batch_renorm

UNLIMITED = {"r_max": np.inf, "d_max": np.inf}
compiled = jax.jit(batch_renorm, static_argnames=("train", "channel_axis"))


def parameters(features: int = 3) -> tuple[AffineParams, RenormStats]:
    random = np.random.default_rng(1)
    scale, bias, mean, std = (jnp.asarray(random.uniform(low, 3, features), jnp.float32) for low in (0.5, -2, 1, 0.3))
    return AffineParams(scale, bias), RenormStats(mean, std)


@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize("limits", [(1, 0), (1.2, 0.3), (3, 5), (np.inf, np.inf), (np.inf, 0), (1, np.inf)], ids=str)
def test_equals_the_oracle(train: bool, masked: bool, limits: tuple[float, float]) -> None:
    x, (params, state) = data(), parameters()
    where = counted() if masked else None
    options = {"train": train, "r_max": limits[0], "d_max": limits[1], "momentum": 0.8, "epsilon": 1e-3, "where": where}
    y, new = compiled(params, state, x, **options)
    expected = oracles.batch_renorm(params, state, x, **options)
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(new.mean, expected.mean, rtol=1e-6, atol=1e-6)
    assert_allclose(new.std, expected.std, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -2, (1, 3), ()], ids=str)
def test_equals_the_oracle_on_every_channel_axis(axis: Any) -> None:
    x = data((4, 2, 3, 5))
    channels = (axis,) if isinstance(axis, int) else axis
    shape = tuple(x.shape[a] for a in sorted(a % 4 for a in channels))
    arrays = [jnp.asarray(a, jnp.float32) for a in np.random.default_rng(2).uniform(0.5, 3, (4, *shape))]
    params, state = AffineParams(*arrays[:2]), RenormStats(*arrays[2:])
    y, new = compiled(params, state, x, train=True, momentum=0.8, channel_axis=axis)
    expected = oracles.batch_renorm(params, state, x, train=True, momentum=0.8, channel_axis=axis)
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    assert_allclose(new.std, expected.std, rtol=1e-6)


def test_float64_has_the_oracle_to_1e_12() -> None:
    with jax.enable_x64(True):
        params, state = jax.tree.map(lambda a: a.astype(jnp.float64), parameters())
        x = data(dtype=jnp.float64)
        y, new = batch_renorm(params, state, x, train=True)
        expected = oracles.batch_renorm(params, state, x, train=True)
        assert_allclose(y, expected.y, rtol=1e-12, atol=1e-12)
        assert_allclose(new.std, expected.std, rtol=1e-13)


def test_within_the_limits_training_gives_what_inference_gives() -> None:
    (params, state), x = parameters(), data()
    trained, _ = compiled(params, state, x, train=True, **UNLIMITED)
    inferred, still = compiled(params, state, x, train=False)
    assert_allclose(trained, inferred, rtol=3e-6, atol=3e-6)
    assert_array_equal(still.mean, state.mean)
    assert_array_equal(still.std, state.std)
    # So what else is in the batch does not matter.
    alone, _ = compiled(params, state, x[:1], train=True, **UNLIMITED)
    assert_allclose(alone, trained[:1], rtol=3e-6, atol=3e-6)


def test_limits_of_1_and_0_are_batch_norm_with_its_gradient() -> None:
    """Pitfall 113."""
    (params, state), x = parameters(), data()
    running = RunningStats(state.mean, state.std**2)
    weights = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    ours = lambda params, x: batch_renorm(params, state, x, train=True, r_max=1, d_max=0)[0]  # noqa: E731
    plain = lambda params, x: batch_norm(params, running, x, train=True)[0]  # noqa: E731
    got, pullback = jax.vjp(ours, params, x)
    expected, expected_pullback = jax.vjp(plain, params, x)
    assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
    for part, wanted in zip(jax.tree.leaves(pullback(weights)), jax.tree.leaves(expected_pullback(weights)), strict=True):
        assert_allclose(part, wanted, rtol=2e-5, atol=2e-5)


def test_the_gradient_is_that_of_batch_norm_times_r() -> None:
    """Pitfall 113: r and d are constants."""
    (_, state), x = parameters(), data()
    weights = jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    none = AffineParams(None, None)
    gradient = jax.grad(lambda x: jnp.sum(batch_renorm(none, state, x, train=True, **UNLIMITED)[0] * weights))(x)
    ones = np.ones(3)
    of_batch_norm, *_ = oracles.batch_norm_gradient(x, ones, weights, epsilon=1e-5)
    _, var, _ = oracles.moments(x, (0, 1, 2))
    r = np.sqrt(var + 1e-5) / np.asarray(state.std)
    assert_allclose(gradient, of_batch_norm * r, rtol=2e-5, atol=1e-5)


def test_the_first_batch_of_a_fresh_state_is_corrected_towards_the_identity() -> None:
    params, state = init_batch_renorm(3)
    x = data()
    y, _ = batch_renorm(params, state, x, train=True, **UNLIMITED)
    assert_allclose(y, x, rtol=2e-6, atol=2e-6)


def test_limits_may_be_traced_as_by_a_schedule() -> None:
    (params, state), x = parameters(), data()
    schedule = jnp.array([[1.0, 0.0], [1.5, 0.5], [3.0, 5.0], [jnp.inf, jnp.inf]])
    traced = jax.lax.map(lambda limits: batch_renorm(params, state, x, train=True, r_max=limits[0], d_max=limits[1])[0], schedule)
    for y, (r_max, d_max) in zip(traced, np.asarray(schedule), strict=True):
        expected = oracles.batch_renorm(params, state, x, train=True, r_max=r_max, d_max=d_max).y
        assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_a_batch_that_is_not_finite_harms_its_channel_alone_and_no_state(bad: float) -> None:
    (params, state), x = parameters(), data()
    y, new = compiled(params, state, x.at[0, 0, 0, 1].set(bad), train=True)
    clean, clean_new = compiled(params, state, x, train=True)
    assert_array_equal(np.asarray(new.mean)[1], np.asarray(state.mean)[1])
    assert_array_equal(np.asarray(new.std)[1], np.asarray(state.std)[1])
    assert_array_equal(np.asarray(new.std)[::2], np.asarray(clean_new.std)[::2])
    assert_array_equal(np.asarray(y)[..., ::2], np.asarray(clean)[..., ::2])


def test_without_a_counted_element_the_running_statistics_are_used_and_kept() -> None:
    (params, state), x = parameters(), data()
    y, new = compiled(params, state, x, train=True, where=jnp.zeros((8, 1, 1, 1), bool))
    assert_allclose(y, oracles.batch_renorm(params, state, x, train=False).y, rtol=1e-5, atol=1e-5)
    assert_array_equal(new.mean, state.mean)
    assert_array_equal(new.std, state.std)


def test_padding_that_is_not_finite_reaches_nothing() -> None:
    (params, state), x = parameters(), data()
    where = counted()
    poisoned = jnp.where(where, x, jnp.nan)
    clean = jnp.where(where, x, 0)

    def run(x: jax.Array) -> Any:
        f = lambda params, x: batch_renorm(params, state, x, train=True, where=where)  # noqa: E731
        y, pullback, new = jax.vjp(f, params, x, has_aux=True)
        return jnp.where(where, y, 0), new, pullback(jnp.where(where, jnp.cos(y), 0))

    for got, expected in zip(*(jax.tree.leaves(run(x)) for x in (poisoned, clean)), strict=True):
        assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"r_max": 0.99}, ValueError, r"r_max must be in \[1, inf\], got 0.99"),
        ({"r_max": float("nan")}, ValueError, "r_max must be in"),
        ({"r_max": jnp.ones(3)}, ValueError, "r_max must have shape"),
        ({"r_max": "3"}, TypeError, "r_max must be a number"),
        ({"d_max": -0.1}, ValueError, r"d_max must be in \[0, inf\], got -0.1"),
        ({"d_max": True}, TypeError, "d_max must be a number"),
        ({"momentum": 1.5}, ValueError, "momentum must be in"),
        ({"channel_axis": 4}, ValueError, "channel_axis is out of range"),
        ({"axis_name": "nowhere"}, ValueError, "axis_name 'nowhere' is not bound"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    params, state = parameters()
    with pytest.raises(kind, match=message):
        batch_renorm(params, state, data(), **{"train": True, **options})


def test_a_state_of_another_layer_is_named() -> None:
    params, state = parameters()
    with pytest.raises(TypeError, match="state must be RenormStats, got RunningStats"):
        batch_renorm(params, RunningStats(state.mean, state.std), data(), train=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"state.std must have shape \[3\]"):
        batch_renorm(params, state._replace(std=state.std[:2]), data(), train=True)
