"""Times contenders against each other: interleaved, so that whatever slows the machine down slows all of them."""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_MOST_CALLS = 10_000


class Program(NamedTuple):
    """What is timed.

    Attributes:
      run: does the work, or starts it, and returns its outputs.
      wait: waits until the outputs are there.
      costs: what the work costs besides time, by name.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], Any]
    costs: Mapping[str, Any]


class Rounds(NamedTuple):
    """How often contenders are timed, each once a round.

    Attributes:
      warmups: rounds that are not counted.
      counted: rounds that are.
      seconds: how long a contender runs in a round at least, in as many calls as that takes; 0 for one call.
      queued: whether to wait for the last of these calls only, as on a GPU, which keeps their order.
    """

    warmups: int
    counted: int
    seconds: float = 0.0
    queued: bool = False


class Timing(NamedTuple):
    """Seconds of a call in every round, of as many calls in each."""

    samples: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """The median over rounds."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile over rounds."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        lower, _, upper = statistics.quantiles(self.samples, n=4, method="inclusive")
        return lower, upper


def interleave(
    programs: Mapping[str, Program], rounds: Rounds, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Returns the times of programs that run in turns, each once a round: A B C, C A B, and so on."""
    calls = dict.fromkeys(programs, 1)
    samples: dict[str, list[float]] = {name: [] for name in programs}
    order = random.Random(0)  # which leaves the caches to each of the others
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds.warmups + rounds.counted):
            for name, program in order.sample(list(programs.items()), len(programs)):
                seconds = _sample(program, calls[name], clock, queued=rounds.queued)
                if number >= rounds.warmups:
                    samples[name].append(seconds)
                else:
                    calls[name] = _calls(seconds, rounds.seconds)
    finally:
        if was_enabled:
            gc.enable()
    return {name: Timing(tuple(samples[name]), calls[name]) for name in programs}


def _sample(program: Program, calls: int, clock: Callable[[], float], *, queued: bool) -> float:
    start = clock()
    for call in range(calls):
        outputs = program.run()  # the outputs of the call before are dropped with this, so that their memory is used again
        if not queued or call == calls - 1:
            program.wait(outputs)
    return (clock() - start) / calls


def _calls(seconds: float, wanted: float) -> int:
    """Returns how many calls of so many seconds take the wanted time."""
    return min(_MOST_CALLS, max(1, math.ceil(wanted / seconds))) if seconds > 0 else _MOST_CALLS
