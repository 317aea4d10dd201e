"""Whole training steps that are compiled and not run: of a size at which people use accelerators."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxnorm
from jaxnorm.benchmarks._layer import RATE, Builder, Layer
from jaxnorm.benchmarks._networks import Apply, Weight, conv, training_step, transformer
from jaxnorm.benchmarks._peers import linen
from jaxnorm.benchmarks._rows import identity, layer_norm, noise, norm, relu

_CLASSES = 1000
_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


class Step(NamedTuple):
    """A training step, of which one layer is by different libraries.

    Attributes:
      network: `(weight, apply, x) -> logits`.
      shape: of x.
      dtype: in which it computes.
      contenders: builders of the layer by the names of the libraries; of the first, nothing is there.
      of_text: whether x holds bytes of text, each followed by the next one, instead of numbers of examples.
    """

    network: Callable[[Weight, Apply, jax.Array], jax.Array]
    shape: tuple[int, ...]
    dtype: str
    contenders: Mapping[str, Builder]
    of_text: bool = False

    def program(self, library: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Returns the step and its arguments, with the layer of this library."""
        x = jnp.zeros(self.shape, jnp.int32 if self.of_text else self.dtype)
        labels = jnp.zeros(self.shape if self.of_text else self.shape[:1], jnp.int32)
        return training_step(self.network, x, labels, self.contenders[library], jnp.dtype(self.dtype))


def resnet50(weight: Weight, norm: Apply, x: jax.Array) -> jax.Array:
    """Returns the logits of a ResNet of 50 layers, whose norms are the layer.

    References:
      He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, https://arxiv.org/abs/1512.03385; a block's
      stride is that of its second convolution, as is usual since.
    """
    x = jax.nn.relu(norm(conv(weight, x, 7, 64, 2)))
    x = lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    for stage, (width, blocks) in enumerate(_STAGES):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = jax.nn.relu(norm(conv(weight, x, 1, width)))
            y = jax.nn.relu(norm(conv(weight, y, 3, width, stride)))
            y = norm(conv(weight, y, 1, 4 * width))
            x = jax.nn.relu(y + (x if block else norm(conv(weight, x, 1, 4 * width, stride))))
    x = jnp.mean(x, (1, 2))
    return x @ weight(x.shape[-1], _CLASSES)


def convolutions(weight: Weight, norm: Apply, x: jax.Array, *, depth: int = 6) -> jax.Array:
    """Returns the logits of convolutions, each followed by the layer and a ReLU."""
    for _ in range(depth):
        x = jax.nn.relu(norm(conv(weight, x, 3, x.shape[-1])))
    x = jnp.mean(x, (1, 2))
    return x @ weight(x.shape[-1], _CLASSES)


def perceptron(weight: Weight, apply: Apply, x: jax.Array, *, depth: int = 4) -> jax.Array:
    """Returns the logits of linear layers of the width of x, each followed by the layer."""
    for _ in range(depth):
        x = apply(x @ weight(x.shape[-1], x.shape[-1]))
    return x @ weight(x.shape[-1], _CLASSES)


def pre_norm(weight: Weight, norm: Apply, x: jax.Array, *, depth: int = 4) -> jax.Array:
    """Returns the logits of residual perceptrons, each after the layer, as in a transformer."""
    width = x.shape[-1]
    for _ in range(depth):
        x = x + jax.nn.gelu(norm(x) @ weight(width, 4 * width)) @ weight(4 * width, width)
    return jnp.mean(x, 1) @ weight(width, _CLASSES)


def _in_sequence(*builders: Builder) -> Builder:
    """Returns the builder of several layers of noise or statistics, one after the other."""

    def build(x: jax.ShapeDtypeStruct) -> Layer:
        layers = [layer for builder in builders if isinstance(layer := builder(x), Layer)]

        def apply(key: jax.Array, params: Any, states: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            new = []
            for layer, own, mine, state in zip(layers, jax.random.split(key, len(layers)), params, states, strict=True):
                x, state = layer.apply(own, mine, state, x)
                new.append(state)
            return x, new

        return Layer(apply, [layer.params for layer in layers], [layer.state for layer in layers])

    return build


_DROPOUT = noise(jaxnorm.dropout, RATE)
_NORMS = {"none": identity, "flax linen": linen.batch_norm, "jaxnorm": norm()}
_LAYER_NORMS = {"none": identity, **linen.LAYERS["layer_norm"], "jaxnorm": layer_norm}
_NORM_AND_DROPOUT = {
    "none": relu,
    "flax linen": _in_sequence(linen.batch_norm, relu, linen.dropout),
    "jaxnorm": _in_sequence(norm(activation=jax.nn.relu), _DROPOUT),
}
_LARGE = functools.partial(transformer, depth=2, width=1024, heads=16)

STEPS = {
    "ResNet-50": Step(resnet50, (128, 224, 224, 3), "bfloat16", _NORMS),
    "ResNet-50, float32": Step(resnet50, (32, 224, 224, 3), "float32", _NORMS),
    "six convolutions, 128x56x56x64": Step(convolutions, (128, 56, 56, 64), "bfloat16", _NORMS),
    "six convolutions, 64x14x14x256": Step(convolutions, (64, 14, 14, 256), "bfloat16", _NORMS),
    "transformer with dropout": Step(
        _LARGE, (8, 1024), "bfloat16", {"none": identity, "flax linen": linen.dropout, "jaxnorm": _DROPOUT}, of_text=True
    ),
    "residual perceptrons with layer norm": Step(pre_norm, (16, 512, 1024), "bfloat16", _LAYER_NORMS),
    "perceptron with batch norm and dropout": Step(perceptron, (8192, 1024), "bfloat16", _NORM_AND_DROPOUT),
}
"""Training steps by their names."""
