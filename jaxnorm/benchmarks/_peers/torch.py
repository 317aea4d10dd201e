"""Layers of PyTorch."""

import functools
import importlib
from typing import Any

import jax

from jaxnorm.benchmarks._layer import EPSILON, GROUPS, MOMENTUM, RATE, Builder, TorchLayer


def _noise(_: jax.ShapeDtypeStruct, *, name: str = "Dropout", channels_last: bool = False) -> TorchLayer:
    return TorchLayer(getattr(importlib.import_module("torch").nn, name)(RATE), channels_last)


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


def _feature_norm(x: jax.ShapeDtypeStruct, *, name: str) -> TorchLayer | None:
    if len(x.shape) > 2:
        return None  # x would be given with the features on axis 1
    return TorchLayer(getattr(importlib.import_module("torch").nn, name)(x.shape[-1], eps=EPSILON))


def _group_norm(x: jax.ShapeDtypeStruct, *, channels_last: bool = False) -> TorchLayer | None:
    if channels_last and len(x.shape) == 2:
        return None  # there is one layout
    return TorchLayer(importlib.import_module("torch").nn.GroupNorm(GROUPS, x.shape[-1], eps=EPSILON), channels_last)


def _instance_norm(x: jax.ShapeDtypeStruct, *, channels_last: bool = False, track: bool = False) -> TorchLayer:
    norm = importlib.import_module("torch").nn.InstanceNorm2d
    return TorchLayer(norm(x.shape[-1], eps=EPSILON, affine=True, track_running_stats=track), channels_last)


def _local_response_norm(_: jax.ShapeDtypeStruct) -> TorchLayer:
    return TorchLayer(importlib.import_module("torch").nn.LocalResponseNorm(5))


def _weight_norm(x: jax.ShapeDtypeStruct) -> TorchLayer | None:
    if len(x.shape) > 2:
        return None  # x would be given with the channels on axis 1
    torch = importlib.import_module("torch")

    class WeightNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(1, x.shape[-1]))

        def forward(self, v: Any) -> Any:
            return torch._weight_norm(v, self.gain.to(v.dtype), 1)

    return TorchLayer(WeightNorm())


def _in_both_layouts(build: Builder = _batch_norm, **options: bool) -> dict[str, Builder]:
    return {
        "torch": functools.partial(build, **options),
        "torch, channels last": functools.partial(build, channels_last=True, **options),
    }


LAYERS = {
    "dropout": {"torch": _noise},
    "alpha_dropout": {"torch": functools.partial(_noise, name="AlphaDropout")},
    "spatial_dropout": _in_both_layouts(functools.partial(_noise, name="Dropout2d")),
    "batch_norm": _in_both_layouts(),
    "batch_norm_inference": _in_both_layouts(train=False),
    "batch_norm_channels_first": {"torch": _batch_norm},
    "layer_norm": {"torch": functools.partial(_feature_norm, name="LayerNorm")},
    "rms_norm": {"torch": functools.partial(_feature_norm, name="RMSNorm")},
    "group_norm": _in_both_layouts(_group_norm),
    "instance_norm": _in_both_layouts(_instance_norm),
    "tracked_instance_norm": _in_both_layouts(_instance_norm, track=True),
    "local_response_norm": {"torch": _local_response_norm},
    "weight_norm": {"torch": _weight_norm},
    "batch_norm_relu": _in_both_layouts(relu=True),
}
