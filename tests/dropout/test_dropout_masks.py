"""Which elements are dropped: stored for ever, with 32 bits jax's and Flax's choice, and a function of the key alone."""

import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import data
from numpy.testing import assert_array_equal
from promises import other_key

from jaxnorm import classic_dropout, dropout, gaussian_dropout, uniform_dropout

KEPT = {  # of key(0), by the oracle, and what every release must draw: shape, rate, bits; from the first element on
    ((7,), 0.1, 32): "0011111",
    ((7,), 0.5, 32): "0011011",
    ((3, 5), 0.1, 32): "001111111101111",
    ((3, 5), 0.5, 32): "001101100101000",
    ((2, 4, 4, 3), 0.1, 32): "001111111101111011111011111111111111111111111111011111111111111111111111111111111011111111111111",
    ((2, 4, 4, 3), 0.5, 32): "001101100101000000011000000011101010011111000111000110001011111001101000000010101000000011100101",
    ((7,), 0.1, 16): "1111111",
    ((7,), 0.5, 16): "1110111",
    ((3, 5), 0.1, 16): "111111111011111",
    ((3, 5), 0.5, 16): "111011101010100",
    ((2, 4, 4, 3), 0.1, 16): "111111111011111101111111111111111111111111111111111110011111111111111111111010100111110111011111",
    ((2, 4, 4, 3), 0.5, 16): "111011101010100000011111001010011011110110111101100110010011011011101001110010100010100100011001",
    ((7,), 0.1, 8): "1111011",
    ((7,), 0.5, 8): "1111010",
    ((3, 5), 0.1, 8): "111101111111111",
    ((3, 5), 0.5, 8): "111101000111110",
    ((2, 4, 4, 3), 0.1, 8): "111101111111111111101111111111011011111111111111111111111101111111111111111111111111110111111111",
    ((2, 4, 4, 3), 0.5, 8): "111101000111110001100110011000000010100101010101101011101100001111001101011110011100110101111011",
}

all_bits = pytest.mark.parametrize("bits", [8, 16, 32])
packed_bits = pytest.mark.parametrize("bits", [8, 16])


def kept(key: jax.Array, shape: tuple[int, ...], rate: Any, bits: int = 16) -> jax.Array:
    return dropout(key, jnp.ones(shape), rate, bits=bits) != 0


@pytest.mark.parametrize("shape, rate, bits", KEPT, ids=str)
def test_stored_masks(shape: tuple[int, ...], rate: float, bits: int) -> None:
    """Pitfall 95: masks of one key are these, with every version of jax and on every machine."""
    stored = np.array([bit == "1" for bit in KEPT[shape, rate, bits]]).reshape(shape)
    assert_array_equal(kept(jax.random.key(0), shape, rate, bits), stored)
    assert_array_equal(oracles.keep_mask((0, 0), shape, rate, bits), stored)
    if bits == 32:
        assert_array_equal(jax.random.bernoulli(jax.random.key(0), 1 - rate, shape), stored)


def test_sixteen_bits_decide_where_nothing_is_said() -> None:
    for function in (dropout, classic_dropout):
        said = function(jax.random.key(1), jnp.ones(100), 0.3, bits=16)
        assert_array_equal(function(jax.random.key(1), jnp.ones(100), 0.3), said)
        assert (function(jax.random.key(1), jnp.ones(100), 0.3, bits=32) != said).any()


@pytest.mark.parametrize("rate", [1e-4, 1 - 1e-4, 2.0**-12 - 1e-9, 1e-30])
def test_a_known_rate_that_16_bits_do_not_hold_takes_32(rate: float) -> None:
    """Of one element in ten thousand, 16 bits would make one in 9362."""
    new_key = lambda: jax.random.key(4)  # noqa: E731
    fine = oracles.keep_mask((0, 4), (70_000,), rate, 32)
    assert_array_equal(kept(new_key(), (70_000,), rate), fine)
    assert_array_equal(kept(new_key(), (70_000,), jnp.float32(rate)), fine)
    assert_array_equal(jax.jit(lambda key: kept(key, (70_000,), rate))(new_key()), fine)
    y = dropout(new_key(), jnp.ones((1000, 70)), np.array([[0.3] * 69 + [rate]]))
    assert_array_equal(y[:, 0] != 0, oracles.keep_mask((0, 4), (1000, 70), 0.3, 32)[:, 0])


@pytest.mark.parametrize("rate", [0, 1, 2.0**-12, 1 - 2.0**-12, 0.3])
def test_other_known_rates_take_what_is_asked_for(rate: float) -> None:
    assert_array_equal(kept(jax.random.key(4), (70_000,), rate), oracles.keep_mask((0, 4), (70_000,), rate, 16))


@packed_bits
@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.998, 1 - 1e-7])
def test_a_traced_rate_takes_the_bits_asked_for(rate: float, bits: int) -> None:
    mask = jax.jit(lambda key, rate: kept(key, (70_000,), rate, bits))(jax.random.key(4), rate)
    assert_array_equal(mask, oracles.keep_mask((0, 4), (70_000,), float(1 - (1 - np.float32(rate))), bits))


@pytest.mark.parametrize("rate", [0.0, 1e-8, 0.1, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_32_bits_make_the_choice_of_bernoulli(rate: float) -> None:
    for seed, shape in enumerate(((1000,), (33, 17), (5, 6, 7), ())):
        expected = jax.random.bernoulli(jax.random.key(seed), jnp.float32(1 - rate), shape)
        assert_array_equal(kept(jax.random.key(seed), shape, rate, 32), expected)
        traced = jax.jit(lambda key, rate, shape=shape: kept(key, shape, rate, 32))(jax.random.key(seed), rate)
        assert_array_equal(traced, jax.random.bernoulli(jax.random.key(seed), 1 - jnp.float32(rate), shape))


@pytest.mark.jax_defaults
@pytest.mark.parametrize("dims", [(), (1, 2)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_32_bits_make_the_choice_of_flax(dims: tuple[int, ...], dtype: np.dtype) -> None:
    x = data(dtype=dtype)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            key = self.scope.rngs["dropout"].as_jax_rng()
            y = nn.Dropout(0.3, broadcast_dims=dims, deterministic=False)(x, rng=key)
            with jax.debug_key_reuse(False):
                return y, dropout(key, x, 0.3, broadcast_dims=dims, bits=32)

    with jax.debug_key_reuse(False):
        for key in (jax.random.key(5), jax.random.PRNGKey(5)):
            theirs, ours = Layer().apply({}, x, rngs={"dropout": key})
            assert_array_equal(theirs == 0, ours == 0)
            # Flax divides in x's type by a rounded probability; in float32 the two are equal to the bit.
            if dtype == jnp.float32:
                assert_array_equal(theirs, ours)


def test_legacy_keys_draw_as_typed_ones() -> None:
    x = data()
    for key in (jax.random.PRNGKey(5), np.asarray(jax.random.PRNGKey(5))):
        assert_array_equal(dropout(key, x, 0.3), dropout(jax.random.key(5), x, 0.3))
    assert_array_equal(jax.jit(dropout)(jax.random.PRNGKey(5), x, 0.3), jax.jit(dropout)(jax.random.key(5), x, 0.3))
    keys = jax.random.split(jax.random.PRNGKey(5), 3)
    assert_array_equal(jax.vmap(lambda key: dropout(key, x, 0.3))(keys)[1], dropout(keys[1], x, 0.3))


@pytest.mark.parametrize(
    "impl, bits", [("rbg", 8), ("rbg", 16), ("rbg", 32), ("unsafe_rbg", 16), ("philox2x32", 16), ("threefry4x32", 32)]
)
def test_other_generators(impl: str, bits: int) -> None:
    """32 bits are drawn as jax draws with them, fewer from a key that is derived from theirs."""
    mask = kept(other_key(3, impl), (300, 5), 0.3, bits)
    if bits == 32:
        expected = jax.random.bernoulli(other_key(3, impl), 0.7, (300, 5))
    else:
        derived = oracles.derived_key(jax.random.key_data(other_key(3, impl)))
        expected = oracles.keep_mask(derived, (300, 5), 0.3, bits)
    assert_array_equal(mask, expected)
    total = lambda x: jnp.sum(dropout(other_key(3, impl), x, 0.3, bits=bits))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.ones((300, 5)))
    assert_array_equal(gradient != 0, mask)
    assert jnp.isfinite(value)


@all_bits
def test_other_generators_differ_between_lanes(bits: int) -> None:
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 4)
    masks = np.asarray(jax.vmap(lambda key: kept(key, (200,), 0.3, bits))(keys))
    assert len({mask.tobytes() for mask in masks}) == 4
    if bits < 32:  # which jax promises of none but threefry
        assert_array_equal(masks, np.stack([kept(key, (200,), 0.3, bits) for key in keys]))


def test_same_key_same_mask_other_key_other_mask_in_one_compiled_step() -> None:
    """Pitfall 97: no mask becomes a constant of the program."""
    step = jax.jit(lambda key: dropout(key, jnp.ones(100), 0.3))
    first, again, other = (np.asarray(step(jax.random.key(seed))) for seed in (1, 1, 2))
    assert_array_equal(first, again)
    assert (first != other).any()


def test_all_masks_of_many_steps_and_layers_differ() -> None:
    def mask(step: jax.Array, layer: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), layer)
        return dropout(key, jnp.ones(128), 0.3) != 0

    over_layers = jax.vmap(mask, (None, 0))
    masks = np.asarray(jax.jit(jax.vmap(over_layers, (0, None)))(jnp.arange(100), jnp.arange(10))).reshape(1000, 128)
    assert len({row.tobytes() for row in np.packbits(masks, axis=1)}) == 1000


def test_a_large_draw_is_not_many_small_ones() -> None:
    """Pitfall 98, documented: keys are split by the caller, and a batch under vmap needs a key a lane."""
    x = jnp.ones((8, 50))
    lanes = jax.vmap(lambda key, row: dropout(key, row, 0.3))(jax.random.split(jax.random.key(4), 8), x)
    assert (lanes != dropout(jax.random.key(4), x, 0.3)).any()


@all_bits
def test_classic_and_inverted_dropout_draw_the_same_mask_for_the_same_key(bits: int) -> None:
    x = data()
    classic = classic_dropout(jax.random.key(2), x, 0.3, bits=bits)
    assert_array_equal(dropout(jax.random.key(2), x, 0.3, bits=bits) != 0, classic != 0)


def test_uniform_noise_of_32_bits_is_that_of_jax() -> None:
    noise = uniform_dropout(jax.random.key(2), jnp.ones((300, 5)), 0.5, bits=32)
    np.testing.assert_allclose(noise, jax.random.uniform(jax.random.key(2), (300, 5)) + 0.5, rtol=2e-7)


def test_gaussian_noise_of_32_bits_is_that_of_its_own_words() -> None:
    """And not that of jax, which takes fewer bits of them."""
    noise = gaussian_dropout(jax.random.key(2), jnp.ones((300, 5)), 0.5, bits=32)
    words = jax.random.bits(jax.random.key(2), (300, 5))
    np.testing.assert_allclose(noise, 1 + oracles.normal_numbers(words), atol=2e-6)


def test_no_configuration_of_jax_changes_a_mask() -> None:
    """Pitfall 93: neither the partitionable generator, nor x64, nor the default generator."""
    program = (
        "import jax, jaxnorm, jax.numpy as jnp, numpy as np;"
        "[jax.config.update(*c) for c in {config}];"
        "call = lambda key, x: jnp.stack([jaxnorm.dropout(key, x, 0.3, bits=bits) for bits in (8, 16, 32)]);"
        "key = jax.random.key(3, impl='threefry2x32'); x = jnp.ones((20, 5), jnp.float32);"
        "a, b = call(key, x), jax.jit(call)(key, x);"
        "assert (a == b).all(); print(np.packbits(np.asarray(a) != 0).tobytes().hex())"
    )
    masks = [oracles.keep_mask((0, 3), (20, 5), 0.3, bits) for bits in (8, 16, 32)]
    expected = np.packbits(np.stack(masks)).tobytes().hex()
    configs = [("jax_threefry_partitionable", False)], [("jax_enable_x64", True), ("jax_default_prng_impl", "rbg")]
    for config in configs:
        command = [sys.executable, "-c", program.format(config=config)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True)
        assert printed.stdout.strip() == expected
