"""What a lint finds, as data and as a table."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from jaxnorm._checks import check_choice
from jaxnorm._tables import text_table

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the mildest to the worst."""

_WIDTH = 100
_SHOWN = 3  # of findings of a rule: in a deep model all layers may have the same fault


class Where(NamedTuple):
    """A place in a model.

    Attributes:
      path: of the layer, parameter or running statistic, as `Block_0/BatchNorm_0`; empty where none is known.
      line: of the user's code, as `model.py:12 in Block.__call__`; empty where none is known.
    """

    path: str
    line: str

    def __str__(self) -> str:
        return ", ".join(filter(None, self))


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a model, or might be.

    Attributes:
      rule: name of the rule that found it.
      severity: "error", "warning" or "note".
      where: the layer, and the line of the user's code.
      why: what was seen, with figures, and why it matters.
      fix: what mends it, as code of the user's library where that is known.
      figures: the figures of `why` by name.
    """

    rule: str
    severity: Severity
    where: Where
    why: str
    fix: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a lint found in a model: data, which prints as a table.

    Of the findings of a rule the table shows the first three in full, and names the places of the others.

    Attributes:
      findings: the worst first, those of a rule together.
      norms: how many norms were seen in training.
      noises: how many places where random numbers meet data.
      unknown: names of primitives of jax that the lint does not know; what comes after them is less sure.
      said: sentences on what was not looked at, and why.
    """

    findings: tuple[Finding, ...]
    norms: int = 0
    noises: int = 0
    unknown: tuple[str, ...] = ()
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Brings the findings into their order."""
        met = {one.rule: number for number, one in reversed(tuple(enumerate(self.findings)))}
        first = ("not-finite",)  # as other figures mean nothing then
        order = sorted(self.findings, key=lambda one: (-SEVERITIES.index(one.severity), one.rule not in first, met[one.rule]))
        object.__setattr__(self, "findings", tuple(order))

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """Returns the findings that are so severe or worse.

        Args:
          severity: "note", "warning" or "error".

        Returns:
          The findings, the worst first.

        Raises:
          ValueError: if severity is another word.
        """
        check_choice("severity", severity, SEVERITIES)
        return tuple(one for one in self.findings if SEVERITIES.index(one.severity) >= SEVERITIES.index(severity))

    def raise_for(self, severity: Severity) -> None:
        """Raises if something so severe or worse was found: for tests of one's own model.

        Args:
          severity: "note", "warning" or "error".

        Raises:
          AssertionError: with a table of these findings.
          ValueError: if severity is another word.
        """
        if found := self.at_least(severity):
            raise AssertionError(f"the lint found {_counts(found)}\n{_table(found)}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON holds it: dicts, lists, texts and numbers; figures that are not finite are None."""
        findings = [
            {
                "rule": one.rule,
                "severity": one.severity,
                **one.where._asdict(),
                "why": one.why,
                "fix": one.fix,
                "figures": {name: float(value) if math.isfinite(value) else None for name, value in one.figures.items()},
            }
            for one in self.findings
        ]
        return {
            "findings": findings,
            "norms": self.norms,
            "noises": self.noises,
            "unknown": list(self.unknown),
            "said": list(self.said),
        }

    def __str__(self) -> str:
        """Returns the table, and what else is to be said."""
        if self.norms or self.noises:
            looked = f"{_number(self.norms, 'norm')} and {_number(self.noises, 'place')} with noise were looked at."
        else:
            looked = "No norm and no noise was met: there is little to look at."
        found = (f"Found: {_counts(self.findings)}", _table(self.findings), "") if self.findings else ("Nothing was found.",)
        lines = [*found, looked, *self.said]
        if self.unknown:
            lines.append(f"Not known, so that what follows them is less sure: {', '.join(self.unknown)}.")
        return "\n".join(lines)


def _number(count: int, of: str) -> str:
    return f"{count} {of}" if count == 1 else f"{count} {of}s"


def _counts(findings: Iterable[Finding]) -> str:
    severities = [one.severity for one in findings]
    counts = ((severities.count(severity), severity) for severity in reversed(SEVERITIES))
    return ", ".join(_number(count, severity) for count, severity in counts if count)


def _table(findings: Iterable[Finding]) -> str:
    rules: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for one in findings:
        rules[one.severity, one.rule].append(one)
    rows = ((severity, text) for (severity, _), found in rules.items() for text in _texts(found))
    return text_table(("severity", "finding"), rows, width=_WIDTH, spaced=True)


def _texts(found: list[Finding]) -> Iterator[str]:
    """Yields what is said of findings of one rule, without saying again what was just said."""
    said: tuple[str, ...] = ()
    for one in found[:_SHOWN]:
        texts = one.why, "-> " + one.fix.replace("\n", "\n   ")
        yield "\n".join((heading(one), *(text for text in texts if text not in said)))
        said = texts
    if others := found[_SHOWN:]:
        places = "; ".join(one.where.path or one.where.line or "a place not known" for one in others)
        yield f"{others[0].rule} at {_number(len(others), 'other place')}: {places}"


def heading(one: Finding) -> str:
    """Returns the rule and the place of a finding."""
    path, line = one.where
    place = f"{path} ({line})" if path and line else path or line
    return f"{one.rule} at {place}" if place else one.rule
