"""What a program costs besides its time: memory while it runs, memory kept for the gradient, and its compilation."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Compiled(NamedTuple):
    """A compiled program, and what that took."""

    run: Callable[..., Any]
    costs: dict[str, Any]


class Residuals(NamedTuple):
    """What `jax.vjp` keeps of a function for its gradient.

    Attributes:
      nbytes: bytes of arrays that the function made; none of its arguments.
      keeps_input: whether x, its last argument, is kept too.
    """

    nbytes: int
    keeps_input: bool


def compile_program(function: Callable[..., Any], *args: Any) -> Compiled:
    """Compiles a function."""
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    costs = {
        "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
        "trace_seconds": traced - start,
        "compile_seconds": done - traced,
    }
    return Compiled(compiled, costs)


def residuals(function: Callable[[Any, jax.Array], tuple[Any, Any]], params: Any, x: jax.Array) -> Residuals:
    """Returns what is kept for the gradient of `function(params, x) -> (y, aux)`."""

    def kept(params: Any, x: jax.Array) -> list[jax.Array]:
        _, pullback, _ = jax.vjp(function, params, x, has_aux=True)
        return jax.tree.leaves(pullback)

    jaxpr = jax.make_jaxpr(kept)(params, x).jaxpr
    *_, of_x = arguments = jaxpr.invars
    variables = {out for out in jaxpr.outvars if isinstance(out, type(of_x))}  # the others are constants in the code
    made = variables.difference(arguments)
    return Residuals(sum(_nbytes(variable.aval) for variable in made), of_x in variables)


def _nbytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize
