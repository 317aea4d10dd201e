"""Layers of `flax.linen`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm.benchmarks._layer import AXIS, EPSILON, GROUPS, MOMENTUM, RATE, Layer, with_mask, with_relu


def dropout(_: jax.ShapeDtypeStruct, *, key_impl: str = "threefry2x32", module: Any = nn.Dropout, **options: Any) -> Layer:
    """Returns Flax's dropout, or another one with its call."""
    layer = module(RATE, deterministic=False, **options)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return layer.apply({}, x, rngs={"dropout": key}), state

    return Layer(apply, key_impl=key_impl)


def attention(_: jax.ShapeDtypeStruct, *, function: Any = nn.dot_product_attention, rate: float = RATE, **options: Any) -> Layer:
    """Returns Flax's attention of x, `[B, T, H, D]`, to itself with dropout of the weights, or another one with its call."""

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        noise = {"dropout_rng": key, "dropout_rate": rate, "broadcast_dropout": False}
        return function(x, x, x, **noise, **options), state

    return Layer(apply)


def batch_norm(
    x: jax.ShapeDtypeStruct,
    *,
    train: bool = True,
    axis_name: str | None = None,
    channels_first: bool = False,
    module: Any = nn.BatchNorm,
    **options: Any,
) -> Layer:
    """Returns Flax's batch norm, or another one with its call."""
    layer = module(
        use_running_average=not train,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        dtype=x.dtype,  # else a float32 parameter makes the output float32
        axis_name=axis_name,
        axis=1 if channels_first else -1,
        **options,
    )
    example = jnp.ones((1,) * (len(x.shape) - 1) + x.shape[-1:], x.dtype)
    variables = jax.jit(layer.init)(jax.random.key(0), jnp.moveaxis(example, -1, 1) if channels_first else example)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, Any]:
        y, updates = layer.apply({"params": params, "batch_stats": state}, x, mask=mask, mutable=["batch_stats"])
        return y, updates["batch_stats"]

    return Layer(apply, variables["params"], variables["batch_stats"], channels_first=channels_first)


def sample_norm(x: jax.ShapeDtypeStruct, *, module: Any, **options: Any) -> Layer:
    """Returns a norm of the example, by its class."""
    layer: Any = module(epsilon=EPSILON, dtype=x.dtype, **options)
    variables = layer.init(jax.random.key(0), jnp.ones((1,) * (len(x.shape) - 1) + x.shape[-1:], x.dtype))
    return Layer(lambda key, params, state, x: (layer.apply({"params": params}, x), state), variables["params"])


class _Kernel(nn.Module):
    """A layer that is nothing but its kernel."""

    @nn.compact
    def __call__(self, shape: tuple[int, ...]) -> jax.Array:
        return self.param("kernel", nn.initializers.ones, shape)


def kernel_norm(x: jax.ShapeDtypeStruct, *, module: Any, **call: Any) -> Layer:
    """Returns a norm of weights, by the class that wraps a layer: x is that layer's kernel."""
    layer: Any = module(_Kernel())
    variables = layer.init(jax.random.key(0), x.shape, **call)
    params = {name: param for name, param in variables["params"].items() if name != "layer_instance"}

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": params | {"layer_instance": {"kernel": x}}, "batch_stats": state}
        y, updates = layer.apply(variables, x.shape, mutable=["batch_stats"], **call)
        return y.astype(x.dtype), updates["batch_stats"] if state else state

    return Layer(apply, params, variables.get("batch_stats", {}))


LAYERS = {
    "dropout": {
        "flax linen": dropout,
        "flax linen, philox2x32 keys": functools.partial(dropout, key_impl="philox2x32"),
        "flax linen, rbg keys": functools.partial(dropout, key_impl="rbg"),
    },
    "spatial_dropout": {"flax linen": functools.partial(dropout, broadcast_dims=(1, 2))},
    "locked_dropout": {"flax linen": functools.partial(dropout, broadcast_dims=(1,))},
    "head_dropout": {"flax linen": functools.partial(dropout, broadcast_dims=(1, 3))},
    "attention": {"flax linen": attention},
    "drop_path": {"flax linen": functools.partial(dropout, broadcast_dims=(1, 2, 3))},
    "batch_norm": {"flax linen": batch_norm},
    "batch_norm_inference": {"flax linen": functools.partial(batch_norm, train=False)},
    "batch_norm_masked": {"flax linen": with_mask(batch_norm)},
    "batch_norm_channels_first": {"flax linen": functools.partial(batch_norm, channels_first=True)},
    "layer_norm": {"flax linen": functools.partial(sample_norm, module=nn.LayerNorm)},
    "rms_norm": {"flax linen": functools.partial(sample_norm, module=nn.RMSNorm)},
    "group_norm": {"flax linen": functools.partial(sample_norm, module=nn.GroupNorm, num_groups=GROUPS)},
    "instance_norm": {"flax linen": functools.partial(sample_norm, module=nn.InstanceNorm)},
    "weight_norm": {"flax linen": functools.partial(kernel_norm, module=nn.WeightNorm)},
    "spectral_norm": {"flax linen": functools.partial(kernel_norm, module=nn.SpectralNorm, update_stats=True)},
    "batch_norm_relu": {"flax linen": with_relu(batch_norm)},
    "sync_batch_norm": {"flax linen": functools.partial(batch_norm, axis_name=AXIS)},
}
