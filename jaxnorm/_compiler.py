"""Advice to the compiler that changes no number: what to put into memory, and what not to share between two uses."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def in_memory(x: jax.Array) -> jax.Array:
    """Returns the same integers, which the compiler then does not compute anew for every element that reads them.

    The barrier says so; but older versions of XLA drop it before they fuse. They never pull a division into a loop that reads its
    result several times, and cannot know yet that the divisor is 1.
    """
    return lax.optimization_barrier(lax.div(x, jnp.broadcast_to(_hidden(1, x), x.shape)))


def stored(compute: Callable[[], Any], other: Callable[[], Any]) -> Any:
    """Returns `compute()`, an array or several, which the compiler computes once, apart from everything else, and stores.

    So does `in_memory`, whose division takes a while where there are many numbers; unlike there, of two that are the same newer
    versions of XLA compute both. `other` gives something of the same type; it never runs, but the compiler does not know that.
    """
    return lax.cond(lax.optimization_barrier(jnp.ones((), bool)), compute, other)


def unshared(x: jax.Array, copy: int = 0) -> jax.Array:
    """Returns the same numbers, few of them, which the compiler for a CPU takes for others than x and its other copies.

    There a sum has its operand computed in its own loop, unless something else needs the same: then an array of that goes to
    memory, and the sum waits for it. So a sum of `x - mean` wants a mean for itself.
    """
    return lax.platform_dependent(x, cpu=lambda x: x / (_hidden(2**copy, x) * 2.0**-copy), default=lambda x: x)


def _hidden(number: int, x: jax.Array) -> jax.Array:
    """Returns a scalar of x's type, of which the compiler does not know that it is this number."""
    return lax.optimization_barrier(jnp.full((), number, x.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def computed_from(function: Callable[..., Any], x: jax.Array, wide: jax.Array, *others: Any) -> Any:
    """Returns `function(x, *others)` of x in the type of `wide`, which is x in it, and whose derivatives these are.

    For the gradient x is kept, and the others, but neither `wide` nor what the function computes between.
    """
    return function(x.astype(wide.dtype), *others)


@computed_from.defjvp
def _computed_from_jvp(function: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    x, _, *others = primals
    _, dx, *moved = tangents

    @recomputed
    def tangent(x: jax.Array, others: Any, dx: jax.Array, moved: Any) -> Any:
        return jax.jvp(function, (x.astype(dx.dtype), *others), (dx, *moved))[1]

    return computed_from(function, *primals), tangent(x, others, dx, moved)


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the same function, of which the gradient keeps the arguments alone, and computes the rest again where it is used.

    Without the barriers that `jax.checkpoint` puts around what it computes again: through them nothing fuses, neither with the
    layer before nor with the one after. Where the compiler is not to see two equal computations, `unshared` hides them.
    """
    return jax.checkpoint(function, prevent_cse=False)
