"""Which combinations of crossed parameters run at first: so many that every value occurs. The rest is behind `slow`."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from itertools import chain, permutations
from typing import Any

import pytest

APART = ("slow", "accelerator")


def then_slow(values: Sequence[Any], first: int = 1) -> list[Any]:
    """Returns the values of one parameter, of which the first ones run at first, and the others behind `slow`."""
    return [*values[:first], *(pytest.param(value, marks=pytest.mark.slow) for value in values[first:])]


def put_crossings_behind_slow(items: list[pytest.Item]) -> None:
    """Marks as slow all but a covering part of a test's combinations, unless a marker keeps the test for another run anyway."""
    tests = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and not any(map(item.get_closest_marker, APART)):
            tests[item.path, item.originalname].append(item)
    for combinations in tests.values():
        first = covering([_values(item) for item in combinations])
        for i, item in enumerate(combinations):
            if i not in first:
                item.add_marker(pytest.mark.slow)


def covering(combinations: Sequence[set[Hashable]]) -> set[int]:
    """Returns the positions of few combinations in which every value occurs, about as often as others, with many others."""
    occurred: Counter[Hashable] = Counter(dict.fromkeys(chain(*combinations), 0))
    pairs = [set(map(frozenset, permutations(combination, 2))) for combination in combinations]
    together: set[frozenset[Hashable]] = set()
    chosen: set[int] = set()

    def gain(i: int) -> tuple[int, int, int]:
        counts = [occurred[value] for value in combinations[i]]
        return counts.count(0), len(pairs[i] - together), -sum(counts)

    while 0 in occurred.values():
        best = max((i for i in range(len(combinations)) if i not in chosen), key=gain)
        chosen.add(best)
        occurred.update(combinations[best])
        together |= pairs[best]
    return chosen


def _values(item: pytest.Function) -> set[Hashable]:
    """A test's parameters; of names that are given values together, together."""
    given = item.callspec.params
    lists = [mark.args[0] for mark in item.iter_markers("parametrize")]
    groups = [[name.strip() for name in names.split(",")] if isinstance(names, str) else list(names) for names in lists]
    groups += [[name] for name in given if name not in chain(*groups)]  # of fixtures
    return {tuple((name, id(given[name])) for name in names) for names in groups}
