"""A ResNet of basic blocks three times: in torch, with the names and order of torchvision's, in linen and in nnx."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxnorm.linen
import jaxnorm.nnx

BLOCKS = (2, 2, 2, 2)  # of a ResNet-18
AS_TORCH: Any = {"momentum": 0.9, "epsilon": 1e-5, "unbiased": True}
BY_PASS: Any = {  # by the names of the linen one, whose blocks and layers linen names
    "conv1": "Conv_0",
    "bn1": "BatchNorm_0",
    r"layer(\d)\.(\d)\.conv(\d)": r"Block_\1_\2/conv\3",
    r"layer(\d)\.(\d)\.bn(\d)": r"Block_\1_\2/norm\3",
    r"layer(\d)\.(\d)\.downsample\.0": r"Block_\1_\2/shortcut",
    r"layer(\d)\.(\d)\.downsample\.1": r"Block_\1_\2/shortcut_norm",
    "fc": "Dense_0",
}


def strides(stage: int, block: int) -> int:
    return 2 if stage and not block else 1


def torch_resnet(width: int, classes: int) -> Any:
    """Returns the network in torch; its state_dict has the names of torchvision's resnet18."""
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, size: int, stride: int) -> Any:
        return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = conv(outputs, outputs, 3, 1), nn.BatchNorm2d(outputs)
            self.downsample = None
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = conv(3, width, 7, 2), nn.BatchNorm2d(width)
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
            inputs = width
            for stage, blocks in enumerate(BLOCKS):
                outputs, made = width << stage, []
                for block in range(blocks):
                    made.append(Block(inputs, outputs, strides(stage, block)))
                    inputs = outputs
                setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
            self.fc = nn.Linear(inputs, classes)

        def forward(self, x: Any) -> Any:
            x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
            for stage in range(len(BLOCKS)):
                x = getattr(self, f"layer{stage + 1}")(x)
            return self.fc(x.mean((2, 3)))

    return ResNet()


def pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class LinenBlock(nn.Module):
    """Two convolutions and their shortcut."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def conv(size: int, stride: int, name: str) -> nn.Conv:
            padding = size // 2
            return nn.Conv(
                self.features, (size, size), stride, padding=padding, use_bias=False, param_dtype=self.dtype, name=name
            )

        def norm(name: str) -> jaxnorm.linen.BatchNorm:
            return jaxnorm.linen.BatchNorm(not train, param_dtype=self.dtype, name=name, **AS_TORCH)

        y = nn.relu(norm("norm1")(conv(3, self.stride, "conv1")(x)))
        y = norm("norm2")(conv(3, 1, "conv2")(y))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = norm("shortcut_norm")(conv(1, self.stride, "shortcut")(x))
        return nn.relu(y + x)


class LinenResNet(nn.Module):
    """The network in linen."""

    width: int
    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(self.width, (7, 7), 2, padding=3, use_bias=False, param_dtype=self.dtype)(x)
        x = pool(nn.relu(jaxnorm.linen.BatchNorm(not train, param_dtype=self.dtype, **AS_TORCH)(x)))
        for stage, blocks in enumerate(BLOCKS):
            for block in range(blocks):
                name = f"Block_{stage + 1}_{block}"
                x = LinenBlock(self.width << stage, strides(stage, block), self.dtype, name=name)(x, train=train)
        return nn.Dense(self.classes, param_dtype=self.dtype)(x.mean((1, 2)))


class NnxBlock(nnx.Module):
    """Two convolutions and their shortcut, called as torch's."""

    def __init__(self, inputs: int, outputs: int, stride: int, options: Any):
        self.conv1, self.bn1 = nnx_conv(inputs, outputs, 3, stride, options), nnx_norm(outputs, options)
        self.conv2, self.bn2 = nnx_conv(outputs, outputs, 3, 1, options), nnx_norm(outputs, options)
        changes = stride != 1 or inputs != outputs
        parts = [nnx_conv(inputs, outputs, 1, stride, options), nnx_norm(outputs, options)] if changes else []
        self.downsample = nnx.List(parts)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        for part in self.downsample:
            x = part(x)
        return nnx.relu(y + x)


class NnxResNet(nnx.Module):
    """The network in nnx."""

    def __init__(self, width: int, classes: int, dtype: Any = jnp.float32):
        options = {"param_dtype": dtype, "rngs": nnx.Rngs(0)}
        self.conv1, self.bn1 = nnx_conv(3, width, 7, 2, options), nnx_norm(width, options)
        inputs = width
        for stage, blocks in enumerate(BLOCKS):
            outputs, made = width << stage, []
            for block in range(blocks):
                made.append(NnxBlock(inputs, outputs, strides(stage, block), options))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nnx.List(made))
        self.fc = nnx.Linear(inputs, classes, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = pool(nnx.relu(self.bn1(self.conv1(x))))
        for stage in range(len(BLOCKS)):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(x)
        return self.fc(x.mean((1, 2)))


def nnx_conv(inputs: int, outputs: int, size: int, stride: int, options: Any) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (size, size), stride, padding=size // 2, use_bias=False, **options)


def nnx_norm(features: int, options: Any) -> jaxnorm.nnx.BatchNorm:
    return jaxnorm.nnx.BatchNorm(features, **AS_TORCH, **options)
