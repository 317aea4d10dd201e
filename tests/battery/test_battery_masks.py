"""The masks of `dropout` with packed bits against every test of `mask_tests.py`; and of each test masks that it must reject."""

import functools
from collections.abc import Callable

import battery.bad_masks as bad
import battery.mask_tests as tests
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from battery.bad_masks import BAD_MASKS, BadMask, good
from battery.mask_tests import TESTS, Mask
from battery.number_tests import BLOCK
from randomness import ALPHA, together

from jaxnorm import dropout

Kind = Callable[[jax.Array, int, float, int], jax.Array]

RATES = (0.05, 0.1, 0.5)
SIDE = 512  # of a mask of SIDE^2 elements

REJECTED = {
    tests.share: (bad.wrong_share,),
    tests.rows_and_columns: (bad.uneven_row, bad.uneven_column),
    tests.lane_shares: (bad.uneven_lane,),
    tests.lane_pairs: (bad.copied_lane, bad.copied_neighbor),
    tests.block_boundaries: (bad.continued_block, bad.copied_neighbor),
    tests.distances: (bad.copied_row, bad.copied_neighbor),
    tests.changes: (bad.copied_neighbor,),
    tests.row_pairs: (bad.same_row,),
    tests.windows: (bad.copied_corner, bad.copied_neighbor),
}


def probability(rate: float, bits: int) -> float:
    """The documented one: a multiple of 2^-bits."""
    return 1 - round((1 - rate) * 2**bits) / 2**bits


def dropped(key: jax.Array, shape: tuple[int, ...], rate: float, bits: int) -> jax.Array:
    return dropout(key, jnp.ones(shape, jnp.bfloat16), rate, bits=bits) == 0


def matrix(key: jax.Array, side: int, rate: float, bits: int) -> jax.Array:
    """One mask, of which a row begins in another lane than the row before."""
    return dropped(key, (side - 1, side + 3), rate, bits)


def narrow(key: jax.Array, side: int, rate: float, bits: int) -> jax.Array:
    """One mask, of which a row is narrower than a block."""
    return dropped(key, (side**2 // 3, 3), rate, bits)


def steps(key: jax.Array, side: int, rate: float, bits: int) -> jax.Array:
    """Masks of the keys of many steps."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(side))
    return jax.vmap(lambda key: dropped(key, (side,), rate, bits))(keys)


def layers(key: jax.Array, side: int, rate: float, bits: int) -> jax.Array:
    """Masks of 16 layers in every step."""
    keys = jax.vmap(lambda key: jax.random.split(key, 16))(jax.random.split(key, side // 16))
    return jax.vmap(lambda key: dropped(key, (side,), rate, bits))(keys.ravel())


MASKS: tuple[Kind, ...] = (matrix, narrow, steps, layers)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _draw(kind: Kind, key: jax.Array, side: int, rate: float, bits: int) -> jax.Array:
    return kind(key, side, rate, bits)


def draw(kind: Kind, seed: int, side: int, rate: float, bits: int) -> Mask:
    return np.asarray(_draw(kind, jax.random.key(seed), side, rate, bits))


def odd(mask: Mask, probability: float, lanes: int) -> dict[str, float]:
    """The tests that reject the mask."""
    probabilities = {test.__name__: test(mask, probability, lanes) for test in TESTS}
    return {name: p for name, p in probabilities.items() if not p > ALPHA}


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", MASKS, ids=lambda kind: kind.__name__)
def test_masks(kind: Kind, rate: float, bits: int) -> None:
    assert odd(draw(kind, 21, SIDE, rate, bits), probability(rate, bits), BLOCK // bits) == {}


@pytest.mark.parametrize("lanes", [4, 8])
@pytest.mark.parametrize("rate", RATES)
def test_control_a_good_mask(rate: float, lanes: int) -> None:
    assert odd(good(rate), rate, lanes) == {}


@pytest.mark.parametrize("lanes", [4, 8])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("spoil", BAD_MASKS, ids=lambda spoil: spoil.__name__)
def test_control_bad_masks(spoil: BadMask, rate: float, lanes: int) -> None:
    mask = spoil(good(rate), lanes)
    rejecting = [test for test, rejected in REJECTED.items() if spoil in rejected]
    assert rejecting
    for test in rejecting:
        assert test(mask, rate, lanes) < ALPHA, test.__name__


def test_every_test_has_a_control() -> None:
    assert set(REJECTED) == set(TESTS)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", MASKS, ids=lambda kind: kind.__name__)
def test_sixteen_times_as_large_masks(kind: Kind, rate: float, bits: int) -> None:
    assert odd(draw(kind, 5, 4 * SIDE, rate, bits), probability(rate, bits), BLOCK // bits) == {}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", MASKS, ids=lambda kind: kind.__name__)
def test_small_probabilities_are_as_rare_as_they_should_be(kind: Kind, rate: float, bits: int) -> None:
    """Of 16 keys, so that a defect shows that is too small for one."""
    masks = [draw(kind, seed, SIDE, rate, bits) for seed in range(16)]
    for test in TESTS:
        values = [test(mask, probability(rate, bits), BLOCK // bits) for mask in masks]
        assert together(values) > ALPHA, test.__name__
