"""Averages of parameters: the formula, where they are found, types, checkpoints, and what statistics they need."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm
from jaxnorm.statistics import precise_stats
from jaxnorm.training import (
    average_params,
    averaged_params,
    averaged_state,
    fit,
    init_train_state,
    load_checkpoint,
    make_eval_step,
    make_train_step,
    save_checkpoint,
    shuffled_batches,
)
from jaxnorm.training.averages import AverageParamsState

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.float32(3.0)}
GRADIENTS = [{"a": jnp.array([0.1 * i, 1.0]), "b": jnp.float32(-i)} for i in range(1, 8)]


def train(optimizer: Any, params: Any = PARAMS, gradients: Any = GRADIENTS) -> tuple[Any, Any, list[Any]]:
    """Returns the last state and parameters, and the parameters after each step."""

    @jax.jit
    def step(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, path = optimizer.init(params), []
    for gradient in gradients:
        params, state = step(gradient, state, params)
        path.append(params)
    return state, params, path


def expected(path: list[Any], decay: float, name: str) -> np.ndarray:
    values = np.stack([np.asarray(params[name], np.float64) for params in path])
    weights = decay ** np.arange(len(path) - 1, -1, -1.0)
    return np.tensordot(weights / weights.sum(), values, 1)


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.999, 1.0])
def test_it_is_the_debiased_average_of_the_parameters_after_each_step(decay: float) -> None:
    state, params, path = train(optax.chain(optax.sgd(0.5), average_params(decay)))
    found = averaged_params(state, params)
    for name in PARAMS:
        assert_allclose(found[name], expected(path, decay, name), rtol=1e-6)
    if 0 < decay < 1:
        ema = optax.ema(decay)
        of_optax = ema.init(PARAMS)
        for after in path:
            last, of_optax = ema.update(after, of_optax)
        assert_allclose(found["a"], last["a"], rtol=1e-4)
    _, plain, _ = train(optax.sgd(0.5))
    assert_array_equal(params["a"], plain["a"])


WRAPPED = {
    "chain": lambda own: optax.chain(optax.clip(9.0), optax.chain(optax.sgd(0.5), own)),
    "masked": lambda own: optax.chain(optax.sgd(0.5), optax.masked(own, {"a": True, "b": False})),
    "inject_hyperparams": lambda own: optax.inject_hyperparams(lambda rate: optax.chain(optax.sgd(rate), own))(rate=0.5),
    "multi_steps": lambda own: optax.MultiSteps(optax.chain(optax.sgd(0.5), own), 1),
    "apply_if_finite": lambda own: optax.apply_if_finite(optax.chain(optax.sgd(0.5), own), 3),
    "partition": lambda own: optax.partition(dict.fromkeys("ab", optax.chain(optax.sgd(0.5), own)), {"a": "a", "b": "b"}),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_it_is_found_wherever_it_is(name: str) -> None:
    state, params, path = train(WRAPPED[name](average_params(0.7)))
    found = averaged_params(state, params)
    assert_allclose(found["a"], expected(path, 0.7, "a"), rtol=1e-6)
    assert_allclose(found["b"], path[-1]["b"] if name == "masked" else expected(path, 0.7, "b"), rtol=1e-6)


def test_steps_without_an_update_do_not_count() -> None:
    bad = {"a": jnp.array([jnp.nan, 1.0]), "b": jnp.float32(1.0)}
    with_bad = [GRADIENTS[0], bad, bad, *GRADIENTS[1:]]
    optimizer = optax.apply_if_finite(optax.chain(optax.sgd(0.5), average_params(0.7)), 3)
    for a, b in zip(*(jax.tree.leaves(train(optimizer, gradients=g)[0].inner_state) for g in (GRADIENTS, with_bad)), strict=True):
        assert_array_equal(a, b)
    state, params, path = train(optax.MultiSteps(optax.chain(optax.sgd(0.5), average_params(0.7)), 3), gradients=GRADIENTS[:6])
    assert_allclose(averaged_params(state, params)["a"], expected([path[2], path[5]], 0.7, "a"), rtol=1e-6)


def test_the_weight_of_the_old_average_may_be_scheduled() -> None:
    schedule = optax.piecewise_constant_schedule(0.5, {2: 2.0})
    averages = optax.inject_hyperparams(average_params)(decay=schedule)
    state, params, path = train(optax.chain(optax.sgd(0.5), averages), gradients=GRADIENTS[:3])
    weights = np.array([0.5, 1, 1])  # 0.5 in the second step, 1 in the third
    wanted = np.tensordot(weights / 2.5, np.stack([p["a"] for p in path]), 1)
    assert_allclose(averaged_params(state, params)["a"], wanted, rtol=1e-6)


def test_averages_of_narrow_parameters_are_wide() -> None:
    params = {"a": jnp.full(3, 256.0, jnp.bfloat16)}
    gradients = [{"a": jnp.full(3, -2.0, jnp.bfloat16)}] * 4  # 258, 260, 262, 264
    state, last, _ = train(optax.chain(optax.sgd(1.0), average_params(1.0)), params, gradients)
    assert state[1].average["a"].dtype == jnp.float32
    assert_array_equal(state[1].average["a"], np.full(3, 261.0))  # which bfloat16 does not have
    assert averaged_params(state, last)["a"].dtype == jnp.bfloat16


def test_before_the_first_step_it_is_the_parameters_in_buffers_of_its_own() -> None:
    optimizer = optax.chain(optax.sgd(0.5), average_params(0.9))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = init_train_state(jax.random.key(0), params, (), optimizer)
    assert_array_equal(averaged_state(state).params["a"], params["a"])
    donating = jax.jit(lambda state: state, donate_argnums=0)
    assert_array_equal(donating(state).params["a"], PARAMS["a"])


def test_an_average_is_where_its_parameter_is() -> None:
    mesh = jax.make_mesh((8,), ("model",))
    spread = NamedSharding(mesh, PartitionSpec("model"))
    params = {"a": jax.device_put(jnp.ones(8), spread)}
    optimizer = optax.chain(optax.sgd(0.5), average_params(0.9))
    assert optimizer.init(params)[1].average["a"].sharding == spread
    state, _, _ = train(optimizer, params, [params])
    assert state[1].average["a"].sharding == spread


def test_a_checkpoint_keeps_the_bits(tmp_path: Path) -> None:
    optimizer = optax.chain(optax.sgd(0.5), average_params(0.7))
    opt_state, params, _ = train(optimizer)
    state = init_train_state(jax.random.key(0), params, (), optimizer)._replace(opt_state=opt_state)
    save_checkpoint(tmp_path, state)
    loaded = load_checkpoint(tmp_path, init_train_state(jax.random.key(1), PARAMS, (), optimizer)).state
    assert isinstance(loaded.opt_state[1], AverageParamsState)
    for a, b in zip(jax.tree.leaves(loaded.opt_state), jax.tree.leaves(opt_state), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_averaged_parameters_need_statistics_of_their_own(net, data) -> None:
    """The state's statistics are of the last parameters: of inputs far from 0, the mean of what leaves the average is another."""
    x, labels = data[0] + 20, data[1]
    optimizer = optax.chain(optax.sgd(1.0), average_params(1.0))
    state = init_train_state(jax.random.key(0), net.params, net.stats, optimizer)
    batches = shuffled_batches(jax.random.key(1), x, labels, batch_size=30, drop_remainder=True)
    state, _ = fit(state, make_train_step(net.apply, optimizer), batches, epochs=10, progress=False)

    def reestimate(params: Any, stats: Any) -> Any:
        def update(stats: Any, x: Any) -> Any:
            return jaxnorm.batch_norm(params["norm"], stats, x @ params["w"], train=True, momentum=0.0)[1]

        return precise_stats(update, stats, x.reshape(3, 30, 5))

    averaged = averaged_state(state, reestimate)
    hidden = np.asarray(x, np.float64) @ np.asarray(averaged.params["w"], np.float64)
    assert_allclose(averaged.stats.mean, hidden.mean(0), rtol=1e-4, atol=1e-4)
    assert_allclose(averaged.stats.var, hidden.var(0), rtol=1e-3)
    stale = averaged_state(state)
    assert stale.stats is state.stats
    assert averaged.step == state.step
    evaluate = jax.jit(make_eval_step(net.apply))
    assert evaluate(averaged, (x, labels))["accuracy"] > 0.9
    assert evaluate(stale, (x, labels))["accuracy"] < 0.7


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 1.5"):
        average_params(1.5)
    own = average_params(0.9)
    with pytest.raises(ValueError, match="params must be given to the update of average_params, got None"):
        own.update(PARAMS, own.init(PARAMS))
    with pytest.raises(ValueError, match="opt_state must be of an optimizer with average_params, got one without"):
        averaged_params(optax.adam(0.1).init(PARAMS), PARAMS)
