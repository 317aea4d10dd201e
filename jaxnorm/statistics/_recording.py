"""A norm of a Flax model while the statistics of its inputs are taken: what linen and nnx do alike."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._axes import canonical_axes, other_axes
from jaxnorm._moments import count
from jaxnorm.statistics._layers import Found, Layer, first_part, measured, nothing_of, pooled, unusable

FLAG = "use_running_average"
"""The field by which a norm is known, beside statistics of its own."""

OF_THE_BATCH = {"momentum": 0.0, "unbiased": False, "use_fast_variance": False, "r_max": 1.0, "d_max": 0.0}
"""Fields, of those that a norm has, with which it gives and uses the batch's own mean and exact, biased variance."""

_FOUND = "found_"
_COUNT = f"{_FOUND}n"


def start(layer: Layer) -> Layer:
    """Returns the variables in which a norm keeps what is found of it, beside its own: they go wherever those go."""
    found = nothing_of(layer)
    return {**{_FOUND + name: part for name, part in found.layer.items()}, _COUNT: found.n}


def is_recorded(has: Callable[[str], bool]) -> bool:
    """Whether a module has the variables of `start`."""
    return has(_COUNT)


def found_in(layer: Layer, read: Callable[[str], jax.Array]) -> Found:
    """Returns what was found of a layer, of its own variables and those of `start`."""
    return Found({name: read(_FOUND + name) for name in layer}, read(_COUNT))


def run_norm(
    norm: Any,
    names: Sequence[str],
    read: Callable[[str], jax.Array],
    write: Callable[[str, jax.Array], None],
    normalize: Callable[[bool], Any],
    arguments: dict[str, Any],
    by_stats: bool,
) -> Any:
    """Returns what a norm makes of x, and adds the statistics of x to its variables; its own stay as they were.

    Args:
      norm: the module, for its options.
      names: its statistics.
      read: gives a variable.
      write: sets one.
      normalize: calls the module, with the running statistics or with those of the batch, of which it sets its own.
      arguments: those of the call by name; x is the first.
      by_stats: whether x is normalized by the statistics that are given, rather than by its own.
    """
    given = {name: read(name) for name in names}
    y = normalize(True) if by_stats else None
    for name, part in unusable(given).items():
        write(name, part)
    of_batch = normalize(False)
    batch = measured({name: read(name) for name in names}, _elements(norm, arguments, first_part(given)))
    found = pooled(found_in(given, read), batch)
    for name in names:
        write(name, given[name])
        write(_FOUND + name, found.layer[name])
    write(_COUNT, found.n)
    return y if by_stats else of_batch


def _elements(norm: Any, arguments: dict[str, Any], first: jax.Array) -> jax.Array:
    """Returns how many elements of x count in the statistics, for all channels or each, and for each row of stacked ones."""
    x, mask = next(iter(arguments.values())), arguments.get("mask")
    channels = canonical_axes("axis", getattr(norm, "axis", -1), x.ndim)
    axes = other_axes(channels, x.ndim)
    where = None
    if mask is not None:
        where = jnp.asarray(mask, bool)
        where = jnp.expand_dims(where, tuple(range(x.ndim - where.ndim)))
    if first.ndim == len(channels):
        n = count(x, axes, where)
    else:  # of one row for every domain, or for every part of a batch that is split
        rows, examples = first.shape[0], x.shape[0]
        kinds = arguments.get("domains", jnp.arange(examples) * rows // max(examples, 1))
        chosen = jnp.broadcast_to(jnp.asarray(kinds), (examples,))[:, None] == jnp.arange(rows)[None]
        own = count(x, axes[1:], where)
        own = jnp.broadcast_to(own, (examples, *own.shape[1:]))
        chosen = chosen.reshape(*chosen.shape, *(1,) * (own.ndim - 1))
        n = jnp.sum(jnp.where(chosen, own[:, None], jnp.zeros((), own.dtype)), 0)
    if (axis_name := getattr(norm, "axis_name", None)) is not None:
        n = lax.psum(n, axis_name, axis_index_groups=getattr(norm, "axis_index_groups", None))
    return n
