"""Looks at a model, and judges it by the rules."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax

from jaxnorm._checks import check_key
from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.program import Model
from jaxnorm.diagnostics._lint.quiet import EFFECTS
from jaxnorm.diagnostics._lint.report import Finding, Report, Where
from jaxnorm.diagnostics._lint.rules import RULES

PyTree = Any


def lint(apply: Any, params: PyTree, stats: PyTree, x: PyTree, *, key: jax.Array | None = None, optimizer: Any = None) -> Report:
    """Looks for what is wrong with a model: with its norms, its noise and its running statistics.

    The model is a function, written with any library. Its programs for training and for inference are traced and followed, from
    arguments to results: which noise reaches which norm, over what a norm's statistics are, and which layer it is. Where figures
    decide they are measured: each program is compiled once, and run a few times. So a finding is about what is computed, and not
    about how it is written. Nothing that is given is changed.

    `python -m jaxnorm lint --rules` lists what is looked for. Of a Flax model `jaxnorm.linen.lint` and `jaxnorm.nnx.lint` make
    the function, and `lint_step` looks at a training step.

    Args:
      apply: the model, `apply(key, params, stats, x, *, train) -> (outputs, stats)`. The examples are along the first axis of
        each array in x.
      params: its parameters, any pytree of arrays.
      stats: its running statistics, any pytree of arrays; `()` for a model that has none.
      x: a batch of inputs, any pytree of arrays: as large as in training, as the size of a batch is judged too, and of real data,
        which running statistics are compared with.
      key: for the noise; `jax.random.key(0)` if None.
      optimizer: the Optax optimizer of the parameters, to look at what it does to scales and biases; None leaves that out.

    Returns:
      The report. It prints as a table, the worst first, `recommend` gives advice on it, and `report.raise_for("warning")` makes a
      test of it.

    Raises:
      TypeError: if apply is no function, or does not return a pair; if key is no key; if optimizer is none of Optax.
      ValueError: if key is an array of several keys, or x holds no array. What the model raises comes as it is, with a note on
        what a lint needs.

    Example:
      >>> import jax, jaxnorm
      >>> from jaxnorm.diagnostics import lint
      >>> params, stats = jaxnorm.init_batch_norm(4)
      >>> def apply(key, params, stats, x, *, train):
      ...     return jaxnorm.batch_norm(params, stats, x, train=train, momentum=0.1)
      >>> report = lint(apply, params, stats, jax.random.normal(jax.random.key(0), (32, 4)))
      >>> [(one.rule, one.severity) for one in report.at_least("warning")]
      [('averages-too-short', 'warning')]
    """
    return look_at(Model(apply, params, stats, x, key, optimizer))


def look_at(model: Model) -> Report:
    """Returns what the rules find in a model."""
    key = jax.random.key(0) if model.key is None else model.key
    check_key(key)
    if model.optimizer is not None and not all(hasattr(model.optimizer, name) for name in ("init", "update")):
        raise TypeError(f"optimizer must be an Optax optimizer, with init and update, got {model.optimizer!r}")
    if not jax.tree.leaves(model.x):
        raise ValueError(f"x must hold a batch of inputs, got {model.x!r}, without an array")
    look = Look.at(replace(model, key=key))
    numbers_first = sorted(RULES, key=lambda rule: rule.name != "not-finite")  # other figures mean nothing then
    training, inference = look.training.found, look.inference.found
    unknown = dict.fromkeys((*training.unknown, *inference.unknown, *training.callbacks, *inference.callbacks))
    unsure = {one.where for found in (training, inference) for one in (*found.norms, *found.noises) if not one.sure}
    findings = tuple(_judged(finding, unsure) for rule in numbers_first for finding in rule.look(look))
    said = _said(model, [name for name in unknown if name in EFFECTS])
    return Report(
        findings, len(training.norms), len(training.noises), tuple(name for name in unknown if name not in EFFECTS), tuple(said)
    )


def _judged(finding: Finding, unsure: Collection[Where]) -> Finding:
    """Returns a finding as a note where it is of what comes after a primitive that is not known."""
    if finding.where not in unsure:
        return finding
    return replace(finding, severity="note", why=f"{finding.why} (less sure: it comes after what the lint does not know)")


def _said(model: Model, not_run: Sequence[str]) -> Iterator[str]:
    """Yields what was not looked at."""
    if not_run:
        yield f"Calls of the host were not run, and what they give was taken as 0: {', '.join(not_run)}."
    if model.made_up:
        yield "x is made up: running statistics were not compared with it."
