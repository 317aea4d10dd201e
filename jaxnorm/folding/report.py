"""What a fold of a model did, as data and as a table."""

from typing import NamedTuple

from jaxnorm._tables import text_table


class NormFold(NamedTuple):
    """What became of a batch norm of a model.

    Attributes:
      norm: its path in the model, as "block/norm".
      layer: the path of the layer, or the layers, whose weights it went into; empty if it is left as it was.
      order: "after" or "before": where the norm is, seen from the layer; empty likewise.
      adds: whether an addition of a number to each channel remains in its place, where the layer has no bias that could take it.
      reason: why it is left; empty if it is folded.
    """

    norm: str
    layer: str = ""
    order: str = ""
    adds: bool = False
    reason: str = ""


class FoldReport(NamedTuple):
    """What became of every batch norm of a model, in the order in which the model calls them; `print` shows a table.

    Attributes:
      norms: one entry for each.
    """

    norms: tuple[NormFold, ...]

    @property
    def folded(self) -> tuple[NormFold, ...]:
        """Those that are folded."""
        return tuple(norm for norm in self.norms if not norm.reason)

    @property
    def left(self) -> tuple[NormFold, ...]:
        """Those that are left as they were."""
        return tuple(norm for norm in self.norms if norm.reason)

    def __str__(self) -> str:
        """The table."""
        title = f"{len(self.folded)} of {len(self.norms)} batch norms folded"
        return text_table(("batch norm", "folded into", "note"), map(_line, self.norms), title=title)


def _line(norm: NormFold) -> tuple[str, str, str]:
    if norm.reason:
        return norm.norm, "-", norm.reason
    return (
        norm.norm,
        f"{norm.layer}, {'before' if norm.order == 'after' else 'after'} it",
        "an addition is left" if norm.adds else "",
    )
