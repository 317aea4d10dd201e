"""Initializers: their variances, and signals that keep their size through layers with noise."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxnorm
from jaxnorm import initializers

SHAPE = (3, 3, 40, 60)
SCALES = {"xavier": 2 / (9 * 40 + 9 * 60), "he": 2 / (9 * 40), "lecun": 1 / (9 * 40)}

each = pytest.mark.parametrize("name", SCALES)


@each
@pytest.mark.parametrize("distribution", ["truncated_normal", "normal", "uniform"])
def test_variance(name: str, distribution: Any) -> None:
    kernel = np.asarray(getattr(initializers, name)(0.3, distribution=distribution)(jax.random.key(0), SHAPE))
    wanted = SCALES[name] * 0.7
    kurtosis = {"truncated_normal": 2.4, "normal": 3, "uniform": 1.8}[distribution]  # the first is at most this
    assert abs(kernel.var() - wanted) < 4 * wanted * math.sqrt((kurtosis - 1) / kernel.size)
    assert abs(kernel.mean()) < 4 * math.sqrt(wanted / kernel.size)
    assert abs(kernel.var() - SCALES[name]) > 0.2 * wanted  # a control


@each
def test_without_noise_they_are_those_of_jax(name: str) -> None:
    known = {"xavier": "glorot_uniform", "he": "he_normal", "lecun": "lecun_normal"}[name]
    wanted = getattr(jax.nn.initializers, known)()(jax.random.key(0), SHAPE)
    assert_allclose(getattr(initializers, name)(0)(jax.random.key(0), SHAPE), wanted, rtol=1e-6)
    assert not np.any(getattr(initializers, name)(1.0)(jax.random.key(0), SHAPE))
    half = getattr(initializers, name)(0.3)(jax.random.key(0), SHAPE, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    swapped = getattr(initializers, name)(0.3, in_axis=-1, out_axis=-2)(jax.random.key(0), SHAPE)
    assert (swapped.var() != getattr(initializers, name)(0.3)(jax.random.key(0), SHAPE).var()) == (name != "xavier")


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_signals_and_gradients_keep_their_size_through_layers_with_dropout(rate: float) -> None:
    """`E[n^2] = 1 / (1 - rate)`, forward and backward; without the correction both double with each layer of rate 0.5."""
    layers, width = 6, 512

    def sizes(initializer: Any) -> tuple[float, float]:
        keys = jax.random.split(jax.random.key(1), 2 * layers)

        def run(x: jax.Array) -> jax.Array:
            for i in range(layers):
                x = jaxnorm.dropout(keys[2 * i], jax.nn.relu(x) if i else x, rate)
                x = x @ (initializer(keys[2 * i + 1], (width, width)) * (1 if i else math.sqrt(0.5)))  # no ReLU before the first
            return x

        x, dy = (jax.random.normal(jax.random.key(i), (256, width)) for i in (2, 3))
        y, pullback = jax.vjp(jax.jit(run), x)
        return float(jnp.mean(y**2)), float(jnp.mean(pullback(dy)[0] ** 2))

    for size in sizes(initializers.he(rate)):
        assert 0.7 < size < 1.4
    if rate:
        assert min(sizes(initializers.he(0.0))) > 0.5 * 2**layers


def test_flax_takes_them_and_schedules_may_trace_the_rate() -> None:
    dense = nn.Dense(60, kernel_init=initializers.he(0.3))
    kernel = dense.init(jax.random.key(0), jnp.ones((1, 40)))["params"]["kernel"]
    assert_allclose(kernel.var(), 2 * 0.7 / 40, rtol=0.1)
    run = jax.jit(lambda rate: initializers.he(rate)(jax.random.key(0), (40, 60)))
    assert_allclose(run(0.3), initializers.he(0.3)(jax.random.key(0), (40, 60)), rtol=1e-6)


@each
def test_bad_input_is_named(name: str) -> None:
    make = getattr(initializers, name)
    for rate in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"rate must be in .*{rate}"):
            make(rate)
    with pytest.raises(TypeError, match="rate must be a number"):
        make(None)
    with pytest.raises(ValueError, match="distribution"):
        make(0.3, distribution="flat")(jax.random.key(0), SHAPE)
