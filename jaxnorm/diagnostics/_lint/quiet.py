"""Programs without what they do to the world beside computing."""

from typing import Any

import jax
import jax.numpy as jnp

EFFECTS = ("debug_callback", "debug_print", "io_callback")
"""Names of the primitives that call the host for more than a result."""
_KINDS = ("DebugEffect", "OrderedDebugEffect", "IOEffect", "OrderedIOEffect")


def quiet(closed: Any) -> Any:
    """Returns a program in which nothing calls the host, but for results alone; what such a call would give is 0.

    Every equation keeps its place, and every variable is the same.
    """
    return closed.replace(jaxpr=_quiet(closed.jaxpr))


def _quiet(jaxpr: Any) -> Any:
    return jaxpr.replace(eqns=[_silenced(eqn) for eqn in jaxpr.eqns], effects=_others(jaxpr.effects))


def _silenced(eqn: Any) -> Any:
    if eqn.primitive.name in EFFECTS:
        avals = [variable.aval for variable in eqn.outvars]
        [zeros] = jax.make_jaxpr(jax.jit(lambda: [jnp.zeros(aval.shape, aval.dtype) for aval in avals]))().eqns
        return zeros.replace(outvars=eqn.outvars)
    if not eqn.effects:
        return eqn
    params = {name: _in_param(value) for name, value in eqn.params.items()}
    return eqn.replace(params=params, effects=_others(eqn.effects))


def _in_param(value: Any) -> Any:
    """Returns a parameter of an equation with the programs in it quiet."""
    if isinstance(value, tuple):
        return tuple(map(_in_param, value))
    return quiet(value) if hasattr(value, "jaxpr") else _quiet(value) if hasattr(value, "eqns") else value


def _others(effects: Any) -> Any:
    return frozenset(effect for effect in effects if type(effect).__name__ not in _KINDS)
