"""Contexts in which modules of a linen model are called as other ones, without a change to the model's code."""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from flax import linen as nn

from jaxnorm._adoption import AdoptedLayer, Adoption, public_name
from jaxnorm._told import intercepting

_here = threading.local()  # as Flax's interceptors are


class Stand:
    """What is called in the place of a module, or why nothing is; and what the report says of it.

    Attributes:
      call: is called with the arguments of the module's call; None where the module is left.
      said: fields of the report's entry.
    """

    def __init__(self, call: Callable[..., Any] | None = None, **said: Any) -> None:
        self.call = call
        self.said = said


@contextlib.contextmanager
def calling_others(stand_for: Callable[[Any, str], Stand | None], settings: Hashable, what: str) -> Iterator[Adoption]:
    """Gives a report, and for as long as it lasts calls what `stand_for(module, path)` returns in the place of modules.

    Of contexts in each other the innermost is asked first, the next one where that has nothing to call.

    Args:
      stand_for: returns for a module and its path what is called in its place; None for one that is not concerned.
      settings: what a program that was traced in the context depends on.
      what: begins the error at the end if modules ran and none was replaced.
    """
    around = _contexts()
    own = _Calls(stand_for)
    _here.contexts = (own, *around)
    try:
        with intercepting(own.follow, settings):
            yield own.report
    finally:
        _here.contexts = around
    if own.has_run and not own.has_replaced:
        own.report.check(what)


def _contexts() -> tuple["_Calls", ...]:
    return getattr(_here, "contexts", ())


class _Calls:
    """What a context does with the calls of modules' methods, all of which come by here."""

    def __init__(self, stand_for: Callable[[Any, str], Stand | None]) -> None:
        self.report = Adoption()
        self.has_run = self.has_replaced = False  # also in contexts within
        self._stand_for = stand_for
        self._model = ""

    def follow(self, call: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], context: Any) -> Any:
        """Within the call of a model replaces modules closest to them: interceptors that others set come before."""
        if _contexts()[0] is not self or self._model:
            return call(*args, **kwargs)
        self._model = type(context.module).__name__
        try:
            with nn.intercept_methods(self._replace):
                return self._replace(call, args, kwargs, context)
        finally:
            self._model = ""

    def _replace(self, call: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], context: Any) -> Any:
        for asked in _contexts():
            asked.has_run = True
            stand = asked._found(context.module, self._model) if context.method_name == "__call__" else None
            if stand is not None:
                for around in _contexts():
                    around.has_replaced = True
                return stand(*args, **kwargs)
        return call(*args, **kwargs)

    def _found(self, module: nn.Module, model: str) -> Callable[..., Any] | None:
        path = "/".join(module.path)
        stand = self._stand_for(module, path)
        if stand is None:
            return None
        self.report.add(AdoptedLayer(path, public_name(type(module)), model=model, **stand.said))
        return stand.call


def call_as(kind: type, module: nn.Module, **fields: Any) -> Callable[..., Any]:
    """Returns the call of a module as one of another class: with its fields, scope, children and counters, which both share."""
    twin = object.__new__(kind)
    vars(twin).update(vars(module), **fields)
    unwrapped: Any = kind.__call__
    # What Flax wraps a call in was done for the module itself.
    return lambda *args, **kwargs: unwrapped.__wrapped__(twin, *args, **kwargs)
