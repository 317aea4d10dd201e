"""Layers of dm-haiku."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.benchmarks._layer import AXIS, EPSILON, GROUPS, MOMENTUM, RATE, Layer, with_relu


def _dropout(_: jax.ShapeDtypeStruct) -> Layer:
    hk = importlib.import_module("haiku")

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return hk.dropout(key, RATE, x), state

    return Layer(apply)


def _batch_norm(x: jax.ShapeDtypeStruct, *, train: bool = True, axis_name: str | None = None) -> Layer:
    hk = importlib.import_module("haiku")

    def call(x: jax.Array, train: bool, axis: str | None) -> jax.Array:
        return hk.BatchNorm(True, True, MOMENTUM, EPSILON, cross_replica_axis=axis)(x, is_training=train)

    layer = hk.transform_with_state(call)
    example = jnp.ones((2,) * (len(x.shape) - 1) + x.shape[-1:], x.dtype)
    init = jax.jit(layer.init, static_argnums=(2, 3))
    params, state = init(None, example, True, None)  # inference makes no state, and no axis is bound here
    for name, value in (("mean", 0), ("var", 1)):  # as elsewhere; these are of the example
        average = state[f"batch_norm/~/{name}_ema"]
        average["average"] = jnp.full_like(average["average"], value)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return layer.apply(params, state, None, x, train, axis_name)

    return Layer(apply, params, state)


def _sample_norm(x: jax.ShapeDtypeStruct, *, name: str, **options: Any) -> Layer:
    hk = importlib.import_module("haiku")
    layer = hk.without_apply_rng(hk.transform(lambda x: getattr(hk, name)(**options, eps=EPSILON)(x)))
    params = layer.init(None, jnp.ones((1,) * (len(x.shape) - 1) + x.shape[-1:], x.dtype))
    return Layer(lambda key, params, state, x: (layer.apply(params, x), state), params)


def _spectral_norm(x: jax.ShapeDtypeStruct) -> Layer:
    hk = importlib.import_module("haiku")
    layer = hk.without_apply_rng(hk.transform_with_state(lambda x: hk.SpectralNorm()(x)))
    _, state = layer.init(jax.random.key(0), jnp.ones(x.shape, x.dtype))

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return layer.apply({}, state, x)

    return Layer(apply, state=state)


_AFFINE = {"create_scale": True, "create_offset": True}

LAYERS = {
    "dropout": {"haiku": _dropout},
    "batch_norm": {"haiku": _batch_norm},
    "batch_norm_inference": {"haiku": functools.partial(_batch_norm, train=False)},
    "layer_norm": {"haiku": functools.partial(_sample_norm, name="LayerNorm", axis=-1, **_AFFINE)},
    "rms_norm": {"haiku": functools.partial(_sample_norm, name="RMSNorm", axis=-1)},
    "group_norm": {"haiku": functools.partial(_sample_norm, name="GroupNorm", groups=GROUPS)},
    "instance_norm": {"haiku": functools.partial(_sample_norm, name="InstanceNorm", **_AFFINE)},
    "spectral_norm": {"haiku": _spectral_norm},
    "batch_norm_relu": {"haiku": with_relu(_batch_norm)},
    "sync_batch_norm": {"haiku": functools.partial(_batch_norm, axis_name=AXIS)},
}
