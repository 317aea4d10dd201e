"""Whole training steps: networks that are the same for all contenders, but for the one layer that is measured."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnorm.benchmarks import _torch_programs
from jaxnorm.benchmarks._costs import compile_program
from jaxnorm.benchmarks._layer import Builder, TorchLayer
from jaxnorm.benchmarks._measure import Program
from jaxnorm.benchmarks._programs import Problem
from jaxnorm.benchmarks._torch_resnet import BLOCKS, CLASSES, STAGES, torch_resnet

LEARNING_RATE, MOMENTUM = 0.1, 0.9
VOCABULARY = 256

Weight = Callable[..., jax.Array]
"""`weight(*shape)` is the next weight of the network, the last axis of which is that of the outputs."""
Apply = Callable[[jax.Array], jax.Array]
"""The next layer that is measured."""


def resnet_step(build: Builder, problem: Problem) -> Program:
    """Returns a training step of a ResNet of 20 layers with bottlenecks, whose every norm and ReLU is the layer.

    References:
      He, Zhang, Ren, Sun, "Identity mappings in deep residual networks", ECCV 2016, https://arxiv.org/abs/1603.05027.
    """

    def of_channels(channels: int) -> Any:
        return build(jax.ShapeDtypeStruct((1, 1, 1, channels), problem.x.dtype))

    labels = jax.random.randint(jax.random.key(2), problem.x.shape[:1], 0, CLASSES)
    layer = of_channels(1)
    if isinstance(layer, TorchLayer):
        whole = layer._replace(module=torch_resnet(lambda channels: of_channels(channels).module))
        return _torch_programs.training_step(whole, problem.x, labels, LEARNING_RATE, MOMENTUM)
    return _program(_resnet, problem.x, labels, build)


def transformer_step(build: Builder, problem: Problem) -> Program:
    """Returns a training step of a transformer of 4 layers, for the next of `[batch, tokens]` bytes.

    The layer is applied where PyTorch's `TransformerEncoderLayer` applies dropout: to the attention's weights and output, and to
    the perceptron's hidden units and output.
    """
    text = jax.random.randint(jax.random.key(2), problem.x.shape, 0, VOCABULARY)
    return _program(transformer, text, jnp.roll(text, -1, 1), build)


def conv(weight: Weight, x: jax.Array, size: int, features: int, stride: int = 1) -> jax.Array:
    """Returns a convolution with the next weight of a network."""
    kernel = weight(size, size, x.shape[-1], features)
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _resnet(weight: Weight, norm_relu: Apply, x: jax.Array) -> jax.Array:
    x = conv(weight, x, 3, STAGES[0][0])
    for width, first_stride in STAGES:
        for block in range(BLOCKS):
            stride = 1 if block else first_stride
            y = norm_relu(x)
            x = x if block else conv(weight, y, 1, 4 * width, stride)
            y = norm_relu(conv(weight, y, 1, width))
            y = norm_relu(conv(weight, y, 3, width, stride))
            x = x + conv(weight, y, 1, 4 * width)
    x = jnp.mean(norm_relu(x), (1, 2))
    return x @ weight(x.shape[-1], CLASSES)


def transformer(weight: Weight, drop: Apply, text: jax.Array, *, depth: int = 4, width: int = 256, heads: int = 4) -> jax.Array:
    """Returns the logits of the next bytes."""

    def attention(x: jax.Array) -> jax.Array:
        q, k, v = (jnp.einsum("btc,chd->bthd", x, weight(width, heads, width // heads)) for _ in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width / heads) ** 0.5
        seen = jnp.tri(x.shape[1], dtype=bool)
        x = jnp.einsum("bhqk,bkhd->bqhd", drop(jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))), v)
        return x.reshape((*text.shape, width)) @ weight(width, width)

    def perceptron(x: jax.Array) -> jax.Array:
        return drop(jax.nn.gelu(x @ weight(width, 4 * width))) @ weight(4 * width, width)

    x = weight(VOCABULARY, width)[text] + weight(text.shape[1], width)
    for _ in range(depth):
        x = x + drop(attention(jax.nn.standardize(x)))
        x = x + drop(perceptron(jax.nn.standardize(x)))
    return jax.nn.standardize(x) @ weight(width, VOCABULARY)


def _initial(network: Callable[..., jax.Array], x: jax.Array, build: Builder, dtype: Any) -> tuple[list[jax.Array], list[Any]]:
    """Returns the weights and the layers of a network in the order in which it asks for them."""
    shapes: list[tuple[int, ...]] = []
    inputs: list[jax.ShapeDtypeStruct] = []

    def weight(*shape: int) -> jax.Array:
        shapes.append(shape)
        return jnp.zeros(shape, dtype)

    def apply(x: jax.Array) -> jax.Array:
        inputs.append(jax.ShapeDtypeStruct(x.shape, x.dtype))
        return x

    jax.eval_shape(functools.partial(network, weight, apply), x)
    keys = jax.random.split(jax.random.key(3), len(shapes))
    weights = [jax.nn.initializers.lecun_normal()(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    return weights, [build(spec) for spec in inputs]


def training_step(
    network: Callable[..., jax.Array], x: jax.Array, labels: jax.Array, build: Builder, dtype: Any = jnp.float32
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns a step of stochastic gradient descent with momentum, and its arguments; it computes in `dtype`."""
    weights, layers = _initial(network, x, build, dtype)
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)

    def step(key: jax.Array, trained: Any, states: Any, traces: Any, x: jax.Array, labels: jax.Array) -> Any:
        keys = jax.random.split(key, len(layers))

        def loss(trained: Any) -> tuple[jax.Array, list[Any]]:
            weights, params = iter(trained[0]), trained[1]
            sites, new_states = zip(layers, keys, params, states, strict=True), []

            def apply(x: jax.Array) -> jax.Array:
                layer, key, params, state = next(sites)
                y, state = layer.apply(key, params, state, x)
                new_states.append(state)
                return y

            logits = network(lambda *_: next(weights).astype(dtype), apply, x).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new_states

        (value, new_states), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, traces = optimizer.update(gradients, traces)
        return value, optax.apply_updates(trained, updates), new_states, traces

    trained = (weights, [layer.params for layer in layers])
    key = jax.random.key(1, impl=layers[0].key_impl)
    return step, (key, trained, [layer.state for layer in layers], optimizer.init(trained), x, labels)


def _program(network: Callable[..., jax.Array], x: jax.Array, labels: jax.Array, build: Builder) -> Program:
    step, arguments = training_step(network, x, labels, build)
    run, costs = compile_program(step, *arguments)
    return Program(lambda: run(*arguments), jax.block_until_ready, costs)
