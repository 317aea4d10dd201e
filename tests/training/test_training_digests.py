"""Digests of arrays, against a slow one of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnorm.training._digests import digests, finish_sums, start_sums


def digest(array):
    return digests([finish_sums(start_sums({"a": array}))])["a"]


def mix(x):
    for odd in (0x9E3779B9, 0x6A09E667):
        x = (x ^ x >> 16) * odd & 0xFFFFFFFF
    return x ^ x >> 15


def slow_digest(array):
    """The digest as the module's docstring says it, with Python's ints."""
    array = np.asarray(array)
    if array.dtype.itemsize >= 4:
        words = np.frombuffer(array.tobytes(), "<u4")
    elif array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        words = array.astype(np.int64).ravel() % 2**32
    else:
        words = np.frombuffer(array.tobytes(), f"<u{array.dtype.itemsize}")
    places = [mix(i) for i in range(len(words))]
    mixed = [mix(int(word) ^ place) for word, place in zip(words, places, strict=True)]
    second = sum(m * (place | 1) for m, place in zip(mixed, places, strict=True))
    return b"".join((total % 2**32).to_bytes(4, "little") for total in (sum(mixed), second)).hex()


NORMAL = np.random.default_rng(0).normal(size=(3, 4))
ARRAYS = [
    *(NORMAL.astype(dtype) for dtype in (np.float32, jnp.bfloat16, np.float16, jnp.float8_e4m3fn)),
    *((100 * NORMAL).astype(dtype) for dtype in (np.int8, np.int16, np.int32)),
    *(np.abs(100 * NORMAL).astype(dtype) for dtype in (np.uint8, np.uint32)),
    (NORMAL + 1j * NORMAL[::-1]).astype(np.complex64),
    NORMAL > 0,
    np.array([np.nan, -np.nan, np.inf, -0.0, 0.0, 1e-45], np.float32),
    np.array(3, np.float32),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_it_is_that_of_the_docstring(array):
    assert digest(jnp.asarray(array)) == slow_digest(array)


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64", "complex128"])
def test_of_elements_of_several_words(dtype):
    with jax.enable_x64(True):
        array = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)) * 2.0**40, dtype)
        assert array.dtype == dtype
        assert digest(array) == slow_digest(array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_every_bit_and_every_swap_changes_it(dtype):
    """Those of one array: 6 elements with all bits flipped and all pairs swapped, which differ from it and from each other."""
    start = np.random.default_rng(0).integers(np.iinfo(dtype).max, size=6, dtype=dtype)
    changed = [start]
    for place in range(start.size):
        for bit in range(8 * start.itemsize):
            changed.append(start.copy())
            changed[-1][place] ^= dtype(1 << bit)
        for other in range(place):
            changed.append(start.copy())
            changed[-1][[place, other]] = start[[other, place]]
    found = {digest(jnp.asarray(array)) for array in changed}
    assert len(found) == len(changed) == 1 + 6 * 8 * start.itemsize + 15


def test_zeros_of_other_sizes_have_others():
    assert len({digest(jnp.zeros(size)) for size in (1, 2, 3)}) == 3


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [(), ("b", "a"), (None, ("a", "b"))], ids=repr)
def test_it_does_not_depend_on_the_layout(spec, kind):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    array = jnp.asarray(np.random.default_rng(1).normal(size=(8, 16, 2)), jnp.bfloat16)
    assert digest(jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))) == digest(array)


def test_the_arrays_may_be_donated_at_once():
    array = jnp.arange(100_000.0)
    expected, started = digest(array), start_sums({"a": array})
    array = jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    assert digests([finish_sums(started)])["a"] == expected != digest(array)
