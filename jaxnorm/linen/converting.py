"""Batch norms of a linen model as other norms, by their paths: frozen, of ghosts, of groups, synced; and their reset."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm._adoption import Adoption, public_name, subclass_of
from jaxnorm._conversion import check_conversion, path_filter, what_differs, why_not
from jaxnorm.linen._interception import Stand, call_as, calling_others
from jaxnorm.linen.batch_norm import BatchNorm
from jaxnorm.linen.frozen_batch_norm import FrozenBatchNorm
from jaxnorm.linen.ghost_batch_norm import GhostBatchNorm
from jaxnorm.linen.group_norm import GroupNorm

_BATCH_NORMS = (nn.BatchNorm, BatchNorm, GhostBatchNorm)
_KINDS = {"batch": BatchNorm, "frozen": FrozenBatchNorm, "ghost": GhostBatchNorm, "group": GroupNorm, "synced": BatchNorm}


def converting(to: str, *, paths: str | Sequence[str] = "*", **options: Any) -> AbstractContextManager[Adoption]:
    """Runs linen models with norms of another kind in the place of their batch norms, those on some paths, in a context.

    `BatchNorm` of Flax and of jaxnorm and `GhostBatchNorm` are called as one of these; variables and fields that both kinds
    have are kept. A group norm has no running averages. Jit, threads and reports are as with `replacing_layers`, and contexts may
    be in each other: the innermost that concerns a layer holds for it. So `with replacing_layers(), freezing(paths="stem/*"):`
    freezes the stem, and has our layers for all others.

    Args:
      to: `"batch"`, `"frozen"`, `"ghost"` with `ghost_size=128`, `"group"` with `num_groups=32` or `group_size`, `"synced"` with
        `axis_name` and `axis_index_groups=None`: a batch norm over mapped axes.
      paths: pattern of paths, as `"stage1/*"`, or several; `*` is any text, also with slashes.
      **options: those of the kind.

    Returns:
      A context that gives a report, as `replacing_layers` does.

    Raises:
      ValueError: if there is no such kind; if an option does not fit; at the end of the context, if linen modules ran in it and
        none on these paths was converted.
      TypeError: if the kind has no such option.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen
      >>> model = nn.Sequential([nn.BatchNorm(use_running_average=False) for _ in range(2)])
      >>> with jaxnorm.linen.converting("ghost", paths="layers_1", ghost_size=16) as report:
      ...     variables = model.init(jax.random.key(0), jnp.ones((64, 3)))
      >>> [(layer.path, layer.became) for layer in report.replaced]
      [('layers_1', 'jaxnorm.linen.GhostBatchNorm')]
    """
    options, matches = check_conversion(to, options), path_filter(paths)
    what = f"paths={paths!r} match no batch norm that can be converted to {to!r}, of the models that ran"
    settings = ("converting", to, paths if isinstance(paths, str) else tuple(paths), tuple(map(repr, options.items())))
    return calling_others(functools.partial(_stand_for, to, matches, options), settings, what)


def freezing(*, paths: str | Sequence[str] = "*") -> AbstractContextManager[Adoption]:
    """Runs linen models with their batch norms frozen, those on some paths: `converting` to `"frozen"`.

    Args:
      paths: pattern of paths, or several, as in `converting`; `converting("batch", paths=...)` within spares some.

    Returns:
      A context that gives a report.

    Raises:
      ValueError: at the end of the context, if linen modules ran in it and none on these paths was a batch norm.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen
      >>> norm, x = nn.BatchNorm(use_running_average=False), jnp.array([[5.0, -3.0]])
      >>> variables = norm.init(jax.random.key(0), x)
      >>> with jaxnorm.linen.freezing():
      ...     print(norm.apply(variables, x).round(2))
      [[ 5. -3.]]
    """
    return converting("frozen", paths=paths)


def reset(variables: Mapping[str, Any], *, paths: str | Sequence[str] = "*") -> dict[str, Any]:
    """Returns the variables of a linen model with running means of 0 and variances of 1 in batch norms, those on some paths.

    Args:
      variables: of the model, with the collection `batch_stats`.
      paths: pattern of paths, or several, as in `converting`.

    Returns:
      Variables of the same tree, of which all but these statistics are those given.

    Raises:
      ValueError: if no batch norm is on these paths.

    Example:
      >>> import jax.numpy as jnp, jaxnorm.linen
      >>> stats = {"stem": {"mean": jnp.ones(2), "var": jnp.zeros(2)}, "head": {"mean": jnp.ones(2), "var": jnp.ones(2)}}
      >>> jaxnorm.linen.reset({"batch_stats": stats}, paths="stem")["batch_stats"]["stem"]
      {'mean': Array([0., 0.], dtype=float32), 'var': Array([1., 1.], dtype=float32)}
    """
    matches, count = path_filter(paths), 0

    def fresh(path: Any, value: jax.Array) -> jax.Array:
        nonlocal count
        *module, name = (str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        if name not in ("mean", "var") or not matches("/".join(module)):
            return value
        count = 1
        return (jnp.zeros if name == "mean" else jnp.ones)(value.shape, value.dtype)

    stats = jax.tree_util.tree_map_with_path(fresh, variables.get("batch_stats", {}))
    if not count:
        raise ValueError(f"paths={paths!r} match no batch norm of variables")
    return {**variables, "batch_stats": stats}


def _stand_for(to: str, matches: Callable[[str], bool], options: Mapping[str, Any], module: Any, path: str) -> Stand | None:
    """Returns what is called in the place of a batch norm on these paths."""
    parent = next((norm for norm in _BATCH_NORMS if isinstance(module, norm)), None)
    if parent is None or not matches(path):
        return None
    reason = why_not(module, to) if type(module) is parent else subclass_of(parent)
    if reason:
        return Stand(reason=reason)
    kind = _KINDS[to]
    fields = {**options, "axis_name": None, "axis_index_groups": None, "reduction_axes": None} if to == "group" else options
    call = call_as(kind, module, **fields)
    if to == "group":
        call = functools.partial(_without_flag, call)
    return Stand(call, became=public_name(kind), differs=what_differs(to, options))


def _without_flag(call: Callable[..., Any], x: jax.Array, use_running_average: Any = None, *, mask: Any = None) -> jax.Array:
    """Calls a norm of the example with what is given to a batch norm."""
    return call(x, mask=mask)
