"""Patch and word dropout: which tokens, how many, and what stands for those that go; methods_supplement.md S2.1 and S2.3."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_array_equal
from promises import mesh
from randomness import ALPHA

from jaxnorm import dropout, patch_dropout, word_dropout
from jaxnorm._dropout.tokens import num_kept


def new_key(seed: int = 5) -> jax.Array:
    return jax.random.key(seed)


# How many patches


def timms(count: int, rate: float) -> int:
    return max(1, int(count * (1.0 - rate)))


def test_number_of_tokens_is_computed_without_rounding() -> None:
    """S2.1: 10 of 100 at 0.9, where a float's floor gives 9."""
    exact = {
        (100, 0.9): 10,
        (10, 0.9): 1,
        (50, 0.9): 5,
        (196, 0.5): 98,
        (196, 0.25): 147,
        (3, 2 / 3): 1,
        (6, 2 / 3): 2,
        (7, 1): 1,
    }
    for (count, rate), kept in exact.items():
        for spelled in (rate, np.float32(rate), np.float64(rate), jnp.float32(rate)):
            assert num_kept(count, spelled) == kept
    assert (timms(100, 0.9), timms(50, 0.9)) == (9, 4)


def test_number_of_tokens_is_timms_where_floats_are_exact() -> None:
    for count in (1, 7, 49, 50, 100, 196, 197, 256, 577):
        for sixteenths in range(17):
            assert num_kept(count, sixteenths / 16) == timms(count, sixteenths / 16)
        for percent in range(101):
            assert 0 <= num_kept(count, percent / 100) - timms(count, percent / 100) <= 1


# Which patches


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
def test_patches_are_those_of_the_indices(prefix: int, ordered: bool) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, prefix + 10, 3)), jnp.float32)
    run = lambda x: patch_dropout(new_key(), x, 0.35, num_prefix_tokens=prefix, ordered=ordered)  # noqa: E731
    y, pullback, indices = jax.vjp(run, x, has_aux=True)
    assert y.shape == (64, prefix + 6, 3)
    assert (indices.shape, indices.dtype) == ((64, 6), jnp.int32)
    assert all(len(set(row)) == 6 for row in np.asarray(indices).tolist())
    assert (np.diff(indices, axis=1) > 0).all() == ordered
    places = np.concatenate([np.tile(np.arange(prefix), (64, 1)), np.asarray(indices) + prefix], axis=1)
    assert_array_equal(y, np.take_along_axis(np.asarray(x), places[..., None], axis=1))
    gradient = np.zeros(x.shape, np.float32)
    np.put_along_axis(gradient, places[..., None], np.cos(np.asarray(y)), axis=1)
    assert_array_equal(pullback(np.cos(np.asarray(y)))[0], gradient)
    assert len({row.tobytes() for row in np.asarray(indices)}) > 50  # examples differ
    ranks = np.argsort(oracles.random_words(np.asarray(jax.random.key_data(new_key())), (64, 10)), axis=1, kind="stable")[:, :6]
    assert_array_equal(indices, np.sort(ranks, axis=1) if ordered else ranks)


def test_every_token_and_pair_is_kept_alike() -> None:
    """Without replacement: two tokens are kept together with probability n (n - 1) / (L (L - 1))."""
    _, indices = patch_dropout(new_key(), jnp.ones((100_000, 7, 1), jnp.bfloat16), 0.5, num_prefix_tokens=1)
    kept = np.zeros((100_000, 6), bool)
    np.put_along_axis(kept, np.asarray(indices), True, axis=1)
    for token in range(6):
        assert randomness.rate(kept[:, token], 3 / 6) > ALPHA
        if token:
            assert randomness.rate(kept[:, 0] & kept[:, token], 3 * 2 / (6 * 5)) > ALPHA
            assert randomness.rate(kept[:, 0] & kept[:, token], 1 / 4) < ALPHA  # of independent tokens
    first = np.bincount(np.asarray(indices)[:, 0], minlength=6)
    assert randomness.chi_squared(first, np.full(6, 1 / 6)) > ALPHA
    assert randomness.chi_squared(np.bincount(np.sort(indices, axis=1)[:, 0], minlength=6), np.full(6, 1 / 6)) < ALPHA


def test_where_all_patches_are_kept_x_stays() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 2)), jnp.float32)
    for rate in (0, 0.0, np.float32(0)):
        y, indices = patch_dropout(new_key(), x, rate)
        assert_array_equal(y, x)
        assert_array_equal(indices, np.tile(np.arange(4), (3, 1)))
    assert patch_dropout(new_key(), x, 1)[0].shape == (3, 2, 2)


def test_what_is_left_out_is_gone_with_its_nan() -> None:
    x = jnp.ones((4, 9, 2))
    _, indices = patch_dropout(new_key(), x, 0.5)
    kept = np.zeros((4, 8), bool)
    np.put_along_axis(kept, np.asarray(indices), True, axis=1)
    spoiled = jnp.where(jnp.pad(kept, ((0, 0), (1, 0)), constant_values=True)[..., None], x, jnp.nan)
    value, gradient = jax.value_and_grad(lambda x: patch_dropout(new_key(), x, 0.5)[0].sum())(spoiled)
    assert value == 4 * 5 * 2
    assert np.isfinite(gradient).all()


BAD_PATCHES = {
    "rate": (ValueError, {"rate": 1.5}, "rate must be in [0, 1], got 1.5"),
    "rate NaN": (ValueError, {"rate": np.nan}, "rate must be in [0, 1], got nan"),
    "rates": (TypeError, {"rate": np.full(3, 0.5)}, "rate must be one number, known when the function is traced"),
    "prefix": (ValueError, {"num_prefix_tokens": -1}, "num_prefix_tokens must be at least 0, got -1"),
    "all prefix": (ValueError, {"num_prefix_tokens": 5}, "more than num_prefix_tokens, 5, got shape [3, 5, 2]"),
    "ordered": (TypeError, {"ordered": None}, "ordered must be True or False"),
    "vector": (ValueError, {"x": jnp.ones(3)}, "x must have shape [B, tokens, ...], got [3]"),
    "integers": (TypeError, {"x": jnp.ones((3, 5), int)}, "x must be an array of floating point numbers, got int32"),
    "key": (TypeError, {"key": None}, "key must be one key"),
}


@pytest.mark.parametrize("name", BAD_PATCHES)
def test_bad_input_of_patch_dropout_is_named(name: str) -> None:
    error, given, message = BAD_PATCHES[name]
    with pytest.raises(error) as raised:
        patch_dropout(**{"key": new_key(), "x": jnp.ones((3, 5, 2)), "rate": 0.5, **given})
    assert message in str(raised.value)


def test_a_traced_rate_of_patches_is_refused() -> None:
    with pytest.raises(TypeError, match="rate must be one number, known when the function is traced"):
        jax.jit(lambda rate: patch_dropout(new_key(), jnp.ones((3, 5, 2)), rate))(0.5)


# Words

TOKENS = np.arange(10, 10 + 8 * 12).reshape(8, 12)


def words(rate: Any = 0.3, tokens: Any = TOKENS, **options: Any) -> jax.Array:
    return word_dropout(new_key(), jnp.asarray(tokens), rate, unknown=1, **options)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_words_are_those_that_dropout_drops(bits: int, dtype: Any) -> None:
    y = words(0.3, TOKENS.astype(dtype), bits=bits)
    assert y.dtype == dtype
    assert_array_equal(y, np.where(dropout(new_key(), jnp.ones(TOKENS.shape), 0.3, bits=bits) == 0, 1, TOKENS))


def test_rate_of_words() -> None:
    dropped = np.asarray(words(0.1, np.full(1_000_000, 7)) == 1)
    assert randomness.rate(dropped, float(1 - oracles.realised(0.1))) > ALPHA
    assert randomness.rate(dropped, 0.1 * 1.02) < ALPHA


def test_words_under_transformations() -> None:
    """Traced rates of every word, lanes, steps of a scan; a rate outside [0, 1] replaces all, as integers have no NaN."""
    run = jax.jit(lambda key, tokens, rate: word_dropout(key, tokens, rate, unknown=-1))
    rates = np.float32(np.arange(TOKENS.size) % 3 / 2).reshape(TOKENS.shape)
    y = np.asarray(run(new_key(), TOKENS, rates))
    assert_array_equal(y[rates == 0], TOKENS[rates == 0])
    assert_array_equal(y[rates == 1], -1)
    assert 0 < (y[rates == 0.5] == -1).sum() < (rates == 0.5).sum()
    for rate in (-0.1, 1.5, np.nan):
        assert_array_equal(run(new_key(), TOKENS, np.full_like(rates, rate)), -1)
    keys = jax.random.split(new_key(), 2)
    alone = [run(key, TOKENS, rates) for key in keys]
    assert_array_equal(jax.vmap(run, (0, None, None))(jax.random.clone(keys), TOKENS, rates), alone)
    scanned = jax.lax.scan(lambda _, key: (None, run(key, TOKENS, rates)), None, jax.random.clone(keys))[1]
    assert_array_equal(scanned, alone)


def test_words_on_devices_and_in_exported_programs() -> None:
    expected = words()
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        devices = jax.make_mesh((4,), ("d",), axis_types=(axis_type,), devices=jax.devices()[:4])
        with jax.set_mesh(devices):
            tokens = jax.device_put(jnp.asarray(TOKENS), NamedSharding(devices, P("d")))
            y = jax.jit(lambda key, tokens: word_dropout(key, tokens, 0.3, unknown=1))(new_key(), tokens)
            assert y.sharding.is_equivalent_to(tokens.sharding, 2)
        assert_array_equal(y, expected)
    part = jax.shard_map(lambda tokens: words(tokens=tokens), mesh=mesh(4), in_specs=P("d"), out_specs=P("d"))
    assert_array_equal(part(jnp.asarray(TOKENS))[:2], words(tokens=TOKENS[:2]))
    shape = export.symbolic_shape("b, t")
    run = jax.jit(lambda data, tokens: word_dropout(jax.random.wrap_key_data(data), tokens, 0.3, unknown=1))
    program = export.export(run, platforms=("cpu", "cuda", "tpu"))(
        jax.random.key_data(new_key()), jax.ShapeDtypeStruct(shape, jnp.int32)
    )
    assert_array_equal(program.call(jax.random.key_data(new_key()), jnp.asarray(TOKENS, jnp.int32)), expected)


def test_a_key_of_words_is_used_once() -> None:
    key = new_key()
    word_dropout(key, jnp.asarray(TOKENS), 0.3, unknown=1)
    with pytest.raises(jax.errors.KeyReuseError):
        word_dropout(key, jnp.asarray(TOKENS), 0.3, unknown=1)


BAD_WORDS = {
    "floats": (TypeError, {"tokens": jnp.ones(3)}, "tokens must be an array of integers, got [1.0, 1.0, 1.0] (float32[3])"),
    "bools": (TypeError, {"tokens": jnp.ones(3, bool)}, "tokens must be an array of integers"),
    "a list": (TypeError, {"tokens": [1, 2]}, "tokens must be an array of integers, got [1, 2] (list)"),
    "unknown too large": (ValueError, {"unknown": 256}, "unknown must be in [0, 255], as uint8 is, got 256"),
    "unknown a float": (TypeError, {"unknown": 1.0}, "unknown must be an int, got 1.0"),
    "rate": (ValueError, {"rate": 2}, "rate must be in [0, 1], got 2"),
    "rates": (ValueError, {"rate": np.full(2, 0.5)}, "rate must be a scalar or have a shape like [3]"),
    "bits": (ValueError, {"bits": 8, "rate": 0.01}, "bits must be 16 or 32 for a rate of 0.01"),
    "key": (TypeError, {"key": 0}, "key must be one key"),
}


@pytest.mark.parametrize("name", BAD_WORDS)
def test_bad_input_of_word_dropout_is_named(name: str) -> None:
    error, given, message = BAD_WORDS[name]
    with pytest.raises(error) as raised:
        word_dropout(**{"key": new_key(), "tokens": jnp.ones(3, jnp.uint8), "rate": 0.5, "unknown": 1, **given})
    assert message in str(raised.value)
