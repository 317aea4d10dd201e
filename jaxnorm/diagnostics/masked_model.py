"""Flax models as functions of masks of their units."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen, nnx

from jaxnorm._conversion import path_filter
from jaxnorm._told import intercepting

Hook = Callable[[str, Any], Any]
"""From the path of a module and what it returns to what is returned in its place."""


class MaskedModel(NamedTuple):
    """A model as a function of masks of its units.

    Attributes:
      predict: `predict(masks, x) -> outputs`, with masks a dict like units, of arrays `[n]`.
      units: the number n of units of each module whose output is masked, by its path.
    """

    predict: Callable[[dict[str, jax.Array], Any], Any]
    units: dict[str, int]


def masked_model(model: Any, x: Any, paths: str | Sequence[str], **arguments: Any) -> MaskedModel:
    """Returns a Flax model in inference as a function of masks, which multiply the outputs of modules on some paths.

    `y = module(...) * masks[path]`, along the last axis, wherever the model calls the module: a unit, or a channel, of which the
    mask is 0 is removed. So that it is, the modules must be those whose output goes on to the next layer: the dropouts after the
    activations, which in inference do nothing, are the natural ones, and a layer before a ReLU serves too. A mask right before
    batch norm removes nothing, as what it puts in the place of 0 is not 0. The model's code and variables stay as they are.

    Args:
      model: a linen module that is bound to its variables, `module.bind(variables)`, or an nnx model.
      x: what the model is called with, of any number of examples: of it the sizes are taken.
      paths: pattern of paths of modules, as `"Dropout_*"` or `"layers/3"`, or several.
      **arguments: arguments of the model's call in inference, such as `train=False`; an nnx model is a copy after `eval()`.

    Returns:
      `MaskedModel(predict, units)`, as `random_subnet_accuracy` takes them. In the masks a path may be missing: it is not masked.

    Raises:
      ValueError: if no module on these paths is called; if one returns no array with a last axis; if a linen module is not bound.
      TypeError: if model is neither; if paths are no texts.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnorm.diagnostics import masked_model, random_subnet_accuracy
      >>> rngs = nnx.Rngs(0)
      >>> net = nnx.Sequential(nnx.Linear(8, 32, rngs=rngs), nnx.relu, nnx.Dropout(0.5, rngs=rngs), nnx.Linear(32, 3, rngs=rngs))
      >>> x, labels = jax.random.normal(jax.random.key(0), (20, 8)), jnp.arange(20) % 3
      >>> predict, units = masked_model(net, x, "layers/2")
      >>> units
      {'layers/2': 32}
      >>> random_subnet_accuracy(jax.random.key(1), predict, units, (x, labels), [0.0, 0.5], 4).shape
      (2, 4)
    """
    is_chosen, run = path_filter(paths), _runner(model, arguments)
    units: dict[str, int] = {}
    others: list[str] = []

    def measure(path: str, y: Any) -> Any:
        if not is_chosen(path):
            others.append(path)
        elif getattr(y, "ndim", 0):
            units[path] = y.shape[-1]
        else:
            raise ValueError(
                f"modules on paths={paths!r} must return an array with units along its last axis, as {path} does not"
            )
        return y

    jax.eval_shape(lambda x: run(x, measure), x)
    if not units:
        raise ValueError(f"paths={paths!r} match no module that the model calls, as {', '.join(others[:8]) or 'it calls none'}")

    def predict(masks: dict[str, jax.Array], x: Any) -> Any:
        if unknown := sorted(set(masks) - set(units)):
            raise ValueError(f"masks must be of {', '.join(units)}, got one of {unknown[0]}")

        def multiply(path: str, y: Any) -> Any:
            return y * masks[path].astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,)) if path in masks else y

        return run(x, multiply)

    return MaskedModel(predict, units)


def _runner(model: Any, arguments: dict[str, Any]) -> Callable[[Any, Hook], Any]:
    """Returns a function of x and a hook that calls the model, with what its modules return put through the hook."""
    if isinstance(model, linen.Module):
        if model.scope is None:
            raise ValueError(
                f"model must be bound to its variables, as module.bind(variables), got {type(model).__name__} unbound"
            )
        module, variables = model.unbind()

        def run_linen(x: Any, hook: Hook) -> Any:
            def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
                y, path = call(*args, **kwargs), "/".join(context.module.path)
                return hook(path, y) if path and context.method_name == "__call__" else y

            with intercepting(intercept, object()):  # the masks are of this call
                return module.apply(variables, x, **arguments)

        return run_linen
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a linen module that is bound to its variables, or an nnx module, got {model!r}")
    graphdef, state = nnx.split(model)

    def run_nnx(x: Any, hook: Hook) -> Any:
        copy: Any = nnx.merge(graphdef, state, copy=True)
        copy.eval()
        for parts, module in list(nnx.iter_modules(copy)):
            if parts and callable(module):
                module.__class__ = _hooked(type(module), "/".join(map(str, parts)), hook)
        return copy(x, **arguments)

    return run_nnx


def _hooked(kind: Any, path: str, hook: Hook) -> Any:
    """Returns a class of modules that put what they return through the hook."""

    class Hooked(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return hook(path, super().__call__(*args, **kwargs))

    return Hooked
