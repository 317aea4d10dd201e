"""The rules about noise and keys: they find what is sick at its place, and nothing in what is healed or only looks sick."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lint_programs import is_found, judge, keys, noise_before_norm, noise_modes, noise_placement, of_rule, programs_of, tiered
from lint_programs.forms import IMAGES, ROWS, WORDS, kernels, lint_linen

import jaxnorm
from jaxnorm.diagnostics import Finding, Report, li_shift_ratio, lint

pytestmark = pytest.mark.jax_defaults

OURS = programs_of(keys, noise_before_norm, noise_modes, noise_placement)
RULES = {program.rule for program in OURS}
FIRST = {program.rule: program.name for program in reversed(OURS)}.values()
PARAMS = kernels(hidden=(8, 8), state=(8, 8), head=(8, 4))


@pytest.mark.parametrize("program", tiered(OURS, FIRST))
def test_what_is_sick_is_found_at_its_place(program):
    report = judge(program, True)
    assert is_found(program, report), report


@pytest.mark.parametrize("program", tiered(OURS, FIRST))
def test_what_is_healed_is_silent(program):
    report = judge(program, False)
    assert not of_rule(report, program.rule)
    report.raise_for("warning")


def test_each_rule_has_programs_in_four_forms():
    assert len(RULES) == len(FIRST) == 8
    for rule in RULES:
        forms = {program.form for program in OURS if program.rule == rule}
        assert forms >= {"jaxnorm", "linen", "nnx"}, rule
        assert forms & {"haiku", "equinox", "jax"}, rule


# Figures


def before_norm(noise: Callable[..., jax.Array], x: Any = ROWS) -> Finding:
    params, stats = jaxnorm.init_batch_norm(8)

    def apply(key, params, stats, x, *, train):
        return jaxnorm.batch_norm(params, stats, noise(key, x) if train else x, train=train, momentum=0.9)

    (finding,) = of_rule(lint(apply, params, stats, x), "noise-before-batch-norm")
    return finding


@pytest.mark.parametrize(
    ("rate", "severity"),
    [(0.35, "error"), pytest.param(0.13, "warning", marks=pytest.mark.slow), pytest.param(0.02, "note", marks=pytest.mark.slow)],
)
def test_severity_follows_the_measured_shift(rate, severity):
    x = np.concatenate([ROWS + 0.5, np.tile(ROWS, (7, 1))])
    finding = before_norm(lambda key, x: jaxnorm.gaussian_dropout(key, x, rate), x)
    variance = rate / (1 - rate)
    expected = np.mean(x.var(0) / np.asarray(li_shift_ratio(x.mean(0), x.var(0), variance))) / np.mean(x.var(0))
    assert finding.severity == severity
    assert abs(finding.figures["shift"] - expected) < 0.1 * variance
    assert abs(finding.figures["predicted"] - expected) < 0.1 * variance
    assert abs(finding.figures["rate"] / rate - 1) < 0.1
    assert finding.figures["smallest"] < finding.figures["shift"] < finding.figures["largest"]
    assert f"is {finding.figures['shift']:.2f} times that in inference" in finding.why


@pytest.mark.slow
def test_a_shift_that_a_later_norm_meets_is_measured_behind_the_linear_layer():
    first, second = jaxnorm.init_batch_norm(8), jaxnorm.init_batch_norm(8)
    params = {"kernel": PARAMS["hidden"], "norms": (first[0], second[0])}

    def apply(key, params, stats, x, *, train):
        x, of_first = jaxnorm.batch_norm(params["norms"][0], stats[0], x, train=train, momentum=0.9)
        x = jaxnorm.dropout(key, x, 0.5) if train else x
        x, of_second = jaxnorm.batch_norm(params["norms"][1], stats[1], x @ params["kernel"], train=train, momentum=0.9)
        return x, (of_first, of_second)

    x = np.tile(ROWS, (16, 1))
    (finding,) = of_rule(lint(apply, params, (first[1], second[1]), x), "noise-before-batch-norm")
    normed = (ROWS - ROWS.mean(0)) / ROWS.std(0)
    clean = (normed @ np.asarray(PARAMS["hidden"])).var(0)
    noisy = clean + np.square(PARAMS["hidden"]).sum(0)  # of inputs of second moment 1, and noise of variance 1
    assert finding.where.path == "norms/1"
    assert "predicted" not in finding.figures
    assert abs(finding.figures["rate"] - 0.5) < 0.05
    assert abs(finding.figures["shift"] / (noisy.mean() / clean.mean()) - 1) < 0.05


@pytest.mark.slow
def test_a_norm_that_a_scanned_block_begins_with_is_measured_in_each_step():
    params, stats = jax.tree.map(lambda leaf: jnp.tile(leaf, (3, 1)), jaxnorm.init_batch_norm(8))

    def apply(key, params, stats, x, *, train):
        def block(x, layer):
            params, stats, key = layer
            x, stats = jaxnorm.batch_norm(params, stats, x, train=train, momentum=0.9)
            return jaxnorm.dropout(key, x, 0.5) if train else x, stats

        return jax.lax.scan(block, x, (params, stats, jax.random.split(key, 3)))

    (finding,) = of_rule(lint(apply, params, stats, ROWS), "noise-before-batch-norm")
    # The first norm meets no noise. The second stores a variance of 2 and meets 1, the third stores 2 and meets 1 / 2.
    assert abs(finding.figures["smallest"] - 1) < 0.05
    assert 3 < finding.figures["largest"] < 5.5
    variance = ROWS.var(0).mean()
    assert abs(finding.figures["shift"] / ((variance + 4) / (variance + 1.5)) - 1) < 0.05


@pytest.mark.slow
def test_without_averages_there_is_no_shift_to_measure():
    def apply(key, params, stats, x, *, train):
        x = jaxnorm.dropout(key, x, 0.5) if train else x
        return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) @ params["head"], stats

    (finding,) = of_rule(lint(apply, PARAMS, {}, ROWS), "noise-before-batch-norm")
    assert (finding.severity, finding.figures) == ("warning", {})


@pytest.mark.slow
@pytest.mark.parametrize(("program", "confirmed"), [("two_dropouts_by_one_key", True), ("haiku_dropouts_by_one_raw_key", False)])
def test_a_typed_key_that_is_used_twice_is_confirmed_by_jax(program, confirmed):
    (one,) = (own for own in OURS if own.name == program)
    (finding,) = of_rule(judge(one, True), "noise-repeated")
    assert ("jax.debug_key_reuse says so too" in finding.why) == confirmed


# What only looks sick


def hidden(noise: Callable[..., jax.Array], *, always: bool = False) -> Report:
    def apply(key, params, stats, x, *, train):
        x = jax.nn.relu(x @ params["hidden"])
        return (noise(key, x) if train or always else x) @ params["head"], stats

    return lint(apply, PARAMS, {}, ROWS)


def before_pool(noise: Callable[..., jax.Array]) -> Report:
    def apply(key, params, stats, x, *, train):
        x = jax.nn.relu(x @ params["embed"])
        x = nn.max_pool(noise(key, x) if train else x, (2, 2), (2, 2))
        return x.reshape(len(x), -1) @ params["head"], stats

    return lint(apply, kernels(embed=(2, 4), head=(64, 4)), {}, IMAGES)


def of_a_scan(state_noise: Callable[..., jax.Array]) -> Report:
    def apply(key, params, stats, x, *, train):
        mask = jax.random.bernoulli(key, 0.8, x[:, 0].shape) / 0.8 if train else 1.0

        def step(state, word_and_key):
            word, key = word_and_key
            new = jnp.tanh(word * mask @ params["hidden"] + state @ params["state"])
            return state_noise(key, state, new, train), None

        keys = jax.random.split(jax.random.fold_in(key, 1), x.shape[1])
        state, _ = jax.lax.scan(step, 0 * x[:, 0], (x.swapaxes(0, 1), keys))
        return state @ params["head"], stats

    return lint(apply, PARAMS, {}, WORDS)


def random_features(key, x):
    phases = jax.random.uniform(jax.random.key(1), (8,))
    return jnp.cos(x @ jax.random.normal(jax.random.key(0), (8, 8)) + phases) * jax.random.rademacher(
        jax.random.key(2), (8,), x.dtype
    )


def noisy_layer_by_hand(key, x):
    of_kernel, of_bias = jax.random.split(key)
    return x @ (jnp.eye(8) + 0.1 * jax.random.normal(of_kernel, (8, 8))) + 0.1 * jax.random.normal(of_bias, (8,))


def one_key_on_two_branches(key, x):
    branches = (lambda x: jaxnorm.dropout(key, x, 0.5), lambda x: jaxnorm.gaussian_dropout(key, x, 0.3))
    return jax.lax.cond(x.sum() > 0, *branches, x)


SILENT = {
    "mixtures of the batch": lambda: hidden(lambda key, x: (a := jax.random.beta(key, 1.0, 1.0)) * x + (1 - a) * x[::-1]),
    "random features": lambda: hidden(random_features, always=True),
    "a fixed choice of weights": lambda: hidden(
        lambda key, x: x @ (jnp.eye(8) * jax.random.bernoulli(jax.random.key(3), 0.5, (8, 8))), always=True
    ),
    "stochastic depth": lambda: hidden(lambda key, x: x + jaxnorm.drop_path(key, jnp.tanh(x), 0.3, mode="batch")),
    "a shared mask that was asked for": lambda: hidden(lambda key, x: jaxnorm.dropout(key, x, 0.3, broadcast_dims=(0,))),
    "noise of a layer": lambda: hidden(noisy_layer_by_hand),
    "several draws within a function of ours": lambda: hidden(lambda key, x: jaxnorm.swapout(key, x, jnp.tanh(x), 0.3)),
    "branches": lambda: hidden(one_key_on_two_branches),
    "a checkpoint": lambda: hidden(jax.checkpoint(lambda key, x: jaxnorm.dropout(key, x, 0.5))),
    "whole channels before a maximum": lambda: before_pool(lambda key, x: jaxnorm.spatial_dropout(key, x, 0.5)),
    "whole channels by hand": lambda: before_pool(lambda key, x: x * jax.random.bernoulli(key, 0.5, (len(x), 1, 1, 4)) / 0.5),
    "a mask that a scan has in common": lambda: of_a_scan(lambda key, old, new, train: new),
    "zoneout": lambda: of_a_scan(
        lambda key, old, new, train: jaxnorm.zoneout(key, old, new, 0.2) if train else jaxnorm.zoneout_mean(old, new, 0.2)
    ),
}


@pytest.mark.parametrize(
    "name", [name if name == "noise of a layer" else pytest.param(name, marks=pytest.mark.slow) for name in SILENT]
)
def test_what_only_looks_sick_is_silent(name):
    assert SILENT[name]().findings == ()


@pytest.mark.slow
def test_samples_in_inference_are_a_note():
    class Autoencoder(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            mean, deviation = jnp.split(nn.Dense(8)(nn.relu(nn.Dense(8)(x))), 2, -1)
            latent = mean + jnp.exp(deviation) * jax.random.normal(self.make_rng("dropout"), mean.shape)
            return nn.Dense(8)(nn.relu(nn.Dense(8)(latent))), mean, deviation

    (finding,) = lint_linen(Autoencoder()).findings
    assert (finding.rule, finding.severity) == ("noise-in-inference", "note")


@pytest.mark.slow
def test_an_encoder_is_told_what_is_shared_and_what_stands_on_its_output():
    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=not train)(y, y)
            return x + nn.Dropout(0.1, deterministic=not train)(nn.Dense(8)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x)))))

    report = lint_linen(Encoder(), WORDS)
    found = {(finding.rule, finding.severity, finding.where.path) for finding in report.findings}
    assert found == {
        ("noise-shared-by-examples", "note", "MultiHeadDotProductAttention_0"),
        ("noise-on-output", "note", "Dropout_0"),
    }
