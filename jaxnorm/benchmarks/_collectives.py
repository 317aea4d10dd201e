"""Which collectives a compiled program takes, and of how many bytes."""

import math
import re

_COLLECTIVE = re.compile(
    r" = (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", re.ASCII
)
_CALL = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_CALLS = re.compile(r"\bcalled_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\[([\d,]*)\]")


def computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """Returns the name of the entry, and the lines of every computation of a compiled program."""
    entry, name, lines = "", "", {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = header[2]
            lines[name] = []
            entry = name if header[1] else entry
        elif name:
            lines[name].append(line)
    assert entry
    return entry, lines


def collectives(text: str) -> list[tuple[str, str]]:
    """Returns operation and type of every collective that always runs: reachable from the entry, but not through a branch."""
    entry, lines = computations(text)
    found, reached, waiting = [], {entry}, [entry]
    while waiting:
        for line in lines[waiting.pop()]:
            if collective := _COLLECTIVE.search(line):
                found.append((collective[2], collective[1]))
            if " conditional(" in line:
                continue
            called = _CALL.findall(line) + [name.strip(" %") for names in _CALLS.findall(line) for name in names.split(",")]
            for name in called:
                if name in lines and name not in reached:
                    reached.add(name)
                    waiting.append(name)
    return found


def num_bytes(kind: str) -> int:
    """Returns the bytes of a type of a compiled program, as `(f32[2,8]{1,0}, pred[])`; a bool takes one."""
    return sum(
        math.prod(int(size) for size in shape.split(",") if size) * (1 if name == "pred" else int(bits) // 8)
        for name, bits, shape in _ARRAY.findall(kind)
    )
