"""The lint of an nnx model."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from jaxnorm._calling import call, check_arguments, draws, flags, is_idle, takes
from jaxnorm._checks import check_type
from jaxnorm.nnx._noise_layer import DrawingModule

if TYPE_CHECKING:  # it is slow to import
    from jaxnorm.diagnostics import Report
    from jaxnorm.diagnostics._lint.program import Model

_NOISY = (nnx.Dropout, nnx.MultiHeadAttention, DrawingModule)


def lint(
    model: nnx.Module,
    x: Any,
    *,
    key: jax.Array | None = None,
    optimizer: Any = None,
    training: Mapping[str, Any] | None = None,
    inference: Mapping[str, Any] | None = None,
) -> "Report":
    """Looks for what is wrong with an nnx model, as `jaxnorm.diagnostics.lint` does with a function.

    The model is called as `model(x)` after `model.train()` and after `model.eval()`, and with a flag if its call takes one:
    `train`, `training` and `is_training` are told whether it trains, `deterministic` and `use_running_average` the contrary. All
    its variables but `nnx.Param` are its statistics. Every stream of keys is seeded anew from the key. The model itself is not
    changed.

    Args:
      model: an nnx model; layers of ours, of Flax and of one's own may be in it.
      x: what it is called with, a batch as in training; a tuple is all its arguments by position.
      key: as there.
      optimizer: as there.
      training: the arguments by name of the call in training, where a flag does not tell it, as `{"mode": "train"}`.
      inference: those of the call in inference.

    Returns:
      The report, which prints as a table.

    Raises:
      TypeError: if model is no nnx module, or training or inference no mapping; else as there.
      ValueError: if one of training and inference is given without the other; else as there.

    Example:
      >>> import jax, jaxnorm.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> norm, drop = nnx.BatchNorm(8, momentum=0.1, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
      >>> first, last = nnx.Linear(4, 8, use_bias=False, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
      >>> net, x = nnx.Sequential(first, norm, nnx.relu, drop, last), jax.random.normal(jax.random.key(0), (32, 4))
      >>> report = jaxnorm.nnx.lint(net, x)
      >>> [(one.rule, one.severity, one.where.path) for one in report.at_least("warning")]
      [('averages-too-short', 'warning', 'layers/1')]
    """
    from jaxnorm.diagnostics._lint.looking import look_at

    return look_at(as_model(model, x, key=key, optimizer=optimizer, training=training, inference=inference))


def as_model(
    model: nnx.Module,
    x: Any,
    *,
    key: jax.Array | None = None,
    optimizer: Any = None,
    training: Mapping[str, Any] | None = None,
    inference: Mapping[str, Any] | None = None,
) -> "Model":
    """Returns what a lint looks at; the arguments are those of `lint`."""
    from jaxnorm.diagnostics._lint.program import Model
    from jaxnorm.diagnostics._lint.report import Where
    from jaxnorm.diagnostics._lint.tracing import tracing
    from jaxnorm.training.adapters import filler, seed_streams

    check_type("model", model, nnx.Module)
    check_arguments(training, inference)
    told = {
        train: flags(takes(model), train) if given is None else dict(given)
        for train, given in ((True, training), (False, inference))
    }
    graphdef, of_params, streams, of_stats = nnx.split(model, nnx.Param, nnx.RngState, ...)
    params, stats = nnx.to_pure_dict(of_params), nnx.to_pure_dict(of_stats)
    fill_params, fill_stats = filler("params", of_params), filler("stats", of_stats)

    def run(key: jax.Array, params: Any, stats: Any, x: Any, *, train: bool, drawn: dict[str, bool] | None = None) -> Any:
        copy: Any = nnx.merge(graphdef, fill_params(params), seed_streams(streams, key), fill_stats(stats), copy=True)
        copy.train() if train else copy.eval()
        if drawn is not None:
            _watch(copy, drawn)
        outputs = call(copy, x, told[train])
        _, _, _, new_stats = nnx.split(copy, nnx.Param, nnx.RngState, ...)
        return outputs, nnx.to_pure_dict(new_stats)

    drawn: dict[str, bool] = {}
    with tracing(train=True):
        jax.eval_shape(functools.partial(run, train=True, drawn=drawn), jax.random.key(0), params, stats, x)
    silent = tuple(Where(path, "") for path, has_drawn in drawn.items() if not has_drawn)
    return Model(run, params, stats, x, key, optimizer, library="nnx", silent=silent)


def _watch(model: nnx.Module, drawn: dict[str, bool]) -> None:
    """Writes for each layer with noise whether it draws, from now on, also of those that are never called."""
    noisy: list[tuple[Any, Any]] = [(path, module) for path, module in nnx.iter_modules(model) if isinstance(module, _NOISY)]
    for path, module in noisy:
        if not is_idle(module):
            name = "/".join(map(str, path))
            drawn[name] = False
            module.on_draw = functools.partial(drawn.__setitem__, name, True)
            module.__class__ = _watched(type(module))


@functools.cache
def _watched(kind: Any) -> Any:
    """Returns a class of layers with noise that say when they draw."""

    class Watched(kind):
        @functools.wraps(kind.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if draws(self, args, kwargs):
                self.on_draw()
            return kind.__call__(self, *args, **kwargs)

    return Watched
