"""A layer in the form in which all are measured, whichever library it is of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# What every library's layers are set to.
RATE = 0.1
BETA = 0.5
STD = 0.5
MOMENTUM = 0.9
EPSILON = 1e-5
GROUPS = 32
GHOST = 16  # examples
AXIS = "devices"  # the mapped axis of layers that pool over devices


class Layer(NamedTuple):
    """A layer of a library on jax.

    Attributes:
      apply: `(key, params, state, x) -> (y, state)`.
      params: what is differentiated besides x.
      state: what else the layer needs and gives back.
      key_impl: the generator of the key.
      channels_first: whether the channels are on axis 1, instead of on the last.
    """

    apply: Callable[[jax.Array, Any, Any, jax.Array], tuple[jax.Array, Any]]
    params: Any = ()
    state: Any = ()
    key_impl: str = "threefry2x32"
    channels_first: bool = False


def as_input(layer: Layer, x: jax.Array) -> jax.Array:
    """Returns x, whose channels come last, as the layer takes it."""
    return jnp.moveaxis(x, -1, 1) if layer.channels_first else x


class TorchLayer(NamedTuple):
    """A layer of PyTorch.

    Attributes:
      module: a `torch.nn.Module`, which takes x with the channels on axis 1.
      channels_last: whether x lies in memory with the channels last, as it does for the libraries on jax.
    """

    module: Any
    channels_last: bool = False


Builder = Callable[[jax.ShapeDtypeStruct], Layer | TorchLayer | None]
"""Makes a layer for an x of this shape, `[..., C]`, and dtype; None where there is none for it."""


def with_gradient(apply: Callable[..., tuple[jax.Array, Any]]) -> Callable[..., tuple[jax.Array, Any, Any]]:
    """Returns `(key, params, state, x, cotangent) -> (y, gradients for params and x, state)` of a layer's `apply`."""

    def work(key: jax.Array, params: Any, state: Any, x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, Any, Any]:
        y, pullback, state = jax.vjp(lambda params, x: apply(key, params, state, x), params, x, has_aux=True)
        return y, pullback(cotangent), state

    return work


def with_relu(build: Callable[[jax.ShapeDtypeStruct], Layer]) -> Builder:
    """Returns the builder of this layer followed by a ReLU."""

    def build_both(x: jax.ShapeDtypeStruct) -> Layer:
        layer = build(x)

        def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            y, state = layer.apply(key, params, state, x)
            return jax.nn.relu(y), state

        return layer._replace(apply=apply)

    return build_both


def with_mask(build: Callable[[jax.ShapeDtypeStruct], Layer]) -> Builder:
    """Returns the builder of this layer, whose `apply` takes a mask too, with every eighth example left out."""

    def build_masked(x: jax.ShapeDtypeStruct) -> Layer:
        layer = build(x)
        mask = (jnp.arange(x.shape[0]) % 8 > 0).reshape(-1, *[1] * (len(x.shape) - 1))
        masked: Callable[..., tuple[jax.Array, Any]] = layer.apply

        def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            y, new = masked(key, params, state[0], x, state[1])
            return y, (new, state[1])

        return layer._replace(apply=apply, state=(layer.state, mask))

    return build_masked
