"""Equations of traced programs, run one at a time."""

from collections.abc import Mapping, Sequence
from typing import Any


def value_of(atom: Any, values: Mapping[Any, Any]) -> Any:
    """Returns what an operand of an equation is: its own value if it is a literal, else that of the variable."""
    return atom.val if hasattr(atom, "val") else values[atom]


def run_equation(eqn: Any, args: Sequence[Any]) -> list[Any]:
    """Returns what an equation makes of its operands, under the settings that it was traced under."""
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
    return list(results) if eqn.primitive.multiple_results else [results]
