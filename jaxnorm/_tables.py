"""Tables of reports as text: as wide as what they hold, or folded."""

import io
from collections.abc import Iterable, Sequence

_AS_WIDE_AS_IT_IS = 10_000


def text_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    width: int = _AS_WIDE_AS_IT_IS,
    spaced: bool = False,
) -> str:
    """Returns a table of texts, whose cells are folded where it is wider than this many characters.

    Args:
      head: names of the columns.
      rows: the cells of each row; a cell may have several lines.
      title: what stands above.
      width: of the table, at most.
      spaced: whether an empty line stands between rows, as cells of several lines want it.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", leading=int(spaced), show_edge=not spaced)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    text = io.StringIO()
    plain = {"color_system": None, "force_jupyter": False, "markup": False, "highlight": False, "emoji": False}
    Console(file=text, width=width, **plain).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(lines if spaced else filter(None, lines))
