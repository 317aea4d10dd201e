"""Means of metrics over examples, fetched from the device without stalling it."""

import math
import warnings
from collections import deque
from typing import Any

_MAX_PENDING = 32  # steps that the host may run ahead of the device: enough to keep it busy, few enough to bound its memory


class Meter:
    """Sums metrics over examples, in the order of the steps and in double precision.

    A value is fetched once the device has it; only what is `_MAX_PENDING` steps old is waited for. A metric that is not finite
    makes the mean so, and the first one warns.
    """

    def __init__(self, what: str, sums: dict[str, float] | None = None, count: int = 0) -> None:
        """Starts from sums over `count` examples; `what` is what a warning calls a step."""
        self.count = count
        self.latest: dict[str, float] = {}
        self._what = what
        self._sums = dict(sums or {})
        self._pending: deque[tuple[dict[str, Any], int, int]] = deque()
        self._warned = False

    def add(self, metrics: dict[str, Any], length: int, number: int) -> None:
        """Adds the metrics of step (or batch) `number`, means over `length` examples."""
        for value in metrics.values():
            if hasattr(value, "copy_to_host_async"):
                value.copy_to_host_async()
        self._pending.append((metrics, length, number))
        self.count += length
        while self._pending and (len(self._pending) > _MAX_PENDING or _is_ready(self._pending[0][0])):
            self._take()

    def sums(self) -> dict[str, float]:
        """Returns the sums over all examples so far; waits for them."""
        while self._pending:
            self._take()
        return dict(self._sums)

    def means(self) -> dict[str, float]:
        """Returns the means over all examples so far; waits for them."""
        return {name: total / self.count for name, total in self.sums().items()}

    def _take(self) -> None:
        metrics, length, number = self._pending.popleft()
        self.latest = {name: float(value) for name, value in metrics.items()}
        for name, value in self.latest.items():
            self._sums[name] = self._sums.get(name, 0.0) + length * value
            if not math.isfinite(value) and not self._warned:
                self._warned = True
                warnings.warn(f"{name} of {self._what} {number} is {value}", RuntimeWarning, stacklevel=4)


def _is_ready(metrics: dict[str, Any]) -> bool:
    return all(value.is_ready() for value in metrics.values() if hasattr(value, "is_ready"))
