"""Joins of branches: values by the oracle's masks, moments in closed form (methods_supplement.md S2.7, S2.11, S2.12), limits."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from cases import SHAPE, data
from numpy.testing import assert_allclose, assert_array_equal
from randomness import ALPHA
from tiers import then_slow

import jaxnorm
from jaxnorm import (
    fractal_join,
    fractal_join_mean,
    shake_drop,
    shake_drop_mean,
    shake_shake,
    shake_shake_mean,
    swapout,
    swapout_mean,
)
from jaxnorm.benchmarks._costs import residuals

X, BRANCH, THIRD = data(), data(seed=4), data(seed=5)
EXAMPLES = 20_000
JOINS = {
    "swapout": lambda key, x, branch: swapout(key, x, branch, 0.3, branch_rate=0.6),
    "fractal_join": lambda key, x, branch: fractal_join(key, [x, branch, branch + x], 0.6),
    "fractal_join, global": lambda key, x, branch: fractal_join(key, [x, branch], 0.6, mode="global"),
    "shake_drop": lambda key, x, branch: shake_drop(key, x, branch, 0.6),
    "shake_drop, element": lambda key, x, branch: shake_drop(key, x, branch, 0.6, per="element"),
    "shake_shake": lambda key, x, branch: shake_shake(key, x, branch),
}
each_join = pytest.mark.parametrize("name", JOINS)


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


def words(count: int, seed: int = 11) -> list[np.ndarray]:
    """The words of the keys of so many draws."""
    return [np.asarray(jax.random.key_data(key)) for key in jax.random.split(new_key(seed), count)]


def within_four_sigma(values: np.ndarray, mean: Any) -> bool:
    sigma = values.std(0) / np.sqrt(len(values))
    return bool((np.abs(values.mean(0) - mean) <= 4 * sigma + 1e-7).all())


# Swapout


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("dims", [(), (1, 2)], ids=str)
def test_swapout_equals_the_oracle(dims: tuple[int, ...], bits: int) -> None:
    shape = tuple(1 if axis in dims else n for axis, n in enumerate(SHAPE))
    kept = [oracles.keep_mask(own, shape, rate, bits) for own, rate in zip(words(2), (0.3, 0.6), strict=True)]
    y = swapout(new_key(), X, BRANCH, 0.3, branch_rate=0.6, broadcast_dims=dims, bits=bits)
    assert_allclose(y, np.where(kept[0], X, 0.0) + np.where(kept[1], BRANCH, 0.0), rtol=1e-6)


def test_swapout_has_its_mean_and_variance() -> None:
    """S2.7: both masks are independent, and nothing is scaled."""
    x, branch = jnp.full(EXAMPLES, 1.5), jnp.full(EXAMPLES, -4.0)
    y = np.asarray(swapout(new_key(), x, branch, 0.3, branch_rate=0.1), np.float64)
    assert within_four_sigma(y, swapout_mean(1.5 * jnp.ones(()), jnp.float32(-4), 0.3, branch_rate=0.1))
    assert within_four_sigma((y - y.mean()) ** 2, 0.3 * 0.7 * 1.5**2 + 0.1 * 0.9 * 16)
    assert not within_four_sigma((y - y.mean()) ** 2, 0.3 * 0.7 * 1.5**2 + 0.12 * 0.88 * 16)  # a control
    kept = [np.asarray(swapout(new_key(), *(jnp.full(EXAMPLES, a) for a in pair), 0.3)) != 0 for pair in ((1.0, 0.0), (0.0, 1.0))]
    assert randomness.independence(~kept[0], ~kept[1], 0.3) > ALPHA
    assert randomness.independence(~kept[0], ~kept[0], 0.3) < ALPHA


def test_limits_of_swapout() -> None:
    """Pitfalls 78, 81: rates 0 and 1 are exact, traced ones too."""
    assert_array_equal(swapout(new_key(), X, BRANCH, 0), X + BRANCH)
    run = jax.jit(lambda rate, other: swapout(new_key(), X, BRANCH, rate, branch_rate=other))
    assert_array_equal(run(0.0, 1.0), X)
    assert_array_equal(run(1.0, 1.0), np.zeros(SHAPE))
    depth = swapout(new_key(), X, BRANCH, 0, branch_rate=0.5, broadcast_dims=(1, 2, 3))
    for i in range(len(X)):
        assert (depth[i] == X[i]).all() or (depth[i] == X[i] + BRANCH[i]).all()
    dropped = swapout(new_key(), X, BRANCH, 1.0, branch_rate=0.5)
    assert ((dropped == 0) | (dropped == BRANCH)).all()
    assert 0 < (dropped == 0).sum() < X.size
    for bad in (-0.1, 1.5, np.nan):
        assert jnp.isnan(run(bad, 0.5)).all()
        assert jnp.isnan(run(0.5, bad)).all()


# FractalNet


@pytest.mark.parametrize("bits", then_slow([16, 8, 32]))
def test_fractal_join_equals_the_oracle(bits: int) -> None:
    branches = [np.asarray(a, np.float64) for a in (X, BRANCH, THIRD)]
    *of_branches, of_choice = words(4)
    kept = np.stack([oracles.keep_mask(own, (8, 1, 1, 1), 0.6, bits) for own in of_branches])
    chosen = oracles.random_words(of_choice, (8, 1, 1, 1)).astype(np.int64) * 3 >> 32
    kept = np.where(kept.any(0), kept, chosen == np.arange(3).reshape(3, 1, 1, 1, 1))
    y = fractal_join(new_key(), branches_of(), 0.6, bits=bits)
    assert_allclose(y, sum(k * branch for k, branch in zip(kept, branches, strict=True)) / kept.sum(0), rtol=1e-6, atol=1e-6)


def branches_of() -> list[jax.Array]:
    return [X, BRANCH, THIRD]


def weights_of_branches(rate: float, count: int = 3, **options: Any) -> np.ndarray:
    """The weight of each branch in the mean, for many examples."""
    one = np.eye(count, dtype=np.float32)
    branches = [jnp.broadcast_to(jnp.asarray(one[j]), (EXAMPLES, count)) for j in range(count)]
    return np.asarray(fractal_join(new_key(), branches, rate, **options), np.float64)


@pytest.mark.parametrize("rate", [0.15, 0.6, 1.0])
@pytest.mark.parametrize("mode", ["local", "global"])
def test_every_branch_has_the_same_weight_on_average(rate: float, mode: str) -> None:
    """S2.12: exactly 1 / k, since the one that is kept where all are dropped is drawn evenly."""
    found = weights_of_branches(rate, mode=mode)
    assert within_four_sigma(found, 1 / 3)
    assert_allclose(found.sum(1), 1, rtol=1e-6)
    one_alone = np.mean(found.max(1) == 1)
    alone = 1.0 if mode == "global" else 3 * (1 - rate) * rate**2 + rate**3
    assert abs(one_alone - alone) <= 4 * np.sqrt(alone * (1 - alone) / EXAMPLES)
    if mode == "local" and rate < 1:
        counts = {float(weight) for weight in np.unique(found.max(1).astype(np.float32))}
        assert counts == {np.float32(1 / 3), 0.5, 1.0}


def test_control_the_first_branch_is_kept_where_all_are_dropped() -> None:
    found = weights_of_branches(0.6)
    kept = np.random.default_rng(0).random(found.shape) < 0.4
    kept[:, 0] |= ~kept.any(1)
    assert not within_four_sigma(kept / kept.sum(1, keepdims=True), 1 / 3)


def test_a_global_draw_is_of_one_column_of_the_network() -> None:
    """The same for joins of other shapes and, counted from the last, of fewer branches."""
    whole = weights_of_branches(0.5, 4, mode="global").argmax(1)
    pair = weights_of_branches(0.5, 2, mode="global", columns=4).argmax(1)
    assert_array_equal(pair, np.maximum(whole, 2) - 2)
    images = fractal_join(new_key(), [jnp.full((EXAMPLES, 2, 3), float(j)) for j in range(4)], 0.5, mode="global")
    assert_array_equal(images, np.broadcast_to(whole[:, None, None], images.shape))
    assert len(set(whole)) == 4


@pytest.mark.parametrize("mode", ["local", "global"])
def test_one_draw_for_the_batch(mode: str) -> None:
    found = {
        tuple(map(float, fractal_join(new_key(i), [jnp.ones(5), 0 * jnp.ones(5)], 0.5, mode=mode, per="batch")))
        for i in range(20)
    }
    assert all(len(set(y)) == 1 for y in found)
    assert {y[0] for y in found} == ({0.0, 0.5, 1.0} if mode == "local" else {0.0, 1.0})


def test_the_mean_of_branches() -> None:
    assert_allclose(fractal_join_mean(branches_of()), np.mean(branches_of(), 0), rtol=1e-6, atol=1e-6)
    assert_allclose(fractal_join(new_key(), branches_of(), 0.0), np.mean(branches_of(), 0), rtol=1e-6, atol=1e-6)
    assert_array_equal(fractal_join(new_key(), [X], 1.0), X)


# Shaken branches


def factors(name: str = "shake_drop", **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The factor of the branch forward, and of its gradient, of many examples."""
    zeros, ones = jnp.zeros(EXAMPLES), jnp.ones(EXAMPLES)

    def run(branch: jax.Array) -> jax.Array:
        return (
            shake_drop(new_key(), zeros, branch, 0.6, **options)
            if name == "shake_drop"
            else shake_shake(new_key(), branch, zeros, **options)
        )

    y, pullback = jax.vjp(run, ones)
    return np.asarray(y, np.float64), np.asarray(pullback(ones)[0], np.float64)


def test_moments_of_the_factors_of_shake_drop() -> None:
    """methods.md 4.9: b + alpha - b alpha, of mean 1 - rate; backward with beta, which is independent of alpha."""
    forward, backward = factors()
    kept = forward == 1
    assert within_four_sigma(kept.astype(float), 0.4)
    assert within_four_sigma(forward, 0.4)
    assert within_four_sigma(forward**2, 0.4 + 0.6 / 3)
    assert within_four_sigma(backward, 0.4 + 0.6 / 2)
    assert not within_four_sigma(backward, 0.4)  # a control: it is not the value's
    assert_array_equal(backward[kept], 1)
    alpha, beta = forward[~kept], 2 * backward[~kept] - 1
    assert abs(np.mean(alpha * beta)) < 4 / 3 / np.sqrt(alpha.size)
    assert abs(np.mean(alpha * alpha)) > 4 / 3 / np.sqrt(alpha.size)
    assert alpha.min() > -1
    assert 0 < backward[~kept].min() < backward.max() <= 1
    assert_allclose(shake_drop_mean(jnp.zeros(1), jnp.ones(1), 0.6), 0.4, rtol=1e-6)


def test_other_ranges_of_shake_drop() -> None:
    forward, backward = factors(alpha=(0.5, 1.5), beta=(0.25, 0.25))
    assert within_four_sigma(forward, 1.0)
    assert_array_equal(np.unique(backward), [0.25, 1])
    assert_allclose(shake_drop_mean(jnp.zeros(1), jnp.ones(1), 0.6, alpha=(0.5, 1.5)), 1, rtol=1e-6)
    forward, backward = factors(alpha=(0, 0), beta=(0, 0))  # stochastic depth
    assert_array_equal(forward, backward)
    assert_array_equal(np.unique(forward), [0, 1])


def test_what_shares_the_numbers_of_shake_drop() -> None:
    for per, gates, numbers in (("example", 8, 8), ("element", 8, X.size), ("batch", 1, 1)):
        y = np.asarray(shake_drop(new_key(2), jnp.zeros(SHAPE), jnp.ones(SHAPE), 0.6, per=per))
        kept = (y == 1).reshape(8, -1)
        assert (kept == kept[:, :1]).all()
        assert len(np.unique(y[y != 1])) <= numbers
        assert len(np.unique(y[y != 1])) >= 0.3 * numbers or gates == 1


@pytest.mark.parametrize("backward", ["shake", "even", "keep"])
def test_moments_of_shake_shake(backward: str) -> None:
    """S2.11: alpha is even on [0, 1], of variance 1 / 12; beta is what `backward` says."""
    alpha, beta = factors("shake_shake", backward=backward)
    assert within_four_sigma(alpha, 0.5)
    assert within_four_sigma((alpha - 0.5) ** 2, 1 / 12)
    assert not within_four_sigma((alpha - 0.5) ** 2, 1 / 11.5)  # a control
    if backward == "shake":
        assert within_four_sigma((alpha - 0.5) * (beta - 0.5), 0)
        assert within_four_sigma((beta - 0.5) ** 2, 1 / 12)
    else:
        assert_array_equal(beta, alpha if backward == "keep" else np.full_like(alpha, 0.5))


def test_shake_shake_mixes_two_branches() -> None:
    y, pullback = jax.vjp(lambda first, second: shake_shake(new_key(), first, second), X, BRANCH)
    alpha = shake_shake(new_key(), jnp.ones(SHAPE), jnp.zeros(SHAPE))
    assert_allclose(y, alpha * X + (1 - alpha) * BRANCH, rtol=1e-5, atol=1e-5)
    of_first, of_second = pullback(jnp.ones(SHAPE))
    assert_allclose(of_first + of_second, np.ones(SHAPE), rtol=1e-6)
    assert_allclose(shake_shake_mean(X, BRANCH), (X + BRANCH) / 2, rtol=1e-6)


@pytest.mark.parametrize("name", then_slow(["shake_drop", "shake_shake"]))
def test_shaken_derivatives_are_the_same_in_both_modes_and_constant(name: str) -> None:
    """methods_supplement.md, correction 11."""
    run = lambda branch: JOINS[name](new_key(), X, branch)  # noqa: E731
    _, pullback = jax.vjp(run, BRANCH)
    _, tangent = jax.jvp(run, (BRANCH,), (jnp.ones(SHAPE),))
    assert_array_equal(pullback(jnp.ones(SHAPE))[0], tangent)
    assert_array_equal(jax.grad(lambda branch: jnp.sum(jax.grad(lambda b: jnp.sum(run(b)))(branch)))(BRANCH), np.zeros(SHAPE))
    assert (jnp.abs(tangent - (run(BRANCH + 1) - run(BRANCH))) > 1e-3).any()  # a control: not those of the value


# All of them


@each_join
def test_nothing_but_the_keys_is_kept(name: str) -> None:
    kept = residuals(lambda branch, x: (JOINS[name](new_key(), x, branch), None), jnp.ones((64, 8)), jnp.ones((64, 8)))
    assert kept.nbytes < 128  # keys, probabilities and limits
    assert not kept.keeps_input


@pytest.mark.parametrize("bad", then_slow([np.nan, np.inf]))
def test_what_a_dropped_branch_holds_reaches_nothing(bad: float) -> None:
    """A selection, not a product with 0."""
    spoiled, whole = jnp.full(SHAPE, bad), jnp.ones(SHAPE)
    for run in (
        lambda branch: swapout(new_key(), whole, branch, 0.3, branch_rate=1.0),
        lambda branch: swapout(new_key(), branch, whole, 1.0, branch_rate=0.3),
        lambda branch: shake_drop(new_key(), whole, branch, 1.0, alpha=(0, 0), beta=(0, 0)),
    ):
        y, pullback = jax.vjp(run, spoiled)
        assert jnp.isfinite(y).all()
        assert_array_equal(pullback(whole)[0], np.zeros(SHAPE))
    y, pullback = jax.vjp(lambda branch: fractal_join(new_key(), [whole, branch], 0.6), spoiled)
    kept = np.asarray(fractal_join(new_key(), [jnp.zeros(SHAPE), whole], 0.6))
    assert_array_equal(np.isfinite(y), kept == 0)
    assert_array_equal(pullback(whole)[0], kept)


@pytest.mark.slow
@each_join
def test_legacy_keys_and_lanes_draw_the_same(name: str) -> None:
    """Pitfalls 94, 103."""
    expected = JOINS[name](new_key(), X, BRANCH)
    assert_allclose(JOINS[name](jax.random.PRNGKey(11), X, BRANCH), expected, rtol=1e-6)
    lanes = jax.vmap(lambda key: JOINS[name](key, X, BRANCH))(jax.random.split(new_key(), 2))
    assert_allclose(lanes[1], JOINS[name](jax.random.split(new_key(), 2)[1], X, BRANCH), rtol=1e-5, atol=1e-6)


ERRORS = {
    "rate above 1": (lambda: swapout(new_key(), X, BRANCH, 1.5), ValueError, r"rate must be in \[0, 1\], got 1.5"),
    "branch_rate NaN": (lambda: swapout(new_key(), X, BRANCH, 0.5, branch_rate=np.nan), ValueError, "branch_rate must be in"),
    "rate a string": (lambda: shake_drop(new_key(), X, BRANCH, "0.5"), TypeError, "rate must be a number .*'0.5'"),
    "branch of another shape": (lambda: swapout(new_key(), X, BRANCH[:1], 0.5), ValueError, r"branch must have shape .*\[1, 2"),
    "branch of ints": (lambda: shake_drop(new_key(), X, BRANCH.astype(int), 0.5), TypeError, "branch must be .*int32"),
    "second of another shape": (lambda: shake_shake(new_key(), X, BRANCH[0]), ValueError, "second must have shape"),
    "rate of another shape": (lambda: swapout(new_key(), X, BRANCH, jnp.ones(3)), ValueError, r"rate must be .*got shape \[3\]"),
    "bits": (lambda: swapout(new_key(), X, BRANCH, 0.5, bits=4), ValueError, "bits must be 8, 16 or 32, got 4"),
    "bits too few": (lambda: swapout(new_key(), X, BRANCH, 0.5, branch_rate=0.01, bits=8), ValueError, "rate of 0.01"),
    "per": (lambda: shake_drop(new_key(), X, BRANCH, 0.5, per="pixel"), ValueError, "per must be .*got 'pixel'"),
    "mode": (lambda: fractal_join(new_key(), [X], 0.5, mode="both"), ValueError, "mode must be 'local' or 'global', got 'both'"),
    "backward": (lambda: shake_shake(new_key(), X, X, backward="odd"), ValueError, "backward must be .*got 'odd'"),
    "no branches": (lambda: fractal_join(new_key(), [], 0.5), ValueError, "branches must be one array at least"),
    "an array for branches": (lambda: fractal_join(new_key(), X, 0.5), TypeError, "branches must be a sequence"),
    "branches differ": (lambda: fractal_join_mean([X, X[:1]]), ValueError, r"branches\[1\] must have shape"),
    "columns": (lambda: fractal_join(new_key(), [X, X], 0.5, columns=1), ValueError, "columns must be at least .* got 1"),
    "no examples": (lambda: shake_shake(new_key(), jnp.ones(()), jnp.ones(())), ValueError, "first must have an axis of exa"),
    "a range of one": (lambda: shake_drop(new_key(), X, X, 0.5, alpha=(1,)), ValueError, r"alpha must be .*\(1,\)"),
    "a range in descending order": (
        lambda: shake_drop(new_key(), X, X, 0.5, beta=(1, 0)),
        ValueError,
        r"beta must be .*\(1, 0\)",
    ),
    "no key": (lambda: swapout(None, X, BRANCH, 0.5), TypeError, "key must be one key"),
    "several keys": (lambda: shake_shake(jax.random.split(new_key()), X, X), ValueError, "key must be one key"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name: str) -> None:
    """Pitfalls 80, 83, 103."""
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


def test_traced_rates_out_of_range_give_nan() -> None:
    for name, bad in itertools.product(("shake_drop", "fractal_join", "shake_drop_mean", "swapout_mean"), (-0.1, 1.5, np.nan)):
        function = getattr(jaxnorm, name)
        drawn = () if name.endswith("_mean") else (new_key(),)
        given = ([X, BRANCH],) if name == "fractal_join" else (X, BRANCH)
        assert jnp.isnan(jax.jit(lambda rate, f=function, d=drawn, g=given: f(*d, *g, rate))(bad)).all(), (name, bad)
