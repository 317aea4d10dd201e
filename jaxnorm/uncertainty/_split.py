"""Splits a program at its noise: what does not depend on the key is computed once, the rest for every key."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from jaxnorm._dropout.masks import example_keys

_CALLS = ("jit", "remat2")  # in whose place their equations may stand; what remat saves it saves for gradients only


class _Noisy(NamedTuple):
    """A value that depends on the key, by its number."""

    number: int


class _Equation(NamedTuple):
    """An equation that is left to do for every key: its inputs are values, or such as depend on the key."""

    eqn: Any
    inputs: Sequence[Any]
    outputs: Sequence[_Noisy]


def draw_samples(
    function: Callable[[jax.Array, Any], Any], key: jax.Array, x: Any, samples: int, batch_size: int, *, needs: str
) -> Any:
    """Returns `function(example_keys(key, i), x)` for every i below `samples`, stacked; what comes before the noise runs once.

    The program is traced, and its equations are gone through in order. What no key reaches is evaluated at once. Calls that a key
    reaches are gone into; loops, branches and functions with derivatives of their own that a key reaches are left as a whole.

    Args:
      function: of one key and x.
      key: a typed key.
      x: a tree of arrays.
      samples: how many.
      batch_size: how many are computed at once.
      needs: what is wrong if nothing that the function returns depends on the key.

    Raises:
      ValueError: if nothing that the function returns depends on the key.
    """
    own = jax.eval_shape(lambda key: example_keys(key, 0), key)
    traced, out = jax.make_jaxpr(function, return_shape=True)(own, x)
    numbers = np.arange(samples, dtype=np.int32)

    # One program, so that what runs once is compiled too. The constants, such as parameters, are arguments of it.
    @jax.jit
    def run(consts: Sequence[Any], key: jax.Array, leaves: Sequence[Any]) -> list[jax.Array]:
        split = _Split()
        results = split.evaluate(traced.jaxpr, consts, [split.new(), *leaves])
        if not any(isinstance(value, _Noisy) for value in results):
            raise ValueError(needs)
        # Over numbers, not over keys: a loop over keys under an outer vmap is what jax_debug_key_reuse takes for a reuse.
        return lax.map(lambda i: split.finish(example_keys(key, i), results), numbers, batch_size=min(batch_size, samples))

    found = run(traced.consts, key, jax.tree.leaves(x))
    return jax.tree.unflatten(jax.tree.structure(out), found)


class _Split:
    """A program of which a part is left to do for every key."""

    def __init__(self) -> None:
        self._left: list[_Equation] = []
        self._count = 0

    def new(self) -> _Noisy:
        """Returns another value that depends on the key; the first is the key."""
        self._count += 1
        return _Noisy(self._count - 1)

    def evaluate(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Returns a program's outputs, evaluated as far as they do not depend on the key."""
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

        def read(atom: Any) -> Any:
            return atom.val if hasattr(atom, "val") else values[atom]  # a literal, or a variable

        for eqn in jaxpr.eqns:
            given = [read(atom) for atom in eqn.invars]
            if not any(isinstance(value, _Noisy) for value in given):
                found = _evaluate(eqn, given)
            elif _may_be_gone_into(eqn):
                inner = eqn.params["jaxpr"]  # closed, or without constants
                found = self.evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given)
            else:
                found = [self.new() for _ in eqn.outvars]
                self._left.append(_Equation(eqn, given, found))
            values.update(zip(eqn.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def finish(self, key: jax.Array, results: Sequence[Any]) -> list[Any]:
        """Returns the results for a key."""
        values = {_Noisy(0): key}

        def read(value: Any) -> Any:
            return values[value] if isinstance(value, _Noisy) else value

        for eqn, inputs, outputs in self._left:
            values.update(zip(outputs, _evaluate(eqn, map(read, inputs)), strict=True))
        return [read(value) for value in results]


def _may_be_gone_into(eqn: Any) -> bool:
    """Whether an equation is a call of which nothing is lost where its equations stand in its place."""
    shardings = (*eqn.params.get("in_shardings", ()), *eqn.params.get("out_shardings", ()))
    return eqn.primitive.name in _CALLS and not any(isinstance(one, jax.sharding.Sharding) for one in shardings)


def _evaluate(eqn: Any, inputs: Iterable[Any]) -> Sequence[Any]:
    with eqn.ctx.manager:
        found = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return found if eqn.primitive.multiple_results else [found]
