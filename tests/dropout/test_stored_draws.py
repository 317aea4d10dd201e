"""What every function with noise draws for one key: numbers that are stored for ever, whatever the version of jax.

`python tests/dropout/test_stored_draws.py` prints what there is no number for yet, to be added to the file; those that are there
stay.
"""

import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import CASES, Case
from numpy.testing import assert_allclose
from tiers import then_slow

_FILE = Path(__file__).with_name("stored_draws.json")
_STORED: dict[str, list[float]] = json.loads(_FILE.read_text())
_RANDOM = [case for case in CASES if case.is_random]
_COUNT = 24


def some_numbers(case: Case) -> np.ndarray:
    """Some of what the function gives, from all over the array, for a key of its own."""
    key = jax.random.key(zlib.crc32(case.name.encode()), impl="threefry2x32")
    y = np.asarray(case(key, case.arguments())[0], np.float64).ravel()
    return y[:: max(1, y.size // _COUNT)][:_COUNT]


@pytest.mark.parametrize("case", then_slow(_RANDOM, 12), ids=lambda case: case.name)
def test_draws_are_those_that_are_stored(case: Case) -> None:
    """Pitfall 95."""
    assert_allclose(some_numbers(case), _STORED[case.name], rtol=2e-5, atol=2e-5)


def test_nothing_is_stored_of_what_there_is_not() -> None:
    assert set(_STORED) == {case.name for case in _RANDOM}


if __name__ == "__main__":
    new = {case.name: [float(f"{number:.7g}") for number in some_numbers(case)] for case in _RANDOM if case.name not in _STORED}
    print("\n".join(f'  "{name}": {json.dumps(numbers)},' for name, numbers in new.items()))
