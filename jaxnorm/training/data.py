"""Batches of arrays in memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._checks import check_flag, check_key, check_size

PyTree = Any
Batch = PyTree
"""Arrays of which each begins with the axis of the examples."""


def num_examples(batch: Batch, name: str = "batch") -> int:
    """Returns the number of examples, B, or raises unless all arrays of the batch begin with an axis of that size."""
    lengths = {_length(leaf) for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(_what_is_wrong(batch, name))  # which takes long to say, and steps are short
    return lengths.pop()


def _length(leaf: Any) -> Any:
    """Returns the size of an array's first axis, or None if there is none."""
    shape = getattr(leaf, "shape", ())
    return shape[0] if shape else None


def _what_is_wrong(batch: Batch, name: str) -> str:
    lengths = {}
    for path, leaf in jax.tree.leaves_with_path(batch):
        step = jax.tree_util.keystr(path)
        place = step[1:] if step.startswith(".") else name + step
        lengths[place] = _length(leaf)
        if lengths[place] is None:
            got = "a scalar" if hasattr(leaf, "shape") else repr(leaf)
            return f"{place} must begin with the axis of the examples, got {got}"
    if not lengths:
        return f"{name} must hold arrays, got none"
    listed = ", ".join(f"{place} {length}" for place, length in lengths.items())
    return f"the arrays of {name} must have the same number of examples, got {listed}"


class _Pass:
    """The batches of one pass over a data set, taken from it one at a time."""

    def __init__(self, data: PyTree, order: np.ndarray, places: list[tuple[slice, int]]) -> None:
        self._data, self._order, self._places = data, order, places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Batch]:
        for rows, missing in self._places:
            yield _take(self._data, self._order[rows], missing)


def shuffled_batches(
    key: jax.Array, *data: PyTree, batch_size: int, drop_remainder: bool, pad_remainder: bool = False
) -> Callable[[int], Iterable[Batch]]:
    """Returns a function `batches(epoch)` that gives the examples in an order that the key and the epoch determine.

    Nothing is kept between epochs, so that a run can be resumed at any batch of any epoch. Data that do not fit in memory, or
    need work on every example, are better read by `GrainBatches`.

    Where several processes train together, all of them are given all data, and each gives its own part of every batch: process p
    of P the rows from `p B / P` to `(p + 1) B / P`. The batch that the parts make up does not depend on the number of processes.

    Args:
      key: a key from `jax.random.key` or `jax.random.PRNGKey`; epoch e is shuffled by `fold_in(key, e)`.
      *data: NumPy or jax arrays, `[N, ...]`, or pytrees of them. A batch is the tuple of theirs, as `(x, labels)`; of a single
        pytree a batch is a pytree like it.
      batch_size: examples in a batch, B, in all processes together.
      drop_remainder: whether to leave out, in each epoch, the `N mod B` examples that do not fill a batch. A jitted step is
        compiled once more for a smaller last batch.
      pad_remainder: whether to fill the last batch with rows of zeros instead. An array of ones among the data tells the
        examples from these rows: as weights of the loss, and in what the model is given for the `where` of its batch norms.

    Returns:
      A function of the epoch (an int from 0) that returns an iterable of batches with a length.

    Raises:
      ValueError: if the arrays do not hold the same number of examples, if there are none, if batch_size is below 1, or
        above N when the remainder is dropped, or if the remainder is to be both dropped and padded. When batches are asked for:
        if the number of processes does not divide batch_size, or what is left for the last batch.
      TypeError: if batch_size is no int, if drop_remainder or pad_remainder is no bool, or if key is no key.

    Example:
      >>> import jax, numpy as np
      >>> from jaxnorm.training import shuffled_batches
      >>> images, labels = np.ones((10, 8, 8, 1)), np.arange(10)
      >>> batches = shuffled_batches(jax.random.key(0), images, labels, batch_size=4, drop_remainder=False)
      >>> [len(labels) for images, labels in batches(0)]
      [4, 4, 2]

      With inputs that say which rows count, and weights:

      >>> data = {"image": images, "where": np.ones(10, bool)}, labels, np.ones(10, np.float32)
      >>> batches = shuffled_batches(jax.random.key(0), *data, batch_size=4, drop_remainder=False, pad_remainder=True)
      >>> x, labels, weights = list(batches(0))[-1]
      >>> x["image"].shape, x["where"].tolist(), weights.tolist()
      ((4, 8, 8, 1), [True, True, False, False], [1.0, 1.0, 0.0, 0.0])
    """
    key = check_key(key)
    data, total = _check_data(data, batch_size)
    drop_remainder, pad_remainder = check_flag("drop_remainder", drop_remainder), check_flag("pad_remainder", pad_remainder)
    if drop_remainder and pad_remainder:
        raise ValueError("drop_remainder and pad_remainder must not both be True: the remainder is left out, or filled up")
    if drop_remainder and batch_size > total:
        raise ValueError(f"batch_size must be at most the number of examples, {total}, to fill a batch, got {batch_size}")

    def batches(epoch: int) -> Iterable[Batch]:
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), total))
        length = total - total % batch_size if drop_remainder else total
        return _Pass(data, order, _places(length, batch_size, pad_remainder, "drop_remainder or pad_remainder"))

    return batches


def ordered_batches(*data: PyTree, batch_size: int, pad_remainder: bool = False) -> list[Batch]:
    """Returns all examples in their order, in batches of which the last may be smaller, as for evaluation.

    Where several processes work together, each gives its own part of every batch, as in `shuffled_batches`.

    Args:
      *data: NumPy or jax arrays, `[N, ...]`, or pytrees of them, as in `shuffled_batches`.
      batch_size: examples in a batch, in all processes together.
      pad_remainder: whether to fill the last batch with rows of zeros; an array of ones among the data, as weights, tells the
        examples from these rows.

    Returns:
      A list of batches; of NumPy arrays these are views, but for one that was filled up.

    Raises:
      ValueError: if the arrays do not hold the same number of examples, if there are none, if batch_size is below 1, or if the
        number of processes does not divide batch_size, or what is left for the last batch.
      TypeError: if batch_size is no int or pad_remainder no bool.

    Example:
      >>> import numpy as np
      >>> from jaxnorm.training import ordered_batches
      >>> [labels for x, labels in ordered_batches(np.zeros((5, 3)), np.arange(5), batch_size=2)]
      [array([0, 1]), array([2, 3]), array([4])]
    """
    data, total = _check_data(data, batch_size)
    places = _places(total, batch_size, check_flag("pad_remainder", pad_remainder), "pad_remainder")
    return [_take(data, rows, missing) for rows, missing in places]


def check_processes(batch_size: int) -> int:
    """Returns the number of processes, or raises unless it divides the size of a batch."""
    count = jax.process_count()
    if batch_size % count:
        raise ValueError(f"batch_size must be divisible by the number of processes, {count}, got {batch_size}")
    return count


def _check_data(data: tuple[PyTree, ...], batch_size: int) -> tuple[PyTree, int]:
    """Returns the data as batches will be, one pytree, and the number of examples."""
    check_size("batch_size", batch_size)
    tree = data[0] if len(data) == 1 else data
    total = num_examples(tree, "data")
    if total == 0:
        raise ValueError("data must hold at least one example, got 0")
    return tree, total


def _places(total: int, batch_size: int, pad: bool, flags: str) -> list[tuple[slice, int]]:
    """Returns, for each batch, which examples this process gives of it, and how many rows of zeros after them."""
    count, index = check_processes(batch_size), jax.process_index()
    places = []
    for start in range(0, total, batch_size):
        length = batch_size if pad else min(batch_size, total - start)
        part, left = divmod(length, count)
        if left:
            raise ValueError(f"{flags} must be True: {count} processes cannot share the last batch, {length} examples, evenly")
        first, stop = (min(start + i * part, total) for i in (index, index + 1))
        places.append((slice(first, stop), part - (stop - first)))
    return places


def _take(data: PyTree, rows: np.ndarray | slice, missing: int) -> PyTree:
    """Returns these rows of all arrays, and so many rows of zeros after them."""

    def take(a: Any) -> Any:
        if not missing:
            return a[rows]
        xp = np if isinstance(a, np.ndarray) else jnp
        return xp.concatenate([a[rows], xp.zeros((missing, *a.shape[1:]), a.dtype)])

    return jax.tree.map(take, data)
