"""Small models, each with one fault or without it, by which the rules of the lint are judged."""

from collections.abc import Callable
from typing import NamedTuple

from jaxnorm.diagnostics._lint.report import Report

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
