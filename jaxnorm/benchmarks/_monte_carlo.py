"""MC dropout of a perceptron: all samples in one call, by a plain loop, and call by call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import dropout
from jaxnorm.benchmarks._layer import RATE, Builder, Layer
from jaxnorm.uncertainty import mc_predict

DEPTH = 9
SAMPLES = 64
_BATCH_SIZE = 16
_CLASSES = 10

Network = Callable[[jax.Array, Any], jax.Array]
Sampler = Callable[[jax.Array, Network, jax.Array], jax.Array]


def at_once(samples: int) -> Sampler:
    """Returns what draws so many samples by `mc_predict`."""
    return lambda key, network, x: mc_predict(key, network, x, samples, batch_size=_BATCH_SIZE)


def by_map(key: jax.Array, network: Network, x: jax.Array) -> jax.Array:
    """Draws the samples by `lax.map` alone."""
    return lax.map(lambda key: network(key, x), jax.random.split(key, SAMPLES), batch_size=_BATCH_SIZE)


def one_call(key: jax.Array, network: Network, x: jax.Array) -> jax.Array:
    """Draws one sample."""
    return network(key, x)


def perceptron(sample: Sampler, *, noisy: int = DEPTH, calls: int = 1) -> Builder:
    """Returns the builder of a perceptron of 9 hidden layers of x's width, of which the last `noisy` follow dropout.

    Args:
      sample: what draws samples in a call.
      noisy: how many layers have noise before them.
      calls: how many calls are made, each with a key of its own.
    """

    def build(x: jax.ShapeDtypeStruct) -> Layer:
        width = x.shape[-1]
        scale = jnp.asarray((2 / width) ** 0.5, x.dtype)
        weights = tuple(
            scale * jax.random.normal(key, shape, x.dtype)
            for key, shape in zip(jax.random.split(jax.random.key(1)), ((DEPTH, width, width), (width, _CLASSES)), strict=True)
        )

        def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            hidden, last = params

            def network(key: jax.Array, x: jax.Array) -> jax.Array:
                for number in range(DEPTH):
                    if number >= DEPTH - noisy:
                        x = dropout(jax.random.fold_in(key, number), x, RATE)
                    x = jax.nn.relu(x @ hidden[number])
                return x @ last

            return sample(key, network, x), state

        return Layer(apply, weights, tuple(jax.random.split(jax.random.key(2), calls)))

    return build
