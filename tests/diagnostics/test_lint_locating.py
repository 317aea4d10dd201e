"""Places as the lint tells them to users."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxnorm.linen

pytestmark = pytest.mark.jax_defaults  # as in the code of users


class Block(nn.Module):
    def setup(self) -> None:
        self.drop = nn.Dropout(0.5)

    def noisy(self, x: jax.Array, train: bool) -> jax.Array:
        return self.drop(x, deterministic=not train)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.noisy(x, train)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Block(name="called")(x, train)
        x = Block(name="by_method").noisy(x, train)
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(self.first(x, train)))

    def first(self, x: jax.Array, train: bool) -> jax.Array:
        return self.second(nn.Dropout(0.5, deterministic=not train)(x), train)

    def second(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dropout(0.5, deterministic=not train)(x)


def why_of(net: nn.Module) -> str:
    x = jax.random.normal(jax.random.key(0), (32, 3))
    (found,) = jaxnorm.linen.lint(net, net.init(jax.random.key(1), x, train=False), x).at_least("warning")
    return found.why


def test_paths_of_linen_hold_modules_and_no_methods() -> None:
    assert why_of(Net()).startswith("the noise of called/drop and of by_method/drop and of Dropout_0 and of Dropout_1 reaches")


CELL = """
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.BatchNorm(use_running_average=not train)(x)
"""


@pytest.mark.parametrize("file, shown", [("ipykernel_7/1432786781.py", "cell:6 in "), ("nets/net.py", "net.py:6 in ")])
def test_cells_of_notebooks_are_not_named_by_their_hash(file: str, shown: str, tmp_path: Path) -> None:
    scope: dict[str, Any] = {"nn": nn, "__name__": "cell"}
    exec(compile(CELL, str(tmp_path / file), "exec"), scope)
    net, x = scope["Net"](), jnp.eye(32)
    found = jaxnorm.linen.lint(net, net.init(jax.random.key(1), x, train=False), x).findings
    assert {one.where.line.partition("Net.")[0] for one in found if one.rule == "noise-before-batch-norm"} == {shown}
