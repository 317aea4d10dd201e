"""What the rules of a step look at: the types of its state, what its program does, and what a few runs change."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from jaxnorm.diagnostics._lint.follower import Followed
from jaxnorm.diagnostics._lint.following import follow
from jaxnorm.diagnostics._lint.records import Draw, Noise

PyTree = Any
TrainingStep = Callable[[PyTree, PyTree], tuple[PyTree, Any]]
Types = dict[str, str]
"""Types of leaves, as `float32[3,4]`, by their paths."""

STEPS = 3
"""How many steps are run: in the first a schedule may be at 0, and weights that are 0 let no gradient through."""

WEAK = ", weakly typed"

_AVERAGES = re.compile(r"(^|/)(batch_stats|stats|averages|running_\w+|moving_\w+|\w+_ema)(/|$)")


class Leaf(NamedTuple):
    """A leaf of the state.

    Attributes:
      path: as `params/Dense_0/kernel`.
      given: its value, in the given state.
      stays: whether it is after all steps, bit for bit, what it was.
      broken: the number of the step after which it was not finite, 0 if it was given so; None if it always was finite.
      read: whether what the step returns beside the state, or the optimizer's new state, is made of it.
      averaged: whether statistics of the batch that a norm uses are added to it, whatever becomes of the sum.
      of_optimizer: whether it is a part of an optimizer's state.
      moments: the parts of an optimizer's state that are for it.
    """

    path: str
    given: jax.Array
    stays: bool
    broken: int | None
    read: bool
    averaged: bool
    of_optimizer: bool
    moments: "tuple[Leaf, ...]" = ()

    @property
    def has_no_gradient(self) -> bool:
        """Whether it stays, or, as weight decay may shrink it, all moments that an optimizer has for it."""
        return self.stays or (bool(self.moments) and all(moment.stays for moment in self.moments))

    @property
    def is_weight(self) -> bool:
        """Whether it holds floating point numbers, and none of an optimizer."""
        return _is_float(self.given) and not self.of_optimizer

    @property
    def is_key(self) -> bool:
        """Whether it holds random keys, typed or raw."""
        return _is_key(self.given)

    @property
    def layer(self) -> str:
        """The path of the layer that it is of; its own where it is in none."""
        return self.path.rpartition("/")[0] or self.path

    @property
    def group(self) -> str:
        """The part of the state that it is in, as `params`."""
        return self.path.rpartition("/")[0].partition("/")[0]


class StepLook:
    """A training step and a state, traced, and run when a rule asks what a run shows.

    Attributes:
      types: of the state's leaves.
      new_types: of those of the state after a step.
      same_containers: whether both states are made of the same containers.
      same_shapes: whether they have the same leaves, of the same shapes.
      found: what following the step found.
    """

    def __init__(self, step: TrainingStep, state: PyTree, batch: PyTree) -> None:
        """Traces the step, or raises what it raises."""
        self._step, self._state, self._batch = step, state, batch
        self._program, self._shapes = _traced(step, state, batch)
        self._paths = [_path(path) for path, _ in jax.tree.leaves_with_path(state)]
        self._of_optimizer = _of_optimizer(state)
        self.types = _types(state, self._program.in_avals)
        self.new_types = _types(self._shapes[0], self._program.out_avals)
        self.same_containers = jax.tree.structure(state) == jax.tree.structure(self._shapes[0])
        pairs = zip(self._program.in_avals, self._program.out_avals, self._paths, strict=False)
        self.same_shapes = list(self.types) == list(self.new_types) and all(old.shape == new.shape for old, new, _ in pairs)
        self.found = self._followed()

    def later_types(self) -> Iterator[Types]:
        """Gives the types after a second step, a third and so on, or raises what that raises."""
        state = self._shapes[0]
        while True:
            program, (state, _) = _traced(self._step, state, self._batch)
            yield _types(state, program.out_avals)

    @property
    def norms(self) -> int:
        """How many norms there are; in a gradient some are computed again."""
        return len({norm.where for norm in self.found.norms})

    @cached_property
    def noises(self) -> Sequence[tuple[Noise, Sequence[Draw]]]:
        """Where random numbers meet data, with the draws of these, each once: a gradient meets them again."""
        draws = {draw.place: draw for draw in self.found.draws}
        seen: dict[Any, tuple[Noise, Sequence[Draw]]] = {}
        for noise in self.found.noises:
            own = [draws[place] for place in sorted(noise.draws & draws.keys(), key=str)]
            if noise.on == "data":
                seen.setdefault((noise.where, keys_of(own)), (noise, own))
        return list(seen.values())

    @cached_property
    def leaves(self) -> Sequence[Leaf]:
        """The leaves of the state, with what became of them."""
        given = list(map(jnp.asarray, jax.tree.leaves(self._state)))
        stays = [True] * len(given)
        broken = [0 if _is_float(leaf) and jnp.isnan(leaf).any() else None for leaf in given]
        state = self._state
        for number in range(1, STEPS + 1):
            state, _ = self._run(state)
            for place, (old, new) in enumerate(zip(given, jax.tree.leaves(state), strict=True)):
                stays[place] &= _same_bits(old, new)
                if broken[place] is None and _is_float(old) and jnp.any(jnp.isfinite(old) & ~jnp.isfinite(new)):
                    broken[place] = number
        rows = zip(self._paths, given, stays, broken, self._read(), self._averaged(), self._of_optimizer, strict=True)
        return _with_moments([Leaf(*row) for row in rows])

    @cached_property
    def averages(self) -> Mapping[str, Sequence[Leaf]]:
        """The running statistics of layers that do not normalize by them, known by what is added to them, or by their names."""
        known = [leaf for leaf in self.leaves if leaf.is_weight and (leaf.averaged or _AVERAGES.search(leaf.path))]
        # Of mean and variance one may be read for numerical reasons: jaxnorm takes the mean for a first guess of the batch's.
        layers = dict.fromkeys(leaf.layer for leaf in known if not leaf.read and not self.is_copy(leaf))
        return {layer: [leaf for leaf in known if leaf.layer == layer] for layer in layers}

    @cached_property
    def weights(self) -> Sequence[Leaf]:
        """The leaves of floating point numbers that are neither averages nor an optimizer's."""
        averages = {leaf.path for leaves in self.averages.values() for leaf in leaves}
        return [leaf for leaf in self.leaves if leaf.is_weight and leaf.path not in averages]

    @cached_property
    def trained(self) -> set[str]:
        """The groups in which weights change; in others the optimizer may be gathering gradients, or their turn comes later."""
        return {leaf.group for leaf in self.weights if not leaf.stays}

    def is_copy(self, leaf: Leaf) -> bool:
        """Whether a weight of another group that is read has the same path within it, as that of which this is an average."""
        within = f"/{leaf.path.removeprefix(leaf.group).removeprefix('/')}"
        others = (other for other in self.leaves if other.is_weight and other.group != leaf.group)
        alike = (other for other in others if other.given.shape == leaf.given.shape and f"/{other.path}".endswith(within))
        return any(other.read for other in alike)

    @cached_property
    def returned(self) -> Mapping[str, jax.Array]:
        """The floating point numbers that the first step returns beside the state, by their paths."""
        leaves = jax.tree.leaves_with_path(self._run(self._state)[1])
        return {_path(path, "returned"): leaf for path, leaf in leaves if _is_float(leaf)}

    def _run(self, state: PyTree) -> tuple[PyTree, Any]:
        with jax.debug_key_reuse(False):
            return self._jitted(state, self._batch)

    @cached_property
    def _jitted(self) -> Callable[..., tuple[PyTree, Any]]:
        # Within another program a step that is jitted already donates nothing.
        return jax.jit(lambda state, batch: self._step(state, batch))

    def _followed(self) -> Followed:
        floats = [jnp.issubdtype(aval.dtype, jnp.inexact) for aval in self._program.in_avals]
        kinds = ["state" if own or not real else "params" for own, real in zip(self._of_optimizer, floats, strict=False)]
        of_state = [f"{kind}/{path}" for kind, path in zip(kinds, self._paths, strict=True)]
        batch = zip(jax.tree.leaves_with_path(self._batch), self._program.in_avals[len(of_state) :], strict=True)
        # Of keys and single numbers in a batch examples have nothing.
        return follow(self._program, of_state + [_path(path, "x" if _is_data(aval) else "batch") for (path, _), aval in batch])

    def _read(self) -> Sequence[bool]:
        beside = len(self._program.out_avals) - len(self._paths)
        _, used = partial_eval.dce_jaxpr(self._program.jaxpr, [*self._of_optimizer, *[True] * beside])[:2]
        of_state, of_batch = used[: len(self._paths)], used[len(self._paths) :]
        return of_state if any(of_batch) else [True] * len(of_state)  # no loss is among it: nothing can be told

    def _averaged(self) -> Sequence[bool]:
        statistics = {place for norm in self.found.norms if norm.kind == "batch" for place in norm.reductions}
        paths = {path for path, place in self.found.averaged if place in statistics}
        return [f"params/{path}" in paths for path in self._paths]


def keys_of(draws: Sequence[Draw]) -> frozenset[int]:
    """Returns the numbers of the keys of draws."""
    return frozenset(draw.key for draw in draws)


def not_finite_leaves(look: StepLook) -> tuple[str, list[str]]:
    """Returns when numbers are first not finite, and where, weights before others; an infinity that was there may stay."""
    broken = sorted((leaf for leaf in look.leaves if leaf.broken is not None), key=lambda leaf: not leaf.is_weight)
    if paths := [leaf.path for leaf in broken if leaf.broken == 0]:
        return "in the given state", paths
    # Arrays may hold infinities on purpose, as logits of what is masked.
    wrong = {path: jnp.isnan(value).any() if value.ndim else ~jnp.isfinite(value) for path, value in look.returned.items()}
    if paths := [path for path, is_wrong in wrong.items() if is_wrong]:
        return "after a step", paths
    first = min((leaf.broken for leaf in broken if leaf.broken), default=0)
    return f"after step {first}", [leaf.path for leaf in broken if leaf.broken == first]


def _traced(step: TrainingStep, state: PyTree, batch: PyTree) -> tuple[Any, tuple[PyTree, Any]]:
    """Returns a step's program, and the shapes of what it returns, or raises unless these are a state and one thing more."""
    try:
        with jax.debug_key_reuse(False):  # that a key is used again is for a rule to say
            program, shapes = jax.make_jaxpr(step, return_shape=True)(state, batch)
    except Exception as error:
        error.add_note("lint_step needs a step that jax can trace, as jax.jit(step)(state, batch) does.")
        raise
    if not isinstance(shapes, tuple | list) or len(shapes) != 2:
        length = f" of length {len(shapes)}" if isinstance(shapes, tuple | list) else ""
        raise TypeError(f"step must return a pair (state, anything), got {type(shapes).__name__}{length}")
    return program, (shapes[0], shapes[1])


def _types(tree: PyTree, avals: Sequence[Any]) -> Types:
    """Returns the types of a tree's leaves, which are the first of these."""

    def text(aval: Any) -> str:
        return f"{aval.dtype}[{','.join(map(str, aval.shape))}]{WEAK if getattr(aval, 'weak_type', False) else ''}"

    paths = [_path(path) for path, _ in jax.tree.leaves_with_path(tree)]
    return {path: text(aval) for path, aval in zip(paths, avals, strict=False)}


def _path(path: tuple[Any, ...], root: str = "") -> str:
    """Returns a path as `params/Dense_0/kernel`, without the `.value` in which a variable of nnx has its array."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return "/".join(filter(None, (root, jax.tree_util.keystr(path, simple=True, separator="/"))))


def _is_float(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)


def _is_typed_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _is_key(array: Any) -> bool:
    return _is_typed_key(array) or (array.dtype == jnp.uint32 and array.shape[-1:] == (2,))


def _is_data(aval: Any) -> bool:
    return aval.ndim > 0 and not _is_key(aval)


def _same_bits(a: jax.Array, b: jax.Array) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    first, second = (np.asarray(jax.random.key_data(one) if _is_typed_key(one) else one) for one in (a, b))
    return first.tobytes() == second.tobytes()


def _of_optimizer(state: PyTree) -> list[bool]:
    """Returns of each leaf whether it is within a container of Optax."""

    def from_optax(node: Any) -> bool:
        return type(node).__module__.partition(".")[0] == "optax"

    nodes = jax.tree.leaves(state, is_leaf=from_optax)
    return [from_optax(node) for node in nodes for _ in jax.tree.leaves(node)]


def _with_moments(leaves: Sequence[Leaf]) -> Sequence[Leaf]:
    """Returns leaves with the parts of an optimizer's state for them: of their shape, with a path that ends most like theirs."""
    parts: dict[Any, list[Leaf]] = defaultdict(list)
    for leaf in leaves:
        if leaf.of_optimizer:
            parts[leaf.given.shape, leaf.path.rpartition("/")[2]].append(leaf)

    def moments(leaf: Leaf) -> tuple[Leaf, ...]:
        near = [(_common(part.path, leaf.path), part) for part in parts[leaf.given.shape, leaf.path.rpartition("/")[2]]]
        most = max((common for common, _ in near), default=0)
        return tuple(part for common, part in near if common == most >= min(2, leaf.path.count("/")))

    return [leaf if leaf.of_optimizer else leaf._replace(moments=moments(leaf)) for leaf in leaves]


def _common(a: str, b: str) -> int:
    """Returns how many keys at the end of two paths are the same."""
    pairs = zip(reversed(a.split("/")), reversed(b.split("/")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
