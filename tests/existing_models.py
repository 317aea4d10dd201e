"""Models as people have them, of Flax's layers: in the layouts of Flax's own examples, small."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class Bottleneck(nn.Module):
    features: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.features, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.features, (3, 3))(y)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(2 * self.features, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm(name="norm_proj")(self.conv(2 * self.features, (1, 1), name="conv_proj")(x))
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    """Layers by `functools.partial` handed to blocks."""

    @nn.compact
    def __call__(self, x, *, train):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        x = nn.relu(norm(name="bn_init")(conv(4, (3, 3), name="conv_init")(x)))
        x = Bottleneck(4, conv, norm)(x)
        return nn.Dense(3)(x.mean(axis=(1, 2)))


class VAE(nn.Module):
    """Layers set up, norms in a list, another stream of keys."""

    def setup(self):
        self.encoder = nn.Dense(8)
        self.norms = [nn.BatchNorm(momentum=0.8) for _ in range(2)]
        self.moments = nn.Dense(4)
        self.decoder = nn.Sequential([nn.Dense(8), nn.GroupNorm(2), nn.relu])
        self.out = nn.Dense(3)

    def __call__(self, x, *, train):
        x = nn.relu(self.norms[0](self.encoder(x), use_running_average=not train))
        mean, log_std = jnp.split(self.moments(x), 2, axis=-1)
        z = mean + jnp.exp(log_std) * jax.random.normal(self.make_rng("latent"), mean.shape) if train else mean
        return self.out(self.norms[1](self.decoder(z), use_running_average=not train))


class LMBlock(nn.Module):
    deterministic: bool

    @nn.compact
    def __call__(self, x, _):
        attention = nn.MultiHeadDotProductAttention(2, dropout_rate=0.2, deterministic=self.deterministic)
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + nn.Dropout(0.1, broadcast_dims=(-2,))(attention(nn.LayerNorm()(x), mask=mask), deterministic=self.deterministic)
        y = nn.Dropout(0.2)(nn.relu(nn.Dense(16)(nn.RMSNorm()(x))), deterministic=self.deterministic)
        return x + nn.Dense(8)(y), None


class LinenLM(nn.Module):
    """Blocks under `nn.scan` and `nn.remat`, attention with dropout, a tied table of embeddings."""

    @nn.compact
    def __call__(self, x, *, train):
        table = nn.Embed(5, 8)
        blocks = nn.scan(nn.remat(LMBlock), variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=2)
        x, _ = blocks(deterministic=not train, name="blocks")(table(x), None)
        return table.attend(nn.LayerNorm(name="last")(x))


class ViTBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, dropout_rate=0.2, broadcast_dropout=False, decode=False, rngs=rngs)
        drop = nnx.Dropout(0.2, rngs=rngs)
        self.mlp = nnx.Sequential(nnx.Linear(8, 16, rngs=rngs), nnx.gelu, drop, nnx.Linear(16, 8, rngs=rngs), drop)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class NnxViT(nnx.Module):
    """Blocks in a sequence, one dropout in two places."""

    def __init__(self, rngs):
        self.patches = nnx.Conv(3, 8, (4, 4), strides=(4, 4), rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.encoder = nnx.Sequential(ViTBlock(rngs))
        self.norm, self.head = nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x)
        x = self.encoder(self.dropout(x.reshape(x.shape[0], -1, x.shape[-1])))
        return self.head(self.norm(x).mean(axis=1))


class NnxBlock(nnx.Module):
    def __init__(self, channels, features, rngs):
        self.conv1 = nnx.Conv(channels, features, (3, 3), use_bias=False, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(features, momentum=0.9, rngs=rngs) for _ in range(2)])
        self.shortcut = nnx.Conv(channels, features, (1, 1), rngs=rngs) if channels != features else None

    def __call__(self, x):
        y = nnx.relu(self.norms[0](self.conv1(x)))
        y = self.norms[1](self.conv2(y))
        return nnx.relu(y + (self.shortcut(x) if self.shortcut else x))


class NnxResNet(nnx.Module):
    """Norms in lists, of which parts are absent."""

    def __init__(self, rngs):
        self.blocks = nnx.List([NnxBlock(3, 4, rngs), NnxBlock(4, 4, rngs)])
        self.norm = nnx.GroupNorm(4, num_groups=2, use_bias=False, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=(1, 2)))


IMAGES = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
LINEN = {  # a model, its input, and how many layers it has to replace
    "resnet": (LinenResNet(), IMAGES, 5),
    "vae": (VAE(), jax.ShapeDtypeStruct((6, 3), jnp.float32), 3),
    "lm": (LinenLM(), jax.ShapeDtypeStruct((2, 6), jnp.int32), 6),
}
NNX = {"vit": (NnxViT, IMAGES, 6), "resnet": (NnxResNet, IMAGES, 5)}
