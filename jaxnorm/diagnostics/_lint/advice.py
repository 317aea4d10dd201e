"""What to do about the findings of a lint, in the order of what it gains."""

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jaxnorm._checks import check_type
from jaxnorm.diagnostics._lint.report import Finding, Report, heading

_LEAST = {"error": 0.25, "warning": 0.05, "note": 0.0}
"""The least harm of a severity: the limits by which a shift of variances is judged."""


@dataclass(frozen=True)
class Advice:
    """What to do about findings of a lint.

    Attributes:
      what: to do.
      why: the figure that speaks for it, of the finding where it gains most.
      call: the call that does it, of jaxnorm, or of the library that the model is written in.
      gain: how far off, as a share, a variance is now that a norm divides by, and is not afterwards, where it gains most.
      findings: that it helps against, the one where it gains most first.
    """

    what: str
    why: str
    call: str
    gain: float
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        """Returns what to do, why, and the call, in lines of at most 100 characters but for the call."""
        why = textwrap.fill(self.why, 100, initial_indent="  ", subsequent_indent="  ")
        return f"{self.what} (gain {self.gain:.2g})\n{why}\n  -> {self.call}"


class Option(NamedTuple):
    """What a remedy does about one finding: its gain, what speaks for it, and the call."""

    gain: float
    why: str
    call: str


class Remedy(NamedTuple):
    """What helps against the findings of some rules, if `options` yields something for them."""

    what: str
    rules: tuple[str, ...]
    options: Callable[[Finding], Iterator[Option]]


def recommend(report: Report) -> list[Advice]:
    """Returns what to do about the findings of a lint, in the order of what it gains.

    The gain is how far off, as a share, a variance is now that a norm divides by, and is not afterwards: `shift - 1` for noise
    before a batch norm, what was measured of averages that are stale (of their means, in deviations), `sqrt(2 / (n - 1))` for
    statistics of n elements, as of normal numbers, and `sqrt((1 - w) / (1 + w))` of that for averages that keep w of the old.
    Where there is no such figure, an error counts as 0.25, a warning as 0.05 and a note as 0, the least shifts that are judged
    so. Numbers that are not finite come first, since other figures mean nothing then. Of what gains alike, what mends training
    comes before what mends the statistics of a network that is trained.

    Args:
      report: of `lint` or `lint_step`.

    Returns:
      The advice, what gains most first. Several may be about one finding: other ways to mend it.

    Raises:
      TypeError: if report is no `Report`.

    Example:
      >>> import jax, jaxnorm
      >>> from jaxnorm.diagnostics import lint, recommend
      >>> params, stats = jaxnorm.init_batch_norm(4)
      >>> def apply(key, params, stats, x, *, train):
      ...     x = jaxnorm.dropout(key, x, 0.5) if train else x
      ...     return jaxnorm.batch_norm(params, stats, x, train=train)
      >>> report = lint(apply, params, stats, jax.random.normal(jax.random.key(0), (4096, 4)))
      >>> print(recommend(report)[0].what)
      Move the noise behind the last norm
    """
    check_type("report", report, Report)
    known = {rule for remedy in _REMEDIES for rule in remedy.rules}
    others = dict.fromkeys(one.rule for one in report.findings if one.rule not in known)
    remedies = (*_REMEDIES, *(Remedy(f"Mend {rule}", (rule,), _fix) for rule in others))
    advice = (_advice(remedy, report.findings) for remedy in remedies)
    return sorted((one for one in advice if one is not None), key=lambda one: -one.gain)


def _advice(remedy: Remedy, findings: tuple[Finding, ...]) -> Advice | None:
    """Returns what a remedy does about findings, said of that where it gains most."""
    options = [(option, one) for one in findings if one.rule in remedy.rules for option in remedy.options(one)]
    if not options:
        return None
    options.sort(key=lambda found: -found[0].gain)
    (best, worst), helped = options[0], tuple(one for _, one in options)
    why = f"{heading(worst)}: {best.why}{f' ({len(helped) - 1} more)' if len(helped) > 1 else ''}"
    return Advice(remedy.what, why, best.call, best.gain, helped)


def _deviation(elements: float, kept: float = 0.0) -> float:
    """Returns the relative deviation of a variance of normal numbers, averaged over batches where the old ones keep a share."""
    return math.sqrt(2 / max(elements - 1, 1) * (1 - kept) / (1 + kept))


_HARMS: Mapping[str, Callable[[Mapping[str, float]], float]] = {
    "not-finite": lambda figures: math.inf,
    "noise-before-batch-norm": lambda figures: max(figures["shift"], 1 / figures["shift"]) - 1,
    "averages-stale": lambda figures: max(figures["ratio"] - 1, figures["shift"]),
    "averages-too-short": lambda figures: _deviation(figures["elements"], figures["kept"]),
    "few-elements": lambda figures: _deviation(figures["elements"]),
    "statistics-per-device": lambda figures: _deviation(figures["elements"]),
    "cancelling-variance": lambda figures: figures["error"],
}


def _harm(one: Finding) -> float:
    """Returns how far off, as a share, a variance is that a norm divides by."""
    try:
        harm = _HARMS[one.rule](one.figures)
    except KeyError:  # none is known of the rule, or a figure was not measured
        harm = math.nan
    return _LEAST[one.severity] if math.isnan(harm) else harm


def _fix(one: Finding) -> Iterator[Option]:
    yield Option(_harm(one), one.why, one.fix)


def _by(call: str) -> Callable[[Finding], Iterator[Option]]:
    """Returns what yields a call of jaxnorm that mends findings."""
    return lambda one: iter([Option(_harm(one), one.why, call)])


def _weaker_noise(one: Finding) -> Iterator[Option]:
    """Yields noise that leaves a shift of 1.05, as the variance that noise adds to x's is in proportion to its own."""
    shift, rate = one.figures.get("shift", 1.0), one.figures.get("rate", 0.0)
    if shift > 1.05 and 0 < rate < 1:
        strength = rate / (1 - rate)
        beta = min(math.sqrt(3 * strength * 0.05 / (shift - 1)), 1.0)
        left = (shift - 1) * beta**2 / 3 / strength
        why = f"noise of a variance of {beta**2 / 3:.2g}, not {strength:.2g}, leaves a shift of {1 + left:.3g}, not {shift:.3g}"
        same = f"jaxnorm.gaussian_dropout(key, x, {beta**2 / (3 + beta**2):.2g})"
        yield Option(shift - 1 - left, why, f"jaxnorm.uniform_dropout(key, x, {beta:.2g})  # or, as strong: {same}")


def _corrected(one: Finding) -> Iterator[Option]:
    """Yields the closed form, where it predicts the shift."""
    figures = one.figures
    if {"shift", "predicted", "rate"} <= set(figures):
        why = f"the closed form has {figures['predicted']:.3g} of the shift of {figures['shift']:.3g}"
        call = f"jaxnorm.statistics.correct_variance_shift(stats, {figures['rate']:.3g})"
        yield Option(min(figures["predicted"], figures["shift"]) - 1, why, call)


def _larger_batch(one: Finding) -> Iterator[Option]:
    if elements := one.figures.get("elements"):
        now, then = _deviation(elements), _deviation(4 * elements)
        call = "jaxnorm.training.make_train_step(apply, optimizer, microbatches=4, microbatch_stats='exact')"
        yield Option(now - then, f"with four times the elements a variance is known to {then:.0%}, not {now:.0%}", call)


def _folded(one: Finding) -> Iterator[Option]:
    call = "jaxnorm.linen.fold(model, variables, x, train=False)  # or jaxnorm.nnx.fold(model, x)"
    yield Option(0.0, one.why, call)


_GROUPS = "jaxnorm.group_norm(params, x, 32)  # or jaxnorm.linen.converting('group'), jaxnorm.nnx.convert(model, 'group')"
_REMEDIES = (
    Remedy(
        "Move the noise behind the last norm",
        ("noise-before-batch-norm",),
        _by("jaxnorm.dropout(key, x, rate)  # behind the last batch norm, before the last linear layer"),
    ),
    Remedy("Norm each example by itself", ("few-elements",), _by(_GROUPS)),
    Remedy("Take a larger batch in parts", ("few-elements",), _larger_batch),
    Remedy("Give the old averages more weight: momentum", ("averages-too-short",), _fix),
    Remedy("Keep the averages that training returns", ("averages-not-updated",), _fix),
    Remedy("Draw weaker noise in its place", ("noise-before-batch-norm",), _weaker_noise),
    Remedy(
        "Estimate the running statistics anew, without noise",
        ("averages-stale", "averages-too-short", "averages-not-updated", "noise-before-batch-norm"),
        _by("jaxnorm.statistics.precise_stats(update, stats, batches)  # update: linen_update or nnx_update, say"),
    ),
    Remedy("Take the noise out of the stored variances", ("noise-before-batch-norm",), _corrected),
    Remedy("Give each example a mask of its own", ("noise-shared-by-examples",), _fix),
    Remedy("Take a new key in each step", ("key-not-advanced",), _by("jaxnorm.training.make_train_step(apply, optimizer)")),
    Remedy("Pool the statistics of all devices", ("statistics-per-device",), _fix),
    Remedy(
        "Spare scales and biases from decay", ("decay-on-norm",), _by("optax.adamw(1e-3, mask=jaxnorm.training.no_decay_mask)")
    ),
    Remedy(
        "Keep running statistics from the optimizer",
        ("averages-in-optimizer",),
        _by("jaxnorm.training.init_train_state(key, params, stats, optimizer)"),
    ),
    Remedy("Let norms use the statistics of the batch in training", ("running-statistics-in-training",), _fix),
    Remedy("Leave out parameters that do nothing", ("useless-parameter",), _fix),
    Remedy("If they are frozen on purpose: fold them", ("running-statistics-in-training",), _folded),
)
