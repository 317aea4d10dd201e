"""Tables of reports as text: as wide as what they hold, or folded."""

import io
from collections.abc import Iterable, Sequence

_AS_WIDE_AS_IT_IS = 10_000


def text_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, width: int = _AS_WIDE_AS_IT_IS
) -> str:
    """Returns a table of texts, whose cells are folded where it is wider than this many characters."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, width=width, color_system=None, markup=False, highlight=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())
