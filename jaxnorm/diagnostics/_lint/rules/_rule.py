"""Rules of the lint, by their names."""

import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.records import Norm
from jaxnorm.diagnostics._lint.report import Finding


class Rule(NamedTuple):
    """A rule.

    Attributes:
      name: as findings have it.
      look: `look(look)` gives what it finds.
    """

    name: str
    look: Callable[[Look], Iterator[Finding]]

    @property
    def when(self) -> str:
        """When it is seen, in a line."""
        return (inspect.getdoc(self.look) or "").partition("\n")[0]


RULES: list[Rule] = []


def rule(look: Callable[[Look], Iterator[Finding]]) -> Callable[[Look], Iterator[Finding]]:
    """Makes a function a rule, whose name is that of the function, with dashes."""
    RULES.append(Rule(look.__name__.replace("_", "-"), look))
    return look


def library_of(look: Look, norm: Norm) -> str:
    """Returns the library whose code mends a norm: our Flax modules take what Flax's own take."""
    return look.model.library if norm.library == "jaxnorm" and look.model.library in ("linen", "nnx") else norm.library
