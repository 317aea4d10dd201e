"""Modules of a linen model that are told another thing than the model tells them."""

import contextlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
from flax import linen

# How modules are called is part of the key by which jit, as `linen.jit` within a model, finds a program again.
_called = jax.make_user_context(())


@contextlib.contextmanager
def intercepting(interceptor: Callable[..., Any], settings: Hashable) -> Iterator[None]:
    """Intercepts the methods of modules as `flax.linen.intercept_methods` does, also in what was compiled without.

    Args:
      interceptor: as there.
      settings: what tells this interceptor from others, and all that it does depends on. Where that has no hash, an `object()`
        of its own for each time makes that nothing is found again.
    """
    with _called((*_called.value, settings)), linen.intercept_methods(interceptor):
        yield


def call_told(module: linen.Module, call: Callable[..., Any], args: Any, kwargs: Any, fields: Mapping[str, Any]) -> Any:
    """Calls an intercepted module with those of the fields that it has, whatever its own are and the model's call says.

    Args:
      module: the module whose `__call__` was intercepted by `flax.linen.intercept_methods`.
      call: what the interceptor was given to go on with.
      args: the call's.
      kwargs: the call's.
      fields: values by the names of fields.
    """
    given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
    own = {name: value for name, value in fields.items() if hasattr(module, name)}
    asked = [given.arguments.pop(name, None) for name in own]
    if all(value is None for value in asked) and all(getattr(module, name) is value for name, value in own.items()):
        return call(*args, **kwargs)
    _, *others = given.args
    # On a scope with its names free again, as a module may be called so more than once.
    scope: Any = module.scope
    return module.clone(parent=scope.rewound(), **own)(*others, **given.kwargs)
