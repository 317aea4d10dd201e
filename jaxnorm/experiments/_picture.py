"""Pictures for talks: one look for all experiments."""

import textwrap
from pathlib import Path
from typing import Any

# Okabe and Ito's colors, which stay apart with any kind of color vision.
BLACK, GRAY, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#222222", "#8a8a8a", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip
_LETTERS = 6.5  # of a title, in an inch
_DPI = 200
_STYLE: Any = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.labelsize": 12,
    "axes.edgecolor": GRAY,
    "axes.labelcolor": BLACK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "text.color": BLACK,
    "lines.linewidth": 2.2,
    "lines.markersize": 6,
    "legend.frameon": False,
}


def save_picture(path: Path, draw: Any, *, title: str, size: tuple[float, float]) -> None:
    """Writes a PNG: `draw(figure)` fills it below its title, which should say what was found."""
    import matplotlib  # of the extra `demo`, and slow to import
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1))
        lines = textwrap.fill(title, int(_LETTERS * size[0]))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=16, fontweight="bold")
        draw(figure)
        figure.savefig(path, dpi=_DPI, facecolor="white", metadata={"Software": None})


def pale(color: str) -> str:
    """Returns a color mixed with white.

    >>> pale("#000000")
    '#999999'
    """
    return "#" + "".join(f"{round(0.4 * int(color[i : i + 2], 16) + 0.6 * 255):02x}" for i in (1, 3, 5))


def plain_log_axis(axis: Any) -> None:
    """Gives a logarithmic axis ticks at 1, 2, 5, 10, ..., written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set_yscale("log") if axis.axis_name == "y" else axis.axes.set_xscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
