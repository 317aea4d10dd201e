"""The program that another platform would be given, run on the CPU: its numbers, where its speed can't be had."""

import dataclasses

from jax import export


def as_on(platform: str, program: export.Exported) -> export.Exported:
    """Returns the exported program with the platform's part of it where the CPU's was, so that the CPU runs that one."""
    swapped = {"cpu": platform, platform: "cpu"}
    return dataclasses.replace(program, platforms=tuple(swapped.get(name, name) for name in program.platforms))
