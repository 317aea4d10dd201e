"""Batch-instance, switchable, tracked instance, virtual and frozen batch norm: oracles, limits, state, devices, and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import counted, data
from numpy.testing import assert_allclose, assert_array_equal

from jaxnorm import (
    AffineParams,
    GatedParams,
    Moments,
    RunningStats,
    SwitchableParams,
    batch_instance_norm,
    batch_norm,
    frozen_batch_norm,
    init_batch_instance_norm,
    init_frozen_batch_norm,
    init_switchable_norm,
    instance_norm,
    layer_norm,
    reference_moments,
    switchable_norm,
    tracked_instance_norm,
    virtual_batch_norm,
)
from jaxnorm.benchmarks._costs import residuals

X = data((8, 3, 4, 5))
SHAPES = [(8, 5), (8, 6, 5), (8, 3, 4, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_mode = pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
masked = pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])


def numbers(*shape: int, seed: int = 1, low: float = 0.5) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(low, 3, shape), jnp.float32)


AFFINE = AffineParams(numbers(5), numbers(5, seed=2, low=-2))
STATE = RunningStats(numbers(5, seed=3, low=-2), numbers(5, seed=4))
GATED = GatedParams(*AFFINE, gate=numbers(5, seed=5) / 3)
SWITCH = SwitchableParams(*AFFINE, mean_logits=numbers(3, seed=6), var_logits=numbers(3, seed=7))
MIXTURES = {
    "batch_instance_norm": (batch_instance_norm, GATED),
    "switchable_norm": (switchable_norm, SWITCH),
    "tracked_instance_norm": (tracked_instance_norm, AFFINE),
}
each_mixture = pytest.mark.parametrize("name", MIXTURES)


def mask(shape: tuple[int, ...], masked: bool) -> jax.Array | None:
    if not masked:
        return None
    return counted(shape) if len(shape) > 2 else jnp.arange(shape[0])[:, None] % 3 != 1


def assert_state(new: RunningStats, expected: Any) -> None:
    assert_allclose(new.mean, expected.mean, rtol=1e-5, atol=1e-6)
    assert_allclose(new.var, expected.var, rtol=1e-5)


@each_mixture
@each_shape
@each_mode
@masked
@pytest.mark.parametrize("unbiased", [False, True], ids=["biased", "unbiased"])
def test_equal_the_oracles(name: str, shape: tuple[int, ...], train: bool, masked: bool, unbiased: bool) -> None:
    function, params = MIXTURES[name]
    if function is tracked_instance_norm and len(shape) == 2:
        return
    options = {"train": train, "momentum": 0.8, "epsilon": 1e-3, "where": mask(shape, masked), "unbiased": unbiased}
    y, new = function(params, STATE, data(shape), **options)
    expected = getattr(oracles, name)(params, STATE, data(shape), **options)
    assert_allclose(y, expected.y, rtol=1e-4, atol=2e-5)
    assert_state(new, expected)


@each_mixture
def test_examples_of_uneven_counts_and_of_none(name: str) -> None:
    function, params = MIXTURES[name]
    options = {"train": True, "momentum": 0.8, "epsilon": 1e-3, "where": counted(X.shape)}
    y, new = function(params, STATE, X, **options)
    expected = getattr(oracles, name)(params, STATE, X, **options)
    assert_allclose(y, expected.y, rtol=1e-4, atol=2e-5)
    assert_state(new, expected)


@pytest.mark.parametrize("name", ["batch_instance_norm", "switchable_norm"])
def test_a_channel_of_which_nothing_counts_is_as_in_inference(name: str) -> None:
    function, params = MIXTURES[name]
    where = counted(X.shape) & (jnp.arange(5) != 2).reshape(1, 1, 1, 5)
    (y, new), (expected, _) = (function(params, STATE, X, train=train, where=where) for train in (True, False))
    assert_allclose(y[..., 2], expected[..., 2], rtol=1e-6)
    assert_array_equal((new.mean[2], new.var[2]), (STATE.mean[2], STATE.var[2]))


@each_mixture
def test_scale_and_bias_may_be_absent_and_channels_elsewhere(name: str) -> None:
    function, params = MIXTURES[name]
    params = params._replace(scale=None, bias=None)
    expected = getattr(oracles, name)(params, STATE, X, train=True)
    y, _ = function(params, STATE, jnp.moveaxis(X, -1, 1), train=True, channel_axis=1)
    assert_allclose(jnp.moveaxis(y, 1, -1), expected.y, rtol=1e-4, atol=2e-5)


@each_mixture
@pytest.mark.parametrize("devices", [2, 4])
def test_a_divided_batch_gives_what_the_whole_one_gives(name: str, devices: int) -> None:
    function, params = MIXTURES[name]
    where = counted((8, 3, 4, 5))
    parts = [a.reshape(devices, -1, *a.shape[1:]) for a in (X, where)]
    expected, state = function(params, STATE, X, where=where, train=True, momentum=0.8)
    call = lambda x, where: function(params, STATE, x, where=where, train=True, momentum=0.8, axis_name="d")  # noqa: E731
    y, new = jax.vmap(call, axis_name="d")(*parts)
    assert_allclose(y.reshape(X.shape), expected, rtol=1e-4, atol=1e-5)
    for part, wanted in zip(new, state, strict=True):
        assert_allclose(part, jnp.broadcast_to(wanted, part.shape), rtol=1e-5, atol=1e-6)


@each_mixture
def test_a_batch_that_is_not_finite_in_a_channel_changes_nothing_of_its_state(name: str) -> None:
    function, params = MIXTURES[name]
    _, new = function(params, STATE, X.at[0, 0, 0, 2].set(jnp.nan), train=True)
    _, wanted = function(params, STATE, X, train=True)
    others = np.arange(5) != 2
    for part, clean, old in zip(new, wanted, STATE, strict=True):
        assert_array_equal(part[2], old[2])
        assert_array_equal(part[others], clean[others])


@each_mixture
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_x_is_kept_for_the_gradient_and_numbers_of_examples(name: str, dtype: Any) -> None:
    function, params = MIXTURES[name]
    x = data((16, 16, 16, 5), dtype)
    kept = residuals(lambda params, x: function(params, STATE, x, train=True), params, x)
    assert kept.keeps_input
    assert kept.nbytes <= 40 * 4 * 16 * 5


# Their limits


def test_a_gate_chooses_between_batch_and_instance_norm() -> None:
    """Supplement S1.5: also in inference, where y is linear in the gate."""
    of_batch, _ = batch_norm(AFFINE, STATE, X, train=True)
    of_instance = instance_norm(AFFINE, X, epsilon=1e-5)
    for gate, wanted in ((1.0, of_batch), (0.0, of_instance), (0.3, 0.3 * of_batch + 0.7 * of_instance)):
        y, _ = batch_instance_norm(GATED._replace(gate=jnp.full(5, gate)), STATE, X, train=True)
        assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
    one = X[:1]
    y, _ = batch_instance_norm(GATED, STATE, one, train=True)
    assert_allclose(y, instance_norm(AFFINE, one, epsilon=1e-5), rtol=1e-4, atol=1e-5)
    params, state = init_batch_instance_norm(5)
    y, _ = batch_instance_norm(params, state, X, train=True)
    assert_allclose(y, batch_norm(AffineParams(None, None), state, X, train=True)[0], atol=1e-5)


def test_a_gate_loses_no_digits_where_the_mean_is_large() -> None:
    x = X + 3e3
    y, _ = batch_instance_norm(GATED, STATE._replace(mean=STATE.mean + 3e3), x, train=True)
    expected = oracles.batch_instance_norm(GATED, STATE, x, train=True)
    assert_allclose(y, expected.y, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("chosen", "name"), [(0, "instance"), (1, "layer"), (2, "batch")])
@each_mode
def test_logits_choose_one_of_three_norms(chosen: int, name: str, train: bool) -> None:
    """Supplement S1.4."""
    logits = jnp.full(3, -100.0).at[chosen].set(100.0)
    y, _ = switchable_norm(SWITCH._replace(mean_logits=logits, var_logits=logits), STATE, X, train=train)
    wanted = {
        "instance": lambda: instance_norm(AFFINE, X, epsilon=1e-5),
        "layer": lambda: layer_norm(AFFINE, X, epsilon=1e-5, reduction_axes=(1, 2, 3)),
        "batch": lambda: batch_norm(AFFINE, STATE, X, train=train)[0],
    }[name]()
    assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_a_new_switchable_norm_weighs_all_alike() -> None:
    """Supplement S1.4: and the gradient of logits that are alike sums to 0."""
    params, state = init_switchable_norm(5)
    y, _ = switchable_norm(params, state, X, train=True)
    x = np.float64(X)
    axes = ((1, 2), (1, 2, 3), (0, 1, 2))
    mean, var = (sum(getattr(x, f)(a, keepdims=True) for a in axes) / 3 for f in ("mean", "var"))
    assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda params: jnp.sum(jnp.sin(switchable_norm(params, state, X, train=True)[0])))(params)
    assert_allclose(jnp.sum(gradient.mean_logits), 0, atol=1e-4)


def test_tracked_instance_norm_is_instance_norm_and_in_inference_batch_norm() -> None:
    """Pitfall 111."""
    y, _ = tracked_instance_norm(AFFINE, STATE, X, train=True)
    assert_allclose(y, instance_norm(AFFINE, X, epsilon=1e-5), rtol=1e-5, atol=1e-5)
    frozen, state = tracked_instance_norm(AFFINE, STATE, X, train=False)
    assert_array_equal(frozen, batch_norm(AFFINE, STATE, X, train=False)[0])
    assert state is STATE or all(map(np.array_equal, state, STATE))


def test_tracked_instance_norm_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.InstanceNorm2d(5, eps=1e-5, momentum=0.2, affine=True, track_running_stats=True)
    for name, value in (("weight", AFFINE.scale), ("bias", AFFINE.bias)):
        getattr(layer, name).data = torch.tensor(np.array(value))
    for name, value in (("running_mean", STATE.mean), ("running_var", STATE.var)):
        getattr(layer, name).copy_(torch.tensor(np.array(value)))
    given = torch.tensor(np.array(jnp.moveaxis(X, -1, 1)))
    state = STATE
    for _ in range(2):
        wanted = layer(given)
        y, state = tracked_instance_norm(AFFINE, state, X, train=True, momentum=0.8, unbiased=True)
        assert_allclose(jnp.moveaxis(y, -1, 1), wanted.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert_allclose(state.mean, layer.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    assert_allclose(state.var, layer.running_var.numpy(), rtol=1e-5)
    y, _ = tracked_instance_norm(AFFINE, state, X, train=False)
    assert_allclose(jnp.moveaxis(y, -1, 1), layer.eval()(given).detach().numpy(), rtol=1e-4, atol=1e-5)


# Virtual batch norm


@each_shape
@masked
def test_virtual_batch_norm_equals_the_oracle(shape: tuple[int, ...], masked: bool) -> None:
    x, where = data(shape), mask(shape, masked)
    reference = reference_moments(data((6, *shape[1:]), seed=9))
    expected = oracles.virtual_batch_norm(AFFINE, x, reference, epsilon=1e-3, where=where)
    assert_allclose(virtual_batch_norm(AFFINE, x, reference, epsilon=1e-3, where=where), expected, rtol=1e-4, atol=1e-5)


def test_each_example_is_normalized_with_the_reference_batch_alone() -> None:
    """Supplement S1.6: the moments of the concatenation, and no example depends on another."""
    given = data((6, 3, 4, 5), seed=9)
    reference = reference_moments(given)
    y = virtual_batch_norm(AFFINE, X, reference)
    for i in (0, 5):
        joined = jnp.concatenate([given, X[i : i + 1]])
        wanted, _ = batch_norm(AFFINE, STATE, joined, train=True)
        assert_allclose(y[i], wanted[-1], rtol=1e-4, atol=1e-5)
    assert_allclose(virtual_batch_norm(AFFINE, X[2:3], reference)[0], y[2], rtol=1e-6)


def test_without_a_reference_it_is_instance_norm_and_with_a_large_one_batch_norm() -> None:
    """Supplement S1.6."""
    mean, var, _ = reference_moments(data((6, 3, 4, 5), seed=9))
    none = virtual_batch_norm(AFFINE, X, Moments(mean, var, jnp.zeros(5)))
    assert_allclose(none, instance_norm(AFFINE, X, epsilon=1e-5), rtol=1e-4, atol=1e-5)
    many = virtual_batch_norm(AFFINE, X, Moments(mean, var, jnp.full(5, 1e9)))
    assert_allclose(many, batch_norm(AFFINE, RunningStats(mean, var), X, train=False)[0], rtol=1e-4, atol=1e-5)


def test_reference_moments_are_of_what_counts_and_gradients_flow_through_them() -> None:
    where = counted((8, 3, 4, 5))
    mean, var, n = reference_moments(X, where=where)
    wanted = oracles.moments(X, (0, 1, 2), where)
    for part, expected in zip((mean, var, n), wanted, strict=True):
        assert_allclose(part, np.broadcast_to(np.squeeze(expected), part.shape), rtol=1e-5)
    gradient = jax.grad(lambda given: jnp.sum(jnp.sin(virtual_batch_norm(AFFINE, X, reference_moments(given)))))(X + 1)
    assert (gradient != 0).all()


def test_reference_moments_of_groups_of_devices() -> None:
    groups, parts = [[0, 3], [1, 2]], X.reshape(4, 2, *X.shape[1:]) * jnp.arange(1.0, 5).reshape(4, 1, 1, 1, 1)
    found = jax.vmap(lambda x: reference_moments(x, axis_name="d", axis_index_groups=groups), axis_name="d")(parts)
    for group in groups:
        wanted = reference_moments(jnp.concatenate([parts[i] for i in group]))
        for i in group:
            jax.tree.map(lambda part, expected, i=i: assert_allclose(part[i], expected, rtol=1e-5), found, wanted)


def test_virtual_batch_norm_keeps_x_alone() -> None:
    x = data((16, 16, 16, 5), jnp.bfloat16)
    reference = reference_moments(data((6, 3, 4, 5), seed=9))
    kept = residuals(lambda params, x: (virtual_batch_norm(params, x, reference), None), AFFINE, x)
    assert kept.keeps_input
    assert kept.nbytes <= 40 * 4 * 16 * 5


# Frozen batch norm


def test_frozen_batch_norm_is_inference_without_gradients() -> None:
    """Supplement S1.12: `dx = scale / sqrt(var + epsilon) g`, and nothing else moves."""
    y, pullback = jax.vjp(frozen_batch_norm, AFFINE, STATE, X)
    assert_array_equal(y, batch_norm(AFFINE, STATE, X, train=False)[0])
    of_params, of_state, dx = pullback(jnp.cos(X))
    for part in jax.tree.leaves((of_params, of_state)):
        assert_array_equal(part, jnp.zeros(5))
    assert AFFINE.scale is not None
    assert_allclose(dx, jnp.cos(X) * (AFFINE.scale / np.sqrt(STATE.var + 1e-5))[None, None, None], rtol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_a_new_frozen_batch_norm_is_the_identity(epsilon: float) -> None:
    params, state = init_frozen_batch_norm(5, epsilon=epsilon)
    assert_allclose(frozen_batch_norm(params, state, X, epsilon=epsilon), X, rtol=1e-6)
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\], got 2"):
        init_frozen_batch_norm(5, epsilon=2)


# Errors


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: batch_instance_norm(AFFINE, STATE, X, train=True), TypeError, "params must be GatedParams, got AffineParams"),
        (
            lambda: batch_instance_norm(GATED._replace(gate=jnp.ones(3)), STATE, X, train=True),
            ValueError,
            "params.gate must have",
        ),
        (lambda: batch_instance_norm(GATED._replace(gate=None), STATE, X, train=True), TypeError, "params.gate must be an array"),
        (lambda: switchable_norm(GATED, STATE, X, train=True), TypeError, "params must be SwitchableParams"),
        (
            lambda: switchable_norm(SWITCH._replace(var_logits=jnp.ones(2)), STATE, X, train=True),
            ValueError,
            r"params.var_logits must have shape \[3\]",
        ),
        (lambda: switchable_norm(SWITCH, STATE, X, train=True, channel_axis=0), ValueError, "params.scale must have shape"),
        (lambda: tracked_instance_norm(AFFINE, STATE, X[:, 0, 0], train=True), ValueError, "x must have an axis of positions"),
        (
            lambda: virtual_batch_norm(AFFINE, X, STATE),
            TypeError,
            "reference must be Moments, got RunningStats",
        ),
        (
            lambda: virtual_batch_norm(AFFINE, X, Moments(*STATE, n=jnp.ones(3))),
            ValueError,
            r"reference.n must have shape \[5\] \(the channels of x\), got \[3\]",
        ),
        (
            lambda: virtual_batch_norm(AFFINE, X.T, Moments(*STATE, n=jnp.ones(5)), channel_axis=0),
            ValueError,
            "channel_axis must leave",
        ),
        (lambda: reference_moments(jnp.ones((3, 5), int)), TypeError, "x must be an array of floating point numbers"),
        (lambda: frozen_batch_norm(AFFINE, STATE, X[..., :4]), ValueError, r"params.scale must have shape \[4\]"),
    ],
)
def test_bad_input_is_named(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
