"""Advice on what a lint found: its order, its figures, and that the calls are there."""

import importlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm.diagnostics import dropout_noise_variance, li_shift_ratio, lint, uniform_noise_variance
from jaxnorm.diagnostics._lint.advice import _REMEDIES, recommend
from jaxnorm.diagnostics._lint.report import SEVERITIES, Finding, Report, Severity, Where


def found(rule: str, severity: Severity = "error", path: str = "BatchNorm_0", **figures: float) -> Finding:
    return Finding(rule, severity, Where(path, ""), "Why it is.", "fix()", figures)


def calls(*findings: Finding) -> list[tuple[str, float]]:
    return [(one.call.split("(")[0], round(one.gain, 3)) for one in recommend(Report(findings))]


def test_what_gains_most_comes_first_whatever_its_severity():
    stale = found("averages-stale", "warning", ratio=1.3, shift=0.2)
    few = found("few-elements", "note", elements=3)
    dead = found("dead-channel", "warning")
    bias = found("useless-parameter", "note")
    nan = found("not-finite")
    constant = found("key-constant", "error")
    assert [(one.what, one.gain, one.findings) for one in recommend(Report((bias, stale, dead, few, constant, nan)))] == [
        ("Mend not-finite", math.inf, (nan,)),
        ("Norm each example by itself", 1.0, (few,)),
        ("Take a larger batch in parts", pytest.approx(1 - math.sqrt(2 / 11)), (few,)),
        ("Estimate the running statistics anew, without noise", pytest.approx(0.3), (stale,)),
        ("Mend key-constant", 0.25, (constant,)),
        ("Mend dead-channel", 0.05, (dead,)),
        ("Leave out parameters that do nothing", 0.0, (bias,)),
    ]


def test_noise_before_a_norm_has_four_remedies_causes_first():
    assert calls(found("noise-before-batch-norm", shift=2.0, predicted=1.9, rate=0.5)) == [
        ("jaxnorm.dropout", 1.0),
        ("jaxnorm.statistics.precise_stats", 1.0),
        ("jaxnorm.uniform_dropout", 0.95),
        ("jaxnorm.statistics.correct_variance_shift", 0.9),
    ]


def test_weaker_noise_leaves_the_shift_that_is_said():
    mean, var, rate = 0.7, 1.3, 0.4
    shift = 1 / float(li_shift_ratio(jnp.array(mean), jnp.array(var), dropout_noise_variance(rate)))
    [weaker] = [
        one for one in recommend(Report((found("noise-before-batch-norm", shift=shift, rate=rate),))) if "weak" in one.what
    ]
    beta, rate = map(float, re.findall(r"x, ([\d.]+)\)", weaker.call))
    for strength in (uniform_noise_variance(beta), dropout_noise_variance(rate)):
        assert 1 / float(li_shift_ratio(jnp.array(mean), jnp.array(var), strength)) == pytest.approx(1.05, abs=0.002)
    assert weaker.gain == pytest.approx(shift - 1.05)
    assert f"leaves a shift of 1.05, not {shift:.3g}" in weaker.why


def test_noise_that_is_strong_beside_its_shift_is_as_strong_as_uniform_noise_can_be():
    [weaker] = [one for one in recommend(Report((found("noise-before-batch-norm", shift=1.06, rate=0.9),))) if "weak" in one.what]
    assert weaker.call.startswith("jaxnorm.uniform_dropout(key, x, 1) ")
    assert weaker.gain == pytest.approx(0.06 * (1 - 1 / 27))


@pytest.mark.parametrize("figures", [{"shift": 1.04, "rate": 0.1}, {"shift": 1.5}, {}])
def test_what_the_figures_do_not_speak_for_is_not_advised(figures):
    assert [call for call, _ in calls(found("noise-before-batch-norm", **figures))] == [
        "jaxnorm.dropout",
        "jaxnorm.statistics.precise_stats",
    ]


def test_a_variance_may_be_smaller_in_training_and_rounding_has_a_share_too():
    assert calls(found("noise-before-batch-norm", shift=0.5))[0][1] == 1.0
    assert calls(found("cancelling-variance", error=0.02)) == [("fix", 0.02)]
    assert calls(found("statistics-per-device", elements=9)) == [("fix", 0.5)]


def test_averages_that_forget_are_worth_the_deviation_of_what_they_average():
    [(_, mended), (_, anew)] = calls(found("averages-too-short", elements=33, kept=0.1))
    assert mended == anew == round(math.sqrt(2 / 32 * 0.9 / 1.1), 3)
    assert calls(found("averages-too-short", kept=0.1)) == [("fix", 0.25), ("jaxnorm.statistics.precise_stats", 0.25)]


def test_the_deviation_of_a_variance_is_that_of_normal_numbers():
    samples = np.random.default_rng(0).normal(size=(20_000, 9))
    [(_, gain), _] = calls(found("few-elements", elements=9))
    assert samples.var(1, ddof=1).std() == pytest.approx(gain, rel=0.03)


def test_one_advice_for_all_places_is_said_of_the_worst():
    mild, worst = (found("averages-stale", path=path, ratio=ratio, shift=0.0) for path, ratio in (("a", 1.1), ("b", 1.4)))
    [advice] = recommend(Report((mild, worst)))
    assert advice.findings == (worst, mild)
    assert advice.why == "averages-stale at b: Why it is. (1 more)"
    assert str(advice).splitlines() == [
        "Estimate the running statistics anew, without noise (gain 0.4)",
        "  averages-stale at b: Why it is. (1 more)",
        "  -> jaxnorm.statistics.precise_stats(update, stats, batches)  # update: linen_update or nnx_update, say",
    ]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_figures_that_are_not_finite_are_none(severity):
    unknown = found("averages-stale", severity, ratio=math.nan, shift=0.1)
    assert calls(unknown)[0][1] == {"error": 0.25, "warning": 0.05, "note": 0.0}[severity]


def test_every_rule_is_advised_on():
    [advice] = recommend(Report((found("a-rule-of-tomorrow", "warning"),)))
    assert (advice.what, advice.call, advice.gain) == ("Mend a-rule-of-tomorrow", "fix()", 0.05)


def test_norms_that_are_frozen_may_be_folded():
    assert calls(found("running-statistics-in-training", "note")) == [("fix", 0.0), ("jaxnorm.linen.fold", 0.0)]


def test_nothing_found_is_nothing_to_do():
    assert recommend(Report(())) == []


def test_what_is_no_report_is_said():
    with pytest.raises(TypeError, match=r"report must be Report, got \[\]"):
        recommend([])  # pyright: ignore[reportArgumentType]


def test_all_that_is_advised_is_there():
    """Of every remedy, with all figures there are."""
    rules = {rule for remedy in _REMEDIES for rule in remedy.rules}
    findings = tuple(found(rule, shift=1.5, predicted=1.4, ratio=2.0, rate=0.5, elements=4.0) for rule in rules)
    advice = recommend(Report(findings))
    assert len(advice) == len(_REMEDIES)
    names = {name for one in advice for name in re.findall(r"jaxnorm(?:\.\w+)+", one.call)}
    assert len(names) > 12
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute)), name
        assert attribute in importlib.import_module(module).__all__, name
    assert jaxnorm.uniform_dropout.__name__ in {name.rpartition(".")[2] for name in names}


@pytest.mark.slow
def test_what_is_advised_against_noise_before_a_norm_does_what_it_says():
    x = 0.5 + jax.random.normal(jax.random.key(0), (20_000, 4))
    params, stats = jaxnorm.init_batch_norm(4)

    def shift(noise, amount: float) -> Report:
        def apply(key, params, stats, x, *, train):
            return jaxnorm.batch_norm(params, stats, noise(key, x, amount) if train else x, train=train)

        return lint(apply, params, stats, x)

    advice = {one.call.split("(")[0]: one for one in recommend(shift(jaxnorm.dropout, 0.4))}
    assert advice["jaxnorm.statistics.precise_stats"].gain == pytest.approx(2 / 3 * 1.25, rel=0.03)
    corrected = advice["jaxnorm.statistics.correct_variance_shift"]
    assert corrected.call == "jaxnorm.statistics.correct_variance_shift(stats, 0.4)"
    assert corrected.gain == pytest.approx(2 / 3 * 1.25, rel=0.03)
    beta, rate = map(float, re.findall(r"x, ([\d.]+)\)", advice["jaxnorm.uniform_dropout"].call))
    for noise, amount in ((jaxnorm.uniform_dropout, beta), (jaxnorm.gaussian_dropout, rate)):
        [finding] = [one for one in shift(noise, amount).findings if one.rule == "noise-before-batch-norm"]
        assert finding.figures["shift"] == pytest.approx(1.05, abs=0.01)
