"""Internal covariate shift against quadratic losses, of which it is known exactly."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxnorm.diagnostics import internal_covariate_shift

RANDOM = np.random.default_rng(0)
SIZES = (3, 4, 4, 4, 2)
ENDS = np.cumsum((0, *SIZES))
ROOT = RANDOM.normal(size=(17, 17)) / 4
H = ROOT @ ROOT.T
W, NEW = RANDOM.normal(size=(2, 17))


def blocks(vector: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(vector[a:b], jnp.float32) for a, b in itertools.pairwise(ENDS)]


def stacked(vector: np.ndarray) -> dict[str, jax.Array]:
    first, *middle, last = blocks(vector)
    return {"first": first, "middle": jnp.stack(middle), "last": last}


def quadratic(params: Any, hessian: jax.Array) -> jax.Array:
    if isinstance(params, dict):
        params = [params["first"], *params["middle"], params["last"]]
    w = jnp.concatenate(params)
    return w @ hessian @ w / 2


def wanted() -> tuple[np.ndarray, ...]:
    """`G'_i - G_i = sum_{j < i} H_ij (W'_j - W_j)`."""
    found = []
    for start, stop in itertools.pairwise(ENDS):
        before = H[start:stop] @ W
        moved = H[start:stop, :start] @ (NEW - W)[:start]
        after = before + moved
        size = np.linalg.norm(before)
        found.append((np.linalg.norm(moved), np.linalg.norm(moved) / size, before @ after / size / np.linalg.norm(after)))
    return tuple(np.array(found).T)


@pytest.mark.parametrize(
    ("tree", "options"),
    [(stacked, {"layers": ("first", "middle", "last"), "stacked": "middle"}), pytest.param(blocks, {}, marks=pytest.mark.slow)],
)
def test_is_that_of_a_quadratic_loss(tree: Any, options: dict[str, Any]) -> None:
    run = jax.jit(lambda w, new: internal_covariate_shift(quadratic, w, new, jnp.asarray(H, jnp.float32), **options))
    found = run(tree(W), tree(NEW))
    for own, exact in zip(found, wanted(), strict=True):
        assert_allclose(own, exact, rtol=1e-5, atol=1e-6)
    assert found.difference[0] == 0
    assert_allclose(found.cosine[0], 1, rtol=1e-6)


def test_layers_after_a_layer_do_not_matter_nor_does_what_is_in_none() -> None:
    hessian = jnp.asarray(H, jnp.float32)
    run = jax.jit(lambda w, new: internal_covariate_shift(quadratic, w, new, hessian, layers=("1", "3")))
    found = run(blocks(W), blocks(NEW))
    moved = H[11:15, 3:7] @ (NEW - W)[3:7]
    assert_allclose(found.difference, [0, np.linalg.norm(moved)], rtol=1e-5)


def test_one_layer_has_no_shift_nor_has_a_gradient_of_zero_a_direction() -> None:
    @jax.jit
    def run(w: Any, new: Any) -> Any:
        return internal_covariate_shift(lambda w, _: w[0] @ w[0] + 0 * w[-1] @ w[-1], w, new, None)

    assert_allclose(run([jnp.ones(3)], [jnp.zeros(3)]), [[0], [0], [1]])
    assert_allclose(run([jnp.ones(3)] * 2, [jnp.zeros(3)] * 2), [[0, 0], [0, 0], [1, np.nan]])


@pytest.mark.parametrize(
    ("updated", "said"),
    [
        (blocks(W)[:-1], "updated must be like params: .* is missing"),
        ([jnp.zeros(3)] * 5, "updated must be like params: .* instead of"),
    ],
)
def test_updated_parameters_are_a_tree_like_the_others(updated: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        internal_covariate_shift(quadratic, blocks(W), updated, jnp.asarray(H, jnp.float32))
