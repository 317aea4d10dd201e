import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnorm.training import init_train_state, make_train_step

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(optax.cosine_decay_schedule(0.1, 50)),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01)),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(0.1), every_k_schedule=2),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), max_consecutive_errors=3),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.1, 0.0, 9)),
    "reduce_on_plateau": lambda: optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=1)),
}


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")], ids=repr)
def test_starts_at_step_zero_with_the_given_key(key, net):
    state = init_train_state(key, net.params, net.stats, optax.sgd(0.1))
    assert state.step.dtype == jnp.int32
    assert state.step == 0
    assert state.key.dtype == key.dtype
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(key))
    chex.assert_trees_all_equal(state.params, net.params)
    chex.assert_trees_all_equal(state.stats, net.stats)


def test_numbers_and_numpy_become_strong_arrays():
    state = init_train_state(jax.random.key(0), {"a": 0.5, "b": np.ones(3)}, (2.0,), optax.sgd(0.1))
    for leaf in jax.tree.leaves((state.params, state.stats)):
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype == jnp.float32
        assert not leaf.weak_type


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_keeps_tree_and_types_and_is_traced_once(name, net, data):
    optimizer = OPTIMIZERS[name]()
    state = init_train_state(jax.random.key(0), net.params, net.stats, optimizer)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_train_step(net.apply, optimizer), n=1))
    new = state
    for _ in range(4):
        new, metrics = step(new, data)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
    assert jax.tree.structure(state) == jax.tree.structure(new)
    assert new.step == 4
    assert np.isfinite(metrics["loss"])
    assert np.abs(new.params["w"] - state.params["w"]).max() > 0


def test_bad_arguments(net):
    with pytest.raises(TypeError, match="key must be one key"):
        init_train_state(0, net.params, net.stats, optax.sgd(0.1))
    with pytest.raises(ValueError, match="key must be one key"):
        init_train_state(jax.random.split(jax.random.key(0), 2), net.params, net.stats, optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"params\['w'\] must be an array, got 'heavy'"):
        init_train_state(jax.random.key(0), {"w": "heavy"}, net.stats, optax.sgd(0.1))
