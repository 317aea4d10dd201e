"""Variances of a layer's statistics, whatever its spread is called, and their ratios."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxnorm.statistics._layers import Layer, PyTree, check_layers, is_spread, layers_of


def layers_with_spread(name: str, stats: PyTree) -> dict[str, Layer]:
    """Returns the layers of a tree that have a spread, by the path of their parent, or raises if there is none."""
    check_layers(name, stats)
    layers = {path: layer for path, layer in layers_of(stats).items() if any(map(is_spread, layer))}
    if not layers:
        raise ValueError(f"{name} must hold a variance, as of a batch norm, got nothing but means")
    return layers


def variances_of(layer: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the variances of a layer's channels: of a standard or l_p deviation the square."""
    if "var" in layer:
        return layer["var"]
    if "cov" in layer:
        of_groups = jnp.diagonal(layer["cov"], axis1=-2, axis2=-1)
        return of_groups.reshape(*of_groups.shape[:-2], -1)
    return jnp.square(layer["std"] if "std" in layer else layer["scale"])


def ratio_of(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `a / b`, of numbers of at least 0: 1 where both are 0."""
    return jnp.where(a == b, 1, a / jnp.where(a == b, 1, b))
