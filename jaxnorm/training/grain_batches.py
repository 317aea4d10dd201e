"""Batches read by Grain: data that do not fit in memory, or need work on every example."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from jaxnorm._checks import check_integer_of, check_size
from jaxnorm.training.data import Batch, check_processes

_BATCHES_AHEAD = 2  # of each thread: one that is being read and one that waits
_ENDLESS = 2**53  # examples, more than a run can read; Grain divides lengths as floating point numbers


class Source(Protocol):
    """Examples that are found by their index, such as a list, `ImageFolder` or `NpzFolder`."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Returns an example, an array or a pytree of arrays."""
        ...


class GrainBatches:
    """An endless iterator over batches that Grain reads, for `fit`, whose position goes into the checkpoints.

    Each epoch, of `N // B` batches, has all examples in a new order: any example may come next to any other, which batch norm
    needs of its batches. The `N mod B` that do not fill a batch are left out, other ones in each epoch.

    Batches depend on the seed and on their number, and on nothing else: not on threads, workers or processes. Where several
    processes train together, each gives its own part of every batch, as in `shuffled_batches`, and reads no other. The position
    is the same in all of them, so that a run of four processes goes on in one.

    Raises:
      ValueError: if a number is below its least; if batch_size is above the number of examples; or if the number of processes
        does not divide it.
      TypeError: if an argument is of the wrong type, or a transform does not take one or two arguments.
      ImportError: if the package grain is not installed.

    Example:
      >>> import numpy as np
      >>> from jaxnorm.training import GrainBatches
      >>> images, labels = np.ones((10, 8, 8, 1), np.float32), np.arange(10)
      >>> source = list(zip(images, labels))
      >>> def flip(example, rng):
      ...     image, label = example
      ...     return image[:, ::-1] if rng.random() < 0.5 else image, label
      >>> batches = GrainBatches(source, batch_size=4, seed=0, transforms=[flip])
      >>> x, labels = next(batches)
      >>> x.shape, labels.shape
      ((4, 8, 8, 1), (4,))
      >>> batches.close()

      It trains by `fit(..., batches, steps_per_epoch=len(source) // 4)`. For evaluation, a dataset of Grain keeps the order and
      ends:

      >>> import grain
      >>> eval_batches = grain.MapDataset.source(source).batch(4).to_iter_dataset()
      >>> [len(labels) for x, labels in eval_batches]
      [4, 4, 2]
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        transforms: Sequence[Callable[..., Any]] = (),
        threads: int = 4,
        workers: int = 0,
    ) -> None:
        """Reads nothing yet.

        Args:
          source: the examples: anything with `len(source)` and `source[i]`, as a list, `ImageFolder` or `NpzFolder`. An example
            is an array, or a tuple or dict of arrays, and a batch is like it.
          batch_size: examples in a batch, B, in all processes together.
          seed: an int of 32 bits, by which examples are shuffled and augmented.
          transforms: functions applied to each example in turn: `transform(example)`, or `transform(example, rng)` to augment
            it, with a NumPy generator of its own for each example in each epoch.
          threads: number of threads that read, each a batch at a time; 0 reads a batch when it is asked for, which is best for
            examples in memory without transforms.
          workers: number of processes, with that many threads each, that read; 0 reads in this one. They are for transforms that
            keep Python busy. They start Python anew, so a script needs its `if __name__ == "__main__":`.
        """
        try:
            import grain
            from absl import flags
        except ImportError as error:
            raise ImportError("GrainBatches needs the package grain: pip install 'jaxnorm[data]'") from error
        if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
            raise TypeError(f"source must have a length and examples by index, got {source!r} ({type(source).__name__})")
        batch_size = check_size("batch_size", batch_size)
        if batch_size > len(source):
            raise ValueError(f"batch_size must be at most the number of examples, {len(source)}, got {batch_size}")
        seed = check_integer_of("seed", seed, np.dtype(np.uint32))
        self._processes = check_processes(batch_size)
        if not isinstance(transforms, Sequence):
            raise TypeError(f"transforms must be a sequence of functions, got {transforms!r}")
        told = [(transform, _is_random(transform)) for transform in transforms]
        examples = grain.MapDataset.range(_ENDLESS).map(_Stream(source, len(source) // batch_size * batch_size, seed, told))
        self._parts = examples.batch(batch_size // self._processes)  # those of the processes by turns
        threads = check_size("threads", threads, low=0)
        self._read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_BATCHES_AHEAD * threads)
        self._workers = grain.MultiprocessingOptions(num_workers=check_size("workers", workers, low=0))
        if workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # which absl's own main functions do, and Grain's workers wait for
        self._of = {"examples": len(source), "batch_size": batch_size, "seed": seed}
        self._number = 0
        self._iterator: Any = None

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """Returns the next batch: this process's part of it."""
        if self._iterator is None:
            batches = self._parts[jax.process_index() + self._number * self._processes :: self._processes]
            self._iterator = iter(batches.to_iter_dataset(self._read).mp_prefetch(self._workers))
        try:
            batch = next(self._iterator)
        except BaseException:
            self.close()  # else the next call would skip the batch that failed
            raise
        self._number += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the position, and what it is a position in, as JSON."""
        return self._of | {"batch": self._number}

    def set_state(self, state: dict[str, int], /) -> None:
        """Goes to a position that `get_state` returned, of the same examples, batch_size and seed, or raises a ValueError."""
        of = {name: state.get(name) for name in self._of} if isinstance(state, dict) else state
        if of != self._of:
            raise ValueError(f"state must be of these batches, {self._of}, got {state!r}")
        self.close()
        self._number = check_size("batch", state.get("batch"), low=0)

    def close(self) -> None:
        """Ends the threads and processes that read; they start again with the next batch."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


@dataclass(frozen=True, repr=False)  # Grain takes the representation for a name, and all examples may be in that of a source
class _Stream:
    """The endless stream of examples, epoch after epoch, by their position in it."""

    source: Source
    length: int  # of an epoch
    seed: int
    transforms: list[tuple[Callable[..., Any], bool]]  # and whether each takes a generator

    def __call__(self, position: int) -> Any:
        epoch, place = divmod(position, self.length)
        index = int(_order(self.seed, epoch, len(self.source))[place])
        example = self.source[index]
        for number, (transform, random) in enumerate(self.transforms, 1):
            example = transform(example, _generator(self.seed, epoch, index, number)) if random else transform(example)
            if example is None:  # which Grain would pass over
                raise ValueError(f"transforms must return an example, got None from {transform!r}")
        return example


@functools.lru_cache(maxsize=4)  # of two iterators whose threads read the end of an epoch and the start of the next
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Returns the order of an epoch; Grain's own shuffle takes milliseconds an example where there are few."""
    return _generator(seed, epoch).permutation(length)


def _generator(seed: int, epoch: int, index: int = 0, number: int = 0) -> np.random.Generator:
    """Returns the generator of an epoch's order, which has number 0, or of an example's transform of this number."""
    return np.random.default_rng((seed, epoch, index, number))


def _is_random(transform: Callable[..., Any]) -> bool:
    """Whether a transform takes a generator beside the example, or raises if it takes neither one argument nor two."""
    try:
        parameters = inspect.signature(transform).parameters.values()
    except (TypeError, ValueError) as error:
        raise TypeError(f"transforms must be functions of (example) or (example, rng), got {transform!r}") from error
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) not in (1, 2):
        raise TypeError(f"transforms must be functions of (example) or (example, rng), got {transform!r}")
    return len(needed) == 2
