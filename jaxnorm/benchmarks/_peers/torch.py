"""Layers of PyTorch."""

import functools
import importlib

import jax

from jaxnorm.benchmarks._layer import EPSILON, MOMENTUM, RATE, Builder, TorchLayer


def _dropout(_: jax.ShapeDtypeStruct) -> TorchLayer:
    return TorchLayer(importlib.import_module("torch").nn.Dropout(RATE))


def _batch_norm(
    x: jax.ShapeDtypeStruct, *, train: bool = True, relu: bool = False, channels_last: bool = False
) -> TorchLayer | None:
    nn = importlib.import_module("torch").nn
    if channels_last and len(x.shape) == 2:
        return None  # there is one layout
    kind = nn.BatchNorm1d if len(x.shape) == 2 else nn.BatchNorm2d
    norm = kind(x.shape[-1], eps=EPSILON, momentum=1 - MOMENTUM)  # its momentum is the weight of the batch
    module = nn.Sequential(norm, nn.ReLU()) if relu else norm
    return TorchLayer(module.train(train), channels_last)


def _layer_norm(x: jax.ShapeDtypeStruct) -> TorchLayer | None:
    if len(x.shape) > 2:
        return None  # x would be given with the features on axis 1
    return TorchLayer(importlib.import_module("torch").nn.LayerNorm(x.shape[-1], eps=EPSILON))


def _in_both_layouts(**options: bool) -> dict[str, Builder]:
    return {
        "torch": functools.partial(_batch_norm, **options),
        "torch, channels last": functools.partial(_batch_norm, channels_last=True, **options),
    }


LAYERS = {
    "dropout": {"torch": _dropout},
    "batch_norm": _in_both_layouts(),
    "batch_norm_inference": _in_both_layouts(train=False),
    "batch_norm_channels_first": {"torch": _batch_norm},
    "layer_norm": {"torch": _layer_norm},
    "batch_norm_relu": _in_both_layouts(relu=True),
}
