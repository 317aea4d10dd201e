"""The lint of a linen model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
from flax import linen as nn
from flax.core import unfreeze

from jaxnorm._calling import call, check_arguments, draws, flags, is_idle, takes
from jaxnorm._checks import check_type
from jaxnorm._told import intercepting
from jaxnorm.linen._noise_layer import DrawingModule

if TYPE_CHECKING:  # it is slow to import
    from jaxnorm.diagnostics import Report
    from jaxnorm.diagnostics._lint.program import Model

_NOISY = (nn.Dropout, nn.MultiHeadDotProductAttention, DrawingModule)


def lint(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: Any,
    *,
    key: jax.Array | None = None,
    optimizer: Any = None,
    training: Mapping[str, Any] | None = None,
    inference: Mapping[str, Any] | None = None,
) -> "Report":
    """Looks for what is wrong with a linen model, as `jaxnorm.diagnostics.lint` does with a function.

    The model is called as `model(x, train=True)` and as `model(x, train=False)`, or with another flag that its call takes or that
    is a field of it: `training` and `is_training` are told the same, `deterministic` and `use_running_average` the contrary. All
    collections but `params` are its statistics, and its streams of keys may have any names.

    Args:
      model: a linen module, unbound; layers of ours, of Flax and of one's own may be in it.
      variables: its variables, as from `init`.
      x: what it is called with, a batch as in training; a tuple is all its arguments by position.
      key: as there.
      optimizer: as there.
      training: the arguments by name of the call in training, where a flag does not tell it, as `{"mode": "train"}`.
      inference: those of the call in inference.

    Returns:
      The report, which prints as a table.

    Raises:
      TypeError: if model is no linen module, or variables, training or inference no mapping; else as there.
      ValueError: if one of training and inference is given without the other; else as there.

    Example:
      >>> import flax.linen as nn, jax, jaxnorm.linen
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, *, train):
      ...         x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.1)(nn.Dense(8, use_bias=False)(x)))
      ...         return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))
      >>> net, x = Net(), jax.random.normal(jax.random.key(0), (32, 4))
      >>> report = jaxnorm.linen.lint(net, net.init(jax.random.key(1), x, train=False), x)
      >>> [(one.rule, one.severity, one.where.path) for one in report.at_least("warning")]
      [('averages-too-short', 'warning', 'BatchNorm_0')]
    """
    from jaxnorm.diagnostics._lint.looking import look_at

    return look_at(as_model(model, variables, x, key=key, optimizer=optimizer, training=training, inference=inference))


def as_model(
    model: nn.Module,
    variables: Mapping[str, Any],
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

    check_type("model", model, nn.Module)
    check_type("variables", variables, Mapping)
    check_arguments(training, inference)
    called = {train: _called(model, given, train) for train, given in ((True, training), (False, inference))}
    collections = {name: unfreeze(collection) for name, collection in variables.items()}
    params = collections.pop("params", {})
    alone = set(collections) == {"batch_stats"}  # as of most models: their statistics are what is in there
    stats = collections["batch_stats"] if alone else collections

    def apply(key: jax.Array, params: Any, stats: Any, x: Any, /, *, train: bool) -> tuple[Any, Any]:
        of_dropout, of_others = jax.random.split(key)
        streams = {"params": of_others} | ({"dropout": of_dropout} if train else {})  # what is not there comes from params
        given = {"batch_stats": stats} if alone else stats
        module, told = called[train]
        run = functools.partial(module.apply, {"params": params, **given}, rngs=streams, mutable=list(given))
        outputs, new = call(run, x, told)
        return outputs, unfreeze(new["batch_stats"] if alone else new)

    with tracing(train=True):
        silent = tuple(Where(path, "") for path in _silent(apply, params, stats, x))
    return Model(apply, params, stats, x, key, optimizer, library="linen", silent=silent)


def new_variables(model: nn.Module, x: Any) -> Mapping[str, Any]:
    """Returns variables of a model as its `init` draws them."""
    module, told = _called(model, None, False)
    return jax.jit(lambda key, x: call(functools.partial(module.init, key), x, told))(jax.random.key(0), x)


def _called(model: nn.Module, given: Mapping[str, Any] | None, train: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the model with its fields set, and the arguments of its call, that tell it whether it trains."""
    if given is not None:
        return model, dict(given)
    names, values = takes(model), {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    set_ones = {name for name, value in values.items() if isinstance(value, bool) or (value is None and name not in names)}
    fields: dict[str, Any] = flags(set_ones, train)
    return model.clone(**fields), flags(names.difference(set_ones), train)


def _silent(apply: Callable[..., Any], params: Any, stats: Any, x: Any) -> list[str]:
    """Returns the paths of the layers with noise that are called in training and never draw."""
    drawn: dict[str, bool] = {}

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, "/".join(context.module.path)
        if context.method_name == "__call__" and isinstance(module, _NOISY) and not is_idle(module):
            drawn[path] = drawn.get(path, False) or draws(module, args, kwargs)
        return call(*args, **kwargs)

    with intercepting(intercept, object()):
        jax.eval_shape(lambda *given: apply(*given, train=True), jax.random.key(0), params, stats, x)
    return [path for path, has_drawn in drawn.items() if not has_drawn]
