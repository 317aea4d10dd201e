"""Whole channels, heads, examples and branches, and one mask for all steps: which elements share a draw, and how it is scaled."""

from collections.abc import Callable
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

from jaxnorm import (
    apply_mask,
    classic_dropout,
    drop_path,
    dropout,
    head_dropout,
    locked_dropout,
    spatial_dropout,
    weight_scaled,
)

Layer = Callable[..., jax.Array]
PATTERNS: dict[str, tuple[Layer, dict[str, Any], tuple[int, ...]]] = {  # with the axes that share a draw, of four
    "spatial": (spatial_dropout, {}, (1, 2)),
    "spatial, channels first": (spatial_dropout, {"channel_axis": 1}, (2, 3)),
    "spatial, channels from behind": (spatial_dropout, {"channel_axis": -3}, (2, 3)),
    "locked": (locked_dropout, {}, (1,)),
    "locked, time first": (locked_dropout, {"time_axis": 0}, (0,)),
    "locked, time from behind": (locked_dropout, {"time_axis": -2}, (2,)),
    "heads": (head_dropout, {"head_axis": -2}, (1, 3)),
    "heads before time": (head_dropout, {"head_axis": 1}, (2, 3)),
    "rows": (drop_path, {}, (1, 2, 3)),
    "batch": (drop_path, {"mode": "batch"}, (0, 1, 2, 3)),
}
UNSCALED = {"rows": (drop_path, {"scale": False}), "batch": (drop_path, {"scale": False, "mode": "batch"})}

each = pytest.mark.parametrize("name", PATTERNS)


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


def noise_shape(shared: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> tuple[int, ...]:
    return tuple(1 if axis in shared else n for axis, n in enumerate(shape))


@each
def test_a_pattern_is_dropout_that_shares_draws(name: str) -> None:
    """To the bit, values and gradients; pitfall 85: they are scaled by what is kept, not by what is dropped."""
    function, options, shared = PATTERNS[name]
    x = data()
    y, pullback = jax.vjp(lambda x: function(new_key(), x, 0.1, **options), x)
    expected, same = jax.vjp(lambda x: dropout(new_key(), x, 0.1, broadcast_dims=shared), x)
    assert_array_equal(y, expected)
    assert_array_equal(pullback(x)[0], same(x)[0])
    mask = oracles.keep_mask((0, 11), noise_shape(shared), 0.1)
    assert_allclose(pullback(jnp.ones(SHAPE))[0], np.where(mask, np.ones(SHAPE) / oracles.realised(0.1), 0), rtol=2.4e-7)


@pytest.mark.parametrize("name", UNSCALED)
def test_a_branch_that_is_not_rescaled_is_that_of_the_paper(name: str) -> None:
    """Pitfall 109, of scales in training and inference: it is kept as it is, and weighted in inference."""
    function, options = UNSCALED[name]
    x, shared = data(), PATTERNS[name][2]
    y = function(new_key(), x, 0.3, **options)
    assert_array_equal(y, classic_dropout(new_key(), x, 0.3, broadcast_dims=shared))
    keys = jax.random.split(new_key(), 10_000)
    mean = jax.jit(jax.vmap(lambda key: function(key, jnp.ones(2), 0.3, **options)))(keys).mean(0)
    assert (np.abs(mean - weight_scaled(jnp.ones(2), 0.3)) < 4 * np.sqrt(0.3 * 0.7 / 10_000)).all()


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_a_branch_is_dropped_whole(mode: str) -> None:
    """Pitfall 109: no single element, the whole example or the whole batch; and its expectation over keys is x."""
    x = jnp.full((6, 2, 3), 1.7)
    keys = jax.random.split(new_key(), 10_000)
    y = np.asarray(jax.jit(jax.vmap(lambda key: drop_path(key, x, 0.3, mode=mode)))(keys))
    keep = float(oracles.realised(0.3))
    assert_allclose(y[y != 0], 1.7 / keep, rtol=2.4e-7)
    assert (np.all(y != 0, (2, 3)) == np.any(y != 0, (2, 3))).all()
    whole = np.all(y != 0, (1, 2, 3)) == np.any(y != 0, (1, 2, 3))
    assert whole.all() == (mode == "batch")
    decisions = 10_000 * (6 if mode == "row" else 1)
    assert abs(y.mean() - 1.7) < 4 * 1.7 * np.sqrt((1 - keep) / keep / decisions)


def test_a_rate_is_the_probability_of_dropping() -> None:
    """Pitfall 110: not that of surviving."""
    for name, (function, options, _) in PATTERNS.items():
        if name != "batch":
            kept = np.mean(function(new_key(), jnp.ones((40, 30, 20, 10)), 0.1, **options) != 0)
            assert kept > 0.7, name


@pytest.mark.parametrize("layout", ["last", "first"])
def test_channels_are_constant_in_space_and_differ_among_each_other(layout: str) -> None:
    """Pitfall 88, of channels in both places: the mask is that of channels and examples, and no two of either share it."""
    axis, shape = {"last": (3, (40, 4, 5, 45)), "first": (1, (40, 45, 4, 5))}[layout]
    y = np.moveaxis(spatial_dropout(new_key(), jnp.ones(shape), 0.5, channel_axis=axis), axis, -1) == 0
    assert (y == y[:, :1, :1]).all()
    channels = y[:, 0, 0].T
    assert len({row.tobytes() for row in channels}) == len(channels)
    assert len({row.tobytes() for row in channels.T}) == 40
    assert min(randomness.lag(channels, 1, along, 0.5) for along in (0, 1)) > ALPHA
    assert randomness.independence(channels, channels, 0.5) < ALPHA  # as a mask that channels shared would be


def large(function: Layer, rate: float, **options: Any) -> np.ndarray:
    """What is dropped of a million draws, of an x with as few elements beside as can be."""
    shape = {spatial_dropout: (1000, 1, 1000), locked_dropout: (500, 1, 2000), head_dropout: (1000, 1, 1000, 1)}
    run = jax.jit(lambda key: function(key, jnp.ones(shape.get(function, (10**6, 1)), jnp.bfloat16), rate, **options) == 0)
    return np.asarray(run(new_key(5)))


@pytest.mark.parametrize("name", ["spatial", "locked", "heads", "rows"])
def test_how_much_is_dropped(name: str) -> None:
    function, options, _ = PATTERNS[name]
    dropped, probability = large(function, 0.3, **options), float(1 - oracles.realised(0.3))
    sigma = np.sqrt(probability * (1 - probability) / dropped.size)
    assert abs(dropped.mean() - probability) < 4 * sigma
    assert min(randomness.lag(dropped, 1, axis, probability) for axis, n in enumerate(dropped.shape) if n > 1) > ALPHA
    if name == "rows":  # a control for all, which draw alike
        assert abs(large(function, 0.303, **options).mean() - probability) > 4 * sigma


def test_a_mask_that_is_locked_keeps_memory_that_one_of_every_step_destroys() -> None:
    """The share of a state that is never dropped: `1 - rate`, and not `(1 - rate)^T`."""
    steps, n = 20, 4000
    locked = np.asarray(locked_dropout(new_key(), jnp.ones((n, steps, 1)), 0.3) != 0)
    apart = np.asarray(dropout(new_key(), jnp.ones((n, steps, 1)), 0.3) != 0)
    for kept, share in ((locked, 0.7), (apart, 0.7**steps)):
        assert abs(kept.all(1).mean() - share) < 4 * np.sqrt(share * (1 - share) / n) + 1e-5


def test_a_locked_mask_for_a_scan_is_drawn_before_it() -> None:
    x = data((5, 7, 3))
    mask = locked_dropout(new_key(), jnp.ones((5, 1, 3)), 0.3)[:, 0] != 0
    ys = jax.lax.scan(lambda _, row: (None, apply_mask(mask, row, 0.3)), None, jnp.moveaxis(x, 1, 0))[1]
    assert_array_equal(jnp.moveaxis(ys, 0, 1), locked_dropout(new_key(), x, 0.3))


def test_a_rate_for_each_example_or_channel() -> None:
    x = jnp.ones((4, 50, 60))
    of_examples = jnp.array([0.0, 0.3, 0.7, 1.0]).reshape(4, 1, 1)
    y = spatial_dropout(new_key(), x, of_examples)
    assert_array_equal(y, dropout(new_key(), x, of_examples, broadcast_dims=(1,)))
    assert (y[0] == 1).all()
    assert (y[3] == 0).all()
    rows = drop_path(new_key(), x, of_examples)
    assert_array_equal(rows[0], x[0])
    assert_array_equal(rows[3], 0 * x[3])
    of_channels = jnp.where(jnp.arange(60) < 30, 0.0, 1.0).reshape(1, 1, 60)
    assert_array_equal(locked_dropout(new_key(), x, of_channels), x * (1 - of_channels))


@pytest.mark.parametrize("axis, value", [(0, "0"), (-3, "-3")])
def test_the_examples_are_no_channels(axis: int, value: str) -> None:
    for function, name in ((spatial_dropout, "channel_axis"), (head_dropout, "head_axis")):
        with pytest.raises(ValueError, match=f"{name} must not be the first axis, .*got {value} for an x of rank 3"):
            function(new_key(), jnp.ones((2, 3, 4)), 0.5, **{name: axis})


@pytest.mark.parametrize("bad", [3, -4, (1, 2), (), 1.0, None, "a", True], ids=str)
def test_bad_axes_are_named(bad: Any) -> None:
    """Pitfall 88: out of range, several or none, and what is no axis."""
    for function, name in ((spatial_dropout, "channel_axis"), (locked_dropout, "time_axis"), (head_dropout, "head_axis")):
        with pytest.raises(
            (ValueError, TypeError),
            match=f"{name} .*{'got ' + repr(bad) if bad != () else ''}".replace("(", r"\(").replace(")", r"\)"),
        ):
            function(new_key(), jnp.ones((2, 3, 4)), 0.5, **{name: bad})


def test_other_modes_and_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="mode must be 'row' or 'batch', got 'rows'"):
        drop_path(new_key(), jnp.ones((2, 3)), 0.5, mode="rows")
    for scale in (1, None, "yes"):
        with pytest.raises(TypeError, match=f"scale must be True or False, .*got {scale!r}"):
            drop_path(new_key(), jnp.ones((2, 3)), 0.5, scale=scale)
    with pytest.raises(TypeError, match="head_axis"):
        head_dropout(new_key(), jnp.ones((2, 3, 4)), 0.5)  # type: ignore[call-arg]
