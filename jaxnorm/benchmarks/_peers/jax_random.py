"""What is written by hand with jax alone: noise with `jax.random`, and loops."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.benchmarks._layer import BETA, RATE, STD, Layer
from jaxnorm.benchmarks._monte_carlo import by_map, perceptron


def _gaussian_dropout(_: jax.ShapeDtypeStruct) -> Layer:
    std = (RATE / (1 - RATE)) ** 0.5

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return x * (1 + std * jax.random.normal(key, x.shape, x.dtype)), state

    return Layer(apply)


def _uniform_dropout(_: jax.ShapeDtypeStruct) -> Layer:
    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return x * jax.random.uniform(key, x.shape, x.dtype, 1 - BETA, 1 + BETA), state

    return Layer(apply)


def _gaussian_noise(_: jax.ShapeDtypeStruct) -> Layer:
    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return x + STD * jax.random.normal(key, x.shape, x.dtype), state

    return Layer(apply)


def _zoneout(x: jax.ShapeDtypeStruct) -> Layer:
    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return jnp.where(jax.random.bernoulli(key, RATE, x.shape), params, x), state

    return Layer(apply, jax.random.normal(jax.random.key(1), x.shape, x.dtype))


LAYERS = {
    "gaussian_dropout": {"jax.random": _gaussian_dropout},
    "uniform_dropout": {"jax.random": _uniform_dropout},
    "gaussian_noise": {"jax.random": _gaussian_noise},
    "zoneout": {"jax.random": _zoneout},
    "mc_predict_late": {"jax.lax.map": perceptron(by_map, noisy=3)},
}
