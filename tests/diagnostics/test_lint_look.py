"""What the lint measures within a model: what enters its norms, and the random numbers of its noise."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxnorm
from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.program import Model

pytestmark = pytest.mark.jax_defaults  # as in the code of users

DEPTH, RATE = 3, 0.25
X = 2 + jax.random.normal(jax.random.key(1), (64, 4))
KERNELS = jax.random.normal(jax.random.key(2), (DEPTH, 4, 4)) + jnp.eye(4)


def layer(own: Any, key: Any, x: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    kernel, params, stats = own
    x = jaxnorm.dropout(key, x, RATE) if train else x
    y, stats = jaxnorm.batch_norm(params, stats, x @ kernel, train=train, momentum=0.9)
    return jnp.tanh(y), stats


def deep(key: Any, kernels: Any, stats: Any, x: Any, *, train: bool) -> Any:
    """Layers in a scan, each of which is computed again for the gradient."""
    scale = jaxnorm.AffineParams(jnp.ones((DEPTH, 4)), jnp.zeros((DEPTH, 4)))

    def step(x: jax.Array, own: Any) -> Any:
        key, own = own
        return jax.checkpoint(partial(layer, train=train))(own, key, x)

    return lax.scan(step, x, (jax.random.split(key, DEPTH), (kernels, scale, stats)))


STATS = jaxnorm.RunningStats(jnp.zeros((DEPTH, 4)), jnp.full((DEPTH, 4), 3.0))


@pytest.fixture(scope="module")
def look() -> Look:
    return Look.at(Model(deep, KERNELS, STATS, X, jax.random.key(0)))


def test_what_enters_norms_in_inference(look: Look) -> None:
    (norm,) = look.inference.found.norms
    moments = look.inference.moments(norm)
    x = X
    for number in range(DEPTH):
        x = x @ KERNELS[number]
        np.testing.assert_allclose(moments.mean[number], x.mean(0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(moments.var[number], x.var(0), rtol=1e-4)
        x = jnp.tanh(x * lax.rsqrt(3.0 + 1e-5))


def test_what_enters_norms_in_training(look: Look) -> None:
    (norm,) = look.training.found.norms
    moments = look.training.moments(norm)
    batch = jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, look.training.usual.stats, STATS)
    np.testing.assert_allclose(moments.mean, batch.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments.var, batch.var, rtol=1e-3)


def test_data_that_a_mask_of_the_inputs_counts() -> None:
    def masked(key: Any, kernel: Any, stats: Any, x: Any, *, train: bool) -> Any:
        data, mask = x
        y = (jaxnorm.dropout(key, data, RATE) if train else data) @ kernel
        count = jnp.maximum((jnp.ones_like(y) * mask).sum(0), 1)
        mean = (y * mask).sum(0) / count
        var = ((y - mean) * (y - mean) * mask).sum(0) / count
        return (y - mean) / jnp.sqrt(var + 1e-3), stats

    look = Look.at(Model(masked, KERNELS[0], (), (X, jnp.ones((64, 1))), jax.random.key(0)))
    for program in (look.training, look.inference):
        (norm,) = program.found.norms
        assert (norm.kind, norm.elements, len(norm.noises)) == ("batch", 64, int(program.train))
    moments = look.inference.moments(norm)
    np.testing.assert_allclose(moments.mean, (X @ KERNELS[0]).mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.var, (X @ KERNELS[0]).var(0), rtol=1e-4)


@pytest.mark.parametrize("grown, measured", [((1, 4), True), ((2, 4), False)])
def test_averages_that_come_in_another_shape(grown: Any, measured: bool) -> None:
    def growing(key: Any, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        mean, var = (x.mean(0), x.var(0)) if train else (stats["mean"], stats["var"])
        new = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
        new = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, grown), new)
        return (x - mean) * lax.rsqrt(var + 1e-3), new if train else stats

    stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
    settled = Look.at(Model(growing, {}, stats, X, jax.random.key(0))).settled
    assert (settled is not None) == measured
    if measured:
        np.testing.assert_allclose(settled.outputs.std(0), jnp.ones(4), rtol=1e-2)


def test_random_numbers_of_noise(look: Look) -> None:
    (noise,) = look.training.found.noises
    mask = look.training.mask(noise)
    assert abs(mask.mean - (1 - RATE)) < 5 * (RATE * (1 - RATE) / X.size / DEPTH) ** 0.5
    assert mask.zeros == pytest.approx(1 - mask.mean)
    assert 0.9 * RATE * (1 - RATE) < mask.var < 1.1 * RATE * (1 - RATE)
    assert not look.inference.found.noises


def test_runs_with_other_arguments(look: Look) -> None:
    usual = look.training.usual
    again = look.training.run()
    other = look.training.run(key=jax.random.key(5), stats=jax.tree.map(lambda s: s + 1, STATS))
    np.testing.assert_array_equal(again.outputs, usual.outputs)
    assert np.abs(other.outputs - usual.outputs).max() > 0.1
    kept = look.training.run(stats=jax.tree.map(lambda s: s + 1, STATS))
    for new, old in zip(kept.stats, usual.stats, strict=True):
        np.testing.assert_allclose(new - old, 0.9, rtol=1e-4)
    np.testing.assert_allclose(look.inference.run(x=X[::-1]).outputs, look.inference.usual.outputs[::-1], rtol=1e-5)


def test_what_is_on_a_branch_is_not_measured() -> None:
    def branching(key: Any, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        def normed(x: jax.Array) -> jax.Array:
            h = jnp.tanh(x)
            return (h - h.mean(0)) * lax.rsqrt(h.var(0) + 1e-5)

        return lax.cond(x.sum() > params, normed, lambda x: x, x), stats

    look = Look.at(Model(branching, jnp.zeros(()), (), X, jax.random.key(0)))
    (norm,) = look.training.found.norms
    assert norm.kind == "batch"
    assert look.training.moments(norm) is None
