"""The rules about batch statistics and averages: they find what is sick at its place, and nothing in what only looks sick."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from lint_programs import averages, batch_statistics, is_found, judge, of_rule, programs_of, tiered
from lint_programs.batch_nets import data, plain_norm, plain_variables, pure_layer, pure_variables, weights

import jaxnorm
from jaxnorm.diagnostics import Report, lint
from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.looking import look_at
from jaxnorm.diagnostics._lint.program import Model

pytestmark = pytest.mark.jax_defaults

OURS = programs_of(averages, batch_statistics)
RULES = {program.rule for program in OURS}
FIRST = {program.rule: program.name for program in OURS if program.form == "nnx"}.values()


@pytest.mark.parametrize("program", tiered(OURS, FIRST))
def test_what_is_sick_is_found_at_its_place(program):
    report = judge(program, True)
    assert is_found(program, report), report


@pytest.mark.parametrize("program", tiered(OURS, FIRST))
def test_what_is_healed_is_silent(program):
    report = judge(program, False)
    assert not of_rule(report, program.rule)
    report.raise_for("warning")
    assert bool(report.norms) == (program.name != "plain_mean_of_the_batch_taken_out")  # silence is not blindness


def test_each_rule_has_programs_in_four_forms():
    assert len(RULES) == len(FIRST) == 8
    for rule in RULES:
        forms = {program.form for program in OURS if program.rule == rule}
        assert forms >= {"linen", "nnx"}, rule
        assert forms & {"jaxnorm", "jaxnorm.linen"}, rule
        assert forms & {"haiku", "equinox", "jax"}, rule


# Figures


def net(x: Any = None, *, stats: Any = None, **options: Any) -> Report:
    """Lints a net of one layer with a norm of ours."""
    params, new = pure_variables("hidden")

    def apply(key, params, stats, x, *, train):
        y, new = pure_layer(params["hidden"], stats["hidden"], x, train=train, **options)
        return y @ params["last"], {"hidden": new}

    return lint(apply, params, {"hidden": stats} if stats else new, data() if x is None else x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "severity", "why"),
    [
        (1, "error", "of 1 element a channel: they are 0 and 0"),
        (7, "warning", "of 7 elements a channel: the variance is off by 58%"),
        (8, "note", "of 8 elements a channel: the variance is off by 53%"),
        (15, "note", "of 15 elements a channel: the variance is off by 38%"),
    ],
)
def test_fewer_elements_are_more_severe(count, severity, why):
    (finding,) = of_rule(net(data(count)), "few-elements")
    assert (finding.severity, finding.figures) == (severity, {"elements": count})
    assert why in finding.why
    assert not of_rule(net(data(16)), "few-elements")


@pytest.mark.parametrize(
    ("program", "kept", "batches", "fix"),
    [
        ("nnx_momentum_of_torch", 0.1, 1.1 / 0.9, "BatchNorm(momentum=0.9)"),
        pytest.param("our_linen_momentum_of_torch", 0.1, 1.1 / 0.9, "BatchNorm(momentum=0.9)", marks=pytest.mark.slow),
        pytest.param("pure_momentum_of_torch", 0.1, 1.1 / 0.9, "momentum=0.9", marks=pytest.mark.slow),
        pytest.param("haiku_decay_of_torch", 0.1, 1.1 / 0.9, "hk.BatchNorm(decay_rate=0.9)", marks=pytest.mark.slow),
        pytest.param(
            "plain_momentum_of_torch_in_a_branch", 0.1, 1.1 / 0.9, "new = 0.9 * old + 0.1 * batch", marks=pytest.mark.slow
        ),
    ],
)
def test_the_weight_of_an_old_average_is_measured(program, kept, batches, fix):
    (one,) = (own for own in OURS if own.name == program)
    (finding,) = of_rule(one.lint(True), "averages-too-short")
    assert finding.fix == fix
    np.testing.assert_allclose([finding.figures["kept"], finding.figures["batches"]], [kept, batches], rtol=1e-4)
    assert finding.figures["elements"] == 64


@pytest.mark.slow
@pytest.mark.parametrize(("momentum", "found"), [(0.0, 1), (0.4, 1), (0.5, 0), (0.999, 0)])
def test_less_than_half_is_too_short(momentum, found):
    assert len(of_rule(net(momentum=momentum), "averages-too-short")) == found


@pytest.mark.slow
def test_the_averages_of_each_layer_are_measured():
    """Those of ours that come later are told from those before, by which they center for accuracy."""
    params, stats = pure_variables("first", "second", "third")

    def apply(key, params, stats, x, *, train):
        new = {}
        for name in stats:
            x, new[name] = pure_layer(params[name], stats[name], x, train=train, momentum=0.25)
        return x @ params["last"], new

    found = of_rule(lint(apply, params, stats, data()), "averages-too-short")
    assert [finding.where.path.partition("/")[0] for finding in found] == ["first", "second", "third"]
    np.testing.assert_allclose([finding.figures["kept"] for finding in found], 0.25, rtol=1e-4)


@pytest.mark.slow
def test_averages_that_depend_on_those_of_other_layers_are_left_out():
    """Batch renorm normalizes by averages in training, so that a later one's batch depends on an earlier one's averages."""
    norm, stats = jaxnorm.init_batch_renorm(4)
    params = {"norm": norm, "turn": weights(4, 4), "last": weights(4, 3)}

    def apply(key, params, stats, x, *, train):
        new = []
        for of_layer in stats:
            x, moved = jaxnorm.batch_renorm(params["norm"], of_layer, x @ params["turn"], train=train, momentum=0.25)
            x, new = jnp.tanh(x), [*new, moved]
        return x @ params["last"], tuple(new)

    averages = Look.at(Model(apply, params, (stats, stats), data(), jax.random.key(0))).averages
    assert list(averages) == ["stats/0/mean", "stats/0/std"]
    for average in averages.values():
        np.testing.assert_allclose(average.kept, 0.25, rtol=1e-4)


@pytest.mark.slow
def test_stale_averages_are_compared_with_the_statistics_of_the_batch():
    kernel = pure_variables("hidden")[0]["hidden"]["kernel"]
    real = np.asarray(data() @ kernel)
    mean, var = real.mean(0), real.var(0)
    stale = jaxnorm.RunningStats(jnp.asarray(mean + 0.7 * real.std(0)), jnp.asarray(var * np.tile([9, 1 / 9], 4)))
    (finding,) = of_rule(net(stats=stale), "averages-stale")
    np.testing.assert_allclose([finding.figures["ratio"], finding.figures["shift"]], [9, 0.7], rtol=1e-3)
    assert not of_rule(net(stats=jaxnorm.RunningStats(jnp.asarray(mean), jnp.asarray(var))), "averages-stale")
    near = jaxnorm.RunningStats(jnp.asarray(mean + 0.3 * real.std(0)), jnp.asarray(var * np.tile([1.4, 1 / 1.4], 4)))
    assert not of_rule(net(stats=near), "averages-stale")


@pytest.mark.slow
def test_averages_are_not_compared_with_inputs_that_are_made_up():
    params, _ = pure_variables("hidden")
    stats = {"hidden": jaxnorm.RunningStats(jnp.full(8, 3.0), jnp.full(8, 5.0))}

    def apply(key, params, stats, x, *, train):
        y, new = pure_layer(params["hidden"], stats["hidden"], x, train=train)
        return y @ params["last"], {"hidden": new}

    for made_up in (True, False):
        report = look_at(Model(apply, params, stats, data(), jax.random.key(0), made_up=made_up))
        assert bool(of_rule(report, "averages-stale")) != made_up


@pytest.mark.slow
def test_calls_of_a_shared_norm_are_counted():
    norm, stats = jaxnorm.init_batch_norm(4)

    def apply(key, params, stats, x, *, train):
        for _ in range(3):
            y, stats = jaxnorm.batch_norm(params["norm"], stats, x @ params["turn"], train=train, momentum=0.9)
            x = jnp.tanh(y)
        return x @ params["last"], stats

    params = {"norm": norm, "turn": weights(4, 4), "last": weights(4, 3)}
    (finding,) = of_rule(lint(apply, params, stats, data()), "averages-updated-twice")
    assert finding.figures == {"updates": 3}
    assert "moves these averages 3 times" in finding.why


@pytest.mark.slow
def test_all_mesh_axes_are_named():
    two = jax.make_mesh((2, 2), ("data", "more"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    batch = P(("data", "more"))

    def apply(key, params, stats, x, *, train):
        def part(params, stats, x):
            y, new = pure_layer(params["hidden"], stats["hidden"], x, train=train)
            return y @ params["last"], jax.lax.pmean({"hidden": new}, ("data", "more"))

        return jax.shard_map(part, mesh=two, in_specs=(P(), P(), batch), out_specs=(batch, P()))(params, stats, x)

    (finding,) = of_rule(lint(apply, *pure_variables("hidden"), data(128)), "statistics-per-device")
    assert finding.fix == 'axis_name=("data", "more")'
    assert finding.figures == {"elements": 32}


@pytest.mark.slow
def test_examples_of_whole_numbers_are_told_apart():
    """Those of a vocabulary are exchanged for each other, rather than changed to what it has not."""
    params = {"table": weights(5, 8), "norm": jaxnorm.init_batch_norm(8)[0], "last": weights(8, 3)}
    tokens = jax.random.randint(jax.random.key(2), (64, 3), 0, 5)

    def apply(key, params, stats, x, *, train):
        y, _ = jaxnorm.batch_norm(params["norm"], stats, params["table"][x].mean(1), train=True)
        return y @ params["last"], stats

    (finding,) = of_rule(lint(apply, params, jaxnorm.init_batch_norm(8)[1], tokens), "batch-statistics-in-inference")
    assert finding.severity == "error"
    assert 1e-3 < finding.figures["change"] < 1


# What only looks sick


def with_norm(norm: Any, stats: Any) -> Report:
    """Lints a net whose hidden layer goes through `norm(params, stats, x, train) -> (y, stats)`."""
    params, _ = pure_variables("hidden")

    def apply(key, params, stats, x, *, train):
        y, new = norm(params["hidden"]["norm"], stats, x @ params["hidden"]["kernel"], train)
        return jax.nn.relu(y) @ params["last"], new

    return lint(apply, params, stats, data())


NEW = jaxnorm.init_batch_norm(8)[1]
PLAIN = plain_variables("hidden")[1]["hidden"]


def cumulative(params, stats, x, train):
    """The mean of all batches so far."""
    step = stats["step"]
    y, new = jaxnorm.batch_norm(params, stats["of"], x, train=train, momentum=step / (step + 1))
    return y, {"of": new, "step": step + train}


def of_observations(params, stats, x, train):
    """Normalized by averages in training too, which move: as inputs of an agent."""
    new = plain_norm(stats, x, train=True)[1] if train else stats
    return plain_norm(stats, x, train=False)[0], new


def by_what_is_stored(params, stats, x, train):
    """Mean and deviation of the data, once and for all, before a norm that trains."""
    y, new = plain_norm(stats["norm"], jnp.tanh((x - stats["mean"]) / stats["deviation"]), train=train)
    return y, {**stats, "norm": new}


def on_two_branches(params, stats, x, train):
    layers = [lambda stats, x, slope=slope: plain_norm(stats, slope * x, train=train) for slope in (1, 2)]
    return jax.lax.cond(x[0, 0] > 0, *layers, stats, x)


def by_one_step_of_a_loop(params, stats, x, train):
    new, y = jax.lax.scan(lambda stats, x: plain_norm(stats, x, train=train)[::-1], stats, x[None])
    return y[0], new


def frozen(params, stats, x, train):
    return jaxnorm.frozen_batch_norm(params, stats, x), stats


def of_pooled_positions(params, stats, x, train):
    """A norm of what is a mean over positions."""
    return plain_norm(stats, x.reshape(len(x), 4, 2).mean(-1).repeat(2, -1), train=train)


def not_filled_yet(params, stats, x, train):
    """Averages that the first batch sets."""
    mean, var = x.mean(0), x.var(0)
    fresh = {"mean": mean, "var": var}
    mixed = {name: 0.9 * stats[name] + 0.1 * fresh[name] for name in fresh}
    new = {name: jnp.where(stats["first"], fresh[name], mixed[name]) for name in fresh}
    used = fresh if train else stats
    y = (x - used["mean"]) / jnp.sqrt(used["var"] + 1e-5)
    return y, {**new, "first": jnp.asarray(False)} if train else stats


SILENT = {
    "a cumulative average": lambda: with_norm(cumulative, {"of": NEW, "step": jnp.asarray(0.0)}),
    "averages of observations": lambda: with_norm(of_observations, PLAIN),
    "numbers that are stored": lambda: with_norm(
        by_what_is_stored, {"norm": PLAIN, "mean": jnp.full(8, 0.1), "deviation": jnp.full(8, 1.1)}
    ),
    "two branches": lambda: with_norm(on_two_branches, PLAIN),
    "a loop of one step": lambda: with_norm(by_one_step_of_a_loop, PLAIN),
    "frozen by name": lambda: with_norm(frozen, NEW),
    "pooled positions": lambda: with_norm(of_pooled_positions, PLAIN),
    "averages that the first batch sets": lambda: with_norm(
        not_filled_yet, {"mean": jnp.zeros(8), "var": jnp.zeros(8), "first": jnp.asarray(True)}
    ),
}


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in SILENT if name != "two branches"]


@pytest.mark.parametrize("name", ["two branches", *OTHERS])
def test_what_only_looks_sick_is_silent(name):
    assert SILENT[name]().findings == ()


@pytest.mark.slow
def test_norms_that_are_all_frozen_are_a_note():
    report = with_norm(lambda params, stats, x, train: jaxnorm.batch_norm(params, stats, x, train=False), NEW)
    (finding,) = report.findings
    assert (finding.rule, finding.severity) == ("running-statistics-in-training", "note")
    assert "as all do: frozen on purpose?" in finding.why


@pytest.mark.slow
def test_a_mean_of_the_batch_beside_the_outputs_is_silent():
    params, stats = pure_variables("hidden")

    def apply(key, params, stats, x, *, train):
        y, new = pure_layer(params["hidden"], stats["hidden"], x, train=train)
        return (y @ params["last"], jnp.mean(y)), {"hidden": new}

    assert lint(apply, params, stats, data()).findings == ()
