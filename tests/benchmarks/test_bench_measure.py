"""Timing: the order of contenders, the calls of a sample, medians and quartiles."""

import gc
from collections.abc import Callable

import pytest

from jaxnorm.benchmarks._measure import Program, Rounds, Timing, interleave


class Machine:
    """A clock that only programs move, and a record of what they did."""

    def __init__(self) -> None:
        self.now = 0.0
        self.record: list[str] = []

    def clock(self) -> float:
        return self.now

    def program(self, name: str, seconds: float | Callable[[], float]) -> Program:
        def run() -> str:
            self.now += seconds() if callable(seconds) else seconds
            self.record.append(name)
            return name

        return Program(run, lambda output: self.record.append(f"wait {output}"), {})


def test_contenders_take_turns_in_another_order_in_every_round() -> None:
    """A program that always ran after the same one found the caches as that one left them: 2 % in equal programs."""
    machine = Machine()
    programs = {name: machine.program(name, 1.0) for name in "ABC"}
    interleave(programs, Rounds(warmups=1, counted=23), machine.clock)
    assert all(machine.record[i + 1] == f"wait {machine.record[i]}" for i in range(0, len(machine.record), 2))
    rounds = ["".join(machine.record[i : i + 6 : 2]) for i in range(0, len(machine.record), 6)]
    assert len(rounds) == 24
    assert set(rounds) == {"ABC", "ACB", "BAC", "BCA", "CAB", "CBA"}


def test_warmups_are_not_counted() -> None:
    machine = Machine()
    durations = iter([100.0, 10.0, 1.0, 2.0, 3.0])
    timing = interleave({"A": machine.program("A", lambda: next(durations))}, Rounds(2, 3), machine.clock)["A"]
    assert timing.samples == (1.0, 2.0, 3.0)
    assert timing.median == 2.0


@pytest.mark.parametrize("samples, median, quartiles", [
    ((3.0, 1.0, 2.0, 5.0, 4.0), 3.0, (2.0, 4.0)),
    ((1.0, 2.0), 1.5, (1.25, 1.75)),
    ((7.0,), 7.0, (7.0, 7.0)),
])  # fmt: skip
def test_medians_and_quartiles(samples, median, quartiles) -> None:
    timing = Timing(samples, 1)
    assert timing.median == median
    assert timing.quartiles == quartiles


def test_short_calls_are_repeated_until_a_sample_is_long_enough() -> None:
    machine = Machine()
    programs = {"short": machine.program("short", 0.25), "long": machine.program("long", 3.0)}
    timings = interleave(programs, Rounds(1, 2, seconds=1.0), machine.clock)
    assert (timings["short"].calls, timings["long"].calls) == (4, 1)
    assert timings["short"].samples == (0.25, 0.25)  # of one call each
    assert machine.record.count("short") == 1 + 2 * 4


def test_a_call_that_takes_no_time_does_not_run_forever() -> None:
    machine = Machine()
    assert interleave({"A": machine.program("A", 0.0)}, Rounds(1, 1, seconds=1.0), machine.clock)["A"].samples == (0.0,)


def test_each_call_is_waited_for_unless_calls_are_queued() -> None:
    for queued, expected in ((False, ["A", "wait A"] * 3), (True, ["A", "A", "A", "wait A"])):
        machine = Machine()
        interleave({"A": machine.program("A", 1.0)}, Rounds(1, 1, seconds=3.0, queued=queued), machine.clock)
        assert machine.record[2:] == expected


def test_garbage_is_collected_before_and_not_while_timing() -> None:
    states = []
    program = Program(lambda: states.append(gc.isenabled()), lambda _: None, {})
    interleave({"A": program}, Rounds(0, 2))
    assert states == [False, False]
    assert gc.isenabled()


def test_an_error_leaves_the_garbage_collector_on() -> None:
    def fail() -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        interleave({"A": Program(fail, lambda _: None, {})}, Rounds(0, 1))
    assert gc.isenabled()
