"""Scale invariance: identities of batch norm, and of networks without."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxnorm
from jaxnorm.diagnostics import scale_invariance

KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {"first": jax.random.normal(KEYS[0], (5, 8)), "last": jax.random.normal(KEYS[1], (8, 3))}
X, LABELS = jax.random.normal(KEYS[2], (16, 5)), jnp.arange(16) % 3


def normed(params: Any, x: jax.Array) -> jax.Array:
    norm, state = jaxnorm.init_batch_norm(8)
    y, _ = jaxnorm.batch_norm(norm, state, x @ params["first"], train=True, epsilon=1e-12)
    return jax.nn.relu(y) @ params["last"]


def plain(params: Any, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["first"]) @ params["last"]


def test_batch_norm_undoes_the_scale_before_it() -> None:
    """methods.md 3.1: the same outputs, <W, dL/dW> = 0, and a gradient over the factor."""
    run = jax.jit(lambda factor: scale_invariance(normed, PARAMS, (X, LABELS), {"first": factor}))
    for factor in (0.1, 10.0):
        found = run(factor)
        assert found.change < 1e-5
        assert abs(found.cosine[0]) < 1e-5
        assert_allclose(found.gradient_ratio, [1 / factor], rtol=1e-4)


def test_a_network_without_a_norm_hides_scales_that_its_gradient_shows() -> None:
    """claims.md 2.6: W1 times 10 and W2 over 10."""
    found = jax.jit(lambda x: scale_invariance(plain, PARAMS, (x, LABELS), {"last": 0.1, "first": 10.0}))(X)
    assert found.change < 1e-6
    assert_allclose(found.gradient_ratio, [10, 0.1], rtol=1e-4)
    assert (abs(found.cosine) > 0.01).all()


def test_is_that_of_a_linear_network() -> None:
    """With the outputs as losses, `<W, dL/dW> = L` of each of two layers."""

    @jax.jit
    def run(x: jax.Array) -> Any:
        linear = lambda params, x: x @ params["first"] @ params["last"]  # noqa: E731
        factors = {"first": 2.0, "last": 3.0}
        return scale_invariance(linear, PARAMS, (x, x), factors, loss=lambda outputs, _: outputs.sum(1))

    found = run(X)
    first, last, x = (np.asarray(a, np.float64) for a in (*PARAMS.values(), X))
    of_first, of_last = np.outer(x.mean(0), last.sum(1)), (x @ first).mean(0)[:, None] * np.ones((1, 3))
    loss = (x @ first @ last).sum(1).mean()
    sizes = [np.linalg.norm(w) * np.linalg.norm(g) for w, g in ((first, of_first), (last, of_last))]
    assert_allclose(found.change, 5, rtol=1e-5)
    assert_allclose(found.cosine, [loss / size for size in sizes], rtol=1e-4)
    assert_allclose(found.gradient_ratio, [3, 2], rtol=1e-5)


@pytest.mark.parametrize(
    ("factors", "error", "said"),
    [
        ({"frist": 2.0}, ValueError, "factors must be paths .* no 'frist': did you mean 'first'"),
        ({}, ValueError, "factors must have at least one entry"),
        ({"first": -1.0}, ValueError, r"factors\['first'\] must be in"),
        ({"first": "2"}, TypeError, r"factors\['first'\] must be a number"),
        (["first"], TypeError, "factors must be Mapping"),
    ],
)
def test_bad_input_is_named(factors: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        scale_invariance(plain, PARAMS, (X, LABELS), factors)
