"""What was done with each entry of a model from torch, as data and as a table."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxnorm._tables import text_table

_SHOWN = 4


class Match(NamedTuple):
    """An entry of torch and the variable of the model that has the same numbers.

    Attributes:
      torch: the entry's name, as `layer1.0.conv1.weight`.
      path: the variable's path, as `layer1/0/conv1/kernel`.
      torch_shape: the entry's shape.
      shape: the variable's shape.
      layout: what is done to the axes, in words.
      by: how the two were found to belong together: by `names`, `equal names`, `shape`, or the `order of numbers` in their names.
      dtypes: the entry's type and the variable's.
    """

    torch: str
    path: str
    torch_shape: tuple[int, ...]
    shape: tuple[int, ...]
    layout: str
    by: str
    dtypes: tuple[str, str]


class ModelReport(NamedTuple):
    """What was done with each entry; `print(report)` shows a table.

    Attributes:
      matches: what was converted, in the order of torch's entries.
      left_out: entries of torch that have no place in the model, and why.
      kept: paths of the model that torch has nothing for, and were to keep their values.
    """

    matches: tuple[Match, ...]
    left_out: tuple[tuple[str, str], ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        """Returns a table of all entries, and in sentences what is not in it."""
        head = ("torch", "shape", "model", "shape", "layout", "found by")
        rows = [(m.torch, str(list(m.torch_shape)), m.path, str(list(m.shape)), m.layout, m.by) for m in self.matches]
        return "\n".join([text_table(head, rows), *self._remarks()])

    def _remarks(self) -> Iterator[str]:
        yield f"{len(self.matches)} entries have a place."
        reasons = Counter(why for _, why in self.left_out)
        for why in reasons:
            names = [name for name, reason in self.left_out if reason == why]
            yield f"{len(names)} left out, {why}: {_some(names)}."
        if self.kept:
            yield f"{len(self.kept)} of the model keep their values: {_some(self.kept)}."
        for (of_torch, of_model), count in Counter(match.dtypes for match in self.matches).items():
            if of_torch != of_model:
                yield f"{count} are {of_torch} in torch and {of_model} in the model."
        if any(match.path.rpartition("/")[2] == "var" for match in self.matches):
            yield "Batch norms go on averaging as torch's do with unbiased=True, momentum=0.9 (torch's 0.1) and epsilon=1e-5."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
