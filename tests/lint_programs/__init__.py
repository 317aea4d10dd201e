"""Small models, each with one fault or without it, by which the rules of the lint are judged."""

from collections.abc import Callable, Collection, Iterable
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from jaxnorm.diagnostics import Finding, Report

Lint = Callable[[bool], Report]


class Program(NamedTuple):
    """A model that is sick, and its healed twin.

    Attributes:
      name: of the function.
      rule: that must find the fault.
      form: the library that it is written in.
      where: what the path or the line of the finding has in it.
      deep: what the fault is deep inside of, or "".
      lint: `lint(sick)` builds the model, and returns what the lint says.
    """

    name: str
    rule: str
    form: str
    where: str
    deep: str
    lint: Lint


PROGRAMS: list[Program] = []


def program(rule: str, form: str, *, where: str, deep: str = "") -> Callable[[Lint], Lint]:
    """Returns a decorator that adds a function `lint(sick)` to the programs."""

    def add(lint: Lint) -> Lint:
        PROGRAMS.append(Program(lint.__name__, rule, form, where, deep, lint))
        return lint

    return add


def programs_of(*groups: ModuleType) -> list[Program]:
    """Returns the programs that are written in modules."""
    names = {group.__name__ for group in groups}
    return [program for program in PROGRAMS if program.lint.__module__ in names]


def tiered(programs: Iterable[Program], first: Collection[str]) -> list[Any]:
    """Returns the programs as parameters of a test, of which those of these names run at first, and the others behind `slow`."""
    return [
        pytest.param(program, id=program.name, marks=[] if program.name in first else pytest.mark.slow) for program in programs
    ]


def judge(program: Program, sick: bool) -> Report:
    """Returns what the lint says of a program, or skips the test where its library is missing."""
    if program.form in ("haiku", "equinox"):
        pytest.importorskip(program.form)
    return program.lint(sick)


def of_rule(report: Report, rule: str) -> list[Finding]:
    """Returns what a rule found."""
    return [finding for finding in report.findings if finding.rule == rule]


def is_found(program: Program, report: Report) -> bool:
    """Whether the rule found the fault at its place."""
    found = of_rule(report, program.rule)
    return any(program.where in finding.where.path or program.where in finding.where.line for finding in found)
