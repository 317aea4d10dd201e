"""The command `lint`: a model by the name of the function that makes it, on an x of a given shape."""

import argparse
import importlib
import inspect
import operator
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:  # it brings Flax, which is slow to import
    from jaxnorm.diagnostics import Report


def factory(name: str) -> Callable[[], Any]:
    """Returns the function that PACKAGE.MODULE:FUNCTION names, as a type of arguments."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise argparse.ArgumentTypeError(f"must be PACKAGE.MODULE:FUNCTION, got {name!r}")
    sys.path.insert(0, os.getcwd())  # as python -m has it
    try:
        found = operator.attrgetter(function)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{error}, for {name!r}") from error
    if not callable(found):
        raise argparse.ArgumentTypeError(f"must name a function, got {name!r}, which is {found!r}")
    return found


def shape(text: str) -> tuple[int, ...]:
    """Returns a shape that is written as 8,32,32,3, as a type of arguments."""
    try:
        sizes = tuple(map(int, text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"must be sizes of at least 1, as 8,32,32,3, got {text!r}")
    return sizes


def dtype(text: str) -> Any:
    """Returns a type of floats or integers by its name, as a type of arguments."""
    try:
        found = jnp.dtype(text)
    except TypeError:
        found = jnp.dtype(bool)
    if not (jnp.issubdtype(found, jnp.floating) or jnp.issubdtype(found, jnp.integer)):
        raise argparse.ArgumentTypeError(f"must be a type of floats or integers, as int32, got {text!r}")
    return found


def made_up(shapes: Sequence[tuple[int, ...]], dtype: Any) -> Any:
    """Returns normal numbers, or zeros and ones as integers, of each shape; of several a tuple."""
    key = jax.random.key(0)
    arrays = [_random(jax.random.fold_in(key, number), shape, dtype) for number, shape in enumerate(shapes)]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _random(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.integer):
        return jax.random.bernoulli(key, 0.5, shape).astype(dtype)
    return jax.random.normal(key, shape, jnp.float32).astype(dtype)


def is_model(made: Any) -> bool:
    """Whether this is a linen or nnx model, or a function with its parameters and statistics."""
    from flax import linen, nnx

    return isinstance(made, linen.Module | nnx.Module) or (isinstance(made, tuple) and len(made) == 3)


def report_of(made: Any, x: Any, optimizer: Any) -> "Report":
    """Returns what a lint finds in a model, looked at with an x that is made up."""
    from flax import linen, nnx

    from jaxnorm.diagnostics._lint.looking import look_at
    from jaxnorm.diagnostics._lint.program import Model
    from jaxnorm.linen import linting as of_linen
    from jaxnorm.nnx import linting as of_nnx

    if isinstance(made, linen.Module):
        model = of_linen.as_model(made, of_linen.new_variables(made, x), x, optimizer=optimizer)
    elif isinstance(made, nnx.Module):
        model = of_nnx.as_model(made, x, optimizer=optimizer)
    else:
        apply, params, stats = made
        model = Model(apply, params, stats, x, optimizer=optimizer)
    return look_at(replace(model, made_up=True))


def rules() -> dict[str, dict[str, str]]:
    """Returns what is looked for in a model, and in a training step: by the rule's name when it is seen."""
    from jaxnorm.diagnostics._lint.rules import RULES
    from jaxnorm.diagnostics._lint.step_rules import STEP_RULES

    titles = {"Of a model (lint)": [rule.look for rule in RULES], "Of a training step (lint_step)": STEP_RULES}
    return {title: dict(map(_name_and_when, looks)) for title, looks in titles.items()}


def _name_and_when(look: Callable[..., Any]) -> tuple[str, str]:
    first, *_ = (inspect.getdoc(look) or "").splitlines()
    return look.__name__.replace("_", "-"), first.replace("`", "")
