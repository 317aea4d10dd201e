"""The state of a training run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnorm._checks import check_key

PyTree = Any
Apply = Callable[..., tuple[Any, PyTree]]
"""A model: `apply(key, params, stats, x, *, train) -> (outputs, stats)`.

The key is for dropout, and nothing is drawn from it with `train=False`. What `schedules` names comes as keyword arguments, in
training only.
"""


class TrainState(NamedTuple):
    """All that a training step changes or needs to draw from, as one pytree.

    Attributes:
      step: number of steps taken, `int32[]`.
      key: the key of the run; a step draws from `jax.random.fold_in(key, step)`.
      params: parameters, any pytree.
      stats: running statistics, any pytree, as `RunningStats` or a tuple of them; `()` for a model that has none.
      opt_state: state of the optimizer.
    """

    step: jax.Array
    key: jax.Array
    params: PyTree
    stats: PyTree
    opt_state: PyTree


def init_train_state(key: jax.Array, params: PyTree, stats: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step.

    Args:
      key: the key of the run, from `jax.random.key` or `jax.random.PRNGKey`; whatever drew the parameters should have had
        another.
      params: parameters, any pytree of arrays.
      stats: running statistics, any pytree of arrays; `()` for a model that has none.
      optimizer: any Optax optimizer.

    Returns:
      `TrainState` with `step = 0`.

    Raises:
      TypeError: if key is no key, or if a leaf of params or stats is not an array or a number.
      ValueError: if key is an array of several keys.

    Example:
      >>> import jax, jax.numpy as jnp, jaxnorm, optax
      >>> from jaxnorm.training import init_train_state
      >>> params, stats = jaxnorm.init_batch_norm(3)
      >>> state = init_train_state(jax.random.key(0), params, stats, optax.sgd(0.1))
      >>> state.step
      Array(0, dtype=int32)
    """
    check_key(key)
    params, stats = as_arrays("params", params), as_arrays("stats", stats)
    # Some optimizers start from a Python number, which would have another type than the same number one step later.
    opt_state = as_arrays("optimizer.init(params)", optimizer.init(params))
    return TrainState(jnp.zeros((), jnp.int32), jnp.asarray(key), params, stats, opt_state)


def as_arrays(name: str, tree: PyTree) -> PyTree:
    """Returns the tree with jax arrays as leaves, none of them weakly typed: one that a jitted step returns as it came."""

    def convert(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        try:
            array = jnp.asarray(leaf)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}{jax.tree_util.keystr(path)} must be an array, got {leaf!r}") from error
        if jnp.issubdtype(array.dtype, jax.dtypes.extended):
            return array
        return lax.convert_element_type(array, array.dtype)

    return jax.tree.map_with_path(convert, tree)


def check_same_tree(name: str, got: PyTree, expected: PyTree, why: str) -> None:
    """Raises unless a tree has the containers, shapes and dtypes of another."""
    wrong = differences(describe(got), describe(expected))
    if not wrong and jax.tree.structure(got) != jax.tree.structure(expected):
        wrong = f"{jax.tree.structure(got)} instead of {jax.tree.structure(expected)}"
    if wrong:
        raise ValueError(f"{name} must {why}: {wrong}")


def describe(tree: PyTree) -> dict[str, str]:
    """Returns type and shape of every leaf, as `float32[3,4]`, by its path in the tree."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{a.dtype}[{','.join(map(str, a.shape))}]" for path, a in leaves}


def differences(got: dict[str, str], expected: dict[str, str], *, shown: int = 3, between: str = "; ") -> str:
    """Returns what is wrong with a description, the first so many differences, the empty string if there are none."""
    wrong = [f"{p or 'it'} is {got[p]} instead of {expected[p]}" for p in expected if p in got and got[p] != expected[p]]
    missing = [f"{p or 'an array'} ({expected[p]}) is missing" for p in expected if p not in got]
    extra = [f"{p or 'an array'} ({got[p]}) is unexpected" for p in got if p not in expected]
    found = wrong + missing + extra
    more = [f"and {len(found) - shown} more"] if len(found) > shown else []
    return between.join(found[:shown] + more)


def is_key(leaf: jax.Array) -> bool:
    """Whether an array holds typed keys, which are no numbers."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
