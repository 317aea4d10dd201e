"""What the tests of the promises share: which rows of the case table a test runs for, and how a layer is called and compared."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Arguments, Case
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnorm


def _trains_elsewhere(case: Case) -> bool:
    """Whether a row is the inference of a layer that other rows train: what is left of it is what they all do."""
    return case.options.get("train") is False and case.function is not jaxnorm.batch_norm


WHOLE = tuple(case for case in CASES if not _trains_elsewhere(case))
RANDOM = tuple(case for case in WHOLE if case.is_random and not case.is_stateful)
DIFFERENTIABLE = ("params", "state", "kernel", "x", "residual", "style", "scale", "bias", "gain", "reference")
DIFFERENTIABLE += ("h_prev", "branch", "second", "target", "preactivation")


def rows(cases: tuple[Case, ...], *marks: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Runs a test for every one of these rows of the case table."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks) for case in cases])


_ALL_FIRST = (jaxnorm.batch_norm, jaxnorm.dropout)
_BY_FUNCTION = {case.function: case for case in reversed(WHOLE)} | {
    case.function: case for case in WHOLE if "where" in case.batched
}


OWN = tuple(_BY_FUNCTION.values())
"""A row of each layer, with a mask if it takes one."""


FORMS = tuple(case for case in WHOLE if case in OWN or case in RANDOM or case.function is jaxnorm.batch_norm)
"""A row of each layer, and all rows of those whose rows take different ways through the code: batch norm and noise."""

# Layers that hand over all that they are given to a layer that is tried at first.
_AS_OTHERS = (
    *(jaxnorm.spatial_dropout, jaxnorm.locked_dropout, jaxnorm.head_dropout, jaxnorm.drop_path, jaxnorm.embedding_dropout),
    *(jaxnorm.evonorm_b1, jaxnorm.evonorm_b2, jaxnorm.evonorm_s1, jaxnorm.evonorm_s2),
)


def _waits(case: Case) -> bool:
    """Whether the core of a row's promises is slow: of most layers it is tried at first for one."""
    if case.function in _ALL_FIRST:
        return _trains_elsewhere(case)
    return case not in OWN or case.function in _AS_OTHERS


_OF_FILES = tuple({case.function.__module__: case for case in reversed(OWN)}.values())

# The whole of the promises takes minutes; `test_core_promises.py` and `test_symbolic.py` try the core of them.
core = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * _waits(case)) for case in CASES]
core_of_files = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case not in _OF_FILES))
    for case in CASES
    if case in FORMS or _trains_elsewhere(case)
]
each = rows(WHOLE, pytest.mark.slow)
each_form = rows(FORMS, pytest.mark.slow)  # what takes long
each_layer = rows(OWN, pytest.mark.slow)  # what takes longer
each_random = rows(RANDOM, pytest.mark.slow)
each_stateful = rows(tuple(case for case in FORMS if case.is_stateful), pytest.mark.slow)
each_synced = rows(tuple(case for case in FORMS if case.is_synced), pytest.mark.slow)
check_vma = pytest.mark.parametrize("check_vma", [True, False], ids=["vma", "no_vma"])


def new_key(seed: int = 3) -> jax.Array:
    return jax.random.key(seed)


def other_key(seed: int, impl: str) -> jax.Array:
    """A key of another generator than threefry."""
    try:
        return jax.random.key(seed, impl=impl)
    except ValueError:  # a generator that this version of jax does not have
        assert impl in ("philox2x32", "threefry4x32")
        return jax.random.key(seed, impl="rbg")


@functools.cache
def compiled(case: Case) -> Callable[[jax.Array, Arguments], Any]:
    """The layer under jit, every argument traced; one compilation for all tests."""
    return jax.jit(case.__call__)


@functools.cache
def compiled_gradient(case: Case) -> Callable[[jax.Array, Arguments, Arguments], Any]:
    return jax.jit(jax.grad(lambda varied, key, rest: loss(case, key, {**rest, **varied})))


def weights(y: jax.Array | np.ndarray) -> np.ndarray:
    """Uneven ones, for of a norm's plain sum nearly all gradients vanish; of seven bits, so the same numbers in all types."""
    odd = 2 * np.floor(64 * np.cos(np.arange(y.size))) + 1
    return (odd / 128).reshape(y.shape).astype(y.dtype)


def loss(case: Case, key: jax.Array, arguments: Arguments) -> jax.Array:
    y, _ = case(key, arguments)
    return jnp.sum(y * weights(y))


def assert_equal_but_for_rounding(got: Any, expected: Any, tolerance: float = 3e-6) -> None:
    """Compares relative to the largest number of each array: beside it, one that is nearly 0 is a difference that was rounded."""

    def compare(got: jax.Array, expected: jax.Array) -> None:
        largest = np.max(np.abs(expected), initial=0.0)
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * largest)

    jax.tree.map(compare, got, expected)


def _along(f: Callable[[Any], jax.Array], modes: str, directions: list[Any]) -> Callable[[Any], jax.Array]:
    """The derivative of f along each of the directions, innermost first, forward ("f") or in reverse ("r")."""
    for mode, v in zip(modes, directions, strict=False):
        if mode == "f":
            f = lambda a, f=f, v=v: jax.jvp(f, (a,), (v,))[1]  # noqa: E731
        else:
            f = lambda a, f=f, v=v: sum(map(jnp.vdot, jax.tree.leaves(jax.grad(f)(a)), jax.tree.leaves(v)))  # noqa: E731
    return jax.jit(f)


def assert_higher_derivatives(f: Callable[[Any], jax.Array], a: Any, *, third: bool = False, tolerance: float = 1e-5) -> None:
    """Compares derivatives of f, whose value is one number, with differences of those of an order less, in float64.

    Of second order in all orders of the modes; of third, if asked, so that each mode is around each pair of others.
    """
    random, step = np.random.default_rng(0), 1e-4
    directions = [jax.tree.map(lambda leaf: random.normal(0.5, 1, leaf.shape), a) for _ in range(3)]
    for lower, orders in {"f": ("ff", "fr", "rf", "rr"), **({"ff": ("fff", "rrr", "frf", "rfr")} if third else {})}.items():
        below, v = _along(f, lower, directions), directions[len(lower)]
        ahead, behind = (below(jax.tree.map(lambda leaf, d, s=s: leaf + s * step * d, a, v)) for s in (1, -1))
        for modes in orders:
            got = _along(f, modes, directions)(a)
            np.testing.assert_allclose(got, (ahead - behind) / (2 * step), rtol=tolerance, atol=tolerance, err_msg=modes)


def varied_and_rest(arguments: Arguments) -> tuple[Arguments, Arguments]:
    varied = {name: value for name, value in arguments.items() if name in DIFFERENTIABLE}
    return varied, {name: value for name, value in arguments.items() if name not in DIFFERENTIABLE}


def signature(tree: Any) -> Any:
    """Structure, shapes, types and weak types."""
    return jax.tree.map(lambda a: jax.typeof(a).str_short() + str(jax.typeof(a).weak_type), tree)


def finite(tree: Any) -> bool:
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


def mesh(devices: int = 8) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def specs(case: Case, arguments: Arguments) -> dict[str, P]:
    return {name: P("d") if name in case.batched else P() for name in arguments}
