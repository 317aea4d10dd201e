"""Layers of `flax.nnx`."""

import functools
from typing import Any

import jax
from flax import nnx

from jaxnorm.benchmarks._layer import AXIS, EPSILON, GROUPS, MOMENTUM, RATE, Layer, with_mask, with_relu


def _dropout(_: jax.ShapeDtypeStruct) -> Layer:
    return _as_layer(nnx.Dropout(RATE, rngs=nnx.Rngs(0)))


def _batch_norm(
    x: jax.ShapeDtypeStruct, *, train: bool = True, axis_name: str | None = None, channels_first: bool = False
) -> Layer:
    module = nnx.BatchNorm(
        x.shape[-1],
        use_running_average=not train,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        dtype=x.dtype,
        axis_name=axis_name,
        axis=1 if channels_first else -1,
        rngs=nnx.Rngs(0),
    )
    return _as_layer(module)._replace(channels_first=channels_first)


def _sample_norm(x: jax.ShapeDtypeStruct, *, module: Any, **options: Any) -> Layer:
    return _as_layer(module(x.shape[-1], epsilon=EPSILON, dtype=x.dtype, rngs=nnx.Rngs(0), **options))


def _as_layer(module: nnx.Module) -> Layer:
    graph, params, state = nnx.split(module, nnx.Param, ...)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, Any]:
        module: Any = nnx.merge(graph, params, state, copy=True)
        y = module(x) if mask is None else module(x, mask=mask)
        return y, nnx.split(module, nnx.Param, ...)[2]

    return Layer(apply, params, state)


LAYERS = {
    "dropout": {"flax nnx": _dropout},
    "batch_norm": {"flax nnx": _batch_norm},
    "batch_norm_inference": {"flax nnx": functools.partial(_batch_norm, train=False)},
    "batch_norm_masked": {"flax nnx": with_mask(_batch_norm)},
    "batch_norm_channels_first": {"flax nnx": functools.partial(_batch_norm, channels_first=True)},
    "layer_norm": {"flax nnx": functools.partial(_sample_norm, module=nnx.LayerNorm)},
    "rms_norm": {"flax nnx": functools.partial(_sample_norm, module=nnx.RMSNorm)},
    "group_norm": {"flax nnx": functools.partial(_sample_norm, module=nnx.GroupNorm, num_groups=GROUPS)},
    "instance_norm": {"flax nnx": functools.partial(_sample_norm, module=nnx.InstanceNorm)},
    "batch_norm_relu": {"flax nnx": with_relu(_batch_norm)},
    "sync_batch_norm": {"flax nnx": functools.partial(_batch_norm, axis_name=AXIS)},
}
