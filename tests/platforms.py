"""The program that another platform would be given, run on the CPU: its numbers, where its speed can't be had."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import export


def program_for(platform: str, function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """Returns what `function` is on a platform, traced with arguments like these, as a function that the CPU runs."""
    program = export.export(jax.jit(function), platforms=(platform,))(*arguments)
    return dataclasses.replace(program, platforms=("cpu",)).call
