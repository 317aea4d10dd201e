"""The measurement of variance shift and the re-estimation of statistics, on networks small enough to compute by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm import dropout
from jaxnorm.diagnostics import dropout_noise_variance
from jaxnorm.experiments._mlp import MLP, Noise, Params, Place, Stats, batch_norms
from jaxnorm.experiments._shift import measure_shift
from jaxnorm.statistics import precise_stats

EXAMPLES, FEATURES, WIDTH, DEPTH = 64, 3, 4, 3
PLAIN = MLP(batch_norms(), depth=DEPTH, width=WIDTH, features=FEATURES, classes=2)
X = jax.random.normal(jax.random.key(1), (EXAMPLES, FEATURES)) + 0.5


def reestimated(params: Params, stats: Stats, batches: jax.Array) -> Stats:
    def update(stats: Stats, x: jax.Array) -> Stats:
        return replace(PLAIN, norm=batch_norms(momentum=0.0)).forward(None, params, stats, x, train=True)[1]

    return precise_stats(update, stats, batches)


def noisy(place: Place, factor: float = 2.0) -> MLP:
    """A network whose noise is no noise: it multiplies by a number, so that its effect on variances is known."""
    return replace(PLAIN, noise=Noise(lambda key, x: factor * x, 1.0, place))


def by_hand(params: Params, stats: Stats) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Input, preactivation and kernel of every hidden layer in inference, in NumPy."""
    x, layers = np.asarray(X, np.float64), []
    for number in range(1 + len(params.others.dense.bias)):
        layer, running = (
            (params.first, stats.first)
            if number == 0
            else jax.tree.map(lambda a, number=number: a[number - 1], (params.others, stats.others))
        )
        kernel = np.asarray(layer.dense.kernel, np.float64)
        h = x @ kernel + np.asarray(layer.dense.bias)
        layers.append((x, h, kernel))
        normalized = (h - np.asarray(running.mean)) / np.sqrt(np.asarray(running.var) + 1e-5)
        x = np.maximum(normalized * np.asarray(layer.norm.scale) + np.asarray(layer.norm.bias), 0)
    return layers


@pytest.fixture(name="trained", scope="module")
def fixture_trained() -> tuple[Params, Stats]:
    """A network whose stored variances are all wrong by known factors."""
    params, stats = PLAIN.init(jax.random.key(0))
    stats = reestimated(params, stats, X[None])
    others = stats.others._replace(var=stats.others.var * jnp.array([[0.5], [4.0]]))
    return params, Stats(stats.first._replace(var=3 * stats.first.var), others)


def test_shift_is_real_variance_against_stored(trained):
    params, stats = trained
    variances, shift = measure_shift(PLAIN, jax.random.key(2), params, stats, X)
    layers = by_hand(params, stats)
    real = [h.var(0, ddof=1).mean() for _, h, _ in layers]
    stored = [stats.first.var.mean(), *stats.others.var.mean(1)]
    np.testing.assert_allclose(variances.real, real, rtol=1e-4)
    np.testing.assert_allclose(variances.stored, stored, rtol=1e-6)
    np.testing.assert_allclose(shift.compounded, [max(a / b, b / a) for a, b in zip(real, stored, strict=True)], rtol=1e-4)
    assert shift.compounded[0] == pytest.approx(3, rel=1e-4)
    assert np.all(shift.compounded >= 1)


def test_without_noise_every_other_ratio_is_one(trained):
    for model in (PLAIN, noisy("before classifier")):
        _, shift = measure_shift(model, jax.random.key(2), trained[0], trained[1], X)
        for ratio in (shift.alone, shift.closed_form, shift.li):
            np.testing.assert_allclose(ratio, 1, rtol=1e-5)


@pytest.mark.parametrize("place", ["before norm", "before dense"])
def test_noise_is_measured_at_one_layer_alone(trained, place):
    # Doubled inputs of a layer without bias quadruple its variance, and would do so again in the next if they came that far.
    _, shift = measure_shift(noisy(place), jax.random.key(2), trained[0], trained[1], X)
    np.testing.assert_allclose(shift.alone, 4, rtol=1e-4)


@pytest.mark.parametrize("place", ["before norm", "before dense"])
def test_closed_form_is_that_of_the_moments_without_noise(trained, place):
    params, stats = trained
    _, shift = measure_shift(noisy(place), jax.random.key(2), params, stats, X)
    expected = []
    for x, h, kernel in by_hand(params, stats):
        excess = (h**2).mean(0) if place == "before norm" else (x**2).mean(0) @ kernel**2  # the noise is said to have variance 1
        expected.append((h.var(0) + excess).mean() / h.var(0).mean())
    np.testing.assert_allclose(shift.closed_form, expected, rtol=1e-4)


@pytest.mark.parametrize("place", ["before norm", "before dense"])
def test_closed_form_is_that_of_real_dropout(trained, place):
    model = replace(PLAIN, noise=Noise(lambda key, x: dropout(key, x, 0.3), dropout_noise_variance(0.3), place))
    x = jnp.tile(X, (100, 1))
    _, shift = measure_shift(model, jax.random.key(3), trained[0], trained[1], x)
    np.testing.assert_allclose(shift.alone, shift.closed_form, rtol=0.02)
    assert np.all(shift.closed_form > 1.1)


def test_reestimated_statistics_are_those_of_the_inputs_that_each_layer_then_meets(trained):
    params, stats = trained
    stats = reestimated(params, stats, X[None])
    _, shift = measure_shift(PLAIN, jax.random.key(2), params, stats, X)
    # The new statistics are of inputs that were normalized by biased variances; inference normalizes by the unbiased ones.
    # From the third layer on that moves means too, which the stored ones do not follow.
    np.testing.assert_allclose(shift.compounded, (EXAMPLES / (EXAMPLES - 1)) ** np.arange(DEPTH), rtol=0.01)
    np.testing.assert_allclose(shift.compounded[:2], [1, EXAMPLES / (EXAMPLES - 1)], rtol=1e-3)
    means = [h.mean(0) for _, h, _ in by_hand(params, stats)]
    np.testing.assert_allclose(np.stack([stats.first.mean, *stats.others.mean]), np.stack(means), atol=0.02)


def test_reestimated_statistics_forget_the_old_and_pool_batches(trained):
    params, stats = trained
    batches = X.reshape(4, -1, FEATURES)
    got = reestimated(params, stats, batches).first
    h = np.asarray(batches @ params.first.dense.kernel, np.float64)
    np.testing.assert_allclose(got.mean, h.mean(1).mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.var, h.var(1, ddof=1).mean(0) + h.mean(1).var(0), rtol=1e-4)


def test_no_key_is_no_noise_and_one_layer_is_enough():
    plain, model = (replace(each, depth=1) for each in (PLAIN, noisy("before norm")))
    params, stats = plain.init(jax.random.key(0))
    quiet, _, seen = model.forward(None, params, stats, X, train=True)
    np.testing.assert_array_equal(quiet, plain.forward(jax.random.key(4), params, stats, X, train=True)[0])
    assert seen[1].preactivation.shape == (0, EXAMPLES, WIDTH)
    assert measure_shift(model, jax.random.key(2), params, stats, X)[1].compounded.shape == (1,)


@pytest.mark.parametrize("place", ["before norm", "before dense", "before classifier"])
def test_noise_is_at_its_place(place):
    params, stats = PLAIN.init(jax.random.key(0))
    logits, _, _ = noisy(place).forward(jax.random.key(4), params, stats, X, train=False)
    x = np.asarray(X, np.float64)
    for _, h, kernel in by_hand(params, stats):
        assert h.shape[1] == kernel.shape[1]
        h = x @ kernel * (1 if place == "before classifier" else 2)
        x = np.maximum(h / np.sqrt(1 + 1e-5), 0)
    expected = x @ np.asarray(params.classifier.kernel, np.float64) * (2 if place == "before classifier" else 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
