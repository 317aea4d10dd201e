"""The rules about numbers and parameters: they find what is sick at its place, and nothing in what is healed."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lint_programs import is_found, judge, numbers, of_rule, parameters, programs_of, tiered, values
from lint_programs.small_models import lint_linen, lint_pure, normal, own_norm, squares

import jaxnorm
from jaxnorm.diagnostics import Finding, Report, lint
from jaxnorm.training import no_decay_mask

pytestmark = pytest.mark.jax_defaults

OURS = programs_of(numbers, parameters, values)
RULES = {program.rule for program in OURS}
CHEAPEST = {
    "jax_cancelling_in_cond",
    "jax_stopped_variance_in_remat",
    "linen_dead",
    "linen_not_finite",
    "nnx_averages_in_optimizer",
    "nnx_decay",
    "nnx_epsilon",
    "nnx_half",
    "nnx_norm_after_norm",
    "nnx_state_changes_type",
    "nnx_useless",
}
NORM, STATS = jaxnorm.init_batch_norm(4)


def only(report: Report, rule: str) -> Finding:
    (finding,) = of_rule(report, rule)
    return finding


@pytest.mark.parametrize("program", tiered(OURS, CHEAPEST))
def test_what_is_sick_is_found_at_its_place(program):
    report = judge(program, True)
    assert is_found(program, report), report


@pytest.mark.parametrize("program", tiered(OURS, CHEAPEST))
def test_what_is_healed_is_silent(program):
    report = judge(program, False)
    assert not of_rule(report, program.rule)
    report.raise_for("warning")


def test_each_rule_has_programs_in_four_forms():
    assert len(RULES) == len({program.rule for program in OURS if program.name in CHEAPEST}) == 11
    for rule in RULES:
        forms = {program.form for program in OURS if program.rule == rule}
        assert forms >= {"jaxnorm", "linen", "nnx"}, rule
        assert forms & {"haiku", "equinox", "jax"}, rule


def norm_of(params: Any, stats: Any, x: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    return jaxnorm.batch_norm(params["norm"], stats, x, train=train, momentum=0.9)


# Severities, and the figures that they follow


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "severity"), [(60, None), (120, "note"), (500, "warning"), (3000, "error")])
def test_a_cancelling_variance_is_as_wrong_as_is_said(mean, severity):
    x = normal(256, 64, mean=mean)

    def body(params, stats, x, train):
        return own_norm(squares, params["norm"], stats, x, train)

    found = of_rule(lint_pure(body, {"norm": (jnp.ones(64), jnp.zeros(64))}, (x.mean(0), x.var(0)), x), "cancelling-variance")
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    if severity:
        exact = np.asarray(x, np.float64).var(0)
        error = np.max(np.abs(np.asarray(squares(x)[1]) - exact) / exact)
        assert 0.05 * found[0].figures["error"] < error < 5 * found[0].figures["error"]


def some_flat(share: float) -> jax.Array:
    """Examples of which so many have mean 1 and nearly no variance."""
    flat = jnp.arange(32) < share * 32
    return jnp.where(flat[:, None], 1 + 1e-3 * normal(32, 8), normal(32, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "found"), [(0.08, []), (0.4, ["epsilon-dominates"]), (0.6, ["cancelling-variance", "epsilon-dominates"])]
)
def test_norms_within_examples_are_not_judged_by_the_worst_of_them(share, found):
    report = lint_linen(lambda x, train: nn.LayerNorm()(x), some_flat(share))
    assert sorted(finding.rule for finding in report.findings) == found


@pytest.mark.slow
@pytest.mark.parametrize(("dead", "severity"), [(0, None), (2, "note"), (3, "warning")])
def test_more_than_half_of_the_channels_dead_is_a_warning(dead, severity):
    report = lint_pure(norm_of, {"norm": NORM}, STATS, normal().at[:, :dead].set(0.7))
    assert [finding.severity for finding in of_rule(report, "dead-channel")] == ([severity] if severity else [])
    assert not of_rule(report, "epsilon-dominates")
    if severity:
        assert only(report, "dead-channel").figures == {"dead": dead, "share": dead / 4}


@pytest.mark.slow
@pytest.mark.parametrize(("small", "severity"), [(0, None), (2, "note"), (3, "warning")])
def test_epsilon_is_compared_with_the_variance_of_each_channel(small, severity):
    x = normal() * jnp.where(jnp.arange(4) < small, 0.005, 1.0)
    report = lint_pure(norm_of, {"norm": NORM}, jaxnorm.RunningStats(x.mean(0), x.var(0)), x)
    assert [finding.severity for finding in of_rule(report, "epsilon-dominates")] == ([severity] if severity else [])
    if severity:
        finding = only(report, "epsilon-dominates")
        np.testing.assert_allclose(finding.figures["var"], np.median(x.var(0)[:small]), rtol=1e-5)
        assert (finding.figures["share"], finding.figures["epsilon"]) == (small / 4, pytest.approx(1e-5))


@pytest.mark.slow
def test_two_layer_norms_are_a_note_and_two_batch_norms_a_warning():
    found = {
        program.name: only(program.lint(True), "norm-after-norm")
        for program in OURS
        if "norm_after_norm" in program.name and program.form == "linen"
    }
    assert {name: finding.severity for name, finding in found.items()} == {
        "linen_norm_after_norm": "note",
        "linen_norm_after_norm_in_remat": "warning",
    }
    assert "it norms what LayerNorm_0" in found["linen_norm_after_norm"].why


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "severity"), [(None, "warning"), (optax.sgd(0.1), "error")])
def test_averages_among_the_parameters_are_an_error_with_an_optimizer(optimizer, severity):
    def body(params, stats, x, train):
        return jaxnorm.batch_norm(params["norm"], params["averages"], x, train=train, momentum=0.9)[0], ()

    finding = only(lint_pure(body, {"norm": NORM, "averages": STATS}, (), normal(), optimizer), "averages-in-optimizer")
    assert (finding.severity, finding.where.path) == (severity, "params/averages/var")


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["warm-up", "gradients added up"])
def test_decay_is_seen_in_a_later_step_too(steps):
    decay = optax.adamw(optax.linear_schedule(0.0, 1e-3, 10), weight_decay=0.1)
    optimizer = decay if steps == "warm-up" else optax.MultiSteps(optax.adamw(1e-3), 4).gradient_transformation()
    finding = only(lint_pure(norm_of, {"norm": NORM}, STATS, normal(), optimizer), "decay-on-norm")
    assert finding.figures["params"] == 2
    assert finding.fix == "optax.adamw(..., mask=jaxnorm.training.no_decay_mask)"


@pytest.mark.slow
def test_decay_of_kernels_alone_is_none_of_norms_and_noise_is_no_decay():
    optimizer = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.adamw(1e-3, mask=no_decay_mask))
    assert not of_rule(lint_pure(norm_of, {"norm": NORM}, STATS, normal(), optimizer), "decay-on-norm")


@pytest.mark.slow
def test_decay_by_a_loss_that_an_optimizer_asks_for_is_seen():
    optimizer = optax.chain(optax.adamw(1e-3), optax.contrib.reduce_on_plateau())
    assert of_rule(lint_pure(norm_of, {"norm": NORM}, STATS, normal(), optimizer), "decay-on-norm")


@pytest.mark.slow
def test_a_norm_of_features_that_are_not_trained_is_not_stopped():
    def body(x, train):
        features = jax.lax.stop_gradient(nn.Conv(4, (3, 3), use_bias=False)(x).mean((1, 2)))
        return nn.BatchNorm(not train, momentum=0.9)(features)

    assert not lint_linen(body, normal(32, 6, 6, 2)).findings


# Which parameters are of no use


@pytest.mark.slow
def test_of_several_biases_those_that_the_norm_takes_out_are_found():
    def body(params, stats, x, train):
        x, first = jaxnorm.batch_norm(params["norm"], stats[0], x + params["useless"], train=train, momentum=0.9)
        x = jnp.tanh(x) @ params["kernel"]
        x, second = jaxnorm.batch_norm(params["norm"], stats[1], x * x.mean(1, keepdims=True) + params["vain"], train=train)
        return jaxnorm.layer_norm(params["norm"], x * params["used"]), (first, second)

    params = {"useless": jnp.zeros(4), "vain": jnp.ones(4), "used": jnp.ones(4), "kernel": normal(4, 4), "norm": NORM}
    found = of_rule(lint_pure(body, params, (STATS, STATS), normal()), "useless-parameter")
    assert {finding.where.path for finding in found} == {"params/useless", "params/vain"}


@pytest.mark.slow
def test_biases_before_norms_within_examples_are_judged_by_what_they_do():
    def body(x, train):
        x = nn.InstanceNorm()(nn.Conv(4, (3, 3), name="useless")(x))
        x = nn.GroupNorm(2)(nn.Conv(4, (3, 3), name="used")(nn.relu(x)))
        return nn.LayerNorm()(nn.Dense(4, name="used_too")(nn.relu(x))).mean((1, 2))

    found = of_rule(lint_linen(body, normal(32, 6, 6, 2)), "useless-parameter")
    assert [finding.where.path for finding in found] == ["params/useless/bias"]


@pytest.mark.slow
def test_a_branch_that_begins_with_a_scale_of_0_is_not_without_effect():
    def body(x, train):
        y = nn.LayerNorm(scale_init=nn.initializers.zeros)(nn.Dense(4)(x))
        return x + y

    assert not of_rule(lint_linen(body, normal()), "useless-parameter")


# What is not finite, and what changes its type


def test_what_is_given_is_named_rather_than_what_comes_of_it():
    stats = STATS._replace(var=STATS.var.at[1].set(jnp.inf))
    report = lint_pure(norm_of, {"norm": NORM}, stats, normal().at[:, 0].set(1.0))
    finding = only(report, "not-finite")
    assert (finding.where.path, finding.figures) == ("stats/var", {"share": 0.25})
    assert report.findings[0] is finding


def test_what_is_empty_is_finite():
    def apply(key, params, stats, x, *, train):
        return (x, x[:0]), stats

    assert not of_rule(lint(apply, {}, (), normal()), "not-finite")


def first_nan(function: Any) -> Finding:
    def apply(key, params, stats, x, *, train):
        return function(x), stats

    return only(lint(apply, {}, (), normal()), "not-finite")


def root_of_a_negative_number(x):
    return jnp.sqrt(x - 100)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["call", "branch", "loop", "infinity"])
def test_the_line_where_the_first_nan_arises_is_named(way):
    def overflows(x):
        return jnp.exp(100 * x) * jnp.exp(100 * x)

    function = {
        "call": jax.jit(lambda x: 2 * root_of_a_negative_number(jnp.where(x > 0, -jnp.inf, x) * 0 + x)),
        "branch": lambda x: jax.lax.cond(x.sum() > -1e9, root_of_a_negative_number, jnp.exp, x),
        "loop": lambda x: jax.lax.scan(lambda carry, row: (carry, root_of_a_negative_number(row)), 0, x)[1],
        "infinity": overflows,
    }[way]
    finding = first_nan(function)
    line = {"call": "test_the_line", "branch": "root_of_a_negative_number", "loop": "test_the_line", "infinity": ""}[way]
    assert line in finding.where.line
    assert finding.where.path == ("outputs" if way == "infinity" else "")
    assert "of outputs is not finite in training" in finding.why


@pytest.mark.slow
def test_another_tree_of_statistics_is_one_finding():
    def body(params, stats, x, train):
        y, stats = norm_of(params, jaxnorm.RunningStats(*stats), x, train)
        return y, stats

    finding = only(lint_pure(body, {"norm": NORM}, tuple(STATS), normal()), "state-changes-type")
    assert (finding.severity, finding.where.path) == ("warning", "stats")
    assert "RunningStats" in finding.why


@pytest.mark.slow
@pytest.mark.parametrize(("grows", "severity"), [(False, "warning"), (True, "error")])
def test_a_state_that_grows_is_worse_than_one_of_another_type(grows, severity):
    def apply(key, params, stats, x, *, train):
        new = jnp.concatenate([stats, stats]) if grows else stats.astype(jnp.float16)
        return x, new if train else stats

    finding = only(lint(apply, {}, jnp.zeros(3), normal()), "state-changes-type")
    assert (finding.severity, finding.where.path) == (severity, "stats")
    assert f"float32[3] becomes {'float32[6]' if grows else 'float16[3]'} in a step" in finding.why
