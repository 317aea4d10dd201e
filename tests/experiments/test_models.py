"""The small models of the literature: they begin finite, have gradients, and keep the invariants of their layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnorm.experiments import models
from jaxnorm.experiments._models._model import patches
from jaxnorm.experiments._models.fractional_pooling import pool
from jaxnorm.experiments._models.mixture_of_experts import gate
from jaxnorm.experiments._models.mixture_of_experts import init as init_mixture
from jaxnorm.experiments._verdict import decide

SHAPES = {
    "residual network": (64,),
    "highway network": (64,),
    "network in network": (8, 8, 1),
    "fractional max-pooling": (8, 8, 1),
    "transformer": (8, 8),
    "QANet": (8, 8),
    "recurrent highway network": (8, 8),
    "fast weights": (3, 20),
    "dilated convolutions": (64, 1),
    "attention": (8, 8),
    "mixture of experts": (64,),
    "GAN critic": (2,),
    "variational autoencoder": (64,),
}


def squares(name, params, stats, x):
    """A loss of all outputs, in training."""
    model = models.MODELS[name]
    outputs, new = model.apply(jnp.asarray(model.runs["with"]), jax.random.key(1), params, stats, x, train=True)
    return sum(jnp.sum(part**2) for part in jax.tree.leaves(outputs)), new


@pytest.mark.parametrize("name", models.MODELS)
def test_models_have_gradients_of_all_parameters(name):
    params, stats = jax.eval_shape(models.MODELS[name].init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((4, *SHAPES[name]), jnp.float32)
    step = jax.value_and_grad(lambda *given: squares(name, *given), has_aux=True)
    (_, new), gradients = jax.eval_shape(step, params, stats, x)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, stats)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_models_train_and_keep_their_invariants(name):
    model = models.MODELS[name]

    @jax.jit
    def everything(key):
        init_key, x_key, run_key = jax.random.split(key, 3)
        params, stats = model.init(init_key)
        gradients, _ = jax.grad(lambda *given: squares(name, *given), has_aux=True)(
            params, stats, jax.random.normal(x_key, (4, *SHAPES[name]))
        )
        return gradients, model.run(run_key, jnp.asarray(model.runs["with"]), 3)

    gradients, found = everything(jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert 0 <= found["score"] <= 1
    assert found["invariant"] <= 0.01


def test_layers_that_change_nothing_are_not_missed():
    """As in the control, where they are in neither network."""
    same = np.linspace(0.5, 0.9, 5)
    found = {arm: dict.fromkeys((*model.runs, "invariant"), same) for arm, model in models.MODELS.items()}
    first = decide(models.EXPERIMENT.parts, found)[0]
    assert first.mean == 0
    assert not first.holds


def test_patches_make_convolutions_dense():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    for size in (2, 3):
        kernel = np.random.default_rng(1).normal(size=(size, size, 3, 6)).astype(np.float32)
        wanted = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        np.testing.assert_allclose(patches(jnp.asarray(x), size) @ kernel.reshape(-1, 6), wanted, rtol=1e-4, atol=1e-4)


def test_fractional_pooling_covers_the_image_in_order():
    x = jnp.arange(64.0).reshape(1, 8, 8, 1)
    y = pool(jax.random.key(0), x, 6)[0, :, :, 0]
    assert y.shape == (6, 6)
    assert y[0, 0] == 9  # the first region's last pixel
    assert y[-1, -1] == 63
    assert set(np.diff(y[0]).tolist()) == {1, 2}


def test_gates_choose_two_experts_at_random_before_training():
    params, _ = init_mixture(jax.random.key(0))
    on, x = jnp.array([0, 1]), jnp.ones((500, 64))
    weights = gate(on, jax.random.key(1), params, x).weights
    assert np.all(np.sum(weights > 0, 1) == 2)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert np.all(np.mean(weights > 0, 0) > 0.15)  # of 1/4
    assert np.all(gate(on, None, params, x).weights[:, :2] == 0.5)
