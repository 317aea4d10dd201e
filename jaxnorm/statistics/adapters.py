"""Flax models as updates: one pass without noise that gives the statistics of what every norm of the model is given."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen, nnx
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxnorm._checks import check_type
from jaxnorm._told import call_told, intercepting
from jaxnorm.statistics._layers import Found, PyTree, check_layers, check_like, layers_of, replaced, with_layers
from jaxnorm.statistics._recording import FLAG, OF_THE_BATCH, found_in, is_recorded, run_norm, start

_COLLECTION = "batch_stats"
_NOISE_FLAG = "deterministic"

Run = Callable[[Any, PyTree, Any, bool], dict[str, Found]]
"""From a model's variables, statistics, a batch, and whether to normalize by the statistics, to what is found of each layer."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlaxUpdate:
    """A Flax model as `update(stats, batch) -> stats`; a pytree, so that its parameters are no constants of a program.

    Attributes:
      variables: the model's.
      stats: its statistics.
      run: runs it.
    """

    variables: Any
    stats: PyTree
    run: Run = dataclasses.field(metadata={"static": True})

    def __call__(self, stats: PyTree, batch: Any) -> PyTree:
        """Returns the statistics of a batch; those of what is not met, or not counted, stay as they are."""
        return replaced(stats, self.found(stats, batch, False))

    def found(self, stats: PyTree, batch: Any, by_stats: bool) -> dict[str, Found]:
        """Returns what is found of each layer."""
        check_like("stats", stats, self.stats, "the model")
        if jax.tree.structure(stats) != jax.tree.structure(self.stats):  # the same in other containers, as a pure dict of a State
            stats = with_layers(self.stats, layers_of(stats))
        return self.run(self.variables, stats, batch, by_stats)


def linen_update(
    module: linen.Module, variables: Mapping[str, Any], *, method: Callable[..., Any] | None = None, **arguments: Any
) -> FlaxUpdate:
    """Returns a linen model as the `update(stats, batch) -> stats` that `precise_stats` takes.

    In a pass of the model every module with a field `use_running_average` and statistics normalizes by its batch, whatever the
    model tells it, and the pass gives mean and biased variance of that, exactly: ours and Flax's own. Modules with a field
    `deterministic` are told True. Of each layer the elements that count are counted, with its mask, and where it is called twice
    in a pass both calls are pooled. What else is in the collection `batch_stats` stays, as of frozen norms.

    Args:
      module: a linen module, unbound.
      variables: its variables, with the collections `params` and `batch_stats`.
      method: what is called with the module and a batch, as `lambda net, batch: net(batch[0], train=False)`; None calls the
        module with the batch.
      **arguments: arguments of the call in inference, such as `train=False`.

    Returns:
      The update. Its stats are a tree like `variables["batch_stats"]`.

    Raises:
      TypeError: if module is no linen module, or method no function.
      ValueError: if variables hold no statistics; when the update is called, if its stats are those of another model.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from jaxnorm.statistics import linen_update, precise_stats
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, *, train):
      ...         x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
      ...         return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))
      >>> net, batches = Net(), jax.random.normal(jax.random.key(0), (5, 32, 3))
      >>> variables = net.init(jax.random.key(1), batches[0], train=False)
      >>> update = linen_update(net, variables, train=False)
      >>> stats = precise_stats(update, variables["batch_stats"], batches)
      >>> variables = {**variables, "batch_stats": stats}
    """
    check_type("module", module, linen.Module)
    _check_method(method)
    if not isinstance(variables, Mapping) or not layers_of(variables.get(_COLLECTION, {})):
        held = list(variables) if isinstance(variables, Mapping) else variables
        raise ValueError(f"variables must hold running statistics in the collection batch_stats, got {held!r}")
    stats = variables[_COLLECTION]
    check_layers("variables['batch_stats']", stats)
    others = {name: value for name, value in variables.items() if name != _COLLECTION}
    return FlaxUpdate(others, stats, _made(_linen_run, module, method, tuple(arguments.items())))


def nnx_update(model: nnx.Module, *, method: Callable[..., Any] | None = None, **arguments: Any) -> FlaxUpdate:
    """Returns an nnx model as the `update(stats, batch) -> stats` that `precise_stats` takes.

    As `linen_update`, for modules with an attribute `use_running_average` and statistics. A copy of the model is in inference,
    as after `model.eval()`, but for these. The model itself is not changed; `nnx.update(model, stats)` puts the result into it.

    Args:
      model: an nnx model.
      method: what is called with a copy of the model and a batch, as `lambda net, batch: net(batch[0])`; None calls it with the
        batch.
      **arguments: arguments of the call in inference.

    Returns:
      The update. Its stats are a tree like `nnx.state(model, nnx.BatchStat)`, or that as a pure dict.

    Raises:
      TypeError: if model is no nnx module, or method no function.
      ValueError: if the model holds no statistics; when the update is called, if its stats are those of another model.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from jaxnorm.statistics import nnx_update, precise_stats
      >>> rngs = nnx.Rngs(0)
      >>> norm, drop = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
      >>> net = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), norm, nnx.relu, drop, nnx.Linear(8, 2, rngs=rngs))
      >>> batches = jax.random.normal(jax.random.key(0), (5, 32, 3))
      >>> stats = precise_stats(nnx_update(net), nnx.state(net, nnx.BatchStat), batches)
      >>> nnx.update(net, stats)
    """
    check_type("model", model, nnx.Module)
    _check_method(method)
    stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    if not layers_of(stats):
        raise ValueError(f"model must hold running statistics, variables of type nnx.BatchStat, got {type(model).__name__}")
    check_layers("model's statistics", stats)
    graphdef, state = nnx.split(nnx.clone(model))
    return FlaxUpdate(state, stats, _made(_nnx_run, graphdef, method, tuple(arguments.items())))


def _check_method(method: Any) -> None:
    if method is not None and not callable(method):
        raise TypeError(f"method must be a function of the module and a batch, or None, got {method!r}")


def _made(make: Callable[..., Run], *of: Any) -> Run:
    """Returns what runs a model, the same one for the same model where that has a hash: nothing is compiled anew then."""
    try:
        return _cached(make, *of)
    except TypeError:
        return make(*of)


@functools.lru_cache(maxsize=16)
def _cached(make: Callable[..., Run], *of: Any) -> Run:
    return make(*of)


def _linen_run(module: linen.Module, method: Callable[..., Any] | None, arguments: tuple[tuple[str, Any], ...]) -> Run:
    def run(variables: Any, stats: PyTree, batch: Any, by_stats: bool) -> dict[str, Found]:
        layers, flat = layers_of(stats), flatten_dict(unfreeze(stats))
        parents = {path[:-1]: "/".join(path[:-1]) for path in flat if "/".join(path[:-1]) in layers}
        for parent, name in parents.items():
            flat |= {(*parent, new): value for new, value in start(layers[name]).items()}
        given = {**variables, _COLLECTION: unflatten_dict(flat)}
        with intercepting(_recorder(by_stats), ("statistics", by_stats)):
            _, updates = module.apply(given, batch, mutable=[_COLLECTION], method=method, **dict(arguments))
        new: Any = flatten_dict(unfreeze(updates[_COLLECTION]))
        return {name: found_in(layers[name], lambda part, at=parent: new[*at, part]) for parent, name in parents.items()}

    return run


def _recorder(by_stats: bool) -> Callable[..., Any]:
    """Returns an interceptor that turns noise off and takes the statistics of every norm's input."""
    within: list[linen.Module] = []  # the norm whose own call is on its way

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or within:
            return call(*args, **kwargs)
        if hasattr(module, FLAG) and is_recorded(functools.partial(module.has_variable, _COLLECTION)):
            within.append(module)
            try:
                return record(module, call, args, kwargs)
            finally:
                within.pop()
        return _without_noise(module, call, args, kwargs) if hasattr(module, _NOISE_FLAG) else call(*args, **kwargs)

    def record(module: linen.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        def boxed(name: str) -> Any:
            return module.get_variable(_COLLECTION, name)

        def write(name: str, value: jax.Array) -> None:
            module.put_variable(_COLLECTION, name, linen.meta.replace_boxed(boxed(name), value))

        def normalize(running: bool) -> Any:
            return call_told(module, call, args, kwargs, {FLAG: running, **OF_THE_BATCH})

        names = tuple(layers_of(module.variables[_COLLECTION])[""])
        arguments = _by_name(type(module).__call__, module, args, kwargs)
        return run_norm(module, names, lambda name: linen.meta.unbox(boxed(name)), write, normalize, arguments, by_stats)

    return intercept


def _without_noise(module: linen.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Calls a module that draws so that it does not."""
    given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
    if given.arguments.get(_NOISE_FLAG) is None:
        return call_told(module, call, args, kwargs, {_NOISE_FLAG: True})
    given.arguments[_NOISE_FLAG] = True
    return call(*given.args[1:], **given.kwargs)


def _nnx_run(graphdef: Any, method: Callable[..., Any] | None, arguments: tuple[tuple[str, Any], ...]) -> Run:
    def run(state: Any, stats: PyTree, batch: Any, by_stats: bool) -> dict[str, Found]:
        copy: Any = nnx.merge(graphdef, state, copy=True)
        copy.eval()
        nnx.update(copy, stats)
        layers, norms = layers_of(stats), {}
        for path, module in nnx.iter_modules(copy):
            name = "/".join(map(str, path))
            if name in layers and hasattr(module, FLAG) and not getattr(module, "is_frozen", False):
                norms[name] = module
                _record(module, layers[name], by_stats)
        copy(batch, **dict(arguments)) if method is None else method(copy, batch, **dict(arguments))
        return {name: found_in(layers[name], functools.partial(_read, norm)) for name, norm in norms.items()}

    return run


def _read(module: Any, name: str) -> jax.Array:
    return getattr(module, name)[...]


def _record(module: Any, layer: Mapping[str, jax.Array], by_stats: bool) -> None:
    """Makes a module take the statistics of its input in every call."""
    for name, value in OF_THE_BATCH.items():
        if hasattr(module, name):
            setattr(module, name, value)
    for name, value in start(dict(layer)).items():
        setattr(module, name, nnx.BatchStat(value))
    module.__class__ = _recording(type(module), tuple(layer), by_stats)


@functools.cache
def _recording(kind: Any, names: tuple[str, ...], by_stats: bool) -> Any:
    """Returns a class of norms that take the statistics of their input."""

    class Recording(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            def write(name: str, value: jax.Array) -> None:
                getattr(self, name)[...] = value

            def normalize(running: bool) -> Any:
                _, *others = given.args
                return kind.__call__(self, *others, **{**given.kwargs, FLAG: running})

            given = inspect.signature(kind.__call__).bind(self, *args, **kwargs)
            given.arguments.pop(FLAG, None)
            arguments = _by_name(kind.__call__, self, given.args[1:], given.kwargs)
            return run_norm(self, names, functools.partial(_read, self), write, normalize, arguments, by_stats)

    return Recording


def _by_name(function: Callable[..., Any], module: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Returns the arguments of a call by their names."""
    _, *given = inspect.signature(function).bind(module, *args, **kwargs).arguments.items()
    return dict(given)
