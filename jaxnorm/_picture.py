"""Pictures for talks: one look for all of them."""

import io
import textwrap
from pathlib import Path
from typing import Any

# Okabe and Ito's colors, which stay apart with any kind of color vision.
BLACK, GRAY, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#222222", "#8a8a8a", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip
COLORS = BLACK, VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY, GRAY
"""In the order in which curves take them."""
MARKERS = "osD^vPX*"
"""Beside the colors, so that none must be told from another."""
_LETTERS = 7.2  # of a title, in an inch
_DPI = 150  # 2,000 pixels for the width of a page
_SHADES = 128  # of all colors: a picture of few colors takes a third of the bytes
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


def make_picture(draw: Any, *, title: str, size: tuple[float, float]) -> Any:
    """Returns a figure: `draw(figure)` fills it below its title, which should say what was found."""
    import matplotlib  # of the extra `demo`, and slow to import
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=_DPI, layout=ConstrainedLayoutEngine(h_pad=0.1))
        lines = textwrap.fill(title, int(_LETTERS * size[0]))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=16, fontweight="bold")
        draw(figure)
        figure.draw_without_rendering()  # ticks take their style when they are first drawn
    return figure


def png(figure: Any) -> bytes:
    """Returns a figure as a PNG of few colors."""
    from PIL import Image  # which matplotlib needs

    pixels, small = io.BytesIO(), io.BytesIO()
    figure.savefig(pixels, format="png", facecolor="white")
    Image.open(pixels).convert("RGB").quantize(_SHADES, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def save_picture(path: Path, draw: Any, *, title: str, size: tuple[float, float]) -> None:
    """Writes a PNG of what `make_picture` makes."""
    path.write_bytes(png(make_picture(draw, title=title, size=size)))


def plain_log_axis(axis: Any) -> None:
    """Gives a logarithmic axis ticks at 1, 2, 5, 10, ..., written out; at powers of 10 alone where those are enough."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set_yscale("log") if axis.axis_name == "y" else axis.axes.set_xscale("log")
    _, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1,) if high > 300 * axis.get_minpos() else (1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
