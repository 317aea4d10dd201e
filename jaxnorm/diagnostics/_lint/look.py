"""What the rules look at: a model in training and in inference, and what several runs show."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.diagnostics._lint.averaging import Average, averages_of
from jaxnorm.diagnostics._lint.program import Model, Program, Run, fresh

_KEYS = 8  # whose noise is averaged
_STEPS = 100_000  # after which averages have settled


@dataclass(frozen=True)
class Look:
    """A model in training and in inference, for the rules."""

    model: Model
    training: Program
    inference: Program

    @cached_property
    def averages(self) -> Mapping[str, Average]:
        """How the running averages move in a step of training, by the paths of their leaves."""
        return averages_of(self.training)

    @classmethod
    def at(cls, model: Model) -> "Look":
        return cls(model, Program.of(model, True), Program.of(model, False))

    @cached_property
    def noisy(self) -> tuple[Run, ...]:
        """What training gives with several keys."""
        return tuple(self.training.run(key=key) for key in jax.random.split(fresh(self.model.key), _KEYS))

    @cached_property
    def settled(self) -> Run | None:
        """What inference gives by the averages that training on x leads to; None where these have another tree or other sizes."""
        old = self.model.stats
        more = self.training.run(stats=jax.tree.map(lambda s: s + 1 if _is_float(s) else s, old)).stats
        runs = [self.training.usual.stats, more, *(run.stats for run in self.noisy)]
        if any(_sizes(run) != _sizes(old) for run in runs):
            return None
        return self.inference.run(stats=jax.tree.map(_settled, old, *runs))


def _settled(old: Any, new: Any, more: Any, *noisy: Any) -> Any:
    """Returns where an average tends to: to the mean of b if a step leads to `w old + (1 - w) b`.

    Runs from old and from old + 1 tell w. A counter is taken to have counted long; what else is no such average is as a step
    leaves it.
    """
    if not _is_float(old):
        return old + _STEPS * (new - old) if jnp.issubdtype(new.dtype, jnp.integer) and new.ndim == 0 else new
    weight, mean = more - new, sum(noisy) / len(noisy)
    is_average = (weight >= 0) & (weight < 1)
    tends_to = jnp.where(is_average, (mean - weight * old) / jnp.where(is_average, 1 - weight, 1), mean)
    return tends_to.astype(new.dtype).reshape(jnp.shape(old))


def _sizes(stats: Any) -> Any:
    return jax.tree.structure(stats), [jnp.size(leaf) for leaf in jax.tree.leaves(stats)]


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact)
