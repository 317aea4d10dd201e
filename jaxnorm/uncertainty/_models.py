"""Models as functions that draw, with their batch norms held to running statistics, or to those of a batch."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen, nnx

from jaxnorm._told import call_told, intercepting
from jaxnorm.training.adapters import seed_streams

_KINDS = "a linen module bound to its variables, as module.bind(variables), or an nnx module"
_RUNNING = {"use_running_average": True}
_OF_THE_BATCH = {"use_running_average": False, "momentum": 0.0}


def function_of_key(model: Any, arguments: Mapping[str, Any]) -> Callable[[jax.Array, Any], Any]:
    """Returns a model as a function of a key and x, whose batch norms use their running statistics while noise is drawn."""
    if isinstance(model, linen.Module):
        module, variables = _unbound(model)

        def draw_linen(key: jax.Array, x: Any) -> Any:
            with _batch_norms_with(_RUNNING):
                return module.apply(variables, x, rngs={"dropout": key}, **arguments)

        return draw_linen
    if isinstance(model, nnx.Module):
        graphdef, streams, state = nnx.split(model, nnx.RngState, ...)

        def draw_nnx(key: jax.Array, x: Any) -> Any:
            copy: Any = nnx.merge(graphdef, seed_streams(streams, key), state, copy=True)
            copy.train()
            copy.set_attributes(**_RUNNING, raise_if_not_found=False)
            return copy(x, **arguments)

        return draw_nnx
    _check_callable(model, "a key and x")
    return lambda key, x: model(key, x, **arguments)


def function_of_batch(model: Any, arguments: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    """Returns a model as a function of a training batch and x, whose batch norms use the statistics of that batch for x."""
    if isinstance(model, linen.Module):
        module, variables = _unbound(model)

        def predict_linen(batch: Any, x: Any) -> Any:
            with _batch_norms_with(_OF_THE_BATCH):
                _, found = module.apply(variables, batch, mutable=["batch_stats"], **arguments)
            with _batch_norms_with(_RUNNING):
                return module.apply({**variables, **found}, x, **arguments)

        return predict_linen
    if isinstance(model, nnx.Module):
        graphdef, state = nnx.split(model)

        def predict_nnx(batch: Any, x: Any) -> Any:
            copy: Any = nnx.merge(graphdef, state, copy=True)
            copy.eval()
            copy.set_attributes(**_OF_THE_BATCH, raise_if_not_found=False)
            copy(batch, **arguments)
            copy.set_attributes(**_RUNNING, raise_if_not_found=False)
            return copy(x, **arguments)

        return predict_nnx
    _check_callable(model, "a batch and x")
    return lambda batch, x: model(batch, x, **arguments)


def _check_callable(model: Any, of: str) -> None:
    if not callable(model):
        raise TypeError(f"model must be a function of {of}, {_KINDS}, got {model!r}")


def _unbound(module: linen.Module) -> tuple[linen.Module, Mapping[str, Any]]:
    if module.scope is None:
        raise ValueError(f"model must be {_KINDS}, got the unbound module {type(module).__name__}")
    return module.unbind()


def _batch_norms_with(fields: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Gives modules with a field `use_running_average` these fields, whatever they are told."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not hasattr(module, "use_running_average"):
            return call(*args, **kwargs)
        return call_told(module, call, args, kwargs, fields)

    return intercepting(intercept, tuple(fields.items()))
