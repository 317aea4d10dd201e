"""Activations of linen and nnx models by layer, for the meters."""

import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from flax import linen, nnx
from flax.traverse_util import flatten_dict

from jaxnorm._checks import check_choice, check_type
from jaxnorm._told import intercepting

Layers = type | str | Sequence[type | str]
"""Which layers of a model: a class, a pattern of paths, or several of either."""

Side = Literal["input", "output"]

_COLLECTION = "intermediates"  # by which name transformations of linen carry what a model records
_NAME = "activations_of_layer"


def linen_activations(
    module: linen.Module,
    variables: Mapping[str, Any],
    batch: Any,
    *,
    layers: Layers,
    side: Side = "output",
    method: Callable[..., Any] | None = None,
    rngs: Any = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Returns what leaves, or enters, layers of a linen model in a pass, by their paths.

    `jax.tree.map(meter, activations)` measures each. A function that is no module, as `nn.relu`, is between two: what leaves it
    is the input of the next layer. The model is called as it is told, and its variables stay as they were.

    Args:
      module: a linen module, unbound.
      variables: its variables.
      batch: what it is called with.
      layers: which layers: a class, as `nn.Dense`, a pattern of paths, as `"Block_*/Dense_0"`, or several of either.
      side: "output" or "input", the first argument of the layer's call.
      method: what is called with the module and the batch, as `lambda net, batch: net(batch[0], train=False)`; None calls the
        module with the batch.
      rngs: keys, as of `module.apply`, where the model draws.
      **arguments: arguments of the call, such as `train=False`.

    Returns:
      Arrays, or what else a layer gives, by path; of a layer that is called again as `PATH (call 2)` and so on. Layers under
      `nn.scan` and `nn.vmap` are stacked.

    Raises:
      ValueError: if the model calls no such layer; if side is neither; if layers are under a transformation that does not carry
        what they record: `variable_axes={"intermediates": 0}` does.
      TypeError: if module is no linen module, method no function, or layers are neither classes nor patterns.

    Example:
      >>> import flax.linen as nn, jax
      >>> from jaxnorm.diagnostics import dead_units, linen_activations
      >>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
      >>> x = jax.random.normal(jax.random.key(0), (32, 3))
      >>> variables = net.init(jax.random.key(1), x)
      >>> found = linen_activations(net, variables, x, layers=nn.Dense)
      >>> jax.tree.map(lambda dead: dead.shape, jax.tree.map(dead_units, found))
      {'layers_0': (8,), 'layers_2': (2,)}
    """
    check_type("module", module, linen.Module)
    chosen = _checked(layers, side, method)
    called: dict[str, str] = {}
    lost: list[str] = []

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        path = "/".join(layer.path)
        y = call(*args, **kwargs)
        if context.method_name == "__call__":
            called[path] = type(layer).__name__
            if _is_chosen(chosen, path, layer) and not layer.sow(_COLLECTION, _NAME, _seen(side, y, args, kwargs)):
                lost.append(path)
        return y

    given = {name: value for name, value in variables.items() if name != _COLLECTION}
    with intercepting(intercept, ("activations", chosen, side)):
        _, updates = module.apply(given, batch, rngs=rngs, mutable=linen.DenyList("params"), method=method, **arguments)
    if lost:
        raise ValueError(
            f"layers must be where what they record is carried, got {lost[0]} under a transformation without it: give nn.scan or "
            f"nn.vmap variable_axes={{{_COLLECTION!r}: 0}}"
        )
    recorded: Any = flatten_dict(updates.get(_COLLECTION, {}))
    return _by_call({"/".join(path[:-1]): calls for path, calls in recorded.items() if path[-1] == _NAME}, layers, called)


def nnx_activations(
    model: nnx.Module,
    batch: Any,
    *,
    layers: Layers,
    side: Side = "output",
    method: Callable[..., Any] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Returns what leaves, or enters, layers of an nnx model in a pass, by their paths.

    As `linen_activations`. A copy of the model is called, in the mode that the model is in, as after `model.eval()`.

    Args:
      model: an nnx model, which is not changed.
      batch: what it is called with.
      layers: which layers: a class, as `nnx.Linear`, a pattern of paths, as `"blocks/*/linear"`, or several of either.
      side: "output" or "input", the first argument of the layer's call.
      method: what is called with a copy of the model and the batch, as `lambda net, batch: net(batch[0])`; None calls it with
        the batch.
      **arguments: arguments of the call.

    Returns:
      Arrays, or what else a layer gives, by path; of a layer that is called again as `PATH (call 2)` and so on.

    Raises:
      ValueError: if the model calls no such layer; if side is neither.
      TypeError: if model is no nnx module, method no function, or layers are neither classes nor patterns.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from jaxnorm.diagnostics import nnx_activations, saturated_share
      >>> rngs = nnx.Rngs(0)
      >>> net = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.tanh, nnx.Linear(8, 2, rngs=rngs))
      >>> x = jax.random.normal(jax.random.key(0), (32, 3))
      >>> found = nnx_activations(net, x, layers="layers/0")
      >>> jax.tree.map(lambda share: share.shape, jax.tree.map(saturated_share, found))
      {'layers/0': (8,)}
    """
    check_type("model", model, nnx.Module)
    chosen = _checked(layers, side, method)
    copy: Any = nnx.merge(*nnx.split(model), copy=True)
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(copy) if callable(module)}
    kinds = {path: type(module).__name__ for path, module in modules.items()}
    for path, module in modules.items():
        if _is_chosen(chosen, path, module):
            module.__class__ = _recording(type(module), side)
    copy(batch, **arguments) if method is None else method(copy, batch, **arguments)
    recorded = {path: getattr(module, _NAME).get_value() for path, module in modules.items() if hasattr(module, _NAME)}
    return _by_call(recorded, layers, kinds)


@functools.cache
def _recording(kind: Any, side: Side) -> Any:
    """Returns a class of modules that keep what enters or leaves them, in a variable: transformations carry it."""

    class Recording(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            y = kind.__call__(self, *args, **kwargs)
            before = getattr(self, _NAME).get_value() if hasattr(self, _NAME) else ()
            setattr(self, _NAME, nnx.Intermediate((*before, _seen(side, y, args, kwargs))))
            return y

    return Recording


def _checked(layers: Any, side: Any, method: Any) -> tuple[type | str, ...]:
    """Returns the classes and patterns by which layers are chosen."""
    check_choice("side", side, ("input", "output"))
    if method is not None and not callable(method):
        raise TypeError(f"method must be a function of the module and a batch, or None, got {method!r}")
    named = layers if isinstance(layers, Sequence) and not isinstance(layers, str) else (layers,)
    if not all(isinstance(one, type | str) for one in named):
        raise TypeError(f"layers must be classes or patterns of paths, got {layers!r}")
    return tuple(named)


def _is_chosen(chosen: tuple[type | str, ...], path: str, layer: Any) -> bool:
    return any(fnmatch.fnmatchcase(path, one) if isinstance(one, str) else isinstance(layer, one) for one in chosen)


def _seen(side: Side, y: Any, args: Any, kwargs: Any) -> Any:
    if side == "output":
        return y
    inputs = (*args, *kwargs.values())
    if not inputs:
        raise ValueError("side must be 'output' for a layer that is called without an argument, got 'input'")
    return inputs[0]


def _by_call(recorded: Mapping[str, Sequence[Any]], layers: Any, called: Mapping[str, str]) -> dict[str, Any]:
    """Returns what was recorded by path and call, or raises if it is nothing."""
    if not recorded:
        some = ", ".join(f"{path or 'the model'} ({kind})" for path, kind in list(called.items())[:8])
        raise ValueError(f"layers must be some that the model calls, got {layers!r} for a model with {some or 'no layers'}")
    return {
        path if number == 1 else f"{path} (call {number})": value
        for path, calls in recorded.items()
        for number, value in enumerate(calls, 1)
    }
