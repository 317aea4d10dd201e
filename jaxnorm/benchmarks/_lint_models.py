"""Networks whose lint is measured: ResNet-50, EfficientNet-B0, a transformer of twelve layers in a scan."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn


class Network(NamedTuple):
    """A network, and the shape of its batch."""

    module: nn.Module
    shape: tuple[int, ...]


class ResNet50(nn.Module):
    """He et al., 2015, for ten classes."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)
        conv = partial(nn.Conv, use_bias=False)
        x = nn.relu(norm()(conv(64, (7, 7), 2)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate((3, 4, 6, 3)):
            width = 64 * 2**stage
            for block in range(depth):
                stride = 2 if stage and not block else 1
                y = nn.relu(norm()(conv(width, (1, 1))(x)))
                y = nn.relu(norm()(conv(width, (3, 3), stride)(y)))
                y = norm()(conv(4 * width, (1, 1))(y))
                x = nn.relu(y + (x if block else norm()(conv(4 * width, (1, 1), stride)(x))))
        return nn.Dense(10)(x.mean((1, 2)))


class EfficientNetB0(nn.Module):
    """Tan and Le, 2019, for ten classes: inverted bottlenecks that are squeezed and excited, with stochastic depth."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train)
        conv = partial(nn.Conv, use_bias=False)
        x = nn.silu(norm()(conv(32, (3, 3), 2)(x)))
        stages = (
            (1, 16, 1, 1, 3),
            (6, 24, 2, 2, 3),
            (6, 40, 2, 2, 5),
            (6, 80, 3, 2, 3),
            (6, 112, 3, 1, 5),
            (6, 192, 4, 2, 5),
            (6, 320, 1, 1, 3),
        )
        for expansion, width, depth, first_stride, size in stages:
            for block in range(depth):
                channels = expansion * x.shape[-1]
                y = nn.silu(norm()(conv(channels, (1, 1))(x))) if expansion > 1 else x
                y = conv(channels, (size, size), 1 if block else first_stride, feature_group_count=channels)(y)
                y = nn.silu(norm()(y))
                squeezed = nn.silu(nn.Dense(x.shape[-1] // 4)(y.mean((1, 2), keepdims=True)))
                y = norm()(conv(width, (1, 1))(y * nn.sigmoid(nn.Dense(channels)(squeezed))))
                x = x + nn.Dropout(0.1, broadcast_dims=(1, 2, 3), deterministic=not train)(y) if block else y
        x = nn.silu(norm()(conv(1280, (1, 1))(x))).mean((1, 2))
        return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))


class _Layer(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        drop = partial(nn.Dropout, 0.1, deterministic=not self.train)
        y = nn.LayerNorm()(x)
        x = x + drop()(nn.SelfAttention(4, dropout_rate=0.1, broadcast_dropout=False, deterministic=not self.train)(y))
        y = nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))
        return x + drop()(nn.Dense(x.shape[-1])(nn.gelu(y))), None


class Transformer(nn.Module):
    """Twelve layers of width 128, each computed again for the gradient, for 64 tokens of 1,000."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Embed(1000, 128)(x) + self.param("positions", nn.initializers.normal(0.02), (x.shape[1], 128))
        layers = nn.scan(nn.remat(_Layer), variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=12)
        x, _ = layers(train)(nn.Dropout(0.1, deterministic=not train)(x), None)
        return nn.Dense(1000)(nn.LayerNorm()(x))


NETWORKS: Mapping[str, Network] = {
    "ResNet-50": Network(ResNet50(), (32, 64, 64, 3)),
    "EfficientNet-B0": Network(EfficientNetB0(), (32, 64, 64, 3)),
    "transformer, 12 layers": Network(Transformer(), (32, 64)),
}


def batch_of(network: Network) -> jax.Array:
    """Returns inputs: images of normal numbers, or tokens."""
    key = jax.random.key(0)
    return jax.random.normal(key, network.shape) if len(network.shape) == 4 else jax.random.randint(key, network.shape, 0, 1000)


def variables_of(network: Network, x: jax.Array) -> Any:
    """Returns variables of a network."""
    return jax.jit(partial(network.module.init, train=False))(jax.random.key(1), jnp.asarray(x))
