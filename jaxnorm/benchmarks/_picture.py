"""Pictures of what was measured: bars for the rows, and curves for the growing ones."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from jaxnorm import _picture as picture
from jaxnorm.benchmarks._cases import BASELINE, OURS, PEER
from jaxnorm.benchmarks._tables import Result, by_row, format_number, nanoseconds, shape_of
from jaxnorm.experiments._report import Results

_COLORS = {OURS: picture.BLUE, PEER: "#c4c4c4", BASELINE: picture.BLACK}
_LINES = {OURS: picture.BLUE, PEER: picture.VERMILION, BASELINE: picture.BLACK}
_ACROSS, _DOWN = 3, 3  # panels of a picture, which should take less than 150 KB
_WIDTH, _PANEL, _BAR, _CURVES = 16.0, 1.4, 0.3, 4.5  # inches; of a panel of bars without them, a bar, a panel of curves
_LABEL = 16  # letters beside a bar, above which they take two lines
_SMALL_PRINT: Any = {"fontsize": 10.5, "color": picture.GRAY, "x": 0.01, "ha": "left"}


def save_pictures(files: Results, cases: Sequence[Result], *, title: str, about: str) -> dict[str, str]:
    """Writes `times.png`, `times_2.png` and so on, and `curves.png`, as far as there is something to draw.

    Returns their names and what they show.
    """
    rows = by_row(cases)
    bars = [of_row[0] for of_row in rows if not of_row[0]["curve"]]
    curves = [of_row for of_row in rows if of_row[0]["curve"]]
    written = {}
    for number, start in enumerate(range(0, len(bars), _ACROSS * _DOWN), 1):
        page = bars[start : start + _ACROSS * _DOWN]
        lines = [page[i : i + _ACROSS] for i in range(0, len(page), _ACROSS)]
        heights = [_PANEL + _BAR * _longest(line) for line in lines]
        size = (_WIDTH, sum(heights) + 1)
        draw = partial(_draw_bars, lines=lines, heights=heights, about=about)
        name = "times.png" if number == 1 else f"times_{number}.png"
        files.write(name, partial(picture.save_picture, draw=draw, title=title if number == 1 else "And so on", size=size))
        written[name] = f"Time of every contender, as a ratio: {page[0]['row']} to {page[-1]['row']}"
    if curves:
        size, name = (_WIDTH, _CURVES + 1), "Cost as the work grows"
        draw = partial(_draw_curves, rows=curves, about=about)
        files.write("curves.png", partial(picture.save_picture, draw=draw, title=name, size=size))
        written["curves.png"] = name
    return written


def _longest(line: Sequence[Result]) -> int:
    return max(len(case["contenders"]) for case in line)


def _draw_bars(figure: Any, lines: Sequence[Sequence[Result]], heights: Sequence[float], about: str) -> None:
    """Draws a panel for each case: time over that of the baseline, ours in blue."""
    across = max(map(len, lines))
    panels = figure.subplots(len(lines), across, height_ratios=heights, squeeze=False)
    for axes, line in zip(panels, lines, strict=True):
        for panel in axes[len(line) :]:
            panel.set_axis_off()
        for panel, case in zip(axes, line, strict=False):
            _draw_panel(panel, case)
            panel.set_ylim(_longest(line) - 0.5, -0.5)  # bars of one thickness
    figure.supxlabel(f"Median time over that of the black bar, {lines[0][0]['dtype']}; less is better. {about}", **_SMALL_PRINT)


def _draw_panel(axes: Any, case: Result) -> None:
    contenders = case["contenders"]
    ratios = [one["times_baseline"] for one in contenders]
    axes.barh(range(len(contenders)), ratios, 0.75, color=[_COLORS[one["role"]] for one in contenders])
    axes.axvline(1, color=picture.BLACK, linewidth=1, linestyle="--")
    for y, ratio in enumerate(ratios):
        text = axes.text(ratio + 0.02 * max(ratios), y, format_number(ratio), va="center", fontsize=10.5)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    names = (one["name"] for one in contenders)
    labels = [name.replace(", ", ",\n") if len(name) > _LABEL else name for name in names]
    axes.set_yticks(range(len(contenders)), labels, linespacing=0.9)
    for label, one in zip(axes.get_yticklabels(), contenders, strict=True):
        label.set(color=picture.BLUE if one["role"] == OURS else picture.BLACK)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.15 * max(ratios))
    _write_title(axes, case["title"], f"{case['kind']}, {shape_of(case)}")


def _write_title(axes: Any, title: str, detail: str) -> None:
    axes.set_title(title, pad=24)
    axes.annotate(detail, (0, 1), (0, 8), "axes fraction", "offset points", color=picture.GRAY)


def _draw_curves(figure: Any, rows: Sequence[Sequence[Result]], about: str) -> None:
    """Draws a panel for each row: time over what grows."""
    for axes, cases in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        over_devices = cases[0]["curve"] == "devices"
        xs = [case[cases[0]["curve"]] for case in cases]
        for one in cases[0]["contenders"]:
            name = one["name"]
            ys = [_height(case, name, over_devices) for case in cases]
            axes.plot(xs, ys, "o-", color=_LINES[one["role"]], label=name)
        axes.set_xscale("log", base=2 if over_devices else 10)
        if over_devices:
            axes.set_xticks(xs, xs)
        picture.plain_log_axis(axes.yaxis)
        axes.set(xlabel=cases[0]["curve"], ylabel="milliseconds" if over_devices else "nanoseconds an element")
        _write_title(axes, cases[0]["title"], cases[0]["kind"])
        axes.legend()
    figure.supxlabel(about, **_SMALL_PRINT)


def _height(case: Result, name: str, over_devices: bool) -> float:
    one = next(one for one in case["contenders"] if one["name"] == name)
    return 1e3 * one["median_seconds"] if over_devices else nanoseconds(case, one)
