"""Losses of several passes with noise (methods.md 5.10, 5.11)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, softmax

import jaxnorm
from jaxnorm.losses import multi_sample, r_drop
from jaxnorm.training import cross_entropy

FIRST, SECOND = (jnp.asarray(np.random.default_rng(i).normal(0, 2, (6, 4)), jnp.float32) for i in (0, 1))
LABELS = jnp.asarray([0, 3, 1, 2, 2, 0])


def test_r_drop_equals_the_formula() -> None:
    p, q = (np.asarray(a, np.float64) for a in (FIRST, SECOND))
    entropies = -(log_softmax(p, 1) + log_softmax(q, 1))[np.arange(6), LABELS] / 2
    divergences = [(softmax(a, 1) * (log_softmax(a, 1) - log_softmax(b, 1))).sum(1) for a, b in ((p, q), (q, p))]
    assert_allclose(r_drop(FIRST, SECOND, LABELS, alpha=3.0), entropies + 3 * sum(divergences) / 2, rtol=1e-5)
    assert_allclose(r_drop(SECOND, FIRST, LABELS), r_drop(FIRST, SECOND, LABELS), rtol=1e-6)
    assert r_drop(FIRST.astype(jnp.bfloat16), SECOND.astype(jnp.bfloat16), LABELS).dtype == jnp.float32


def test_without_noise_r_drop_is_the_cross_entropy() -> None:
    for alpha in (0.0, 5.0):
        assert_allclose(r_drop(FIRST, FIRST, LABELS, alpha=alpha), cross_entropy(FIRST, LABELS), rtol=1e-6)
    both = (cross_entropy(FIRST, LABELS) + cross_entropy(SECOND, LABELS)) / 2
    assert_allclose(r_drop(FIRST, SECOND, LABELS, alpha=0), both, rtol=1e-6)
    assert (r_drop(FIRST, SECOND, LABELS) > both).all()


def test_a_class_that_is_ruled_out_has_no_nan() -> None:
    ruled_out = lambda logits: logits.at[:, 1].set(-jnp.inf)  # noqa: E731
    labels = jnp.where(LABELS == 1, 0, LABELS)
    run = lambda first: jnp.sum(r_drop(ruled_out(first), ruled_out(SECOND), labels))  # noqa: E731
    value, gradient = jax.value_and_grad(run)(FIRST)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_multi_sample_is_the_mean_over_keys() -> None:
    x = jnp.arange(1.0, 6.0)
    loss = lambda key, x: jnp.sum(jaxnorm.dropout(key, x, 0.3) ** 2)  # noqa: E731
    run = lambda x, samples: multi_sample(jax.random.key(0), lambda key: loss(key, x), samples)  # noqa: E731
    each = [jax.value_and_grad(loss, 1)(key, x) for key in jax.random.split(jax.random.key(0), 3)]
    value, gradient = jax.value_and_grad(run)(x, 3)
    assert_allclose(value, np.mean([v for v, _ in each]), rtol=1e-6)
    assert_allclose(gradient, np.mean([g for _, g in each], 0), rtol=1e-6)
    assert_allclose(run(x, 1), loss(jax.random.split(jax.random.key(0), 1)[0], x), rtol=1e-6)
    tree = multi_sample(jax.random.key(0), lambda key: {"loss": loss(key, x), "x": x}, 3)
    assert_array_equal(tree["x"], x)


def test_the_variance_of_multi_sample_falls_with_the_number_of_masks() -> None:
    def variance(samples: int) -> float:
        keys = jax.random.split(jax.random.key(1), 4000)
        draw = lambda key: jnp.sum(jaxnorm.dropout(key, jnp.arange(1.0, 6.0), 0.3))  # noqa: E731
        return float(jnp.var(jax.vmap(lambda key: multi_sample(key, draw, samples))(keys)))

    assert_allclose(8 * variance(8) / variance(1), 1, atol=4 * 2 * np.sqrt(2 / 4000))


def test_what_does_not_depend_on_the_key_is_computed_once() -> None:
    def loss(key: jax.Array) -> jax.Array:
        return jnp.sum(jaxnorm.dropout(key, jnp.sin(jnp.ones((5, 4))), 0.3))

    text = str(jax.make_jaxpr(lambda key: multi_sample(key, loss, 16))(jax.random.key(0)))
    assert "f32[5,4] = sin" in text


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="second must have shape"):
        r_drop(FIRST, SECOND[:3], LABELS)
    with pytest.raises(ValueError, match="alpha must be in"):
        r_drop(FIRST, SECOND, LABELS, alpha=-1)
    with pytest.raises(TypeError, match="labels must be integers"):
        r_drop(FIRST, SECOND, FIRST)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        multi_sample(jax.random.key(0), lambda key: jnp.ones(()), 0)
    with pytest.raises(TypeError, match="loss must be a function"):
        multi_sample(jax.random.key(0), 3, 2)
