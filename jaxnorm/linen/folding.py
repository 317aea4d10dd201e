"""Folding of the batch norms of a whole `flax.linen` model."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax.core import FrozenDict, freeze, unfreeze

from jaxnorm._checks import check_type
from jaxnorm._told import intercepting
from jaxnorm._types import AffineParams, RunningStats
from jaxnorm.folding._model import fold_model
from jaxnorm.folding._norms import Norm, Recorder, check_running, split_arguments
from jaxnorm.folding.report import FoldReport
from jaxnorm.linen.batch_norm import BatchNorm
from jaxnorm.linen.frozen_batch_norm import FrozenBatchNorm
from jaxnorm.linen.ghost_batch_norm import GhostBatchNorm

_NORMS = (BatchNorm, FrozenBatchNorm, GhostBatchNorm, nn.BatchNorm)


class _Given(NamedTuple):
    """What a norm is called with, of what counts in inference."""

    x: jax.Array
    running: Any
    residual: jax.Array | None


@dataclasses.dataclass(frozen=True)
class _Held:
    """A module that the one which has it does not take for a part of its own, with a name and variables under that."""

    module: nn.Module


class Folded(nn.Module):
    """A model some of whose batch norms are folded into its weights: as `fold` returns it.

    It is called as the model is, in inference and by its `__call__`, with the variables that `fold` returns, which have the
    model's own names. In the place of a folded norm nothing is computed, or one addition.

    Attributes:
      held: the model that was folded.
      norms: what each folded norm leaves, by its path in the model.
    """

    held: _Held
    norms: Mapping[str, Norm]

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model without the norms that are folded.

        Args:
          *args: what the model is called with.
          **kwargs: likewise.

        Returns:
          What the model returns.

        Raises:
          ValueError: if a folded norm is called in training.
        """
        above = len(self.path)

        def intercept(call: Callable[..., Any], given: Any, named: Any, context: Any) -> Any:
            module = context.module
            path = "/".join(module.path[above:])
            if not _is_norm(module, context.method_name) or path not in self.norms:
                return call(*given, **named)
            x, running, residual = _bound(module, given, named)
            check_running(path, running)
            shift = module.get_variable("params", "bias") if module.has_variable("params", "bias") else None
            return self.norms[path].add(x, shift, residual)

        with intercepting(intercept, ("folded", self.path, self.norms)):
            return self.held.module.clone(parent=self.scope)(*args, **kwargs)  # with this one's variables as its own


def fold(
    model: nn.Module, variables: Mapping[str, Any], *args: Any, paths: Sequence[str] | None = None, **kwargs: Any
) -> tuple[Folded, Mapping[str, Any], FoldReport]:
    """Folds the batch norms of a linen model into its dense layers and convolutions, for inference.

    Each norm's `factor x + offset` (`jaxnorm.folding.as_affine`) goes into the weights of the layer whose output it gets, or else
    of the layer that gets its output. Which these are is read from the traced model: any product or convolution with a kernel
    among the variables is a layer, whatever it is called, also one that is shared, grouped, transposed, written by hand or, with
    its norm, in a loop (`nn.scan`).

    Between layer and norm may be what a factor of each channel passes: moves, casts, average pooling, padding with zeros. An
    activation there, or a value that something else uses too, leaves the norm as it was, with the reason in the report.

    Of a norm after a layer nothing remains if the layer has a bias, and else an addition in its place, which is the missing bias.
    Of one before a layer nothing remains if the layer has a bias and pads nothing; else an addition does, `offset / factor`, by
    which the borders are right.

    Folded are `BatchNorm` of `jaxnorm.linen` (with an activation or a residual within it too), `FrozenBatchNorm`,
    `GhostBatchNorm` and `flax.linen.BatchNorm`, but no subclass that calls otherwise. Factors are computed in float32 or wider,
    and each weight is rounded once to its type. A mask has no part in inference.

    Args:
      model: a linen module, unbound.
      variables: its variables, as from `init`; they are not changed.
      *args: what the model is called with, arrays or `jax.ShapeDtypeStruct`s; no number in them matters.
      paths: the paths of the norms to be folded, as "block/norm"; None for all that can be.
      **kwargs: likewise, with what makes the model infer, as `train=False`.

    Returns:
      The model without these norms, a linen module that is applied as the model is; its variables, without the norms' own but for
      a `bias` where an addition is left; and the report, which prints as a table.

    Raises:
      ValueError: if a norm is in training; if the model calls no batch norm; if a norm's parameters or statistics are not finite,
        a variance is negative or sizes do not fit; if a norm in paths is not there, or cannot be folded.
      TypeError: if model is no linen module, or paths is a word.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, section 3.1, https://arxiv.org/abs/1502.03167.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, *, train):
      ...         x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3), use_bias=False)(x)))
      ...         return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x.mean((1, 2))))
      >>> net, x = Net(), jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> variables = net.init(jax.random.key(1), x, train=False)
      >>> folded, new_variables, report = jaxnorm.linen.fold(net, variables, x, train=False)
      >>> print(report)
      2 of 2 batch norms folded
        batch norm    folded into         note
       ────────────────────────────────────────
        BatchNorm_0   Conv_0, before it
        BatchNorm_1   Dense_0, after it
      >>> y = folded.apply(new_variables, x, train=False)
      >>> bool(jnp.allclose(y, net.apply(variables, x, train=False), atol=1e-6))
      True
    """
    check_type("model", model, nn.Module)
    norms, modules, recorder = {}, {}, Recorder()
    arrays, given = jax.tree_util.tree_flatten_with_path(variables)
    inputs, filled = split_arguments(args, kwargs)

    def intercept(call: Callable[..., Any], given: Any, named: Any, context: Any) -> Any:
        module = context.module
        if not (_is_norm(module, context.method_name) and module.has_variable("batch_stats", "mean")):
            return call(*given, **named)
        path = "/".join(module.path)
        x, running, residual = _bound(module, given, named)
        params = _affine(lambda *name: nn.meta.unbox(module.get_variable(*name)), module)
        norms[path], modules[path] = Norm.of(module, params), module
        mean = nn.meta.unbox(module.get_variable("batch_stats", "mean"))
        y = recorder.call(path, norms[path], x, mean=mean, running=running, residual=residual)
        call(*given, **named)  # for what it says of arguments that do not fit; nothing uses its result
        return y

    def run(leaves: Sequence[Any], values: Sequence[Any]) -> Any:
        args, kwargs = filled(values)
        with intercepting(intercept, object()):  # what is recorded is of this trace
            return model.apply(jax.tree.unflatten(given, leaves), *args, **kwargs)

    def constants(path: str) -> tuple[AffineParams, RunningStats, Any]:
        def read(collection: str, name: str) -> Any:
            return nn.meta.unbox(_node(variables[collection], path)[name])

        state = RunningStats(read("batch_stats", "mean"), read("batch_stats", "var"))
        return _affine(read, modules[path]), state, modules[path].epsilon

    names = ["/".join(entry.key for entry in path[1:] if isinstance(entry, jax.tree_util.DictKey)) for path, _ in arrays]
    leaves = [leaf for _, leaf in arrays]
    result = fold_model(run, recorder, leaves, inputs, names, constants, paths)
    new = _without_norms(jax.tree.unflatten(given, result.leaves), result.shifts)
    return Folded(_Held(model), FrozenDict({path: norms[path] for path in result.shifts})), new, result.report


def _is_norm(module: nn.Module, method: str) -> bool:
    """Whether a call is one of a batch norm that can be folded; a subclass that calls otherwise is another layer."""
    return method == "__call__" and any(isinstance(module, kind) and type(module).__call__ is kind.__call__ for kind in _NORMS)


def _bound(module: Any, args: Any, kwargs: Any) -> _Given:
    """Returns what a call of a norm gives it; one without a flag is always in inference."""
    given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs).arguments
    running: Any = True
    if hasattr(module, "use_running_average"):
        asked = given.get("use_running_average")
        running = nn.merge_param("use_running_average", module.use_running_average, asked)
    return _Given(given["x"], running, given.get("residual"))


def _affine(read: Callable[[str, str], Any], module: Any) -> AffineParams:
    """Returns a norm's parameters, of those that it uses."""
    return AffineParams(
        scale=read("params", "scale") if module.use_scale else None, bias=read("params", "bias") if module.use_bias else None
    )


def _without_norms(variables: Any, shifts: Mapping[str, jax.Array | None]) -> Any:
    """Returns variables without those of the norms, but for a bias where something is added in a norm's place."""
    new = {name: dict(unfreeze(collection)) for name, collection in variables.items()}
    for path, shift in shifts.items():
        for name in ("params", "batch_stats"):
            if name in new:
                new[name] = _replaced(new[name], path.split("/"), shift if name == "params" else None)
    kept = {name: collection for name, collection in new.items() if collection or name not in ("params", "batch_stats")}
    return freeze(kept) if isinstance(variables, FrozenDict) else kept


def _replaced(tree: Mapping[str, Any], path: Sequence[str], shift: jax.Array | None) -> dict[str, Any]:
    """Returns a tree with a norm's own variables replaced by a bias, or left out; branches that become empty go too."""
    first, *rest = path
    others = {name: branch for name, branch in tree.items() if name != first}
    own = {} if shift is None else {"bias": shift}
    branch = _replaced(tree.get(first, {}), rest, shift) if rest else own
    return {**others, first: branch} if branch else others


def _node(tree: Any, path: str) -> Any:
    for name in filter(None, path.split("/")):
        tree = tree[name]
    return tree
