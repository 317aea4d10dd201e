"""Drop block and cutout: where blocks and holes lie, how much is kept, and what is divided by."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from numpy.testing import assert_allclose, assert_array_equal
from randomness import ALPHA

from jaxnorm import cutout, drop_block, dropout
from jaxnorm._dropout.block import expected_share
from jaxnorm.benchmarks._costs import residuals

MAPS = 8000
SIDE, BLOCK, RATE = 14, 7, 0.1


def new_key(seed: int = 5) -> jax.Array:
    return jax.random.key(seed)


def key_words(seed: int = 5) -> np.ndarray:
    return np.asarray(jax.random.key_data(new_key(seed)))


def numbers(shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(2, 1, shape), jnp.float32)


def assert_keeps_the_key_alone(run: Callable[[jax.Array], jax.Array], x: jax.Array) -> None:
    kept = residuals(lambda _, x: (run(x), None), (), x)
    assert not kept.keeps_input
    assert kept.nbytes <= 32  # its words, and what is prepared of the amount


def share(gamma: float, sizes: tuple[int, ...], blocks: tuple[int, ...]) -> np.ndarray:
    """The probability of every position of a map that no block covers it."""
    counts = np.ones(())
    for size, block in zip(sizes, blocks, strict=True):
        counts = np.multiply.outer(counts, oracles.covering_blocks(size, block))
    return (1 - gamma) ** counts


# Shape, blocks, axis of the channels, shared, rescale, bits. In this order: packed words, one dimension, three, channels first.
CALLS = [
    ((3, 7, 5, 8), (3, 2), -1, False, "example", 16),
    ((4, 9, 3), 4, -1, True, "batch", 16),
    ((2, 5, 4, 6, 2), (2, 1, 3), -1, False, "expected", 32),
    ((3, 2, 6, 8), 2, 1, False, "example", 32),
    ((3, 4, 4, 32), 4, -1, False, "batch", 16),
]


@pytest.mark.parametrize("shape, blocks, channel_axis, shared, rescale, bits", CALLS, ids=str)
def test_drop_block_equals_the_oracle(
    shape: tuple[int, ...], blocks: Any, channel_axis: int, shared: bool, rescale: Any, bits: int
) -> None:
    """Pitfalls 34 and 105 d: blocks of even size too are whole, lie inside, and leave the shape."""
    x, channel = numbers(shape), channel_axis % len(shape)
    axes = [a for a in range(1, len(shape)) if a != channel]
    sizes = tuple(shape[a] for a in axes)
    blocks = blocks if isinstance(blocks, tuple) else (blocks,) * len(axes)
    gamma = oracles.block_probability(0.3, sizes, blocks)
    places = list(shape)
    for axis, size, block in zip(axes, sizes, blocks, strict=True):
        places[axis] = size - block + 1
    if shared:
        places[channel] = 1
    clear = oracles.keep_mask(key_words(), places, gamma, bits)
    mask = np.broadcast_to(oracles.outside_blocks(~clear, axes, blocks), shape)
    assert 0 < mask.mean() < 1
    if rescale == "expected":
        kept = share(1 - oracles.realised(gamma, bits), sizes, blocks).mean()
    else:
        kept = mask.mean(tuple(range(rescale == "example", len(shape))), keepdims=True)
    options = {"block_size": blocks, "channel_axis": channel_axis, "shared": shared, "rescale": rescale, "bits": bits}
    run = lambda x: drop_block(new_key(), x, 0.3, **options)  # noqa: E731
    y, pullback = jax.vjp(run, x)
    assert_allclose(y, np.where(mask, np.asarray(x) / np.where(kept > 0, kept, 1), 0), rtol=1e-6)
    assert_allclose(pullback(x)[0], y, rtol=1e-6)
    assert_keeps_the_key_alone(run, x)


def test_blocks_of_one_are_dropout_and_of_the_map_dropout_of_channels() -> None:
    x = jnp.ones((6, 4, 5, 8))
    for options, alike in (({"block_size": 1}, ()), ({"block_size": (4, 5)}, (1, 2))):
        y = drop_block(new_key(), x, 0.3, **options)
        assert_array_equal(y != 0, dropout(new_key(), x, 0.3, broadcast_dims=alike) != 0)


# How much is kept: methods.md 4.5


@pytest.mark.parametrize("sizes, blocks", [((14, 14), (7, 7)), ((9, 5), (2, 5)), ((7,), (4,)), ((6, 3, 4), (1, 3, 2))], ids=str)
def test_expected_share_is_the_mean_over_positions(sizes: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    along = [(1 + i, *pair) for i, pair in enumerate(zip(sizes, blocks, strict=True))]
    for gamma in (0.0, 0.01, 0.3, 1.0):
        clear = jnp.full((1,) * (len(sizes) + 2), 1 - gamma, jnp.float32)
        assert_allclose(expected_share(clear, along).item(), share(gamma, sizes, blocks).mean(), rtol=1e-5)


def test_share_of_methods_4_5() -> None:
    gamma = oracles.block_probability(RATE, (SIDE, SIDE), (BLOCK, BLOCK))
    along = [(1, SIDE, BLOCK), (2, SIDE, BLOCK)]
    assert f"{expected_share(jnp.full((1,) * 4, 1 - gamma, jnp.float32), along).item():.4f}" == "0.9071"
    # Pitfall 105 c: where blocks could begin anywhere, and gamma made nothing of overlaps, it would be other shares.
    assert f"{share(oracles.block_probability(0.3, (16, 16), (5, 5)), (16, 16), (5, 5)).mean():.3f}" == "0.750"


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """Masks of independent maps."""
    x = jnp.ones((MAPS, SIDE, SIDE, 1), jnp.bfloat16)
    return np.asarray(drop_block(new_key(), x, RATE)[..., 0] != 0)


def realised_gamma() -> float:
    return float(1 - oracles.realised(oracles.block_probability(RATE, (SIDE, SIDE), (BLOCK, BLOCK))))


def deviation_of_the_share(masks: np.ndarray, expected: float) -> float:
    shares = masks.mean((1, 2))
    return float((shares.mean() - expected) / (shares.std() / np.sqrt(len(shares))))


def test_share_that_is_kept(masks: np.ndarray) -> None:
    expected = share(realised_gamma(), (SIDE, SIDE), (BLOCK, BLOCK)).mean()
    assert abs(deviation_of_the_share(masks, expected)) < 4
    # Controls: the rate itself, and a gamma of the port that forgets where blocks fit.
    for other in (1 - RATE, share(RATE / BLOCK**2, (SIDE, SIDE), (BLOCK, BLOCK)).mean()):
        assert abs(deviation_of_the_share(masks, other)) > 4


def test_every_position_is_kept_with_its_own_probability(masks: np.ndarray) -> None:
    """And with that of its mirror images (pitfall 106: ports shift blocks)."""
    expected = share(realised_gamma(), (SIDE, SIDE), (BLOCK, BLOCK))

    def worst(masks: np.ndarray) -> float:
        return float(np.abs((masks.mean(0) - expected) / np.sqrt(expected * (1 - expected) / len(masks))).max())

    assert worst(masks) < 5
    assert worst(np.roll(masks, 1, 1)) > 5


def center_of_drops(masks: np.ndarray, axis: int) -> float:
    """How far the center of what is dropped lies from the map's, in standard deviations."""
    offset = np.arange(SIDE) - (SIDE - 1) / 2
    moments = (~masks).sum(3 - axis) @ offset
    return float(moments.mean() / (moments.std() / np.sqrt(len(moments))))


@pytest.mark.parametrize("axis", [1, 2])
def test_drops_lie_evenly_around_the_center(masks: np.ndarray, axis: int) -> None:
    """Pitfall 106."""
    assert abs(center_of_drops(masks, axis)) < 5
    assert abs(center_of_drops(np.roll(masks, 1, axis), axis)) > 5


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_channels_have_masks_of_their_own_or_one(channel_axis: int) -> None:
    """Pitfalls 88 and 106, in both layouts."""

    def channels(shared: bool) -> np.ndarray:
        x = jnp.ones((3000, 2, 6, 5) if channel_axis == 1 else (3000, 6, 5, 2))
        y = drop_block(new_key(), x, 0.3, block_size=(6, 5), channel_axis=channel_axis, shared=shared)
        return np.moveaxis(np.asarray(y != 0), channel_axis, 0)

    dropped = ~channels(False)[:, :, 0, 0]
    assert randomness.independence(*dropped, 0.3) > ALPHA
    first, second = channels(True)
    assert_array_equal(first, second)
    assert randomness.independence(~first[:, 0, 0], ~second[:, 0, 0], 0.3) < ALPHA


def test_examples_depend_on_each_other_only_where_asked() -> None:
    """Pitfall 105 b: of the others' masks, as rescaling by the batch; of their numbers never."""
    x = jnp.ones((2, 6, 6, 3))
    parts = {}
    for rescale in ("example", "batch", "expected"):
        y = drop_block(new_key(3), x, 0.5, block_size=3, rescale=rescale)
        assert_array_equal(y[0], drop_block(new_key(3), x.at[1].set(jnp.nan), 0.5, block_size=3, rescale=rescale)[0])
        parts[rescale] = np.asarray(y)
    of_examples = parts["example"].mean((1, 2, 3))
    assert_allclose(of_examples, 1, rtol=1e-5)
    assert abs(parts["batch"].mean() - 1) < 1e-5
    assert abs(parts["batch"][0].mean() - 1) > 1e-3
    assert len(np.unique(parts["expected"])) == 2


def test_counts_do_not_overflow_in_half_precision() -> None:
    """Pitfall 105 a."""
    y = drop_block(new_key(), jnp.ones((2, 64, 64, 64), jnp.float16), 0.3, rescale="batch")
    assert abs(float(jnp.mean(y.astype(jnp.float32))) - 1) < 1e-3


# Limits


def test_where_nothing_is_kept_y_and_its_derivatives_are_0() -> None:
    """Pitfall 78: at a rate of 1, and where chance drops a whole example; of infinity and NaN too."""
    x = jnp.full((12, 3, 2, 1), jnp.inf).at[:, 1].set(jnp.nan)

    def run(rate: Any, rescale: Any) -> Any:
        f = lambda x: drop_block(new_key(), x, rate, block_size=(3, 2), rescale=rescale)  # noqa: E731
        y, pullback = jax.vjp(f, x)
        return y, pullback(jnp.ones_like(x))[0], jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

    some = np.asarray(dropout(new_key(), jnp.ones((12, 1, 1, 1)), 0.6) != 0)
    assert 0 < some.sum() < 12
    for rescale in ("example", "batch", "expected"):
        traced = jax.jit(run, static_argnums=1)
        for part in traced(1.0, rescale):
            assert_array_equal(part, jnp.zeros_like(x))
        y, *derivatives = traced(0.6, rescale)
        assert_array_equal(np.asarray(y)[~some[:, 0, 0, 0]], 0)
        for derivative in derivatives:
            assert_array_equal(np.asarray(derivative) > 0, np.broadcast_to(some, x.shape))
            assert np.isfinite(derivative).all()


def test_rate_0_changes_no_bit_and_dropped_nan_is_0() -> None:
    x = numbers((3, 6, 4, 2)).at[1].set(jnp.nan)
    assert_array_equal(drop_block(new_key(), x, 0, block_size=3), x)
    y, pullback = jax.vjp(lambda x: drop_block(new_key(), x, 0.6, block_size=3), x)
    dropped = np.asarray(drop_block(new_key(), jnp.ones_like(x), 0.6, block_size=3) == 0)
    assert dropped[1].any()
    assert_array_equal(np.asarray(y)[dropped], 0)
    assert np.isnan(np.asarray(y)[1][~dropped[1]]).all()
    assert_array_equal(np.asarray(pullback(jnp.ones_like(x))[0]) == 0, dropped)


def test_traced_rates() -> None:
    """Pitfall 81; and 80, where one outside [0, 1] gives NaN, though its gamma would be a probability."""
    x = numbers((4, 14, 14, 8))
    run = jax.jit(lambda rate: drop_block(new_key(), x, rate))
    for rate in (0.0, 0.3, 1.0):
        assert_allclose(run(rate), drop_block(new_key(), x, rate), rtol=1e-6)
    for rate in (-0.1, 1.2, np.nan, np.inf):
        assert np.isnan(run(rate)).all()


def test_a_rate_for_each_channel() -> None:
    rates = np.array([0, 0.2, 0.6, 1]).reshape(1, 1, 1, 4)
    y = np.asarray(drop_block(new_key(), jnp.ones((4000, 3, 4, 4)), rates, block_size=2, rescale="expected"))
    for channel, rate in enumerate(rates.ravel()):
        kept = (y[..., channel] != 0).mean((1, 2))
        gamma = 1 if rate == 1 else oracles.block_probability(rate, (3, 4), (2, 2))
        expected = share(float(1 - oracles.realised(gamma)), (3, 4), (2, 2)).mean()
        assert abs(kept.mean() - expected) <= 4 * kept.std() / np.sqrt(4000)
        assert abs(y[..., channel].mean() - (rate < 1)) <= 4 * y[..., channel].mean((1, 2)).std() / np.sqrt(4000)


BAD = {
    "larger than the map": (ValueError, {"block_size": 5}, "block_size must be at most the size of the map, [6, 4], got 5"),
    "0": (ValueError, {"block_size": 0}, "block_size must be at least 1, got 0"),
    "float": (TypeError, {"block_size": 2.0}, "block_size must be an int of at least 1, got 2.0"),
    "three": (ValueError, {"block_size": (1, 2, 3)}, "block_size must be an int, or one for each of the 2"),
    "rate": (ValueError, {"rate": 1.5}, "rate must be in [0, 1], got 1.5"),
    "rate NaN": (ValueError, {"rate": np.nan}, "rate must be in [0, 1], got nan"),
    "rate a word": (TypeError, {"rate": "0.5"}, "rate must be a number in [0, 1], got '0.5'"),
    "rates of positions": (ValueError, {"rate": np.full((3, 6, 4, 2), 0.1)}, "rate must be a scalar or have a shape like"),
    "rescale": (ValueError, {"rescale": None}, "rescale must be 'example' or 'batch' or 'expected', got None"),
    "shared": (TypeError, {"shared": 1}, "shared must be True or False, or a traced bool scalar, got 1"),
    "channel_axis": (ValueError, {"channel_axis": 4}, "channel_axis is out of range for an array of rank 4, got 4"),
    "the batch's axis": (ValueError, {"channel_axis": 0}, "channel_axis must not be the batch's axis, 0, got 0"),
    "bits": (ValueError, {"bits": 8}, "bits must be 16 or 32 for a probability that a block begins of 0.033"),
    "other bits": (ValueError, {"bits": 7}, "bits must be 8, 16 or 32, got 7"),
    "no space": (ValueError, {"x": jnp.ones((3, 2))}, "x must have 1 to 3 spatial dimensions beside batch and channels"),
    "integers": (TypeError, {"x": jnp.ones((3, 6, 4, 2), int)}, "x must be an array of floating point numbers, got int32"),
    "key": (TypeError, {"key": None}, "key must be one key"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_of_drop_block_is_named(name: str) -> None:
    """Pitfalls 80, 83, 88 and 105 d."""
    error, given, message = BAD[name]
    arguments = {"key": new_key(), "x": numbers((3, 6, 4, 2)), "rate": 0.1, "block_size": 3, **given}
    with pytest.raises(error) as raised:
        drop_block(**arguments)
    assert message in str(raised.value)


# Cutout: methods.md 4.10


@pytest.mark.parametrize("shape, size, channel_axis", [((40, 6, 5, 3), (3, 4), -1), ((40, 2, 7), 9, 1), ((9, 3, 4, 2, 2), 2, -1)])
def test_cutout_equals_the_oracle(shape: tuple[int, ...], size: Any, channel_axis: int) -> None:
    channel = channel_axis % len(shape)
    x, space = numbers(shape), tuple(n for a, n in enumerate(shape) if a not in (0, channel))
    sizes = size if isinstance(size, tuple) else (size,) * len(space)
    words = oracles.random_words(key_words(), (shape[0], 2, len(space))).astype(object)
    centers = words * np.array(space, object) >> 32
    cut = np.stack([np.any([oracles.holes(center, sizes, space) for center in two], axis=0) for two in centers])
    cut = np.broadcast_to(np.expand_dims(cut, channel), shape)
    run = lambda x: cutout(new_key(), x, size, holes=2, fill=0.5, channel_axis=channel_axis)  # noqa: E731
    y, pullback = jax.vjp(run, x)
    assert_array_equal(y, np.where(cut, np.float32(0.5), x))
    assert_array_equal(pullback(x)[0], np.where(cut, np.float32(0), x))
    assert_keeps_the_key_alone(run, x)


def test_share_that_is_cut() -> None:
    holes = np.asarray(cutout(new_key(), jnp.ones((20_000, 8, 8, 1), jnp.bfloat16), 4)[..., 0] == 0)
    centers = oracles.covering_blocks(8 + 3, 4)[1:-2]  # which lie on every pixel, and cut these
    expected = np.mean(centers / 8) ** 2
    assert f"{expected:.4f}" == "0.1914"
    shares = holes.mean((1, 2))
    error = shares.std() / np.sqrt(len(shares))
    assert abs(shares.mean() - expected) < 4 * error
    assert abs(shares.mean() - 0.25) > 4 * error  # of squares that are never clipped


def test_every_pixel_is_the_center_alike() -> None:
    y = np.asarray(cutout(new_key(), jnp.ones((20_000, 5, 3, 1), jnp.bfloat16), 1)[..., 0] == 0)
    assert (y.sum((1, 2)) == 1).all()
    assert randomness.chi_squared(y.sum(0).ravel(), np.full(15, 1 / 15)) > ALPHA
    assert randomness.chi_squared(y[:, :, :2].sum(0).ravel(), np.full(10, 1 / 9)) < ALPHA


def test_cutout_leaves_nan_out_and_fills_channels() -> None:
    x = jnp.full((5, 4, 4, 2), jnp.nan)
    y = cutout(new_key(), x, 9, fill=np.float32([1, 2]).reshape(1, 1, 1, 2))
    assert_array_equal(np.isnan(y), False)
    assert_array_equal(y[0, 0, 0], [1, 2])
    assert cutout(new_key(), x.astype(jnp.bfloat16), 1).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "error, given, message",
    [
        (ValueError, {"size": 0}, "size must be at least 1, got 0"),
        (TypeError, {"size": None}, "size must be an int of at least 1, got None"),
        (ValueError, {"size": (1,)}, "size must be an int, or one for each of the 2 spatial dimensions of x, got (1,)"),
        (TypeError, {"holes": 1.0}, "holes must be an int of at least 1, got 1.0"),
        (ValueError, {"fill": np.nan}, "fill must be in [-inf, inf), got nan"),
        (ValueError, {"fill": np.ones(3)}, "fill must be a scalar or have a shape like"),
        (ValueError, {"x": jnp.ones((3, 2))}, "x must have 1 to 3 spatial dimensions"),
    ],
)
def test_bad_input_of_cutout_is_named(error: Any, given: dict[str, Any], message: str) -> None:
    arguments = {"key": new_key(), "x": numbers((3, 6, 4, 2)), "size": 3, **given}
    with pytest.raises(error) as raised:
        cutout(**arguments)
    assert message in str(raised.value)
