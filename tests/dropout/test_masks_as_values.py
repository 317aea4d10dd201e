"""Masks that are drawn once and applied many times, and keys of examples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from cases import SHAPE, data
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_array_equal
from promises import mesh, other_key
from randomness import ALPHA
from tiers import then_slow

from jaxnorm import apply_mask, dropout, dropout_mask, example_keys

all_bits = pytest.mark.parametrize("bits", [8, 16, 32])


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


# Masks


def both(x: jax.Array, rate: Any, bits: int, dims: tuple[int, ...] = ()) -> Any:
    """Values and gradients of dropout, and of a mask that is drawn and applied."""

    def by_mask(x: jax.Array) -> jax.Array:
        return apply_mask(dropout_mask(new_key(), x.shape, rate, broadcast_dims=dims, bits=bits), x, rate, bits=bits)

    def outcome(f: Any) -> Any:
        y, pullback = jax.vjp(f, x)
        return jax.tree.map(lambda a: a.astype(jnp.float64 if a.dtype == jnp.float64 else jnp.float32), (y, pullback(x)[0]))

    return outcome(lambda x: dropout(new_key(), x, rate, broadcast_dims=dims, bits=bits)), outcome(by_mask)


@all_bits
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.875, "channels"], ids=str)
@pytest.mark.parametrize(("dims", "dtype"), [((), jnp.float32), ((0,), jnp.bfloat16), ((1, 2), jnp.float16)], ids=str)
def test_a_mask_that_is_drawn_and_applied_is_dropout_to_the_bit(bits: int, rate: Any, dims: tuple[int, ...], dtype: Any) -> None:
    """Values and gradients, in one program with a rate that it knows, and in one with a traced rate, and outside of any."""
    if isinstance(rate, str):
        rate = np.float32([0.1, 0.5, 0.75]).reshape(1, 1, 1, 3)
    x = data(dtype=dtype).at[0, 0, 0].set(jnp.nan)
    for expected, got in (
        both(x, rate, bits, dims),
        jax.jit(lambda x: both(x, rate, bits, dims))(x),
        jax.jit(lambda x, rate: both(x, rate, bits, dims))(x, rate),
    ):
        jax.tree.map(assert_array_equal, got, expected)


@pytest.mark.slow
@all_bits
def test_masks_are_those_of_float64_too(bits: int) -> None:
    """At every rate: a threshold is that of float32, whatever the type of x or of the rate is."""
    with jax.enable_x64(True):
        run = jax.jit(lambda x, rate: both(x, rate, bits))
        for rate in np.random.default_rng(0).uniform(0, 1, 300):
            for dtype in (jnp.float32, jnp.float64):
                for traced in (jnp.float32(rate), jnp.float64(rate)):
                    (y, _), (masked, _) = run(jnp.ones(2000, dtype), traced)
                    assert_array_equal(masked, y)
                (y, _), (masked, _) = both(jnp.ones(2000, dtype), rate if bits > 8 else 0.3, bits)
                assert_array_equal(masked, y)


@pytest.mark.parametrize("rate", then_slow([1, 1e-4, 0, 1 - 1e-4], 2), ids=str)
def test_masks_of_rates_near_the_limits(rate: float) -> None:
    """Rates that 16 bits do not hold take 32 bits in both; at 1 nothing is left, infinity neither, and gradients are 0."""
    x = jnp.full(20_000, jnp.inf)
    expected, got = both(x, rate, 16)
    jax.tree.map(assert_array_equal, got[0], expected[0])
    mask = dropout_mask(new_key(), x.shape, rate)
    assert_array_equal(mask, oracles.keep_mask((0, 11), x.shape, rate, 32 if 0 < rate < 1 else 16))
    gradient = jax.grad(lambda x: jnp.sum(apply_mask(mask, x, rate)))(jnp.ones(20_000))
    assert jnp.isfinite(gradient).all()
    assert_array_equal(gradient == 0, ~mask)


def test_a_mask_has_the_shape_that_is_asked_for() -> None:
    mask = dropout_mask(new_key(), SHAPE, 0.3, broadcast_dims=(1, 2))
    assert (mask.shape, mask.dtype) == (SHAPE, bool)
    small = dropout_mask(new_key(), (8, 1, 1, 3), 0.3)
    assert_array_equal(mask, np.broadcast_to(small, SHAPE))
    assert_array_equal(apply_mask(small, data(), 0.3), dropout(new_key(), data(), 0.3, broadcast_dims=(1, 2)))
    for shape in ((), (0,), (3, 0, 2), [5], np.ones((2, 3)).shape):
        assert dropout_mask(new_key(), shape, 0.3).shape == tuple(shape)


def test_one_mask_serves_many_calls() -> None:
    """The steps of a scan, the members of an ensemble, a batch under vmap."""
    mask, xs = dropout_mask(new_key(), (5, 3), 0.3), data((4, 5, 3))
    expected = np.stack([dropout(new_key(), x, 0.3) for x in xs])
    assert_array_equal(jax.lax.scan(lambda _, x: (None, apply_mask(mask, x, 0.3)), None, xs)[1], expected)
    assert_array_equal(jax.vmap(lambda x: apply_mask(mask, x, 0.3))(xs), expected)
    keys = jax.random.split(new_key(), 4)
    masks = jax.jit(jax.vmap(lambda key: dropout_mask(key, (5, 3), 0.3)))(keys)
    assert_array_equal(masks, np.stack([dropout_mask(key, (5, 3), 0.3) for key in keys]))


def test_masks_are_independent_where_keys_differ() -> None:
    masks = np.stack([dropout_mask(new_key(seed), (300, 400), 0.3) for seed in (1, 2)])
    keep = float(oracles.realised(0.3))
    assert randomness.rate(~masks, 1 - keep) > ALPHA
    assert randomness.independence(*masks, keep) > ALPHA
    assert randomness.independence(masks[0], masks[0], keep) < ALPHA


def test_masks_of_symbolic_sizes_and_other_platforms() -> None:
    (n,) = export.symbolic_shape("n")
    run = jax.jit(lambda data, x: dropout_mask(jax.random.wrap_key_data(data), x.shape, 0.3))
    words = jax.random.key_data(new_key())
    program = export.export(run, platforms=("cpu", "cuda", "tpu"))(words, jax.ShapeDtypeStruct((n, 4), jnp.float32))
    for size in (3, 8):
        assert_array_equal(program.call(words, jnp.ones((size, 4))), dropout_mask(new_key(), (size, 4), 0.3))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_masks_on_sharded_arrays(axis_type: AxisType) -> None:
    devices = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    with jax.set_mesh(devices):
        x = jax.device_put(data(), NamedSharding(devices, P("d")))
        for shape, dims in ((SHAPE, ()), ((8, 1, 1, 3), (1, 2)), ((1, 2, 4, 3), (0,))):
            y = jax.jit(lambda x: apply_mask(dropout_mask(new_key(), shape, 0.3), x, 0.3))(x)  # noqa: B023
            assert y.sharding.is_equivalent_to(x.sharding, y.ndim)
            assert_array_equal(y, dropout(new_key(), data(), 0.3, broadcast_dims=dims))


@pytest.mark.parametrize(
    "shape, error",
    [(3, TypeError), (None, TypeError), ("ab", TypeError), ((2.0,), TypeError), ((True,), TypeError), ((2, -1), ValueError)],
)
def test_bad_shapes_are_named(shape: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"shape must be a sequence of ints of at least 0, got .*"):
        dropout_mask(new_key(), shape, 0.3)


def test_bad_masks_and_what_goes_with_them_are_named() -> None:
    x, mask = data(), jnp.ones(SHAPE, bool)
    for bad, error, message in (
        (mask.astype(jnp.float32), TypeError, "mask must be an array of bool, got an array float32"),
        (None, TypeError, "mask must be an array of bool, got None"),
        (mask[:3], ValueError, r"mask must .*broadcast to its shape \[8, 2, 4, 3\], got shape \[3, 2, 4, 3\]"),
        (mask[0], ValueError, r"mask must have the rank of x .*got shape \[2, 4, 3\]"),
    ):
        with pytest.raises(error, match=message):
            apply_mask(bad, x, 0.3)
    for rate, error in ((1.5, ValueError), (float("nan"), ValueError), ("0.5", TypeError), (None, TypeError), (True, TypeError)):
        for call in (lambda rate: apply_mask(mask, x, rate), lambda rate: dropout_mask(new_key(), SHAPE, rate)):
            with pytest.raises(error, match=f"rate must be .*got {rate!r}"):
                call(rate)
    for call in (lambda **more: apply_mask(mask, x, **more), lambda **more: dropout_mask(new_key(), SHAPE, **more)):
        with pytest.raises(ValueError, match=r"rate must .*shape"):
            call(rate=np.full(3, 0.5))
        with pytest.raises(ValueError, match=r"bits must be 16 or 32 for a rate of 0.01"):
            call(rate=0.01, bits=8)
        with pytest.raises(ValueError, match="bits must be 8, 16 or 32, got 7"):
            call(rate=0.5, bits=7)
    with pytest.raises(ValueError, match="broadcast_dims is out of range"):
        dropout_mask(new_key(), SHAPE, 0.3, broadcast_dims=(4,))
    with pytest.raises(TypeError, match=r"key must be one key, .*None"):
        dropout_mask(None, SHAPE, 0.3)  # type: ignore[arg-type]


def test_a_traced_rate_outside_its_range_gives_nan_wherever_the_mask_is_from() -> None:
    run = jax.jit(lambda rate, mask: apply_mask(mask, data(), rate))
    for mask in (dropout_mask(new_key(), SHAPE, 0.5), jax.jit(lambda rate: dropout_mask(new_key(), SHAPE, rate))(1.5)):
        assert jnp.isnan(run(1.5, mask)).all()
        assert jnp.isfinite(run(0.5, mask)).all()


# Keys of examples

WIDE = (0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 3, 2**63)


def words(keys: jax.Array) -> list[tuple[int, ...]]:
    return [
        tuple(map(int, pair)) for pair in np.asarray(jax.random.key_data(keys)).reshape(-1, jax.random.key_data(keys).shape[-1])
    ]


def test_an_index_of_64_bits_has_a_key_of_its_own() -> None:
    """That of the cipher's block of this number; below 2^32 that of `fold_in`."""
    keys = example_keys(new_key(), np.array(WIDE, np.uint64))
    expected = [tuple(map(int, oracles.threefry2x32((0, 11), (i >> 32, i & 0xFFFFFFFF)))) for i in WIDE]
    assert words(keys) == expected
    assert words(keys[:4]) == [words(jax.random.fold_in(new_key(), i))[0] for i in WIDE[:4]]
    assert [words(example_keys(new_key(), i))[0] for i in WIDE] == expected
    with jax.enable_x64(True):
        assert words(jax.jit(example_keys)(new_key(), jnp.array(WIDE, jnp.uint64))) == expected


@pytest.mark.parametrize("indices", [jnp.arange(6), np.arange(6), jnp.arange(6, dtype=jnp.uint8), jnp.arange(6).reshape(2, 3), 5])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_have_the_shape_of_the_indices(indices: Any, impl: str) -> None:
    keys = example_keys(other_key(1, impl), indices)
    assert keys.shape == np.shape(indices)
    assert jax.random.key_impl(keys) == jax.random.key_impl(other_key(1, impl))
    assert len(set(words(keys))) == keys.size
    legacy = example_keys(jax.random.PRNGKey(1), indices)
    assert impl != "threefry2x32" or words(legacy) == words(keys)


def drop(first: Any, x: jax.Array) -> jax.Array:
    """Dropout of examples of which the first has this index."""
    keys = example_keys(new_key(), first + jnp.arange(x.shape[0]))
    return jax.vmap(lambda key, row: dropout(key, row, 0.3))(keys, x)


def test_a_mask_of_an_example_depends_on_neither_batch_nor_microbatch_nor_shard() -> None:
    x = data((8, 5, 3))
    y = drop(0, x)
    assert_array_equal(drop(3, x[3:5]), y[3:5])
    micro = jax.lax.scan(lambda first, part: (first + 2, drop(first, part)), 0, x.reshape(4, 2, 5, 3))[1]
    assert_array_equal(micro.reshape(x.shape), y)
    of_shard = lambda x: drop(2 * jax.lax.axis_index("d"), x)  # noqa: E731
    assert_array_equal(jax.jit(jax.shard_map(of_shard, mesh=mesh(4), in_specs=P("d"), out_specs=P("d")))(x), y)
    assert (drop(0, x[3:5]) != y[3:5]).any()  # a control: by the index in the batch, it is another mask


def test_masks_of_examples_are_independent() -> None:
    run = jax.jit(lambda keys: jax.vmap(lambda key: dropout_mask(key, (64,), 0.3))(keys))
    keep = float(oracles.realised(0.3))
    masks = np.asarray(run(example_keys(new_key(), jnp.arange(4096))))
    assert randomness.lag(masks, 1, 0, keep) > ALPHA
    assert randomness.positions(~masks, 1 - keep) > ALPHA
    same = np.asarray(run(example_keys(new_key(), jnp.arange(4096) // 2)))
    assert randomness.lag(same, 1, 0, keep) < ALPHA


@pytest.mark.parametrize(
    "indices, error, shown",
    [
        (np.array([0, -1]), ValueError, r"\[0, -1\]"),
        (-1, ValueError, "-1"),
        (2**64, ValueError, "18446744073709551616"),
        (1.0, TypeError, "1.0"),
        (True, TypeError, "True"),
        (None, TypeError, "None"),
        (jnp.ones(3), TypeError, "float32"),
        (np.ones(3, bool), TypeError, "bool"),
        ([1, 2], TypeError, r"\[1, 2\]"),
    ],
    ids=str,
)
def test_bad_indices_are_named(indices: Any, error: type[Exception], shown: str) -> None:
    with pytest.raises(error, match=f"indices must be .*{shown}"):
        example_keys(new_key(), indices)


def test_bad_keys_for_examples_are_named() -> None:
    for key in (None, 0, jax.random.split(new_key(), 3)):
        with pytest.raises((TypeError, ValueError), match="key must be one key"):
            example_keys(key, jnp.arange(3))  # type: ignore[arg-type]
