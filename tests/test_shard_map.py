"""Every layer under `jax.shard_map`."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import Arguments, Case
from jax.sharding import PartitionSpec as P
from promises import (
    compiled,
    each_form,
    each_synced,
    mesh,
    new_key,
    specs,
    varied_and_rest,
    weights,
)


@each_synced
@pytest.mark.parametrize(("devices", "check_vma"), [(2, True), (8, False)], ids=["vma-2", "no_vma-8"])
def test_shard_map_with_axis_name_equals_one_device(case: Case, devices: int, check_vma: bool) -> None:
    """Pitfalls 41 and 70."""
    arguments = case.arguments()
    varied, rest = varied_and_rest(arguments)
    sharded = jax.shard_map(
        lambda arguments: case(new_key(), arguments, axis_name="d"),
        mesh=mesh(devices),
        in_specs=(specs(case, arguments),),
        out_specs=(P("d"), P()),
        check_vma=check_vma,
    )

    def f(call: Callable[[Arguments], Any]) -> Any:
        def total(varied: Arguments) -> Any:
            y, state = call({**rest, **varied})
            return jnp.sum(y * weights(y)), (y, state)

        return jax.jit(jax.value_and_grad(total, has_aux=True))(varied)

    (_, outputs), gradients = f(sharded)
    (_, expected), expected_gradients = f(lambda arguments: case(new_key(), arguments))
    chex.assert_trees_all_close(outputs, expected, rtol=1e-6, atol=2e-6)
    chex.assert_trees_all_close(gradients, expected_gradients, rtol=1e-5, atol=1e-5)


@each_form
def test_shard_map_without_axis_name_is_a_call_on_every_part(case: Case) -> None:
    """Pitfall 77."""
    arguments = case.arguments()

    def one(key: jax.Array, index: jax.Array, arguments: Arguments) -> Any:
        return jax.tree.map(lambda a: a[None], case(jax.random.fold_in(key, index), arguments))

    def part(key: jax.Array, arguments: Arguments) -> Any:
        return one(key, jax.lax.axis_index("d"), arguments)

    in_specs, parts = (P(), specs(case, arguments)), []
    for i in range(4):
        own = {name: a[2 * i : 2 * i + 2] if name in case.batched else a for name, a in arguments.items()}
        parts.append(compiled(case)(jax.random.fold_in(new_key(), i), own))
    for check_vma in (True, False):
        run = jax.shard_map(part, mesh=mesh(4), in_specs=in_specs, out_specs=P("d"), check_vma=check_vma)
        got = jax.jit(run)(new_key(), arguments)
        for i, expected in enumerate(parts):
            chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], got), expected, rtol=3e-6, atol=3e-6)
