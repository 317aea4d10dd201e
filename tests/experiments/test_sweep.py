"""Networks for every seed and value, when they are recorded, and the norms of experiments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnorm.experiments._mlp import MLP, batch_norms
from jaxnorm.experiments._norms import ghost_batch_norms, layer_norms, lp_batch_norms, noisy_batch_norms
from jaxnorm.experiments._sweep import sweep
from jaxnorm.experiments._training import recorded
from jaxnorm.experiments.initialization import _decades


@pytest.mark.parametrize(
    ("steps", "times", "expected"), [(10, 5, [2, 4, 6, 8, 10]), (3, 20, [1, 2, 3]), (11, 5, [2, 4, 6, 8, 10, 11])]
)
def test_recorded(steps, times, expected):
    assert recorded(steps, times).tolist() == expected


def test_sweep_trains_a_network_for_every_seed_and_value():
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    data = (np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32), np.arange(12, dtype=np.int32) % 2)
    model = MLP(batch_norms(), depth=2, width=5, features=4, classes=2)
    state, history = sweep(
        keys, np.array([0.0, 0.1]), lambda _: model, optax.sgd, data, steps=4, batch_size=6,
        record=lambda state: {"step": state.step}, every=2,
    )  # fmt: skip
    assert history["loss"].shape == (3, 2, 4)
    assert history["step"].tolist() == [[[2, 4]] * 2] * 3
    kernel = state.params.first.dense.kernel
    init_keys, _ = jax.vmap(jax.random.split, out_axes=1)(jax.vmap(jax.random.key)(jnp.arange(3)))
    for seed in range(3):
        np.testing.assert_allclose(kernel[seed, 0], model.init(init_keys[seed])[0].first.dense.kernel, rtol=1e-6)
        assert np.abs(kernel[seed, 1] - kernel[seed, 0]).max() > 0


def test_norms_of_perceptrons():
    x = jax.random.normal(jax.random.key(0), (8, 3))
    model = MLP(noisy_batch_norms(), depth=2, width=4, features=3, classes=2)
    params, stats = model.init(jax.random.key(1))

    def outputs(key, *, train):
        return model.apply(jax.random.key(key), params, stats, x, train=train)[0]

    assert np.abs(outputs(2, train=True) - outputs(3, train=True)).max() > 0.01
    np.testing.assert_array_equal(outputs(2, train=False), outputs(3, train=False))
    plain = batch_norms(unbiased=False)
    expected, _ = plain.apply(*plain.init(3), x, train=True)
    for norm in (lp_batch_norms(2), ghost_batch_norms(8)):
        found, _ = norm.apply(*norm.init(3), x, train=True)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    alone, _ = layer_norms().apply(*layer_norms().init(3), x, train=True)
    np.testing.assert_allclose(alone.mean(1), 0, atol=1e-6)


def test_decades_in_a_row():
    good, bad = 0.98, 0.5
    accuracy = jnp.array([[bad, good, good, bad] + [bad] * 6, [good] * 4 + [bad] * 6])
    np.testing.assert_allclose(_decades(accuracy), [1 / 3, 1.0], rtol=1e-6)
