"""Batches that are any pytree, and what a step takes from them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnorm.training.data import num_examples

Unpack = Callable[[Any], Sequence[Any]]


class Examples(NamedTuple):
    """What a step takes from a batch: inputs and labels, trees of arrays, and weights `[B]`, or None where all count alike."""

    x: Any
    labels: Any
    weights: Any = None


def examples_of(batch: Any, unpack: Unpack | None) -> tuple[Examples, int]:
    """Returns the examples of a batch, and how many they are, at least one; `unpack` gives two or three of them, or raises."""
    found: Any = batch if unpack is None else unpack(batch)
    if not isinstance(found, tuple | list) or len(found) not in (2, 3):
        length = f" of length {len(found)}" if isinstance(found, tuple | list) else ""
        what = "batch must be" if unpack is None else "unpack must return"
        advice = "; unpack= takes them from another one" if unpack is None else ""
        raise TypeError(f"{what} (x, labels) or (x, labels, weights), got {type(found).__name__}{length}{advice}")
    examples = Examples(*found)
    length = num_examples(examples)
    if length == 0:
        raise ValueError("batch must hold at least one example, got 0")
    if examples.weights is not None and np.shape(examples.weights) != (length,):
        raise ValueError(f"weights must be one for each example, shape [{length}], got shape {list(np.shape(examples.weights))}")
    return examples, length
