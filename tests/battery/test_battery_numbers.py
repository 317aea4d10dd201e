"""The numbers of 16 and 8 bits against every test of `number_tests.py`; and of each test generators that it must reject."""

import battery.bad_generators as bad
import battery.number_tests as tests
import numpy as np
import pytest
from battery.bad_generators import BAD_GENERATORS, BadGenerator, good
from battery.number_tests import TESTS, Numbers
from battery.streams import STREAMS, Stream, draw, elements, same_element, steps
from randomness import ALPHA, together

SIZE = 2**22  # bits in one test, however many a number has

REJECTED = {
    tests.frequency: (bad.counter, bad.biased, bad.few_rounds),
    tests.serial_pairs: (bad.repeated_number, bad.reused_word, bad.few_rounds),
    tests.serial_correlation: (bad.repeated_number, bad.reused_word, bad.few_rounds),
    tests.gaps: (bad.repeated_number, bad.counter, bad.few_rounds),
    tests.bit_runs: (bad.repeated_number, bad.low_bits, bad.few_rounds),
    tests.poker: (bad.repeated_number, bad.reused_word),
    tests.permutations: (bad.rising_words, bad.few_rounds),
    tests.ascents: (bad.rising_words, bad.few_rounds),
    tests.maximum_of_eight: (bad.biased, bad.low_bits, bad.few_rounds),
    tests.collisions: (bad.distinct_words, bad.reused_word),
    tests.birthday_spacings: (bad.low_bits, bad.reused_word, bad.few_rounds),
    tests.matrix_ranks: (bad.shift_register, bad.low_bits, bad.few_rounds),
    tests.spectrum: (bad.wave, bad.lattice, bad.few_rounds),
    tests.weights: (bad.turned_word, bad.lattice, bad.few_rounds),
    tests.lane_counts: (bad.biased_lane, bad.few_rounds),
    tests.lane_pairs: (bad.copied_bit, bad.reused_word, bad.lattice, bad.few_rounds),
    tests.bit_correlations: (bad.copied_bit, bad.turned_word, bad.lattice, bad.few_rounds),
}


def odd(numbers: Numbers, bits: int) -> dict[str, float]:
    """The tests that reject the numbers."""
    probabilities = {test.__name__: test(numbers, bits) for test in TESTS}
    return {name: p for name, p in probabilities.items() if not p > ALPHA}


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.__name__)
def test_numbers(stream: Stream, bits: int) -> None:
    assert odd(draw(stream, 21, SIZE // bits, bits), bits) == {}


@pytest.mark.parametrize("bits", [16, 8])
def test_control_a_good_generator(bits: int) -> None:
    assert odd(good(SIZE // bits, bits), bits) == {}


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("generator", BAD_GENERATORS, ids=lambda generator: generator.__name__)
def test_control_bad_generators(generator: BadGenerator, bits: int) -> None:
    numbers = generator(SIZE // bits, bits)
    rejecting = [test for test, rejected in REJECTED.items() if generator in rejected]
    assert rejecting
    for test in rejecting:
        assert test(numbers, bits) < ALPHA, test.__name__


def test_control_a_bias_that_only_many_samples_show() -> None:
    samples = good(2**23, 8).reshape(32, -1)
    samples |= np.where(np.random.default_rng(5).random(samples.shape) < 0.015, np.uint8(128), np.uint8(0))
    values = [tests.frequency(numbers, 8) for numbers in samples]
    assert min(values) > ALPHA
    assert together(values) < ALPHA


def test_every_test_has_a_control() -> None:
    assert set(REJECTED) == set(TESTS)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.__name__)
def test_eight_times_as_many_numbers(stream: Stream, bits: int) -> None:
    assert odd(draw(stream, 5, 8 * SIZE // bits, bits), bits) == {}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("stream", [elements, steps, same_element], ids=lambda stream: stream.__name__)
def test_small_probabilities_are_as_rare_as_they_should_be(stream: Stream, bits: int) -> None:
    """Of 32 keys, so that a defect shows that is too small for one."""
    samples = [draw(stream, seed, SIZE // bits, bits) for seed in range(32)]
    for test in TESTS:
        values = [test(numbers, bits) for numbers in samples]
        assert together(values) > ALPHA, test.__name__
