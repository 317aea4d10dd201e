"""Folding of the batch norms of a whole `flax.nnx` model."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from jaxnorm._checks import check_type
from jaxnorm._types import AffineParams, RunningStats
from jaxnorm.folding._model import fold_model
from jaxnorm.folding._norms import Norm, Recorder, check_running, split_arguments
from jaxnorm.folding.report import FoldReport
from jaxnorm.nnx._flags import first_given
from jaxnorm.nnx.batch_norm import BatchNorm
from jaxnorm.nnx.frozen_batch_norm import FrozenBatchNorm
from jaxnorm.nnx.ghost_batch_norm import GhostBatchNorm

_NORMS = (BatchNorm, FrozenBatchNorm, GhostBatchNorm, nnx.BatchNorm)


class FoldedBatchNorm(nnx.Module):
    """What a batch norm leaves that `fold` folded into a layer: nothing, or an addition; it knows no training.

    Args:
      path: that of the norm in the model that was folded.
      norm: what is known of it.
      bias: what is added, `[C]`, or None.
    """

    def __init__(self, path: str, norm: Norm, bias: jax.Array | None):
        """Makes the variable; the arguments are those of the class."""
        self.path = path
        self.norm = norm
        self.bias = nnx.data(None if bias is None else nnx.Param(bias))

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """Adds the bias and the residual, and applies the activation, of those that there are.

        Args:
          x: array of floating point numbers, `[..., C]` or with the features on the norm's axis.
          use_running_average: must not be False.
          mask: has no part in it.
          residual: array of x's shape.

        Returns:
          Array of x's shape.

        Raises:
          ValueError: if use_running_average is False.
        """
        del mask
        check_running(self.path, True if use_running_average is None else use_running_average)
        return self.norm.add(x, None if self.bias is None else self.bias[...], residual)


class _Place(nnx.Module):
    """Stands in the place of a norm while the model is traced."""

    def __init__(self, path: str, norm: Any, recorder: Recorder):
        self.path = path
        self.norm = norm
        self.recorder = recorder

    @property
    def known(self) -> Norm:
        """What is known of the norm."""
        return Norm.of(self.norm, self.params)

    @property
    def params(self) -> AffineParams:
        """The norm's parameters."""
        return AffineParams(*(None if part is None else part[...] for part in (self.norm.scale, self.norm.bias)))

    def __call__(self, x: jax.Array, use_running_average: Any = None, *, mask: Any = None, residual: Any = None) -> jax.Array:
        running: Any = True
        flag: dict[str, Any] = {}
        if hasattr(self.norm, "use_running_average"):
            running = first_given(self.norm, "use_running_average", use_running_average)
            flag = {"use_running_average": running}
        y = self.recorder.call(self.path, self.known, x, mean=self.norm.mean[...], running=running, residual=residual)
        own = {name: value for name, value in (("mask", mask), ("residual", residual)) if value is not None}
        self.norm(x, **flag, **own)  # for what it says of arguments that do not fit; nothing uses its result
        return y


def fold(model: nnx.Module, *args: Any, paths: Sequence[str] | None = None, **kwargs: Any) -> tuple[Any, FoldReport]:
    """Folds the batch norms of an nnx model into its dense layers and convolutions, for inference.

    Each norm's `factor x + offset` (`jaxnorm.folding.as_affine`) goes into the weights of the layer before or after it, as
    `jaxnorm.linen.fold` explains: what is folded, and what is left and why, is the same. In the place of a folded norm the new
    model has a module that does nothing, or one addition, and that knows no training; `train()` does not reach it.

    Args:
      model: an nnx model in inference, as after `model.eval()`; it is not changed.
      *args: what the model is called with, arrays or `jax.ShapeDtypeStruct`s; no number in them matters.
      paths: the paths of the norms to be folded, as "block/norm"; None for all that can be. A norm in several places has the
        path of the first.
      **kwargs: likewise.

    Returns:
      A new model without these norms, which shares no variable with the given one; and the report, which prints as a table.

    Raises:
      ValueError: if a norm is in training; if the model calls no batch norm; if a norm's parameters or statistics are not finite,
        a variance is negative or sizes do not fit; if a norm in paths is not there, or cannot be folded.
      TypeError: if model is no nnx module, or paths is a word.

    References:
      Ioffe, Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift", ICML
      2015, section 3.1, https://arxiv.org/abs/1502.03167.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> net = nnx.Sequential(nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.relu)
      >>> net.eval()
      >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
      >>> folded, report = jaxnorm.nnx.fold(net, x)
      >>> print(report)
      1 of 1 batch norms folded
        batch norm   folded into           note
       ─────────────────────────────────────────
        layers/1     layers/0, before it
      >>> bool(jnp.allclose(folded(x), net(x), atol=1e-6))
      True
    """
    check_type("model", model, nnx.Module)
    recorder = Recorder()
    places: dict[str, _Place] = {}

    def placed(path: Any, node: Any) -> Any:
        if not _is_norm(node):
            return node
        name = "/".join(map(str, path))
        places[name] = _Place(name, node, recorder)
        return places[name]

    graphdef, state = nnx.split(nnx.recursive_map(placed, nnx.clone(model)))
    arrays, tree = jax.tree_util.tree_flatten_with_path(state)
    inputs, filled = split_arguments(args, kwargs)

    def run(leaves: Sequence[Any], values: Sequence[Any]) -> Any:
        args, kwargs = filled(values)
        copy: Any = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))
        return copy(*args, **kwargs)

    def constants(path: str) -> tuple[AffineParams, RunningStats, Any]:
        norm = places[path].norm
        return places[path].params, RunningStats(norm.mean[...], norm.var[...]), norm.epsilon

    names = ["/".join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)) for path, _ in arrays]
    leaves = [leaf for _, leaf in arrays]
    result = fold_model(run, recorder, leaves, inputs, names, constants, paths)

    def finished(_: Any, node: Any) -> Any:
        if not isinstance(node, _Place):
            return node
        if node.path not in result.shifts:
            return node.norm
        return FoldedBatchNorm(node.path, node.known, result.shifts[node.path])

    merged = nnx.merge(graphdef, jax.tree.unflatten(tree, result.leaves))
    return nnx.recursive_map(finished, merged), result.report


def _is_norm(node: Any) -> bool:
    """Whether a part of a model is a batch norm that can be folded; a subclass that calls otherwise is another layer."""
    return any(isinstance(node, kind) and type(node).__call__ is kind.__call__ for kind in _NORMS)
