"""The random bits: the cipher's published vectors, jax's own bits, both forms of drawing, and 64-bit positions."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_array_equal
from promises import check_vma, other_key
from tiers import then_slow

from jaxnorm import _packed_bits
from jaxnorm._bits import element_index, random_integers, random_words, resolution, threefry2x32, threefry_data
from jaxnorm._noise import Draw
from jaxnorm._packed_bits import has_packed_form, packed_below, packed_integers
from jaxnorm._spread_bits import spread_below

# Random123's known answers (threefry2x32, 20 rounds): counter, key, result.
VECTORS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]
# Whole groups of 4, 8 or 32 elements along the last axis, or in the whole array, or nowhere; single elements and none.
SHAPES = [
    (),
    (1,),
    (3,),
    (64,),
    (1001,),
    (5, 8),
    (8, 5),
    (3, 2, 12),
    (7, 3, 32),
    (1, 300, 1),
    (33, 70),
    (32, 7),
    (34, 7),
    (64, 5),
    (128, 3),
    (2, 48),
    (2, 1028),
    (2, 1032),
    (1, 6400),
    (0, 8),
    (4, 0),
]
OTHERS = ("rbg", "unsafe_rbg", "philox2x32", "threefry4x32")

all_bits = pytest.mark.parametrize("bits", [8, 16, 32])
packed_bits = pytest.mark.parametrize("bits", [8, 16])


def thresholds(bits: int) -> jax.Array:
    """None, one, some, all but one, and all of the numbers are below."""
    most = resolution(bits)
    return jnp.asarray([0, 1, most // 3, most - 1, most], jnp.uint32)


@functools.partial(jax.jit, static_argnames=("shape", "bits", "sharding"))
def drawn(
    key: jax.Array, threshold: jax.Array, shape: tuple[int, ...], bits: int, sharding: NamedSharding | None = None
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The numbers in every form there is, and where they are below the threshold, in every form of that."""
    numbers = [random_integers(key, shape, bits, sharding)]
    if bits == 16:
        numbers.append(packed_integers(key, shape, sharding))
    return numbers, [form(key, threshold, shape, bits, sharding) for form in (packed_below, spread_below)]


def check(key: jax.Array, expected: np.ndarray, bits: int, sharding: NamedSharding | None = None) -> None:
    """Every form draws the expected numbers, of the expected type."""
    for threshold in thresholds(bits):
        forms, answers = drawn(key, threshold, expected.shape, bits, sharding)
        for below in answers:
            assert (below.shape, below.dtype) == (expected.shape, jnp.bool_)
            assert_array_equal(below, expected < threshold)
        for numbers in forms:
            assert (numbers.shape, numbers.dtype) == (expected.shape, jnp.uint32)
            assert_array_equal(numbers, expected)
        if sharding is not None:
            assert {jax.typeof(part).sharding.spec for part in (*forms, *answers)} == {sharding.spec}


@all_bits
@pytest.mark.parametrize("shape", then_slow([(3, 4, 32), (6, 3), (5, 8), (4, 1)], 2), ids=str)
def test_thresholds_of_rows_columns_and_elements(shape: tuple[int, ...], bits: int) -> None:
    """As for rates of examples, of channels, and of both."""
    key, last = jax.random.key(9), len(shape) - 1
    random = np.random.default_rng(0)
    numbers = random_integers(key, shape, bits)
    for along in ((), (last,), (0,), range(last + 1)):
        sizes = [n if axis in along else 1 for axis, n in enumerate(shape)]
        threshold = jnp.asarray(random.integers(0, resolution(bits) + 1, sizes), jnp.uint32)
        for answers in drawn(key, threshold, shape, bits)[1]:
            assert_array_equal(answers, numbers < threshold)


def key_data(key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


# The cipher


@pytest.mark.parametrize("counter, key, result", VECTORS)
def test_published_vectors(counter: tuple[int, int], key: tuple[int, int], result: tuple[int, int]) -> None:
    assert tuple(int(word) for word in oracles.threefry2x32(key, counter)) == result
    ours = threefry2x32(jnp.asarray(key, jnp.uint32), *(jnp.asarray(word, jnp.uint32) for word in counter))
    assert tuple(int(word) for word in ours) == result


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 4, 4, 3), (1, 300, 1), (0, 3)], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5])
def test_words_are_those_of_jax(shape: tuple[int, ...], seed: int) -> None:
    words = random_words(jax.random.key(seed), shape)
    assert (words.shape, words.dtype) == (shape, jnp.uint32)
    assert_array_equal(words, jax.random.bits(jax.random.key(seed), shape))
    assert_array_equal(words, oracles.random_words(key_data(jax.random.key(seed)), shape))


# Numbers of few bits


@all_bits
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_form_draws_what_the_oracle_draws(shape: tuple[int, ...], bits: int) -> None:
    words = (7, 2**31 + 5)
    key = jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32))
    check(key, oracles.random_integers(words, shape, bits), bits)


@all_bits
def test_an_element_does_not_depend_on_the_axes(bits: int) -> None:
    """Only on its position: reshaping what is drawn, or drawing more behind it, changes no number."""
    flat = random_integers(jax.random.key(4), (160,), bits)
    assert_array_equal(random_integers(jax.random.key(4), (4, 5, 8), bits).ravel(), flat)
    assert_array_equal(random_integers(jax.random.key(4), (3, 33), bits).ravel(), flat[:99])


# Parts of a draw

FORMS = ("cpu", "tpu", "any")


@all_bits
@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 6, 5, 32), 2), ((2, 6, 16), 0), ((2, 7, 6), 1), ((2, 1, 8), 1), ((5, 1028), 0)], ids=str
)
def test_a_part_has_the_answers_of_the_whole(shape: tuple[int, ...], axis: int, bits: int) -> None:
    """Of every form, wherever it begins, which may be traced."""
    threshold = thresholds(bits)[2]

    @functools.partial(jax.jit, static_argnums=1)
    def parts(start: jax.Array, size: int) -> list[jax.Array]:
        draws = (Draw(jax.random.key(9), shape, None, bits, form) for form in FORMS)
        return [draw.part(axis, start, size).below(threshold) for draw in draws]

    whole = oracles.random_integers((0, 9), shape, bits) < threshold
    size = min(2, shape[axis])
    for start in range(shape[axis] - size + 1):
        for below in parts(jnp.int32(start), size):
            assert_array_equal(below, np.take(whole, range(start, start + size), axis))


# Keys


@pytest.mark.parametrize("impl", OTHERS)
@packed_bits
def test_other_generators_draw_from_a_key_derived_from_their_data(impl: str, bits: int) -> None:
    key = other_key(3, impl)
    assert has_packed_form(key, bits)
    check(key, oracles.random_integers(oracles.derived_key(key_data(key)), (5, 16), bits), bits)


@pytest.mark.parametrize("impl", OTHERS)
def test_other_generators_draw_32_bits_with_jax(impl: str) -> None:
    assert not has_packed_form(other_key(3, impl), 32)
    expected = jax.random.bits(other_key(3, impl), (33, 5))
    assert_array_equal(random_words(other_key(3, impl), (33, 5)), expected)
    assert_array_equal(random_integers(other_key(3, impl), (33, 5), 32), expected >> 9)


def test_every_word_of_another_generators_key_changes_the_derived_one() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, 4, dtype=np.uint32)
    keys = [words] + [np.where(np.arange(4) == i, words ^ 1, words) for i in range(4)]
    derived = [np.asarray(threefry_data(jax.random.wrap_key_data(jnp.asarray(key), impl="rbg"))) for key in keys]
    for a, b in itertools.combinations(derived, 2):
        assert (a != b).all()


BATCHES = [
    ("threefry2x32", 8, (7, 5)),
    ("threefry2x32", 16, (2, 3, 32)),
    ("threefry2x32", 32, (7, 5)),
    ("threefry2x32", 32, (2, 3, 32)),
    ("rbg", 8, (2, 3, 32)),
    ("philox2x32", 16, (7, 5)),
]


@pytest.mark.parametrize("impl, bits, shape", BATCHES, ids=str)
def test_a_batch_of_keys_draws_as_each_alone(impl: str, bits: int, shape: tuple[int, ...]) -> None:
    keys = jax.random.split(other_key(5, impl), 3)
    threshold = thresholds(bits)[2]
    together = jax.vmap(lambda key: drawn(key, threshold, shape, bits))(keys)
    for i, key in enumerate(keys):
        jax.tree.map(lambda lanes, alone, i=i: assert_array_equal(lanes[i], alone), together, drawn(key, threshold, shape, bits))
    for forms in together[0]:
        assert len({np.asarray(numbers).tobytes() for numbers in forms}) == 3


@all_bits
def test_a_batch_of_thresholds_asks_of_the_same_numbers(bits: int) -> None:
    run = jax.jit(jax.vmap(lambda key, threshold: drawn(key, threshold, (5, 32), bits), (None, 0)))
    forms, answers = run(jax.random.key(6), thresholds(bits))
    expected = oracles.random_integers((0, 6), (5, 32), bits)
    for i, threshold in enumerate(thresholds(bits)):
        for numbers in forms:
            assert_array_equal(numbers[i], expected)
        for below in answers:
            assert_array_equal(below[i], expected < threshold)


# Devices


@check_vma
@all_bits
@pytest.mark.parametrize("shape", [(3, 32), (3, 7)], ids=str)
def test_every_device_of_a_shard_map_draws_from_its_own_key(shape: tuple[int, ...], bits: int, check_vma: bool) -> None:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    threshold = thresholds(bits)[2]

    def part(key: jax.Array) -> Any:
        own = jax.random.fold_in(key, jax.lax.axis_index("d"))
        return jax.tree.map(lambda a: a[None], drawn(own, threshold, shape, bits))

    run = jax.shard_map(part, mesh=mesh, in_specs=P(), out_specs=P("d"), check_vma=check_vma)
    forms, answers = jax.jit(run)(jax.random.key(8))
    for i in range(4):
        expected = oracles.random_integers(key_data(jax.random.fold_in(jax.random.key(8), i)), shape, bits)
        for numbers in forms:
            assert_array_equal(numbers[i], expected)
        for below in answers:
            assert_array_equal(below[i], expected < threshold)


EXPLICIT = [
    ((8, 64), P(None, ("a", "b"))),
    ((4, 2, 128), P(None, "b", "a")),
    ((8, 40), P(None, "a")),  # ten elements a device: parts of groups
    ((8, 12), P("b", "a")),  # more devices than groups
    ((8,), P(("a", "b"))),
    ((), P()),
]


@all_bits
@pytest.mark.parametrize("shape, spec", EXPLICIT, ids=str)
def test_an_explicitly_sharded_draw_is_that_of_one_device(shape: tuple[int, ...], spec: P, bits: int) -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        check(jax.random.key(9), oracles.random_integers((0, 9), shape, bits), bits, NamedSharding(mesh, spec))


@packed_bits
@pytest.mark.parametrize("spec", [P(("a", "b")), P(None, "b"), P("a", None, "b"), P(None, None, ("a", "b"))], ids=str)
def test_spread_answers_need_nothing_of_other_devices(spec: P, bits: int) -> None:
    mesh, shape = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2), (8, 2, 128)
    program = jax.jit(lambda key: spread_below(key, thresholds(bits)[2], shape, bits), out_shardings=NamedSharding(mesh, spec))
    compiled = program.lower(jax.random.key(9)).compile()
    assert not re.findall(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", compiled.as_text())
    assert_array_equal(compiled(jax.random.key(9)), oracles.random_integers((0, 9), shape, bits) < thresholds(bits)[2])


# Positions beyond 32 bits, of arrays that no machine could hold: each element is a program of its own


def element(draw: Any, index: tuple[int, ...]) -> Any:
    """One element of every array that `draw(key)` returns, of key 9, computed alone."""

    @jax.jit
    def program(key: jax.Array, index: jax.Array) -> Any:
        one = lambda array: jax.lax.dynamic_slice(array, tuple(index), (1,) * array.ndim).ravel()[0]  # noqa: E731
        return jax.tree.map(one, draw(key))

    arguments = jax.random.key(9), jnp.asarray(index, jnp.int32)
    compiled = program.lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10_000
    return compiled(*arguments)


def position(shape: tuple[int, ...], index: tuple[int, ...]) -> int:
    return functools.reduce(lambda position, axis: position * axis[0] + axis[1], zip(shape, index, strict=True), 0)


LARGE = [(2**20, 2**13), (3, 2**31 - 1), (2**16 + 1, 2**16 + 1), (5, 7, 2**15 + 3, 2**17 - 1), (2**31 - 1, 2**29 - 1)]


@pytest.mark.parametrize("shape", [*LARGE, (9, 2**30 + 7, 3)], ids=str)
@pytest.mark.parametrize("shift", [0, 3])
def test_positions_beyond_32_bits(shape: tuple[int, ...], shift: int) -> None:
    one = lambda part, index: jax.lax.dynamic_slice(part, index, (1,) * len(shape)).ravel()[0]  # noqa: E731
    program = jax.jit(lambda index: [one(part, index) for part in element_index(shape, shift=shift)])
    program = program.lower([jnp.int32(0)] * len(shape)).compile()
    assert program.memory_analysis().temp_size_in_bytes < 10_000
    for index in itertools.product(*[(0, n // 2 + 1, n - 1) for n in shape]):
        upper, lower = program([jnp.int32(i) for i in index])
        assert (int(upper) << 32) + int(lower) == position(shape, index) >> shift


@all_bits
@pytest.mark.parametrize("shape", [(2**20, 2**13), (2**20 + 1, 2**13 + 1), (2**18, 2**18)], ids=str)
def test_numbers_beyond_32_bits_are_those_of_their_position(shape: tuple[int, ...], bits: int) -> None:
    index = (shape[0] - 1, shape[1] - 3)
    expected = oracles.random_integers((0, 9), (), bits, start=position(shape, index))
    assert int(element(lambda key: random_integers(key, shape, bits), index)) == int(expected)


@packed_bits
@pytest.mark.parametrize("shape", [(2**18, 2**18), (2**18, 2**18 - 1)], ids=["rows of whole groups", "odd rows"])
def test_answers_beyond_32_bits_are_those_of_their_position(
    shape: tuple[int, ...], bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_packed_bits, "in_memory", lambda packed: packed)  # 2^34 bytes of it, else
    monkeypatch.setattr(_packed_bits, "stored", lambda compute, other: compute())
    index = (shape[0] - 1, shape[1] - 3)
    expected = int(oracles.random_integers((0, 9), (), bits, start=position(shape, index)))
    limits = jnp.asarray([expected, expected + 1], jnp.uint32)
    answers = element(lambda key: [packed_below(key, limit, shape, bits) for limit in limits], index)
    assert [bool(answer) for answer in answers] == [False, True]
    if bits == 16:
        assert int(element(lambda key: packed_integers(key, shape), index)) == expected


@all_bits
def test_parts_beyond_32_bits_are_those_of_their_position(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_packed_bits, "in_memory", lambda packed: packed)
    shape, start, index = (2**12, 2**12, 2**10), 2**12 - 3, (2**12 - 1, 1, 2**10 - 2)
    expected = int(oracles.random_integers((0, 9), (), bits, start=position(shape, (index[0], start + index[1], index[2]))))

    def answers(key: jax.Array) -> list[jax.Array]:
        forms = ("any",) if bits == 32 else ("cpu", "any")  # the others store what they draw
        parts = [Draw(key, shape, None, bits, form).part(1, start, 2) for form in forms]
        return [part.below(jnp.uint32(limit)) for part in parts for limit in (expected, expected + 1)]

    found = [bool(answer) for answer in element(answers, index)]
    assert found == [False, True] * (len(found) // 2)
