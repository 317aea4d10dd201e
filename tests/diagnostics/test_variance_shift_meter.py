"""The variance shift of functions, linen and nnx models, against float64, and its prediction against drawn noise."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks_of_norms import WIDTH, data, network, update_of
from numpy.testing import assert_allclose
from tiers import then_slow

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics import dropout_noise_variance, variance_shift
from jaxnorm.statistics import linen_update, nnx_update

DEPTH = 3
PARAMS, STATS = network(DEPTH)
X = data()
LINEN = {"ours": (jaxnorm.linen.BatchNorm, jaxnorm.linen.Dropout), "flax": (nn.BatchNorm, nn.Dropout)}
NNX = {"ours": (jaxnorm.nnx.BatchNorm, jaxnorm.nnx.Dropout), "flax": (nnx.BatchNorm, nnx.Dropout)}


def oracle(x: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of what enters each norm, where those before it normalize by what they stored, in float64."""
    h, found = np.asarray(x, np.float64).reshape(-1, WIDTH), []
    for (kernel, norm), stats in zip(PARAMS, STATS, strict=True):
        h = h @ np.asarray(kernel, np.float64)
        found.append((h.mean(0), h.var(0)))
        h = (h - np.asarray(stats.mean)) / np.sqrt(np.asarray(stats.var, np.float64) + 1e-5)
        h = np.maximum(h * np.asarray(norm.scale, np.float64) + np.asarray(norm.bias, np.float64), 0)
    return found


def assert_measured(found: dict[str, Any], x: Any = X) -> None:
    for shift, stats, (_, real) in zip(found.values(), STATS, oracle(x), strict=True):
        stored = np.asarray(stats.var, np.float64)
        assert_allclose(shift.stored, stored)
        assert_allclose(shift.real, real, rtol=1e-5)
        assert_allclose(shift.ratio, real / stored, rtol=1e-5)
        assert_allclose(shift.shift, max(stored.mean() / real.mean(), real.mean() / stored.mean()), rtol=1e-5)


class Net(nn.Module):
    norm: Any
    drop: Any

    @nn.compact
    def __call__(self, x, *, train):
        for _ in range(DEPTH):
            x = self.drop(0.5, deterministic=not train)(nn.Dense(WIDTH, use_bias=False)(x))
            x = nn.relu(self.norm(use_running_average=not train)(x))
        return x


class NnxNet(nnx.Module):
    def __init__(self, norm: Any, drop: Any) -> None:
        rngs = nnx.Rngs(0)
        self.dense = nnx.List([nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs) for _ in range(DEPTH)])
        self.norms = nnx.List([norm(WIDTH, rngs=rngs) for _ in range(DEPTH)])
        self.drop = drop(0.5, rngs=rngs)
        self.unused = norm(WIDTH, rngs=rngs)

    def __call__(self, x):
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = nnx.relu(norm(self.drop(dense(x))))
        return x


def test_functions_by_hand_with_a_prediction_for_some() -> None:
    update = update_of(PARAMS, by_stats=True)
    found = jax.jit(lambda stats, x: variance_shift(update, stats, x, noise_variance={"0": 1.0, "2": jnp.full(WIDTH, 0.5)}))(
        STATS, X
    )
    assert list(found) == ["0", "1", "2"]
    assert_measured(found)
    for shift, (mean, real), noise in zip(found.values(), oracle(X), (1.0, None, 0.5), strict=True):
        if noise is None:
            assert shift.predicted is None
        else:
            assert_allclose(shift.predicted, real / (real + (mean**2 + real) * noise), rtol=1e-5)


def test_uneven_batches_that_come_one_by_one() -> None:
    rows = X.reshape(-1, WIDTH)
    found = variance_shift(update_of(PARAMS[:1], by_stats=True), STATS[:1], iter([rows[:50], rows[50:]]), progress=False)
    assert_allclose(found["0"].real, oracle(X)[0][1], rtol=1e-5)
    assert found["0"].predicted is None


@pytest.mark.parametrize("train", then_slow([True, False]))
@pytest.mark.parametrize("of", then_slow(list(LINEN)))
def test_linen(of: str, train: bool) -> None:
    norm, _ = LINEN[of]
    net = Net(*LINEN[of])
    params: dict[str, Any] = {f"Dense_{i}": {"kernel": kernel} for i, (kernel, _) in enumerate(PARAMS)}
    params |= {f"BatchNorm_{i}": own._asdict() for i, (_, own) in enumerate(PARAMS)}
    stats = {f"{norm.__name__}_{i}": own._asdict() for i, own in enumerate(STATS)}
    update = linen_update(net, {"params": params, "batch_stats": stats}, train=train)
    found = variance_shift(update, stats, X)
    assert list(found) == [f"BatchNorm_{i}" for i in range(DEPTH)]
    assert_measured(found)


@pytest.mark.parametrize("of", then_slow(list(NNX)))
def test_nnx_and_a_norm_that_is_not_called(of: str) -> None:
    net = NnxNet(*NNX[of])
    for dense, norm, (kernel, own), stats in zip(net.dense, net.norms, PARAMS, STATS, strict=True):
        dense.kernel[...] = kernel
        for part, value in {**own._asdict(), **stats._asdict()}.items():
            getattr(norm, part)[...] = value
    found = variance_shift(nnx_update(net), nnx.state(net, nnx.BatchStat), X, noise_variance=1.0)
    unused = found.pop("unused")
    assert_measured(found)
    assert np.isnan(unused.real).all()
    assert np.isnan(unused.predicted).all()
    assert np.isnan(unused.shift)


def test_dropout_shifts_as_predicted_and_without_it_nothing_does() -> None:
    """methods.md 2 (a), with dropout before a norm that stored its variances in training."""
    rate, params, rng = 0.3, PARAMS[0][1], np.random.default_rng(0)
    x = (0.5 + rng.normal(size=(1, 40_000, WIDTH))).astype(np.float32)
    noisy = np.where(rng.random(x.shape) >= rate, x / np.float32(1 - rate), 0)

    def update(stats: Any, x: jax.Array) -> Any:
        return jaxnorm.batch_norm(params, stats, x, train=True, momentum=0.0)[1]

    noise = dropout_noise_variance(rate)
    found = variance_shift(update, update(STATS[0], noisy[0]), x, noise_variance=noise)[""]
    assert_allclose(found.ratio, found.predicted, rtol=0.03)
    assert_allclose(found.shift, 1 / np.mean(found.predicted), rtol=0.01)
    assert found.shift > 1.5
    clean = variance_shift(update, update(STATS[0], x[0]), x, noise_variance=noise)[""]
    assert_allclose(clean.ratio, np.ones(WIDTH), rtol=1e-6)


def test_stacked_norms_have_a_shift_each() -> None:
    stats = jax.tree.map(lambda part: np.stack([part, 2 * np.asarray(part)]), STATS[0])
    params = jax.tree.map(lambda part: np.stack([part, part]), PARAMS[0][1])

    def update(stats: Any, x: jax.Array) -> Any:
        own = jax.vmap(lambda p, s: jaxnorm.batch_norm(p, s, x, train=True, momentum=0.0)[1])
        return {"norms": own(params, stats["norms"])}

    found = variance_shift(update, {"norms": stats}, X, noise_variance=np.ones((2, 1)))["norms"]
    real = np.asarray(X, np.float64).reshape(-1, WIDTH).var(0)
    assert_allclose(found.shift, np.maximum(real.mean() / [3, 6], [3, 6] / real.mean()), rtol=1e-5)
    assert found.predicted.shape == (2, WIDTH)


def test_other_spreads_are_variances_and_norms_without_are_left_out() -> None:
    zeros = np.zeros(WIDTH, np.float32)
    stats = {
        "std": jaxnorm.RenormStats(zeros, zeros + 2),
        "cov": jaxnorm.CovarianceStats(zeros, np.tile(3 * np.eye(2, dtype=np.float32), (3, 1, 1))),
        "mean": jaxnorm.RunningMean(zeros),
    }
    rows = X.reshape(-1, WIDTH)
    real = np.asarray(rows, np.float64).var(0)

    def update(stats: Any, x: jax.Array) -> Any:
        mean, centered = x.mean(0), x - x.mean(0)[None]
        cov = jnp.stack([centered[:, i : i + 2].T @ centered[:, i : i + 2] / len(x) for i in (0, 2, 4)])
        return {
            "std": jaxnorm.RenormStats(mean, x.std(0)),
            "cov": jaxnorm.CovarianceStats(mean, cov),
            "mean": jaxnorm.RunningMean(mean),
        }

    found = variance_shift(update, stats, [rows], progress=False)
    assert sorted(found) == ["cov", "std"]
    for name, stored in (("cov", 3.0), ("std", 4.0)):
        assert_allclose(found[name].stored, stored)
        assert_allclose(found[name].real, real, rtol=1e-4)


UPDATE = update_of(PARAMS, by_stats=True)
NAN = [STATS[0], STATS[1]._replace(var=jnp.full(WIDTH, jnp.nan)), STATS[2]]


def found(noise: Any) -> Any:
    return variance_shift(UPDATE, STATS, X, noise_variance=noise)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: variance_shift(UPDATE, {"w": jnp.ones(3)}, X), ValueError, "stats must hold running statistics"),
        (lambda: variance_shift(UPDATE, jaxnorm.RunningMean(jnp.ones(3)), X), ValueError, "stats must hold a variance"),
        (lambda: variance_shift(UPDATE, NAN, X), ValueError, "stats: 1/var must be finite, got nan"),
        (lambda: variance_shift(None, STATS, X), TypeError, "update must be a function of stats and a batch, got None"),
        (lambda: variance_shift(UPDATE, STATS, []), ValueError, "at least one batch"),
        (lambda: linen_update(nn.Dense(2), {"params": {"kernel": X}}), ValueError, "variables must hold running statistics"),
        (lambda: nnx_update(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), ValueError, "model must hold running statistics"),
        (lambda: found({"norm": 1.0}), ValueError, "noise_variance must be of norms in stats, got 'norm'; the nearest is"),
        (lambda: found(-1.0), ValueError, r"noise_variance must be in \[0, inf\), got -1.0"),
        (lambda: found("0.5"), TypeError, "noise_variance must be a number"),
        (lambda: found(jnp.ones(2)), ValueError, r"must broadcast to the channels, \[6\], got shape \[2\]"),
        (
            lambda: variance_shift(UPDATE, {"a": jaxnorm.RunningVar(jnp.ones(3))}, X, noise_variance=1.0),
            ValueError,
            "of norms with mean and variance, got 'a'",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
