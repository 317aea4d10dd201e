"""Layers with a state whose `train` is a traced bool."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import Arguments, Case
from jax.sharding import PartitionSpec as P
from promises import (
    each_stateful,
    each_synced,
    mesh,
    new_key,
    specs,
    varied_and_rest,
    weights,
)


@each_stateful
def test_traced_train_is_either_mode(case: Case) -> None:
    arguments = case.arguments()
    traces = 0

    @jax.jit
    def run(arguments: Arguments, train: jax.Array) -> Any:
        nonlocal traces
        traces += 1
        return case(new_key(), arguments, train=train)

    for train in (True, False):
        expected = case(new_key(), arguments, train=train)
        chex.assert_trees_all_close(run(arguments, jnp.array(train)), expected, rtol=3e-6, atol=3e-6)
    assert traces == 1


@each_stateful
def test_traced_train_under_vmap_and_grad(case: Case) -> None:
    varied, rest = varied_and_rest(case.arguments())

    def gradient(varied: Arguments, train: Any) -> Any:
        def total(varied: Arguments) -> jax.Array:
            y, _ = case(new_key(), {**rest, **varied}, train=train)
            return jnp.sum(y * weights(y))

        return jax.value_and_grad(total)(varied)

    together = jax.jit(jax.vmap(gradient, (None, 0)))(varied, jnp.array([True, False]))
    for i, train in enumerate((True, False)):
        expected = gradient(varied, train)
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], together), expected, rtol=1e-5, atol=1e-5)


@each_synced
@pytest.mark.parametrize(("axis_name", "check_vma"), [("d", True), ("d", False), (None, True)], ids=str)
def test_traced_train_under_shard_map(case: Case, axis_name: str | None, check_vma: bool) -> None:
    arguments = case.arguments()
    state_spec = P() if axis_name else P("d")

    def part(arguments: Arguments, train: jax.Array) -> Any:
        y, state = case(new_key(), arguments, train=train, axis_name=axis_name)
        return y, state if axis_name else jax.tree.map(lambda a: a[None], state)

    run = jax.jit(
        jax.shard_map(
            part, mesh=mesh(2), in_specs=(specs(case, arguments), P()), out_specs=(P("d"), state_spec), check_vma=check_vma
        )
    )
    for train in (True, False):
        y, state = run(arguments, jnp.array(train))
        if axis_name:
            expected = case(new_key(), arguments, train=train)
            chex.assert_trees_all_close((y, state), expected, rtol=3e-6, atol=3e-6)
        else:
            first = {name: a[:4] if name in case.batched else a for name, a in arguments.items()}
            expected_y, expected_state = case(new_key(), first, train=train)
            chex.assert_trees_all_close(y[:4], expected_y, rtol=3e-6, atol=3e-6)
            chex.assert_trees_all_close(jax.tree.map(lambda a: a[0], state), expected_state, rtol=3e-6)
