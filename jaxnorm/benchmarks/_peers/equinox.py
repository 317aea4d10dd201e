"""Layers of equinox."""

import functools
import importlib
from typing import Any

import jax

from jaxnorm.benchmarks._layer import EPSILON, GROUPS, MOMENTUM, RATE, Layer, with_relu

_BATCH = "batch"


def _dropout(_: jax.ShapeDtypeStruct) -> Layer:
    layer = importlib.import_module("equinox").nn.Dropout(RATE)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return layer(x, key=key), state

    return Layer(apply)


def _batch_norm(x: jax.ShapeDtypeStruct, *, train: bool = True) -> Layer:
    eqx = importlib.import_module("equinox")
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        x.shape[-1], _BATCH, EPSILON, momentum=MOMENTUM, inference=not train, mode="batch"
    )
    params, static = eqx.partition(layer, eqx.is_inexact_array)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        batched = jax.vmap(eqx.combine(params, static), axis_name=_BATCH, in_axes=(0, None), out_axes=(0, None))
        y, state = batched(x, state)
        return y.astype(x.dtype), state

    return Layer(apply, params, state, channels_first=True)


def _feature_norm(x: jax.ShapeDtypeStruct, *, name: str) -> Layer:
    module = getattr(importlib.import_module("equinox").nn, name)
    return _mapped(module(x.shape[-1], EPSILON), len(x.shape) - 1)


def _group_norm(x: jax.ShapeDtypeStruct, *, groups: int | None = GROUPS) -> Layer:
    module = importlib.import_module("equinox").nn.GroupNorm
    return _mapped(module(groups or x.shape[-1], x.shape[-1], EPSILON), 1)._replace(channels_first=True)


def _mapped(module: Any, axes: int) -> Layer:
    """Returns the layer of a module that takes an x without these first axes."""
    eqx = importlib.import_module("equinox")
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        layer = eqx.combine(params, static)
        for _ in range(axes):
            layer = jax.vmap(layer)
        return layer(x).astype(x.dtype), state

    return Layer(apply, params)


def _weight_norm(x: jax.ShapeDtypeStruct) -> Layer:
    eqx = importlib.import_module("equinox")
    wrapper = eqx.nn.WeightNorm(_kernel(x), axis=len(x.shape) - 1)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return eqx.tree_at(lambda layer: (layer.layer.weight, layer.g), wrapper, (x, params))(None), state

    return Layer(apply, wrapper.g)


def _spectral_norm(x: jax.ShapeDtypeStruct) -> Layer | None:
    if len(x.shape) > 2:
        return None  # it would be taken for a matrix of other rows and columns
    eqx = importlib.import_module("equinox")
    wrapper, state = eqx.nn.make_with_state(eqx.nn.SpectralNorm)(_kernel(x), "weight", key=jax.random.key(0))

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        state = jax.tree.map(lambda part: part, state)  # a copy: one that was used is refused
        return eqx.tree_at(lambda layer: layer.layer.weight, wrapper, x)(None, state)

    return Layer(apply, state=state)


def _kernel(x: jax.ShapeDtypeStruct) -> Any:
    """Returns a layer that is nothing but its kernel."""
    eqx = importlib.import_module("equinox")

    class Kernel(eqx.Module):
        weight: jax.Array

        def __call__(self, _: Any) -> jax.Array:
            return self.weight

    return Kernel(jax.random.normal(jax.random.key(0), x.shape, x.dtype))


LAYERS = {
    "dropout": {"equinox": _dropout},
    "batch_norm": {"equinox": _batch_norm},
    "batch_norm_inference": {"equinox": functools.partial(_batch_norm, train=False)},
    "batch_norm_channels_first": {"equinox": _batch_norm},
    "layer_norm": {"equinox": functools.partial(_feature_norm, name="LayerNorm")},
    "rms_norm": {"equinox": functools.partial(_feature_norm, name="RMSNorm")},
    "group_norm": {"equinox": _group_norm},
    "instance_norm": {"equinox": functools.partial(_group_norm, groups=None)},
    "weight_norm": {"equinox": _weight_norm},
    "spectral_norm": {"equinox": _spectral_norm},
    "batch_norm_relu": {"equinox": with_relu(_batch_norm)},
}
