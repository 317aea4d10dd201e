"""What the programs share: inputs, weights, and how a model of each library is handed to the lint."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxnorm.linen
from jaxnorm.diagnostics import lint
from jaxnorm.diagnostics._lint.report import Report

Array = jax.Array

ROWS = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
"""Of 32 examples 8 features each."""
IMAGES = np.random.default_rng(1).normal(size=(32, 8, 8, 2)).astype(np.float32)
"""Channels last."""
WORDS = np.random.default_rng(2).normal(size=(32, 5, 8)).astype(np.float32)
"""Of 32 examples 5 steps of 8 features each."""


def kernels(**shapes: tuple[int, ...]) -> dict[str, Array]:
    """Returns weights of linear layers, `[..., in, out]`, that keep a variance of 1."""
    draw = np.random.default_rng(3).normal
    return {name: jax.numpy.asarray(draw(size=shape) / np.sqrt(shape[-2]), np.float32) for name, shape in shapes.items()}


def lint_linen(model: nn.Module, x: Any = ROWS) -> Report:
    """Lints a model of linen that is called as `model(x, train=train)`."""
    streams = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return jaxnorm.linen.lint(model, model.init(streams, x, train=False), x)


def haiku_functions(model: Callable[..., Array], x: Any = ROWS) -> tuple[Any, Any, Any]:
    """Returns apply, parameters and statistics of a function `model(x, train)` of Haiku."""
    hk = pytest.importorskip("haiku")
    pure = hk.transform_with_state(model)
    params, stats = pure.init(jax.random.key(0), x, True)

    def apply(key: Array, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        return pure.apply(params, stats, key, x, train)

    return apply, params, stats


def equinox_functions(init: Callable[[Array], Any], *, one_key: bool = False) -> tuple[Any, Any, Any]:
    """Returns the same of a model of Equinox, `model(row, state, key) -> (outputs, state)`, with a key for each row or one."""
    eqx = pytest.importorskip("equinox")
    model, state = eqx.nn.make_with_state(init)(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(key: Array, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        model = eqx.nn.inference_mode(eqx.combine(params, static), not train)
        keys = key if one_key else jax.random.split(key, len(x))
        axes = (0, None, None if one_key else 0)
        return jax.vmap(model, axes, (0, None), axis_name="batch")(x, stats, keys)

    return apply, params, state


def lint_haiku(model: Callable[..., Array], x: Any = ROWS) -> Report:
    """Lints a function `model(x, train)` of Haiku."""
    return lint(*haiku_functions(model, x), x)


def lint_equinox(init: Callable[[Array], Any], x: Any = ROWS, *, one_key: bool = False) -> Report:
    """Lints a model of Equinox, as `equinox_functions` takes it."""
    return lint(*equinox_functions(init, one_key=one_key), x)
