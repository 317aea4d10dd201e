"""Types of inputs, outputs and states: what comes in goes out, and statistics are never computed or kept in less than float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import CASES, Case, data
from numpy.testing import assert_allclose, assert_array_equal
from promises import DIFFERENTIABLE, each, each_form, rows

from jaxnorm import AffineParams, RunningStats, batch_norm, dropout, init_batch_norm, init_layer_norm, layer_norm

HALF = (jnp.float16, jnp.bfloat16)
FLOATS = (*HALF, jnp.float32, jnp.float8_e4m3fn)
FIRST_OF_ITS_FUNCTION = {case.function: case for case in reversed(CASES)}
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)
half = pytest.mark.parametrize("dtype", HALF, ids=lambda dtype: dtype.__name__)


def new_key() -> jax.Array:
    return jax.random.key(3)


def ulp(y: jax.Array) -> np.ndarray:
    """The distance to the next number of y's type, in float64."""
    info = jnp.finfo(y.dtype)
    size = np.maximum(np.abs(np.asarray(y, np.float64)), float(info.smallest_normal))
    return 2.0 ** np.floor(np.log2(size)) * float(info.eps)


@each
@dtypes
def test_output_has_the_type_of_x(case: Case, dtype: Any) -> None:
    """Traced; and one operation at a time, where float16 goes the way of bfloat16, and float32 is tried elsewhere."""
    arguments = case.arguments(dtype)
    calls = [jax.eval_shape(case.__call__, new_key(), arguments)]
    if dtype in (jnp.bfloat16, jnp.float8_e4m3fn):
        calls.append(case(new_key(), arguments))
    for y, state in calls:
        assert y.dtype == dtype
        if case.is_stateful:
            assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [leaf.dtype for leaf in jax.tree.leaves(arguments["state"])]


@each_form
def test_numpy_arguments_do_as_jax_arrays(case: Case) -> None:
    """Pitfall 22."""
    arguments = case.arguments()
    numpy = jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, arguments)
    for make in (float, np.float32, np.float64):
        amounts = {name: make(value) for name, value in arguments.items() if name in case.amounts and np.ndim(value) == 0}
        got = case(new_key(), {**numpy, **amounts})
        expected = case(new_key(), arguments)
        for leaf, right in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert isinstance(leaf, jax.Array)
            assert leaf.dtype == right.dtype
            assert_allclose(leaf, right, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case is not FIRST_OF_ITS_FUNCTION[case.function]))
        for case in CASES
        if "dtype" in case.parameters
    ],
)
def test_a_narrow_output_is_a_wide_one_rounded(case: Case) -> None:
    """Pitfall 18: and neither x nor the running statistics are narrower."""
    arguments = case.arguments()
    y, state = case(new_key(), arguments, dtype=jnp.bfloat16)
    expected, expected_state = case(new_key(), arguments)
    assert y.dtype == jnp.bfloat16
    assert (np.abs(np.asarray(y, np.float64) - np.asarray(expected, np.float64)) <= 0.51 * ulp(y)).all()
    jax.tree.map(assert_array_equal, state, expected_state)


@each
@half
def test_types_of_the_amounts_do_not_widen_the_output(case: Case, dtype: Any) -> None:
    """Pitfalls 22 and 84."""
    arguments = case.arguments(dtype)
    for make in (np.float64, np.float32, jnp.float32, jnp.bfloat16):
        amounts = {name: make(value) for name, value in arguments.items() if name in case.amounts and np.ndim(value) == 0}
        y, _ = jax.eval_shape(lambda key, amounts=amounts: case(key, {**arguments, **amounts}), new_key())
        assert y.dtype == dtype


@each_form
def test_float64_is_computed_in_float64(case: Case) -> None:
    with jax.enable_x64(True):
        arguments = case.arguments(jnp.float64)
        x = arguments["x"] + 1e-12 * jnp.sin(jnp.arange(arguments["x"].size, dtype=jnp.float64)).reshape(arguments["x"].shape)
        (y, state), (moved, _) = case(new_key(), arguments), case(new_key(), {**arguments, "x": x})
        assert y.dtype == jnp.float64
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(state))
        # A change of 1e-12 is there in the output: nothing went through float32.
        assert 1e-14 < np.abs(y - moved).max() < 1e-10
        single, _ = case(new_key(), {**arguments, **_float32_params(arguments)})
        assert single.dtype == jnp.float32
        assert_allclose(single, y, rtol=1e-4, atol=1e-4)


def _float32_params(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: jax.tree.map(jnp.float32, arguments[name]) for name in DIFFERENTIABLE if name in arguments}


def test_float64_equals_the_oracle() -> None:
    """Pitfall 21."""
    with jax.enable_x64(True):
        params, state = init_batch_norm(3, param_dtype=jnp.float64, dtype=jnp.float64)
        for offset, tolerance in ((0, 1e-12), (1e4, 1e-9)):
            x = data(dtype=jnp.float64) + offset
            for train in (True, False):
                y, new = batch_norm(params, state, x, train=train, momentum=0.9)
                expected = oracles.batch_norm(params, state, x, train=train, momentum=0.9)
                assert_allclose(y, expected.y, rtol=tolerance, atol=tolerance)
                assert_allclose(new.mean, expected.mean, rtol=1e-12)
                assert_allclose(new.var, expected.var, rtol=1e-11)


def test_float32_x_updates_a_float64_state_in_float64() -> None:
    with jax.enable_x64(True):
        params, state = init_batch_norm(3, dtype=jnp.float64)
        x = data()
        y, new = batch_norm(params, state, x, train=True, momentum=0.9)
        assert (y.dtype, new.mean.dtype) == (jnp.float32, jnp.float64)
        assert_allclose(new.mean, oracles.batch_norm(params, state, x, train=True, momentum=0.9).mean, rtol=1e-6)
        # The weights are not rounded to float32 on the way into a wider state.
        ones = RunningStats(state.mean + 1, state.var)
        _, still = batch_norm(params, ones, jnp.ones((4, 3), jnp.float32), train=True, momentum=0.9)
        assert_allclose(still.mean, 1, rtol=1e-14)


@rows(tuple(case for case in CASES if case.takes_complex))
def test_complex_numbers_go_through_every_case_that_takes_them(case: Case) -> None:
    arguments = case.arguments(jnp.complex64)
    y, state = jax.jit(case.__call__)(new_key(), arguments)
    assert y.dtype == jnp.complex64
    oracle = getattr(oracles, case.function.__name__)
    if not case.is_stateful:
        assert_allclose(y, oracle(**case.by_its_names(arguments), **case.options), rtol=1e-5, atol=1e-5)
        return
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == [leaf.dtype for leaf in jax.tree.leaves(arguments["state"])]
    expected = oracle(**arguments, **case.options)
    assert_allclose(y, expected.y, rtol=1e-5, atol=1e-5)
    for name, part in state._asdict().items():
        assert_allclose(part, getattr(expected, name), rtol=1e-5)


# Half precision where it hurts


@half
def test_statistics_of_half_precision_are_those_of_its_values(dtype: Any) -> None:
    """Means far from 0, as N(8, 1) or 5 +- 0.1, and enough elements to stop a running sum in half precision.

    Pitfalls 7 and 19.
    """
    for mean, std, shape in ((8, 1, (256, 3)), (5, 0.1, (2, 32, 32, 64))):
        x = jnp.asarray(np.random.default_rng(0).normal(mean, std, shape), dtype)
        _, state = init_batch_norm(shape[-1])
        y, new = jax.jit(lambda state, x: batch_norm(AffineParams(None, None), state, x, train=True, momentum=0.0))(state, x)
        axes = tuple(range(len(shape) - 1))
        true_mean, true_var, _ = oracles.moments(np.asarray(x, np.float64), axes)
        assert (y.dtype, new.mean.dtype, new.var.dtype) == (dtype, jnp.float32, jnp.float32)
        assert_allclose(new.mean, true_mean.ravel(), rtol=1e-6)
        assert_allclose(new.var, true_var.ravel(), rtol=1e-5)
        assert_allclose(np.asarray(y, np.float64).std(axes), 1, atol=0.02)


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (lambda x: batch_norm(*init_batch_norm(64), x, train=True)[0], 0),
        (lambda x: layer_norm(init_layer_norm(64), x, epsilon=1e-5), 1),
    ],
    ids=["batch_norm", "layer_norm"],
)
def test_what_a_gradient_has_in_common_costs_no_digits(layer: Any, axis: int) -> None:
    """The larger part of what comes in goes again, through the statistics: before it is rounded, or something stays."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(mean, std, (256, 64)), jnp.bfloat16) for mean, std in ((1, 2), (3, 0.1)))
    (dx,) = jax.vjp(layer, x)[1](dy)
    wide, given = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    mean, var, _ = oracles.moments(wide, (axis,))
    normalized = (wide - mean) / np.sqrt(var + 1e-5)
    means = (np.mean(a, axis, keepdims=True) for a in (given, given * normalized))
    expected = (given - next(means) - normalized * next(means)) / np.sqrt(var + 1e-5)
    off = np.sqrt(np.mean((np.asarray(dx, np.float64) - expected) ** 2) / np.mean(expected**2))
    assert off < 0.002


def test_squares_that_overflow_float16_and_epsilons_that_underflow_it() -> None:
    """Pitfall 24."""
    x = jnp.asarray(300 * np.random.default_rng(0).normal(size=(512, 4)), jnp.float16)
    params, state = init_batch_norm(4)
    y, new = batch_norm(params, state, x, train=True, momentum=0.0)
    expected = oracles.batch_norm(params, state, np.asarray(x), train=True, momentum=0.0)
    assert_allclose(y, expected.y, rtol=2**-10, atol=2**-11)
    assert_allclose(new.var, expected.var, rtol=1e-5)
    zeros, _ = batch_norm(params, state, jnp.zeros((6, 4), jnp.float16), train=True, epsilon=1e-12)
    assert_array_equal(zeros, jnp.zeros((6, 4)))


def test_rounding_to_half_comes_after_scale_and_bias() -> None:
    """Pitfall 25."""
    x = data((64, 3), jnp.bfloat16)
    params = AffineParams(jnp.float32([1.013, 0.337, 3.77]), jnp.float32([100.3, -7.77, 0.013]))
    state = RunningStats(jnp.float32([3, 0.5, -2]), jnp.float32([0.25, 1.44, 3.6]))
    for train in (True, False):
        y, _ = batch_norm(params, state, x, train=train)
        expected = oracles.batch_norm(params, state, np.asarray(x, np.float32), train=train).y
        assert (np.abs(np.asarray(y, np.float64) - expected) <= 0.51 * ulp(y)).all()


def test_half_parameters_are_widened() -> None:
    x = data((64, 3))
    params, state = init_batch_norm(3, param_dtype=jnp.bfloat16)
    y, _ = batch_norm(params, state, x, train=True)
    assert y.dtype == jnp.float32
    assert_allclose(y, oracles.batch_norm((None, None), state, x, train=True).y, rtol=1e-5, atol=1e-5)


def test_running_statistics_are_not_rounded_to_the_type_of_x() -> None:
    """100.3 +- 0.1 with a running mean: bfloat16 has a spacing of 0.5 there."""
    random = np.random.default_rng(0)
    x = jnp.asarray(100.3 + 0.1 * random.normal(size=(64, 1)), jnp.bfloat16)
    state = RunningStats(jnp.float32([100.3]), jnp.float32([0.01]))
    y, _ = batch_norm(AffineParams(None, None), state, x, train=False)
    expected = oracles.batch_norm((None, None), state, np.asarray(x, np.float32), train=False).y
    assert (np.abs(np.asarray(y, np.float64) - expected) <= 0.51 * ulp(y)).all()


@half
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
def test_kept_values_are_the_quotient_rounded_once(dtype: Any, rate: float) -> None:
    """Pitfall 86."""
    x = jnp.asarray(np.random.default_rng(1).normal(3, 2, (200, 5)), dtype)
    y = dropout(new_key(), x, rate)
    quotient = np.where(y == 0, 0, np.asarray(x, np.float64) / float(oracles.realised(rate)))
    assert (np.abs(np.asarray(y, np.float64) - quotient) <= 0.501 * ulp(y)).all()
