"""Running statistics by layer: which arrays of a tree belong together, and how those of two sets become those of both.

A tree may hold its layers as `RunningStats`, as linen's and nnx's dicts, as an `nnx.State`, or as any other container: what makes
a layer is that arrays called `mean`, `var` and so on have one parent.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._axes import match_sharding
from jaxnorm._checks import is_concrete
from jaxnorm._moments import abs_square, before
from jaxnorm._types import real_dtype, widest_dtype

PyTree = Any
Layer = dict[str, jax.Array]
"""The statistics of a layer by their names."""

MEAN = "mean"
SPREADS = ("var", "std", "cov", "scale")
"""What a spread is called: of `RunningStats`, `RenormStats`, `CovarianceStats` and `LpStats`."""

_UNUSABLE = -1e30
"""In the place of a spread, which is never negative."""


class Found(NamedTuple):
    """What was found of a layer: its statistics, and of how many elements they are, in the shape of the first of them.

    The count is -1 where the layer was not met at all.
    """

    layer: Layer
    n: jax.Array


def layers_of(tree: PyTree) -> dict[str, Layer]:
    """Returns the layers of a tree, by the path of their parent."""
    groups: dict[str, Layer] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parent, name = _split(path)
        if name == MEAN or name in SPREADS:
            groups.setdefault(parent, {})[name] = leaf
    return groups


def counts_of(tree: PyTree) -> dict[str, jax.Array]:
    """Returns what is called `n`, as in `jaxnorm.Moments`, by the path of its parent."""
    named = ((*_split(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0])
    return {parent: leaf for parent, name, leaf in named if name == "n"}


def with_layers(tree: PyTree, layers: Mapping[str, Layer]) -> PyTree:
    """Returns a tree with other statistics of these layers, in the dtypes that the tree has them in."""

    def replaced(path: Any, leaf: jax.Array) -> jax.Array:
        parent, name = _split(path)
        new = layers.get(parent, {}).get(name)
        return leaf if new is None else new.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(replaced, tree)


def map_layers(function: Callable[..., Layer], tree: PyTree, *others: PyTree) -> PyTree:
    """Returns a tree with what a function makes of each layer, and of the same layer of other trees."""
    rest = [layers_of(other) for other in others]
    return with_layers(tree, {path: function(layer, *(more[path] for more in rest)) for path, layer in layers_of(tree).items()})


def first_part(layer: Layer) -> jax.Array:
    """Returns the mean of a layer, or its spread where it has none: what has the shape of the channels."""
    return layer.get(MEAN, next(iter(layer.values())))


def is_spread(name: str) -> bool:
    """Whether a statistic is a spread."""
    return name in SPREADS


def unusable(layer: Layer) -> Layer:
    """Returns a layer with a spread that nothing can be normalized by, and that is told from any that was measured."""
    without_spread = not any(map(is_spread, layer))
    return {name: jnp.full_like(part, _UNUSABLE) if is_spread(name) or without_spread else part for name, part in layer.items()}


def measured(layer: Layer, n: Any) -> Found:
    """Returns what a batch gave: of no element where a statistic is not finite, or still the unusable one, or a mix with it."""
    first = first_part(layer)
    ok = jnp.ones(first.shape, bool)
    for name, part in layer.items():
        usable = jnp.isfinite(part)
        if is_spread(name) or len(layer) == 1:
            usable &= part.real > _UNUSABLE * 1e-10
        ok &= _per_channel(usable, first)
    real = real_dtype(widest_dtype(*layer.values()))
    n = jnp.asarray(n).astype(real)
    n = jnp.broadcast_to(n.reshape((1,) * (first.ndim - n.ndim) + n.shape), first.shape)
    return Found(layer, jnp.where(ok, match_sharding(n, first), jnp.zeros((), real)))


def nothing_of(layer: Layer) -> Found:
    """Returns what is found of a layer before it is met."""
    first = first_part(layer)
    return Found(
        {name: jnp.zeros_like(part) for name, part in layer.items()},
        jnp.full_like(first, -1, dtype=real_dtype(widest_dtype(*layer.values()))),
    )


def pooled(one: Found, other: Found) -> Found:
    """Returns the statistics of two sets together, by the counts of each, channel by channel.

    `mean = (n_1 mean_1 + n_2 mean_2) / n`, and `var = (n_1 var_1 + n_2 var_2) / n + n_1 n_2 / n^2 |mean_2 - mean_1|^2`; a
    standard deviation likewise by its square, a covariance with the outer product. A spread without a mean, and one of another
    power, is averaged: what is between the sets is not known of it.

    References:
      Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    zero = jnp.zeros((), one.n.dtype)
    had, new = jnp.maximum(one.n, zero), jnp.maximum(other.n, zero)
    total = had + new
    weight = new / jnp.maximum(total, jnp.finfo(total.dtype).tiny)
    known = {name: jnp.where(_of_parts(had, part) > 0, part, jnp.zeros_like(part)) for name, part in one.layer.items()}
    step = _difference(MEAN, known, other.layer, new) if MEAN in known else None

    def joined(name: str) -> jax.Array:
        own = _of_parts(weight, known[name])
        old = _power(name, known[name])
        part = old + own.astype(old.dtype) * _difference(name, known, other.layer, new)
        if step is not None and name in ("var", "std", "cov"):
            part += between_means(own, step, part)
        return jnp.sqrt(part) if name == "std" else part

    met = (one.n >= 0) | (other.n >= 0)
    return Found({name: joined(name) for name in known}, jnp.where(met, total, -jnp.ones((), total.dtype)))


def between_means(weight: jax.Array, step: jax.Array, like: jax.Array) -> jax.Array:
    """Returns `weight (1 - weight) |step|^2`, by which a variance of two sets is larger whose means are a step apart.

    Of groups, whose covariances `like` are then, with the outer product of the step.
    """
    if like.shape == step.shape:
        return weight * (1 - weight) * abs_square(step)
    step = step.reshape(like.shape[:-1])
    return weight * (1 - weight) * (step[..., :, None] * step[..., None, :].conj())


def replaced(tree: PyTree, found: Mapping[str, Found]) -> PyTree:
    """Returns a tree with the statistics that were found, for the channels of which anything was counted."""

    def chosen(layer: Layer, new: Found) -> Layer:
        return {
            name: jnp.where(_of_parts(new.n, part) > 0, new.layer[name].astype(part.dtype), part) for name, part in layer.items()
        }

    return with_layers(tree, {path: chosen(layer, found[path]) for path, layer in layers_of(tree).items() if path in found})


def size_of(tree: PyTree) -> int:
    """Returns how many layers there are at most, one upon the other, where layers may be stacked along leading axes."""
    return sum(max(1, int(np.prod(first_part(layer).shape[:-1], dtype=int))) for layer in layers_of(tree).values())


def check_layers(name: str, tree: PyTree) -> None:
    """Raises unless a tree holds running statistics, and these are arrays of floating point numbers in float32 or wider."""
    layers = layers_of(tree)
    if not layers:
        raise ValueError(f"{name} must hold running statistics, arrays called mean, var, std, cov or scale, got {shown(tree)}")
    for path, layer in layers.items():
        for part, leaf in layer.items():
            dtype = getattr(leaf, "dtype", None)
            if dtype is None or not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
                raise TypeError(f"{name} must hold arrays in float32 or wider, got {shown(leaf)} as {joined_path(path, part)}")
            if is_spread(part) and is_concrete(leaf) and np.any(np.asarray(_diagonal(part, leaf)) < 0):
                raise ValueError(f"{name} must hold spreads of at least 0, got {np.min(leaf):g} in {joined_path(path, part)}")


def check_like(name: str, got: PyTree, expected: PyTree, of: str) -> None:
    """Raises unless a tree has the layers of another, with their names and shapes."""
    found, wanted = _shapes(got), _shapes(expected)
    for path in [*wanted, *found]:
        if found.get(path) != wanted.get(path):
            here = [f"{path} of shape {list(shapes[path])}" if path in shapes else f"no {path}" for shapes in (wanted, found)]
            raise ValueError(f"{name} must have the statistics of {of}: {here[0]}, got {here[1]}")


def joined_path(parent: str, name: str) -> str:
    """Returns the path of a statistic."""
    return f"{parent}/{name}" if parent else name


def shown(value: Any) -> str:
    """Returns a value in an error."""
    if hasattr(value, "dtype"):
        return f"an array {value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _split(path: Any) -> tuple[str, str]:
    """Returns parent and name of a leaf; a variable's `value`, as of nnx, is the variable."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    if len(names) > 1 and names[-1] in ("value", "raw_value"):
        names.pop()
    return ("/".join(names[:-1]), names[-1]) if names else ("", "")


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {joined_path(path, name): np.shape(part) for path, layer in layers_of(tree).items() for name, part in layer.items()}


def _diagonal(name: str, part: jax.Array) -> jax.Array:
    return jnp.diagonal(part, axis1=-2, axis2=-1) if name == "cov" else part


def _per_channel(usable: jax.Array, first: jax.Array) -> jax.Array:
    """Returns for each channel whether all is usable of it, or of the group that it is in."""
    if usable.shape == first.shape:
        return usable
    of_groups = jnp.all(usable, (-1, -2))
    size = first.shape[-1] // of_groups.shape[-1]
    return jnp.repeat(of_groups, size, axis=-1)


def _of_parts(of_channels: jax.Array, part: jax.Array) -> jax.Array:
    """Returns what is said of channels for a statistic: a covariance's is that of its group."""
    if of_channels.shape == part.shape:
        return of_channels
    *_, groups, size, _ = part.shape
    return before(of_channels.reshape(*of_channels.shape[:-1], groups, size)[..., 0], part)


def _power(name: str, part: jax.Array) -> jax.Array:
    """Returns a statistic as what is averaged of it."""
    return jnp.square(part) if name == "std" else part


def _difference(name: str, one: Layer, other: Layer, counted: jax.Array) -> jax.Array:
    """Returns how much a statistic is larger in the other set, and 0 where nothing is counted in that."""
    old, new = _power(name, one[name]), _power(name, other[name]).astype(one[name].dtype)
    return jnp.where(_of_parts(counted, old) > 0, new - old, jnp.zeros((), old.dtype))
