"""The history of a run as a file and as a picture."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxnorm import _picture as picture

Row = Mapping[str, int | float]
"""The metrics of an epoch by their names, with `epoch` and `step`, as `fit` returns a list of them."""

_PLACES = ("epoch", "step")
_EVAL = "eval_"  # before the names of metrics of the evaluation
_ACROSS = 3  # panels side by side
_WIDTH, _HEIGHT = 4.4, 3.4  # of a panel, in inches


def write_history(path: str | Path, history: Sequence[Row]) -> None:
    """Writes a history to a file, CSV or JSON by its suffix.

    The file is there as a whole or as it was before: it is written beside its place and then renamed. As a hook of `fit`,
    `after_epoch=(lambda status: write_history(path, status.history),)`, it keeps up with the run. In several processes only the
    first writes.

    Args:
      path: the file, `.csv` or `.json`; its folder is created if it does not exist. In a CSV the columns are in the order in
        which they first appear, and what a row lacks is empty; numbers are written out so that they are read back to the bit.
        In JSON what is not finite is `NaN` and `Infinity`, as Python writes it.
      history: the rows, as `fit` returns them.

    Raises:
      ValueError: if path has another suffix.
      TypeError: if a value is no number.
      OSError: if it cannot be written, as on a full disk; what was there stays.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxnorm.training import read_history, write_history
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "history.csv"
      >>> write_history(path, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "eval_loss": 0.75}])
      >>> print(path.read_text())
      epoch,loss,eval_loss
      1,0.5,
      2,0.25,0.75
      >>> read_history(path)
      [{'epoch': 1, 'loss': 0.5}, {'epoch': 2, 'loss': 0.25, 'eval_loss': 0.75}]
    """
    path = _checked(path)
    rows = _numbers(history)
    _write_whole(path, (_as_csv(rows) if path.suffix == ".csv" else json.dumps(rows, indent=1)).encode())


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Reads a history that `write_history` wrote: the same rows, to the bit.

    Args:
      path: the file, `.csv` or `.json`.

    Returns:
      The rows; whole numbers, as of epochs and steps, are ints and others are floats, as they were.

    Raises:
      ValueError: if path has another suffix, or the file holds something else.
      OSError: if there is no such file.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxnorm.training import read_history, write_history
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "history.json"
      >>> write_history(path, [{"epoch": 1, "loss": 0.5}])
      >>> read_history(path)
      [{'epoch': 1, 'loss': 0.5}]
    """
    path = _checked(path)
    try:
        text = path.read_text(encoding="utf-8")
        return _from_csv(text) if path.suffix == ".csv" else _numbers(json.loads(text))
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(f"history {path} must hold rows of numbers: {error}") from error


def plot_history(history: Sequence[Row], path: str | Path | None = None) -> Any:
    """Draws the curves of a run over its epochs: a panel for each metric, of training and of evaluation.

    Names with a common beginning and a `/`, as `dead/Dense_0`, share a panel.

    Args:
      history: the rows, as `fit` returns them or `read_history` reads them.
      path: the PNG file to write, if any, at most 2,000 pixels wide.

    Returns:
      The Matplotlib figure, as large as the file; in a notebook `figure.set_dpi(70)` makes it smaller.

    Raises:
      ValueError: if history has no row, or no metrics.
      TypeError: if a value is no number.
      ImportError: if the package matplotlib is not installed.
      OSError: if the file cannot be written.

    Example:
      >>> from jaxnorm.training import plot_history
      >>> figure = plot_history([{"epoch": 1, "loss": 0.5, "eval_loss": 0.6}, {"epoch": 2, "loss": 0.2, "eval_loss": 0.4}])
      >>> [axes.get_title("left") for axes in figure.axes]
      ['loss']
    """
    rows = _numbers(history)
    names = [name for name in _columns(rows) if name not in _PLACES]
    panels = list(dict.fromkeys(_place(name)[0] for name in names))
    if not panels:
        raise ValueError(f"history must have rows with metrics, got {len(rows)} rows without")
    across = min(_ACROSS, len(panels))
    down = math.ceil(len(panels) / across)

    def draw(figure: Any) -> None:
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel, {_place(name)[1]: name for name in names if _place(name)[0] == panel}, rows)
        for axes in grid[len(panels) :]:
            axes.remove()

    try:
        figure = picture.make_picture(draw, title=_title(rows, names), size=(_WIDTH * across, 1 + _HEIGHT * down))
    except ImportError as error:
        raise ImportError("plot_history needs the package matplotlib: pip install 'jaxnorm[demo]'") from error
    if path is not None:
        _write_whole(Path(path).expanduser(), picture.png(figure))
    return figure


def _draw_panel(axes: Any, title: str, curves: Mapping[str, str], rows: Sequence[Row]) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, (label, name) in enumerate(curves.items()):
        style = {"color": picture.COLORS[number % len(picture.COLORS)], "marker": picture.MARKERS[number % len(picture.MARKERS)]}
        points = [(row.get("epoch", epoch), row[name]) for epoch, row in enumerate(rows, 1) if name in row]
        axes.plot(*zip(*points, strict=True), label=label, markevery=max(1, len(points) // 12), **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch")
    axes.set_title(title.replace("_", " "))
    if len(curves) > 1:
        axes.legend(fontsize=10.5, frameon=True, framealpha=0.8, edgecolor="none")


def _title(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Returns what the run came to: its last metrics, of the evaluation where there is one."""
    plain = [name for name in names if "/" not in name]
    shown = [name for name in plain if name.startswith(_EVAL)] or plain
    last = ", ".join(f"{name.replace('_', ' ')} {rows[-1][name]:.4g}" for name in shown if name in rows[-1])
    return f"After epoch {rows[-1].get('epoch', len(rows))}: {last}"


def _place(name: str) -> tuple[str, str]:
    """Returns the panel of a metric, and what its curve is called there."""
    panel, _, part = name.removeprefix(_EVAL).partition("/")
    return panel, " ".join(filter(None, ("evaluation" if name.startswith(_EVAL) else "" if part else "training", part)))


def _checked(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"path must end in .csv or .json, got {str(path)!r}")
    return path


def _numbers(history: Any) -> list[dict[str, Any]]:
    """Returns rows as dicts of ints and floats, or raises a TypeError that names what is none."""
    rows = [dict(row) for row in history]
    for place, row in enumerate(rows):
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"history must hold numbers, got {value!r} as {name} in row {place}")
    return rows


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _from_csv(text: str) -> list[dict[str, Any]]:
    head, *rows = csv.reader(io.StringIO(text))
    return [{name: _number(cell) for name, cell in zip(head, row, strict=True) if cell} for row in rows]


def _number(cell: str) -> int | float:
    """Returns what was written: of a float at least a point, an exponent, or letters."""
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def _write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there as a whole or as it was before."""
    if jax.process_index() != 0:
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error}") from error
