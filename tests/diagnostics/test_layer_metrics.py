"""Metrics of layers for a history: the same figures of bare, linen and nnx models, compiled once."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics import layer_metrics
from jaxnorm.training import TrainState, init_train_state

X = 2 + np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
HIDDEN = 8
traces = {"linen": 0, "nnx": 0, "bare": 0}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        traces["linen"] += 1
        x = nn.relu(jaxnorm.linen.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(HIDDEN, name="first")(x)))
        return nn.Dense(2)(nn.relu(nn.Dense(HIDDEN, name="second")(nn.Dropout(0.5, deterministic=not train)(x))))


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.norm = nnx.Linear(3, HIDDEN, rngs=rngs), jaxnorm.nnx.BatchNorm(HIDDEN, rngs=rngs)
        self.drop, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)

    def __call__(self, x):
        traces["nnx"] += 1
        return self.second(self.drop(nnx.relu(self.norm(self.first(x)))))


def look(params: Any, stats: Any, x: Any) -> Any:
    traces["bare"] += 1
    hidden = x @ params["first"]["kernel"] + params["first"]["bias"][None]
    scales = jaxnorm.AffineParams(**params["norm"])
    running = jaxnorm.RunningStats(**stats["norm"])
    _, of_x = jaxnorm.batch_norm(scales, running, hidden, train=True, momentum=0.0)
    y, _ = jaxnorm.batch_norm(scales, running, hidden, train=False)
    second = jax.nn.relu(y) @ params["second"]["kernel"] + params["second"]["bias"][None]
    return {"norm": of_x}, {"norm": y, "second": second}


def state_of(seed: int) -> TrainState:
    """A state whose second layer has units that are dead."""
    rng = np.random.default_rng(seed)

    def dense(inputs: int, outputs: int) -> dict[str, Any]:
        return {"kernel": jnp.asarray(rng.normal(size=(inputs, outputs)), jnp.float32), "bias": jnp.zeros(outputs)}

    params = {
        "first": dense(3, HIDDEN),
        "second": dense(HIDDEN, HIDDEN),
        "norm": {"scale": jnp.ones(HIDDEN), "bias": jnp.zeros(HIDDEN)},
    }
    params["second"]["bias"] = params["second"]["bias"].at[: 2 + seed].set(-1e3)
    stats = {"norm": {"mean": jnp.asarray(rng.normal(size=HIDDEN), jnp.float32), "var": jnp.full(HIDDEN, 2.0 + seed)}}
    return init_train_state(jax.random.key(0), params, stats, optax.sgd(0.1))


def by_hand(state: TrainState) -> dict[str, float]:
    params, stats = jax.tree.map(lambda a: np.asarray(a, np.float64), (state.params, state.stats["norm"]))
    hidden = X.astype(np.float64) @ params["first"]["kernel"]
    mean, var = hidden.mean(0), hidden.var(0)
    y = (hidden - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    second = np.maximum(y, 0) @ params["second"]["kernel"] + params["second"]["bias"]
    return {
        "drift_mean/norm": np.sqrt(np.mean((stats["mean"] - mean) ** 2 / var)),
        "drift_log_var/norm": np.sqrt(np.mean(np.log(stats["var"] / var) ** 2)),
        "dead/norm": (y <= 0).all(0).mean(),
        "dead/second": (second <= 0).all(0).mean(),
    }


def with_head(state: TrainState) -> TrainState:
    return state._replace(params=state.params | {"Dense_0": {"kernel": jnp.ones((HIDDEN, 2)), "bias": jnp.zeros(2)}})


MODELS = {
    "linen": (lambda: layer_metrics(Net(), X, layers=("norm", "second")), with_head),
    "nnx": (lambda: layer_metrics(NnxNet(), X, layers=("norm", "second")), lambda state: state),
    "bare": (lambda: layer_metrics(look, X), lambda state: state),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_figures_are_those_of_the_state_and_compiled_once(name: str) -> None:
    make, adapted = MODELS[name]
    measure = make()
    for seed in (0, 3):
        before = traces[name]
        found = measure(adapted(state_of(seed)))
        assert all(type(value) is float for value in found.values())
        expected = by_hand(state_of(seed))
        assert found.keys() == expected.keys()
        assert expected["dead/second"] >= (2 + seed) / HIDDEN
        for figure, value in expected.items():
            assert_allclose(found[figure], value, rtol=2e-4, err_msg=figure)
    assert traces[name] == before  # by the second state nothing was traced


def test_what_a_model_has_not_is_left_out() -> None:
    state = with_head(state_of(0))
    assert sorted(layer_metrics(Net(), X)(state)) == ["drift_log_var/norm", "drift_mean/norm"]
    bare = state._replace(stats=())
    found = layer_metrics(lambda params, stats, x: ((), {"relu": jnp.minimum(x, 0)}), X)(bare)
    assert found == {"dead/relu": 1.0}

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(4, name="dense")(x)

    params = {"dense": {"kernel": jnp.zeros((3, 4)), "bias": jnp.array([-1.0, 0, 1, 2])}}
    found = layer_metrics(Plain(), X, layers=nn.Dense)(bare._replace(params=params, stats={}))
    assert found == {"dead/dense": 0.5}
    with pytest.raises(ValueError, match="model must have running variances to measure, or layers that are chosen, got neither"):
        layer_metrics(lambda params, stats, x: ((), {}), X)(bare)


def test_stacked_norms_are_one_figure() -> None:
    stats = jaxnorm.RunningStats(jnp.zeros((2, 3)), jnp.ones((2, 3)))
    of_x = jaxnorm.RunningStats(jnp.array([[1.0, 1, 1], [3, 3, 3]]), jnp.ones((2, 3)))
    state = init_train_state(jax.random.key(0), {}, {"norms": stats}, optax.sgd(0.1))
    found = layer_metrics(lambda params, stats, x: ({"norms": of_x}, {}), X)(state)
    assert_allclose(found["drift_mean/norms"], np.sqrt(5), rtol=1e-6)


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match="model must be a linen module, an nnx model or a function of params, stats and x, got 3"):
        layer_metrics(3, X)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="layers must be None for a function, which gives the activations itself, got 'first'"):
        layer_metrics(look, X, layers="first")
    with pytest.raises(ValueError, match="layers must be some that the model calls, got 'third'"):
        layer_metrics(Net(), X, layers="third")(with_head(state_of(0)))
