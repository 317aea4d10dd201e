"""DropKey: which keys a query does not see, and what the softmax makes of it."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from cases import data
from numpy.testing import assert_allclose, assert_array_equal
from randomness import ALPHA

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm import drop_key
from jaxnorm.benchmarks._costs import residuals

SHAPE = (2, 3, 4, 8)
LOGITS = data(SHAPE)
HIDDEN = -(2.0**15)


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("shared", [(), (-2,), (0, 1)], ids=str)
def test_what_is_hidden(bits: int, shared: tuple[int, ...]) -> None:
    """And has no gradient; the rest is as it was, not scaled (pitfall 85)."""
    y, pullback = jax.vjp(lambda x: drop_key(new_key(), x, 0.1, broadcast_dims=shared, bits=bits), LOGITS)
    drawn = tuple(1 if axis in {a % 4 for a in shared} else n for axis, n in enumerate(SHAPE))
    kept = np.broadcast_to(oracles.keep_mask((0, 11), drawn, 0.1, bits), SHAPE)
    assert_array_equal(y, np.where(kept, LOGITS, HIDDEN))
    assert_array_equal(pullback(LOGITS)[0], np.where(kept, LOGITS, 0))


def test_the_softmax_is_over_the_keys_that_are_seen() -> None:
    """methods_supplement.md S2.5: -inf renormalizes; and over all masks its mean is not the softmax of all keys."""
    logits = np.array([0.5, -1.0, 2.0])
    y = jax.vmap(lambda key: jax.nn.softmax(drop_key(key, jnp.asarray(logits, jnp.float32), 0.3)))(
        jax.random.split(new_key(), 20_000)
    )
    assert_allclose(y.sum(-1), 1, rtol=1e-6)
    keep, mean, square = float(oracles.realised(0.3)), np.zeros(3), np.zeros(3)
    for mask in itertools.product((0, 1), repeat=3):
        probability = np.prod([keep if seen else 1 - keep for seen in mask])
        weights = np.array(mask) * np.exp(logits)
        weights = weights / weights.sum() if weights.any() else np.full(3, 1 / 3)
        mean, square = mean + probability * weights, square + probability * weights**2
    sigma = np.sqrt((square - mean**2) / len(y))
    assert (np.abs(y.mean(0) - mean) < 4 * sigma).all()
    assert not (np.abs(y.mean(0) - np.exp(logits) / np.exp(logits).sum()) < 4 * sigma).any()  # a control


def test_keys_that_a_mask_hides_stay_hidden() -> None:
    """One that comes after, even where no other key is left."""
    seen = jnp.asarray([[True, True, False, True]])
    for rate in (0.9999, 1.0):
        y = jnp.where(seen, drop_key(new_key(), LOGITS[0, 0, :1, :4], rate), jnp.finfo(np.float32).min)
        assert_allclose(jax.nn.softmax(y), np.asarray(seen) / 3, rtol=1e-6)


@pytest.mark.parametrize("traced", [False, True], ids=["static", "traced"])
def test_limits(traced: bool) -> None:
    """Pitfalls 78 and 81: finite gradients at both ends, whatever is hidden; 80: a traced rate that is none gives NaN."""
    bad = jnp.full((4, 8), jnp.nan).at[0].set(jnp.inf)

    def run(x: jax.Array, rate: Any) -> Any:
        y, pullback = jax.vjp(lambda x: jax.nn.softmax(drop_key(new_key(), x, rate)), x)
        return y, pullback(jnp.eye(8)[:4])[0]

    compiled = jax.jit(run, static_argnums=() if traced else 1)
    for got, expected in zip(compiled(bad, 1.0), (np.full((4, 8), 1 / 8), np.zeros((4, 8))), strict=True):
        assert_array_equal(got, expected)
    assert_allclose(compiled(LOGITS[0, 0], 0.0)[0], jax.nn.softmax(LOGITS[0, 0]), rtol=1e-6)
    if traced:
        for rate in (-0.1, 1.5, np.nan):
            assert jnp.isnan(compiled(LOGITS[0, 0], rate)[0]).all()


def test_how_much_is_hidden_and_where() -> None:
    hidden = np.asarray(jax.jit(lambda key: drop_key(key, jnp.zeros((1000, 1000)), 0.05))(new_key()) < 0)
    probability = 1 - float(oracles.realised(0.05))
    found = [
        randomness.rate(hidden, probability),
        *(randomness.lag(hidden, 1, axis, probability) for axis in (0, 1)),
        randomness.positions(hidden, probability),
    ]
    assert randomness.smallest(found) > ALPHA
    assert randomness.rate(hidden, 0.052) < ALPHA  # controls
    assert randomness.lag(np.repeat(hidden[:, ::2], 2, 1), 1, 1, probability) < ALPHA


def test_neither_logits_nor_a_mask_is_kept() -> None:
    kept = residuals(
        lambda key, x: (drop_key(jax.random.wrap_key_data(key), x, 0.3), None), np.zeros(2, np.uint32), jnp.ones((64, 8, 16))
    )
    assert not kept.keeps_input
    assert kept.nbytes <= 64


def test_the_modules_are_the_function() -> None:
    """And the identity in inference, without a key (pitfall 87)."""
    fields = {"broadcast_dims": (-2,), "bits": 8}
    expected = drop_key(new_key(), LOGITS, 0.3, **fields)
    linen = jaxnorm.linen.DropKey(0.3, **fields)
    nnx = jaxnorm.nnx.DropKey(0.3, **fields)
    assert_array_equal(linen.apply({}, LOGITS, deterministic=False, rng=new_key()), expected)
    assert_array_equal(nnx(LOGITS, rngs=new_key()), expected)
    assert_array_equal(linen.apply({}, LOGITS, deterministic=True), LOGITS)
    assert_array_equal(nnx(LOGITS, deterministic=True), LOGITS)


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan"), "0.5", None, True])
def test_bad_rates_are_named(bad: Any) -> None:
    """Pitfall 80."""
    with pytest.raises((ValueError, TypeError), match=r"^rate must be .*\[0, 1\], got"):
        drop_key(new_key(), LOGITS, bad)


def test_bad_arguments_are_named() -> None:
    """Pitfall 88 of axes, 103 of keys."""
    for error, words, given in (
        (ValueError, "broadcast_dims is out of range", {"broadcast_dims": (4,)}),
        (ValueError, "bits must be 8, 16 or 32", {"bits": 4}),
        (TypeError, "key must be one key", {"key": None}),
        (TypeError, "logits must be an array", {"logits": [1.0]}),
        (ValueError, "rate must be a scalar or have a shape like", {"rate": jnp.full((8,), 0.1)}),
    ):
        with pytest.raises(error, match=words):
            drop_key(**{"key": new_key(), "logits": LOGITS, "rate": 0.1} | given)
    assert_array_equal(drop_key(jax.random.PRNGKey(11), LOGITS, 0.3), drop_key(new_key(), LOGITS, 0.3))
