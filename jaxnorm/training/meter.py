"""Means of metrics over examples, fetched from the device without stalling it."""

import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

_MAX_PENDING = 32  # dispatches that the host may run ahead of the device: enough to keep it busy, few enough to bound its memory


class Meter:
    """Sums metrics over examples, in the order of the steps and in double precision.

    A value is fetched once the device has it; only what is `_MAX_PENDING` dispatches old is waited for. A metric that is not
    finite makes the mean so, and the first one warns; a step that says that it was skipped is counted, warns too, and is in no
    mean.

    Attributes:
      latest: the metrics of the latest step that is known and was not skipped.
      skipped: the number of steps that were skipped, as far as is known; None if none ever said so.
    """

    def __init__(
        self, what: str, sums: Mapping[str, float] | None = None, weight: float = 0.0, skipped: int | None = None
    ) -> None:
        """Starts from what `position` returned; `what` is what a warning calls a step."""
        self.latest: dict[str, float] = {}
        self.skipped = skipped
        self._what = what
        self._sums = dict(sums or {})
        self._weight = weight
        self._pending: deque[tuple[dict[str, Any], Sequence[int], int]] = deque()
        self._warned = False
        # On a CPU the values are there already, and asking for them costs more than taking them.
        self._asks = jax.default_backend() != "cpu"

    def add(self, metrics: dict[str, Any], lengths: Sequence[int], number: int) -> None:
        """Adds the metrics of steps (or batches) from `number` on, means over so many examples; of several they are stacked."""
        if self._asks:
            for value in metrics.values():
                if hasattr(value, "copy_to_host_async"):
                    value.copy_to_host_async()
        self._pending.append((metrics, lengths, number))
        while self._pending and (len(self._pending) > _MAX_PENDING or _is_ready(self._pending[0][0])):
            self._take()

    def position(self) -> dict[str, Any]:
        """Returns the sums over all examples so far, as JSON; waits for them."""
        self.wait()
        return {"sums": dict(self._sums), "weight": self._weight, "skipped": self.skipped}

    def means(self) -> dict[str, float]:
        """Returns the means over all examples so far, and how many steps were skipped where steps tell; waits for them."""
        self.wait()
        # Of no examples a mean is not finite, whatever the sums are.
        means = {name: total / self._weight if self._weight else math.nan for name, total in self._sums.items()}
        return means if self.skipped is None else means | {"skipped": self.skipped}

    def wait(self) -> None:
        """Waits until all metrics are known."""
        while self._pending:
            self._take()

    def _take(self) -> None:
        metrics, lengths, number = self._pending.popleft()
        columns = {name: np.asarray(value) for name, value in metrics.items()}
        for i, length in enumerate(lengths):
            self._count({name: float(column.item(i)) for name, column in columns.items()}, length, number + i)

    def _count(self, row: dict[str, float], length: int, number: int) -> None:
        skipped, weight = row.pop("skipped", None), row.pop("weight", float(length))
        if skipped is not None:
            self.skipped = (self.skipped or 0) + int(skipped)
        for name in row:
            self._sums.setdefault(name, 0.0)
        if skipped:
            self._warn(f"{self._what} {number} was skipped: its loss or its gradient is not finite")
            return
        self.latest = row
        self._weight += weight
        for name, value in row.items():
            # A batch of which nothing counts has no mean.
            self._sums[name] += weight * value if weight else 0.0
            if not math.isfinite(value):
                self._warn(f"{name} of {self._what} {number} is {value}")

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(text, RuntimeWarning, stacklevel=5)


def _is_ready(metrics: dict[str, Any]) -> bool:
    return all(value.is_ready() for value in metrics.values() if hasattr(value, "is_ready"))
