"""A model, what its programs for training and inference do, and what running them shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.diagnostics._lint.follower import Followed
from jaxnorm.diagnostics._lint.following import follow
from jaxnorm.diagnostics._lint.origin import first_nan
from jaxnorm.diagnostics._lint.quiet import quiet
from jaxnorm.diagnostics._lint.records import Noise, Norm
from jaxnorm.diagnostics._lint.report import Where
from jaxnorm.diagnostics._lint.taps import tapped
from jaxnorm.diagnostics._lint.tracing import traced
from jaxnorm.diagnostics._lint.values import Place, Spot, Value

PyTree = Any


@dataclass(frozen=True)
class Model:
    """A model, and what it is looked at with.

    Attributes:
      apply: `apply(key, params, stats, x, *, train) -> (outputs, stats)`.
      params: its parameters.
      stats: its running statistics.
      x: a batch of inputs.
      key: for its noise; the same one always if None.
      optimizer: an Optax optimizer, or None.
      library: that it is written in, as far as the caller knows.
      silent: layers of noise that training calls, and that draw nothing in it.
      made_up: whether x is of random numbers, so that averages can't be compared with it.
    """

    apply: Any
    params: PyTree
    stats: PyTree
    x: PyTree
    key: Any = None
    optimizer: Any = None
    library: str = ""
    silent: tuple[Where, ...] = ()
    made_up: bool = False


class Moments(NamedTuple):
    """Mean and variance of each channel of what enters a norm, arrays `[C]`; of layers that a loop stacks, of each of them."""

    mean: Any
    var: Any


class Mask(NamedTuple):
    """Numbers: mean and variance of random numbers that data meets, and the share of zeros.

    Noise of mean m and variance v that multiplies, and is divided by m, has the variance `v / m^2`.
    """

    mean: Any
    var: Any
    zeros: Any


class Run(NamedTuple):
    """What a run of a model gives.

    Attributes:
      outputs: of the model.
      stats: new running statistics.
      moments: of what enters each norm, by its place.
      masks: of the random numbers of each noise, by its place.
    """

    outputs: PyTree
    stats: PyTree
    moments: Mapping[Place, Moments]
    masks: Mapping[Place, Mask]


@dataclass(frozen=True)
class Program:
    """A model in training, or in inference.

    Attributes:
      found: what following it found.
      outputs: what is known of the outputs.
      stats: what is known of the new running statistics, by the paths of the leaves.
      shapes: shapes and types of outputs and new statistics.
    """

    model: Model
    train: bool
    closed: Any = field(repr=False)
    shapes: tuple[PyTree, PyTree] = field(repr=False)
    found: Followed = field(repr=False)

    @classmethod
    def of(cls, model: Model, train: bool) -> "Program":
        args = (model.key, model.params, model.stats, model.x)
        closed, shapes = traced(model.apply, args, train=train)
        return cls(model, train, closed, shapes, follow(closed, paths_of(*args)))

    @cached_property
    def outputs(self) -> tuple[Value, ...]:
        return self.found.values[: len(jax.tree.leaves(self.shapes[0]))]

    @cached_property
    def stats(self) -> dict[str, Value]:
        rest = self.found.values[len(self.outputs) :]
        return dict(zip(leaf_paths("stats", self.shapes[1]), rest, strict=True))

    @cached_property
    def _run(self) -> Any:
        norms = {norm.place: (norm.input, norm.axes) for norm in self.found.norms if norm.input is not None}
        masks = {noise.place: noise.mask for noise in self.found.noises}
        measures: dict[Spot, Any] = {spot: _Moments(axes) for spot, axes in norms.values()}
        measures |= dict.fromkeys(masks.values(), _mask)
        program = tapped(quiet(self.closed), measures)
        shapes = jax.tree.structure(self.shapes)

        def run(*args: Any) -> Run:
            results, found = program(*jax.tree.leaves(args))
            outputs, stats = jax.tree.unflatten(shapes, results)
            moments = {place: found[spot] for place, (spot, _) in norms.items() if spot in found}
            return Run(outputs, stats, moments, {place: found[spot] for place, spot in masks.items() if spot in found})

        return jax.jit(run)

    def run(self, *, key: Any = None, params: PyTree = None, stats: PyTree = None, x: PyTree = None) -> Run:
        """Runs the model, compiled once, on what it is looked at with, or on other arguments of the same shapes."""
        model = self.model
        own = (model.key, model.params, model.stats, model.x)
        arguments = [one if other is None else other for one, other in zip(own, (key, params, stats, x), strict=True)]
        with jax.debug_key_reuse(False):
            return self._run(*arguments)

    @cached_property
    def usual(self) -> Run:
        """What the model gives for what it is looked at with."""
        return self.run()

    @cached_property
    def first_nan(self) -> Where | None:
        """Where the first NaN arises, or None if that is nowhere."""
        model = self.model
        return first_nan(self.closed, jax.tree.leaves((fresh(model.key), model.params, model.stats, model.x)))

    def moments(self, norm: Norm) -> Moments | None:
        """Returns mean and variance of each channel of what enters a norm, or None where they can't be measured."""
        found = self.usual.moments.get(norm.place)
        return None if found is None else Moments(*map(np.asarray, found))

    def mask(self, noise: Noise) -> Mask | None:
        """Returns what the random numbers of a noise are, or None where they can't be measured."""
        found = self.usual.masks.get(noise.place)
        return None if found is None else Mask(*(float(np.mean(one)) for one in found))


class _Moments(NamedTuple):
    """Measures mean and variance over axes."""

    axes: frozenset[int]

    def __call__(self, x: jax.Array) -> Moments:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes = tuple(sorted(self.axes))
        mean = jnp.mean(wide, axes, keepdims=True)
        return Moments(jnp.squeeze(mean, axes), jnp.mean(jnp.square(wide - mean), axes))


def fresh(key: Any) -> jax.Array:
    """Returns a key that a run may use up, though another used it: that they draw the same is meant."""
    return jax.random.clone(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def _mask(mask: jax.Array) -> Mask:
    numbers = mask.astype(jnp.float32)
    return Mask(jnp.mean(numbers), jnp.var(numbers), jnp.mean(numbers == 0))


def paths_of(key: Any, params: PyTree, stats: PyTree, x: PyTree) -> list[str]:
    """Returns the paths of all leaves of the arguments of a model, each with what it is in front."""
    named = {"key": key, "params": params, "stats": stats, "x": x}
    return [path for name, tree in named.items() for path in leaf_paths(name, tree)]


def leaf_paths(name: str, tree: PyTree) -> list[str]:
    """Returns the paths of the leaves of a tree, each with its name in front."""
    paths = jax.tree.flatten_with_path(tree)[0]
    return ["/".join(filter(None, (name, jax.tree_util.keystr(path, simple=True, separator="/")))) for path, _ in paths]
