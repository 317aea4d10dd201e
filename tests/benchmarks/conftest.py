"""Benchmarks draw with one key again and again, and call libraries that promote dtypes and ranks."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.jax_defaults)


@pytest.fixture(autouse=True)
def _keys_may_be_used_again() -> Iterator[None]:
    with jax.debug_key_reuse(False):
        yield
