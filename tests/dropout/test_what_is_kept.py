"""What kinds of noise keep for the gradient: their key and numbers that they made of their amounts, and of x nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from tiers import then_slow

import jaxnorm
from jaxnorm.benchmarks._costs import residuals

NOISES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "dropout": lambda key, x: jaxnorm.dropout(key, x, 0.3),
    "spatial_dropout": lambda key, x: jaxnorm.spatial_dropout(key, x, 0.3),
    "locked_dropout": lambda key, x: jaxnorm.locked_dropout(key, x, 0.3),
    "head_dropout": lambda key, x: jaxnorm.head_dropout(key, x, 0.3, head_axis=1),
    "drop_path": lambda key, x: jaxnorm.drop_path(key, x, 0.3),
    "drop_path, unscaled": lambda key, x: jaxnorm.drop_path(key, x, 0.3, mode="batch", scale=False),
    "alpha_dropout": lambda key, x: jaxnorm.alpha_dropout(key, x, 0.3),
    "gaussian_noise": lambda key, x: jaxnorm.gaussian_noise(key, x, 0.3),
    "zoneout": lambda key, x: jaxnorm.zoneout(key, jnp.zeros_like(x), x, 0.3),
    "zoneout of the old state": lambda key, x: jaxnorm.zoneout(key, x, jnp.zeros_like(x), 0.3),
}


@pytest.mark.parametrize("name", then_slow(list(NOISES), 1))
def test_neither_x_nor_a_mask_is_kept(name: str) -> None:
    kept = residuals(
        lambda key, x: (NOISES[name](jax.random.wrap_key_data(key), x), None), np.zeros(2, np.uint32), jnp.ones((64, 8, 16))
    )
    assert not kept.keeps_input
    assert kept.nbytes <= 64


def test_a_mask_that_is_applied_is_kept_and_nothing_else() -> None:
    """A control too."""

    def applied(key: Any, x: jax.Array) -> tuple[jax.Array, None]:
        return jaxnorm.apply_mask(jaxnorm.dropout_mask(jax.random.wrap_key_data(key), x.shape, 0.3), x, 0.3), None

    kept = residuals(applied, np.zeros(2, np.uint32), jnp.ones((64, 8, 16)))
    assert not kept.keeps_input
    assert 0 <= kept.nbytes - 64 * 8 * 16 <= 64


@pytest.mark.parametrize("name", then_slow(list(NOISES), 1))
def test_legacy_keys_draw_as_typed_ones(name: str) -> None:
    """Pitfall 103."""
    x = jnp.ones((4, 3, 2))
    assert_array_equal(NOISES[name](jax.random.PRNGKey(5), x), NOISES[name](jax.random.key(5), x))
