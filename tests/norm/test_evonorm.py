"""EvoNorm B0 to B2 and S0 to S2: the oracles, closed forms, state, devices, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm
from jaxnorm import AffineParams, EvoNormParams, RunningVar, evonorm_b0, evonorm_s0, evonorm_s1, evonorm_s2
from jaxnorm.benchmarks._costs import residuals

X = data((8, 3, 4, 6))
B, S = ("b0", "b1", "b2"), ("s0", "s1", "s2")
each_b, each_s = pytest.mark.parametrize("kind", B), pytest.mark.parametrize("kind", S)


def numbers(*shape: int, seed: int = 1, low: float = 0.5) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(low, 3, shape), jnp.float32)


AFFINE = AffineParams(numbers(6), numbers(6, seed=2, low=-2))
STATE = RunningVar(numbers(6, seed=4))
PLAIN = AffineParams(None, None)


def params_of(kind: str, affine: AffineParams = AFFINE, v: float | None = None) -> Any:
    own = numbers(6, seed=3) if v is None else jnp.full(6, v)
    return EvoNormParams(*affine, v=own) if kind in ("b0", "s0") else affine


def function_of(kind: str) -> Any:
    return getattr(jaxnorm, f"evonorm_{kind}")


@each_b
@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize("used", [True, False], ids=["affine", "plain"])
def test_b_equals_the_oracle(kind: str, train: bool, masked: bool, used: bool) -> None:
    params = params_of(kind, AFFINE if used else PLAIN)
    options = {"train": train, "momentum": 0.8, "where": counted((8, 3, 4, 6)) if masked else None, "unbiased": masked}
    y, new = function_of(kind)(params, STATE, X, **options)
    expected = oracles.evonorm_b(kind, params, STATE, X, **options)
    assert_allclose(y, expected.y, rtol=1e-4, atol=1e-5)
    assert_allclose(new.var, expected.var, rtol=1e-5)
    first, _ = function_of(kind)(params, STATE, jnp.moveaxis(X, -1, 1), train=True, channel_axis=1)
    assert_allclose(jnp.moveaxis(first, 1, -1), oracles.evonorm_b(kind, params, STATE, X, train=True).y, rtol=1e-4, atol=1e-5)


@each_s
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize("shape", [(8, 6), (8, 3, 4, 6)], ids=str)
def test_s_equals_the_oracle(kind: str, groups: int, masked: bool, shape: tuple[int, ...]) -> None:
    x, params = data(shape), params_of(kind)
    where = (counted(shape) if len(shape) > 2 else jnp.arange(8)[:, None] % 3 != 1) if masked else None
    expected = oracles.evonorm_s(kind, params, x, groups, where=where)
    assert_allclose(function_of(kind)(params, x, groups, where=where), expected, rtol=1e-4, atol=1e-5)
    expected = oracles.evonorm_s(kind, params, x, groups)
    assert_allclose(function_of(kind)(params, x, None, group_size=6 // groups), expected, rtol=1e-4, atol=1e-5)


def test_s0_without_v_halves_and_with_a_large_one_cuts() -> None:
    """Supplement S1.1: v = 0 gives `x / (2 s)`, v to infinity `relu(x) / s`."""
    s = np.sqrt(np.float64(X).reshape(8, 3, 4, 2, 3).var((1, 2, 4)) + 1e-5)
    s = np.repeat(s, 3, -1)[:, None, None]
    assert_allclose(evonorm_s0(params_of("s0", PLAIN, 0.0), X, 2), X / (2 * s), rtol=1e-4)
    assert_allclose(evonorm_s0(params_of("s0", PLAIN, 1e4), X, 2), np.maximum(X, 0) / s, rtol=1e-4, atol=1e-3)


def test_groups_of_one_and_of_all_channels_are_instances_and_layers() -> None:
    """Supplement S1.1."""
    x = np.float64(X)
    silu = x / (1 + np.exp(-x))
    for groups, axes in ((6, (1, 2)), (1, (1, 2, 3))):
        assert_allclose(evonorm_s1(PLAIN, X, groups), silu / np.sqrt(x.var(axes, keepdims=True) + 1e-5), rtol=1e-4, atol=1e-6)
        square = (x**2).mean(axes, keepdims=True)
        assert_allclose(evonorm_s2(PLAIN, X, groups), silu / np.sqrt(square + 1e-5), rtol=1e-4, atol=1e-6)


def test_b0_without_v_takes_the_larger_deviation() -> None:
    """Supplement S1.1: `x / max(s_batch, s_instance)`, with v below `1 / v`, and for one example exactly known."""
    x = np.float64(X)
    of_batch, own = (np.sqrt(x.var(axes, keepdims=True) + 1e-5) for axes in ((0, 1, 2), (1, 2)))
    y, _ = evonorm_b0(params_of("b0", PLAIN, 0.0), STATE, X, train=True)
    assert_allclose(y, x / np.maximum(of_batch, own), rtol=1e-4)
    y, _ = evonorm_b0(params_of("b0", PLAIN, 2.0), STATE, X, train=True)
    assert (y < 0.5).all()
    one = X[:1]
    s = np.sqrt(np.float64(one).var((1, 2), keepdims=True) + 1e-5)
    y, _ = evonorm_b0(params_of("b0", PLAIN, 2.0), STATE, one, train=True)
    assert_allclose(y, np.where(one > 0, one / (2 * one + s), one / s), rtol=1e-4)


def test_b0_does_not_depend_on_the_scale_of_x_and_s_does_have_x() -> None:
    """Supplement S1.1; pitfall 113: a factor x that was forgotten."""
    params = params_of("b0", PLAIN)
    y, _ = evonorm_b0(params, STATE, X, train=True, epsilon=0.0)
    assert_allclose(evonorm_b0(params, STATE, 100 * X, train=True, epsilon=0.0)[0], y, rtol=1e-4, atol=1e-6)
    flipped, _ = evonorm_b0(params, STATE, X + 5, train=True, epsilon=0.0)
    assert np.abs(flipped - y).max() > 0.1
    assert (np.sign(evonorm_s0(params, X, 2)) == np.sign(X)).all()


def test_inference_uses_the_running_variance_in_one_place_alone() -> None:
    """Supplement S1.1: the deviation of the instance is always its own."""
    params = params_of("b0")
    y, state = evonorm_b0(params, STATE, X, train=False)
    assert_array_equal(state.var, STATE.var)
    assert_allclose(evonorm_b0(params, STATE, X[2:3], train=False)[0], y[2:3], rtol=1e-6)
    large, _ = evonorm_b0(params, RunningVar(STATE.var * 1e6), X, train=False)
    assert np.abs(large - y).max() > 0.1


@each_b
@pytest.mark.parametrize("value", [0.0, 3.0, -11.0])
def test_constant_maps_have_finite_gradients(kind: str, value: float) -> None:
    """Supplement S1.1."""
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(function_of(kind)(params_of(kind), STATE, x, train=True)[0])))
    assert jnp.isfinite(gradient(jnp.full_like(X, value))).all()


@each_b
@pytest.mark.parametrize("devices", [2, 4])
def test_a_divided_batch_gives_what_the_whole_one_gives(kind: str, devices: int) -> None:
    where, params = counted((8, 3, 4, 6)), params_of(kind)
    expected, state = function_of(kind)(params, STATE, X, where=where, train=True, momentum=0.8)
    parts = [a.reshape(devices, -1, *a.shape[1:]) for a in (X, where)]
    call = lambda x, w: function_of(kind)(params, STATE, x, where=w, train=True, momentum=0.8, axis_name="d")  # noqa: E731
    y, new = jax.vmap(call, axis_name="d")(*parts)
    assert_allclose(y.reshape(X.shape), expected, rtol=1e-4, atol=1e-5)
    assert_allclose(new.var, jnp.broadcast_to(state.var, new.var.shape), rtol=1e-5)


@pytest.mark.parametrize("kind", [*B, *S])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_x_is_kept_for_the_gradient_and_numbers_of_examples(kind: str, dtype: Any) -> None:
    x = data((16, 16, 16, 6), dtype)

    def call(params: Any, x: jax.Array) -> Any:
        return function_of(kind)(params, STATE, x, train=True) if kind in B else (function_of(kind)(params, x, 2), None)

    kept = residuals(call, params_of(kind), x)
    assert kept.keeps_input
    assert kept.nbytes <= 40 * 4 * 16 * 6


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: evonorm_b0(AFFINE, STATE, X, train=True), TypeError, "params must be EvoNormParams, got AffineParams"),
        (lambda: evonorm_b0(params_of("b0")._replace(v=None), STATE, X, train=True), TypeError, "params.v must be an array"),
        (lambda: evonorm_b0(params_of("b0"), STATE, X, train=True, channel_axis=0), ValueError, "shape"),
        (lambda: evonorm_s0(params_of("s0"), X, 4), ValueError, "num_groups must divide the number of channels, 6, got 4"),
        (lambda: evonorm_s0(params_of("s0"), X, None), ValueError, "num_groups or group_size must be given"),
        (lambda: evonorm_s1(AFFINE, X, 2, channel_axis=(1, 2)), ValueError, "params.scale must have shape"),
        (lambda: evonorm_s2(AFFINE, X[..., :5], 5), ValueError, r"params.scale must have shape \[5\]"),
    ],
)
def test_bad_input_is_named(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
