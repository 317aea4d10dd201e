"""The choice of combinations that run at first."""

import itertools
import random
from collections import Counter

import pytest
from tiers import covering


@pytest.mark.parametrize("sizes", [(1,), (5,), (2, 3), (4, 4, 2), (3, 1, 2, 7)], ids=str)
def test_every_value_occurs_and_none_much_more_often_than_the_others(sizes: tuple[int, ...]) -> None:
    crossed = [set(enumerate(values)) for values in itertools.product(*map(range, sizes))]
    random.Random(0).shuffle(crossed)
    chosen = covering(crossed)
    assert len(chosen) == max(sizes)
    times = Counter(itertools.chain(*(crossed[i] for i in chosen)))
    for name, size in enumerate(sizes):
        assert {times[name, value] for value in range(size)} <= {max(sizes) // size, -(-max(sizes) // size)}


@pytest.mark.parametrize("sizes", [(2, 2, 6), (2, 3, 6), (2, 2, 2, 8)], ids=str)
def test_two_values_occur_together_where_there_are_combinations_enough(sizes: tuple[int, ...]) -> None:
    crossed = [set(enumerate(values)) for values in itertools.product(*map(range, sizes))]
    chosen = [crossed[i] for i in covering(crossed)]
    for first, second in itertools.combinations(list(enumerate(sizes[:-1])), 2):
        for a, b in itertools.product(range(first[1]), range(second[1])):
            assert any({(first[0], a), (second[0], b)} <= combination for combination in chosen)
