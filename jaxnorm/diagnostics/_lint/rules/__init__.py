"""The rules of the lint: each a function of a `Look` that gives findings."""

from jaxnorm.diagnostics._lint.rules import averages, batch_statistics, keys, noise, numbers, parameters
from jaxnorm.diagnostics._lint.rules._rule import RULES, Rule

__all__ = ["RULES", "Rule", "averages", "batch_statistics", "keys", "noise", "numbers", "parameters"]
