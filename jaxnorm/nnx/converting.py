"""Batch norms of an nnx model as other norms, by their paths: frozen, of ghosts, of groups, synced; and their reset."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm._adoption import AdoptedLayer, Adoption, public_name, subclass_of
from jaxnorm._checks import check_groups, check_type
from jaxnorm._conversion import check_conversion, path_filter, what_differs, why_not
from jaxnorm.nnx.batch_norm import BatchNorm
from jaxnorm.nnx.frozen_batch_norm import FrozenBatchNorm
from jaxnorm.nnx.ghost_batch_norm import GhostBatchNorm
from jaxnorm.nnx.group_norm import GroupNorm
from jaxnorm.nnx.replacing import Model, become


class _GroupNorm(GroupNorm):
    """A group norm with the call of a batch norm, whose flag has no effect."""

    def __call__(
        self, x: jax.Array, use_running_average: bool | jax.Array | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        return super().__call__(x, mask=mask)


_BATCH_NORMS = (nnx.BatchNorm, BatchNorm, FrozenBatchNorm, GhostBatchNorm)
_KINDS = {"batch": BatchNorm, "frozen": FrozenBatchNorm, "ghost": GhostBatchNorm, "group": _GroupNorm, "synced": BatchNorm}


def convert(model: Model, to: str, *, paths: str | Sequence[str] = "*", **options: Any) -> tuple[Model, Adoption]:
    """Returns a copy of an nnx model whose batch norms, those on some paths, are norms of another kind.

    `BatchNorm` of Flax and of jaxnorm, `GhostBatchNorm` and `FrozenBatchNorm` become one of these; variables, flags and options
    that both kinds have are kept. A group norm has no running averages. A model's calls stay right: what it gives to a batch
    norm, as `use_running_average`, any of these takes.

    Args:
      model: an nnx module.
      to: `"batch"`, `"frozen"`, `"ghost"` with `ghost_size=128`, `"group"` with `num_groups=32` or `group_size`, `"synced"` with
        `axis_name` and `axis_index_groups=None`: a batch norm over mapped axes.
      paths: pattern of paths, as `"stage1/*"`, or several; `*` is any text, also with slashes.
      **options: those of the kind.

    Returns:
      The copy, with variables of its own, and a report as `replace_layers` gives it.

    Raises:
      ValueError: if there is no such kind; if an option does not fit; if no batch norm is on these paths and can become one.
      TypeError: if model is no nnx module; if the kind has no such option.

    Example:
      >>> import jaxnorm.nnx
      >>> from flax import nnx
      >>> model = nnx.Sequential(*(nnx.BatchNorm(4, rngs=nnx.Rngs(0)) for _ in range(3)))
      >>> model, report = jaxnorm.nnx.convert(model, "ghost", paths="layers/[12]", ghost_size=16)
      >>> [(layer.path, layer.became) for layer in report.replaced]
      [('layers/1', 'jaxnorm.nnx.GhostBatchNorm'), ('layers/2', 'jaxnorm.nnx.GhostBatchNorm')]
    """
    options = check_conversion(to, options)
    copy, report = _copy(model), Adoption()
    for path, module in _batch_norms(copy, paths):
        name, parent = public_name(type(module)), next(norm for norm in _BATCH_NORMS if isinstance(module, norm))
        reason = why_not(module, to) if type(module) is parent else subclass_of(parent)
        if reason:
            report.add(AdoptedLayer(path, name, reason=reason, model=type(model).__name__))
            continue
        _convert(module, to, options)
        became = public_name(GroupNorm if to == "group" else _KINDS[to])
        report.add(AdoptedLayer(path, name, became, differs=what_differs(to, options), model=type(model).__name__))
    report.check(f"paths={paths!r} match no batch norm of the model that can be converted to {to!r}")
    return copy, report


def freeze(model: Model, *, paths: str | Sequence[str] = "*") -> tuple[Model, Adoption]:
    """Returns a copy of an nnx model whose batch norms, those on some paths, are frozen: `convert` to `"frozen"`.

    Args:
      model: an nnx module.
      paths: pattern of paths, or several, as in `convert`.

    Returns:
      The copy and a report.

    Raises:
      ValueError: if no batch norm is on these paths.
      TypeError: if model is no nnx module.

    Example:
      >>> import jaxnorm.nnx
      >>> from flax import nnx
      >>> model, report = jaxnorm.nnx.freeze(nnx.Sequential(nnx.BatchNorm(4, rngs=nnx.Rngs(0))))
      >>> type(model.layers[0]).__name__
      'FrozenBatchNorm'
    """
    return convert(model, "frozen", paths=paths)


def unfreeze(model: Model, *, paths: str | Sequence[str] = "*") -> tuple[Model, Adoption]:
    """Returns a copy of an nnx model whose frozen batch norms, those on some paths, are batch norms again.

    They have the options that they had before they were frozen, or the defaults.

    Args:
      model: an nnx module.
      paths: pattern of paths, or several, as in `convert`.

    Returns:
      The copy and a report.

    Raises:
      ValueError: if no batch norm is on these paths.
      TypeError: if model is no nnx module.

    Example:
      >>> import jaxnorm.nnx
      >>> from flax import nnx
      >>> frozen, _ = jaxnorm.nnx.freeze(nnx.Sequential(nnx.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0))))
      >>> model, report = jaxnorm.nnx.unfreeze(frozen)
      >>> type(model.layers[0]).__name__, model.layers[0].momentum
      ('BatchNorm', 0.9)
    """
    return convert(model, "batch", paths=paths)


def reset(model: Model, *, paths: str | Sequence[str] = "*") -> Model:
    """Returns a copy of an nnx model whose batch norms, those on some paths, have running means of 0 and variances of 1.

    Args:
      model: an nnx module.
      paths: pattern of paths, or several, as in `convert`.

    Returns:
      The copy.

    Raises:
      ValueError: if no batch norm is on these paths.
      TypeError: if model is no nnx module.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
      >>> _ = norm(jnp.ones((3, 2)))
      >>> jaxnorm.nnx.reset(norm).mean[...], norm.mean[...].round(2)
      (Array([0., 0.], dtype=float32), Array([0.01, 0.01], dtype=float32))
    """
    copy = _copy(model)
    found = [module for _, module in _batch_norms(copy, paths)]
    if not found:
        raise ValueError(f"paths={paths!r} match no batch norm of the model")
    for module in found:
        module.mean[...] = jnp.zeros(module.mean.shape, module.mean.dtype)
        module.var[...] = jnp.ones(module.var.shape, module.var.dtype)
    return copy


def _copy(model: Model) -> Model:
    check_type("model", model, nnx.Module)
    return nnx.clone(model)


def _batch_norms(model: nnx.Module, paths: str | Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields the batch norms on these paths, and what is derived from one."""
    matches = path_filter(paths)
    for parts, module in nnx.iter_modules(model):
        path = "/".join(map(str, parts))
        if isinstance(module, _BATCH_NORMS) and matches(path):
            yield path, module


def _convert(module: Any, to: str, options: dict[str, Any]) -> None:
    if to == "group":
        options = dict(zip(("num_groups", "group_size"), check_groups(module.num_features, **options), strict=True))
        options |= {"axis_name": None, "axis_index_groups": None, "reduction_axes": None}
        del module.mean, module.var
    become(module, _KINDS[to])
    for name, value in options.items():
        setattr(module, name, value)
