"""The program of a model, traced, or why there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


@contextmanager
def tracing(train: bool) -> Iterator[None]:
    """Adds to what a model raises while it is traced a note on what a lint needs. A key used twice is for a rule to report."""
    try:
        with jax.debug_key_reuse(False):
            yield
    except Exception as error:
        error.add_note(
            f"The lint traced the model with train={train}, as jax.jit does. It looks at functions of arrays, "
            "apply(key, params, stats, x, *, train) -> (outputs, stats), and at Flax models."
        )
        raise


def traced(apply: Any, args: tuple[Any, ...], *, train: bool) -> tuple[Any, tuple[Any, Any]]:
    """Returns the program of a model, with shapes and types of its outputs and new statistics.

    Args:
      apply: `apply(key, params, stats, x, *, train) -> (outputs, stats)`.
      args: key, params, stats and x.
      train: whether it is that of training.

    Raises:
      TypeError: if it is no function, or returns anything else. What the model raises comes as it is, with a note on what a lint
        needs.
    """
    if not callable(apply):
        raise TypeError(f"apply must be a function apply(key, params, stats, x, *, train), got {apply!r}")
    with tracing(train):
        closed, results = jax.make_jaxpr(lambda *given: apply(*given, train=train), return_shape=True)(*args)
    if not isinstance(results, tuple) or len(results) != 2:
        raise TypeError(f"apply must return (outputs, stats), with train={train} it returned {_shown(results)}")
    return closed, results


def _shown(results: Any) -> str:
    shapes = jax.tree.map(lambda one: f"{one.dtype}{list(one.shape)}", results)
    return f"{shapes} ({type(results).__name__})"
