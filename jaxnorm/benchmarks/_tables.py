"""Tables of what was measured: contenders in lines, cases in columns."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from jaxnorm.benchmarks._cases import BASELINE, FLAX, OURS, PEER
from jaxnorm.experiments._report import Table

_NONE = "-"
_TIMES = "milliseconds\n(quartiles)"
_MIB = 2**20
Result = dict[str, Any]
"""A case, or a contender in it, as written to `results.json`."""
Cell = Callable[[Result, Result], str]
"""The text for a case and a contender in it."""


class _Column(NamedTuple):
    heading: str
    case: Result
    cell: Cell


def main_tables(cases: Sequence[Result], *, on_gpu: bool) -> list[Table]:
    """Returns an overview, and for every row its ratios and what it costs besides time."""
    tables = [_overview(cases)] if any(not case["curve"] for case in cases) else []
    for of_row in by_row(cases):
        title = f"{of_row[0]['title']}, {of_row[0]['kind']}"
        if of_row[0]["curve"]:
            tables.append(_growth(title, of_row))
            continue
        for dtype, part in _by_dtype(of_row):
            corner = f"time over the {of_row[0]['baseline']}'s\n(times as fast as Flax linen)"
            tables.append(_table(f"{title}, {dtype}", corner, [_Column(shape_of(case), case, _ratio) for case in part]))
        if on_gpu and first_of(of_row[0], OURS)["share_of_copy"]:
            columns = [_Column(f"{shape_of(case)}\n{case['dtype']}", case, _bandwidth) for case in of_row]
            tables.append(_table(f"{title}: bandwidth", "over that of a copy\n(GB/s)", columns))
        if columns := _cost_columns(of_row):
            tables.append(_table(f"{title}: memory and compilation", shape_of(of_row[0]), columns))
    return tables


def time_tables(cases: Sequence[Result]) -> list[Table]:
    """Returns the medians and the quartiles of all times."""
    tables = []
    for of_row in by_row(cases):
        heading = _devices if of_row[0]["curve"] == "devices" else shape_of
        for dtype, part in _by_dtype(of_row):
            title = f"{of_row[0]['title']}, {of_row[0]['kind']}, {dtype}"
            tables.append(_table(title, _TIMES, [_Column(heading(case), case, _milliseconds) for case in part]))
    return tables


def by_row(cases: Iterable[Result]) -> list[list[Result]]:
    """Returns the cases of each row."""
    return [list(group) for _, group in groupby(cases, lambda case: case["row"])]


def first_of(case: Result, role: str) -> Result:
    """Returns the first contender of this role."""
    return next(one for one in case["contenders"] if one["role"] == role)


def shape_of(case: Result) -> str:
    """Returns the shape of a case for people.

    >>> shape_of({"shape": [8, 4]})
    '8x4'
    """
    return "x".join(map(str, case["shape"]))


def nanoseconds(case: Result, one: Result) -> float:
    """Returns the time for an element.

    >>> nanoseconds({"elements": 1000}, {"median_seconds": 2e-6})
    2.0
    """
    return 1e9 * one["median_seconds"] / case["elements"]


def _overview(cases: Sequence[Result]) -> Table:
    """Returns a line for each of our contenders in the first case of each row."""
    lines = []
    for case, *_ in by_row(case for case in cases if not case["curve"]):
        peers = [one for one in case["contenders"] if one["role"] == PEER]
        best = f" ({min(peers, key=lambda peer: peer['median_seconds'])['name']})" if peers else ""
        of_flax = next((_temporaries(case, one) for one in peers if one["name"] == FLAX), _NONE)
        for one in case["contenders"]:
            if one["role"] == OURS:
                what = f"{case['row'].replace('_', ' ')}: {one['name']}"
                speeds = format_number(one["speed_over_flax_linen"]), format_number(one["speed_over_best_peer"]) + best
                lines.append(
                    (what, shape_of(case), format_number(one["times_baseline"]), *speeds, _temporaries(case, one), of_flax)
                )
    columns = (
        "what", "x", "times the\nbaseline", "times as fast\nas Flax linen", "times as fast as\nthe best peer",
        "temporaries,\nMiB", "Flax linen's,\nMiB",
    )  # fmt: skip
    return Table("At a glance: every row at its first size, in float32", columns, lines)


def _growth(title: str, cases: Sequence[Result]) -> Table:
    if cases[0]["curve"] == "devices":
        return _table(title, _TIMES, [_Column(_devices(case), case, _milliseconds) for case in cases])
    columns = [_Column(f"{case['elements']:,}", case, lambda case, one: format_number(nanoseconds(case, one))) for case in cases]
    return _table(title, "nanoseconds an element,\nof so many", columns)


def _cost_columns(cases: Sequence[Result]) -> list[_Column]:
    """Returns what the first shape costs besides time, of what was measured of that."""
    cases = [case for case in cases if case["shape"] == cases[0]["shape"]]
    ours = first_of(cases[0], OURS)
    columns = []
    if ours["temporary_bytes"] is not None:
        columns += [_Column(f"temporaries, MiB\n{case['dtype']}", case, _temporaries) for case in cases]
    if ours["residual_bytes"] is not None:
        columns += [_Column(f"kept, times x\n{case['dtype']}", case, _residuals) for case in cases]
    if ours["compile_seconds"] is not None:
        columns.append(_Column("trace + compile, s", cases[0], _compilation))
    return columns


def _table(title: str, corner: str, columns: Sequence[_Column]) -> Table:
    """Returns a table of the contenders of all these cases."""
    names = dict.fromkeys(one["name"] for column in columns for one in column.case["contenders"])
    found = [{one["name"]: column.cell(column.case, one) for one in column.case["contenders"]} for column in columns]
    lines = [(name, *(cells.get(name, _NONE) for cells in found)) for name in names]
    return Table(title, (corner, *(column.heading for column in columns)), lines)


def _by_dtype(cases: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    dtypes = dict.fromkeys(case["dtype"] for case in cases)
    return [(dtype, [case for case in cases if case["dtype"] == dtype]) for dtype in dtypes]


def _devices(case: Result) -> str:
    return f"{case['devices']} device{'s' if case['devices'] > 1 else ''}"


def _ratio(_: Result, one: Result) -> str:
    speed = one["speed_over_flax_linen"]
    return format_number(one["times_baseline"]) + (f" ({format_number(speed)})" if speed and one["role"] != BASELINE else "")


def _milliseconds(_: Result, one: Result) -> str:
    median, lower, upper = (
        format_number(1e3 * one[f"{part}_seconds"]) for part in ("median", "lower_quartile", "upper_quartile")
    )
    return f"{median} ({lower} - {upper})"


def _bandwidth(_: Result, one: Result) -> str:
    return _NONE if one["share_of_copy"] is None else f"{one['share_of_copy']:.2f} ({one['bytes_per_second'] / 1e9:.0f})"


def _temporaries(_: Result, one: Result) -> str:
    return _NONE if one["temporary_bytes"] is None else f"{one['temporary_bytes'] / _MIB:.1f}"


def _residuals(case: Result, one: Result) -> str:
    if one["residual_bytes"] is None:
        return _NONE
    return f"{one['residual_bytes'] / case['bytes']:.2f}" + (" + x" if one["residual_input"] else "")


def _compilation(_: Result, one: Result) -> str:
    return _NONE if one["compile_seconds"] is None else f"{one['trace_seconds']:.2f} + {one['compile_seconds']:.2f}"


def format_number(value: float | None) -> str:
    """Returns a number with three digits.

    >>> format_number(1.0), format_number(12.34), format_number(123.4)
    ('1.00', '12.3', '123')
    """
    if value is None:
        return _NONE
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"
