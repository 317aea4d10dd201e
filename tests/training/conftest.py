"""A small data set, and a network with batch norm and dropout as a bare pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm


class Net(NamedTuple):
    apply: Any
    params: Any
    stats: Any


@pytest.fixture(scope="session")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Inputs `[90, 5]` off center and of several scales, and labels of 3 classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 5)) * [1.0, 0.1, 3.0, 1.0, 0.5] + [2.0, 0.0, -1.0, 0.3, 0.0]
    labels = np.argmax(x @ rng.normal(size=(5, 3)) + 0.3 * rng.normal(size=(90, 3)), axis=1)
    return x.astype(np.float32), labels.astype(np.int32)


@pytest.fixture(scope="session")
def net() -> Net:
    """Linear, batch norm, relu, dropout, linear; the rate and the momentum may be scheduled."""

    def apply(key, params, stats, x, /, *, train, rate=0.3, momentum=0.9):
        hidden, stats = jaxnorm.batch_norm(params["norm"], stats, x @ params["w"], train=train, momentum=momentum)
        hidden = jax.nn.relu(hidden)
        hidden = jaxnorm.dropout(key, hidden, rate) if train else hidden
        return hidden @ params["out"], stats

    rng = np.random.default_rng(1)
    norm, stats = jaxnorm.init_batch_norm(7)
    w, out = (jnp.asarray(0.5 * rng.normal(size=shape), jnp.float32) for shape in ((5, 7), (7, 3)))
    return Net(apply, {"norm": norm, "w": w, "out": out}, stats)
