"""Batches of arrays in memory."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxnorm._checks import check_flag, check_key, check_size

PyTree = Any
Batch = tuple[PyTree, PyTree]


def num_examples(batch: Any) -> int:
    """Returns the number of examples, B, of a batch `(x, labels)`, or raises unless all its arrays begin with that axis."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"batch must be a pair (x, labels), got {type(batch).__name__}{_length(batch)}")
    lengths = {}
    for name, tree in zip(("x", "labels"), batch, strict=True):
        for path, leaf in jax.tree.flatten_with_path(tree)[0]:
            shape = np.shape(leaf)
            if not shape:
                raise ValueError(f"{name}{jax.tree_util.keystr(path)} must begin with the axis of the examples, got a scalar")
            lengths[name + jax.tree_util.keystr(path)] = shape[0]
    if not lengths:
        raise ValueError("batch must hold arrays, got none in (x, labels)")
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"x and labels must have the same number of examples, got {listed}")
    return next(iter(lengths.values()))


def _length(value: Any) -> str:
    return f" of length {len(value)}" if isinstance(value, tuple | list) else ""


class _Pass:
    """The batches of one pass over a data set, taken from it one at a time."""

    def __init__(self, data: Batch, order: np.ndarray, batch_size: int) -> None:
        self._data, self._order, self._batch_size = data, order, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._order), self._batch_size):
            rows = self._order[start : start + self._batch_size]
            yield jax.tree.map(lambda a, rows=rows: a[rows], self._data)


def shuffled_batches(
    key: jax.Array, x: PyTree, labels: PyTree, *, batch_size: int, drop_remainder: bool
) -> Callable[[int], Iterable[Batch]]:
    """Returns a function `batches(epoch)` that gives the examples in an order that the key and the epoch determine.

    Nothing is kept between epochs, so that a run can be resumed at any batch of any epoch. Data that do not fit in memory, or
    need work on every example, are better read by Grain, whose iterators `fit` takes too.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`; epoch e is shuffled by `fold_in(key, e)`.
      x: inputs, `[N, ...]`, NumPy or jax arrays, or a pytree of them.
      labels: labels, `[N, ...]`, likewise.
      batch_size: examples in a batch, B.
      drop_remainder: whether to leave out, in each epoch, the `N mod B` examples that do not fill a batch. A jitted step is
        compiled once more for a smaller last batch.

    Returns:
      A function of the epoch (an int from 0) that returns an iterable of `(x, labels)` with a length.

    Raises:
      ValueError: if x and labels do not hold the same number of examples, if there are none, or if batch_size is below 1, or
        above N when the remainder is dropped.
      TypeError: if batch_size is no int or drop_remainder no bool, or if key is no key.

    Example:
      >>> import jax, numpy as np
      >>> from jaxnorm.training import shuffled_batches
      >>> batches = shuffled_batches(jax.random.key(0), np.zeros((10, 3)), np.arange(10), batch_size=4, drop_remainder=False)
      >>> [len(labels) for x, labels in batches(0)]
      [4, 4, 2]
    """
    key = check_key(key)
    total = _check_data(x, labels, batch_size)
    drop_remainder = check_flag("drop_remainder", drop_remainder)
    if drop_remainder and batch_size > total:
        raise ValueError(f"batch_size must be at most the number of examples, {total}, to fill a batch, got {batch_size}")

    def batches(epoch: int) -> Iterable[Batch]:
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), total))
        return _Pass((x, labels), order[: total - total % batch_size] if drop_remainder else order, batch_size)

    return batches


def ordered_batches(x: PyTree, labels: PyTree, *, batch_size: int) -> list[Batch]:
    """Returns all examples in their order, in batches of which the last may be smaller, as for evaluation.

    Args:
      x: inputs, `[N, ...]`, NumPy or jax arrays, or a pytree of them.
      labels: labels, `[N, ...]`, likewise.
      batch_size: examples in a batch.

    Returns:
      A list of `(x, labels)`; of NumPy arrays these are views.

    Raises:
      ValueError: if x and labels do not hold the same number of examples, if there are none, or if batch_size is below 1.
      TypeError: if batch_size is no int.

    Example:
      >>> import numpy as np
      >>> from jaxnorm.training import ordered_batches
      >>> [labels for x, labels in ordered_batches(np.zeros((5, 3)), np.arange(5), batch_size=2)]
      [array([0, 1]), array([2, 3]), array([4])]
    """
    total = _check_data(x, labels, batch_size)
    starts = range(0, total, batch_size)
    return [jax.tree.map(lambda a, i=i: a[i : i + batch_size], (x, labels)) for i in starts]


def _check_data(x: PyTree, labels: PyTree, batch_size: int) -> int:
    check_size("batch_size", batch_size)
    total = num_examples((x, labels))
    if total == 0:
        raise ValueError("x must hold at least one example, got 0")
    return total
