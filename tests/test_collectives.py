"""How many collectives a layer with batch statistics takes on a sharded array: one for them, one more for the gradient.

Counted in the compiled program outside of conditional branches: those sum once more, where the running mean was too far off.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnorm import (
    batch_norm,
    batch_renorm,
    decorrelated_batch_norm,
    init_batch_norm,
    init_batch_renorm,
    init_decorrelated_batch_norm,
)
from jaxnorm.benchmarks._collectives import collectives

SHAPE = (64, 8, 8, 16)
LAYERS = {
    "norm": (batch_norm, init_batch_norm, {}),
    "renorm": (batch_renorm, init_batch_renorm, {}),
    "decorrelated": (decorrelated_batch_norm, init_decorrelated_batch_norm, {"group_size": 2}),
}
layers = pytest.mark.parametrize("layer", LAYERS)
axis_types = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
passes = pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
masked = pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])


def step(call: Any, backward: bool) -> Any:
    """The layer's output and new state, and where wanted the gradient for parameters and x."""

    def run(params: Any, state: Any, x: jax.Array, where: jax.Array | None) -> Any:
        if not backward:
            return call(params, state, x, where)
        y, pullback, new = jax.vjp(lambda params, x: call(params, state, x, where), params, x, has_aux=True)
        return y, new, pullback(jnp.cos(y))

    return run


def compiled_collectives(layer: str, axis_type: AxisType, spec: P, backward: bool, masked: bool) -> list[tuple[str, str]]:
    function, init, options = LAYERS[layer]
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    where_shape, where_spec = (*SHAPE[:3], 1), P(*spec[:3])
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones(SHAPE), NamedSharding(mesh, spec))
        where = jax.device_put(jnp.ones(where_shape, bool), NamedSharding(mesh, where_spec)) if masked else None
        params, state = jax.device_put(init(SHAPE[-1], **options), NamedSharding(mesh, P()))
        call = lambda params, state, x, where: function(params, state, x, train=True, where=where, **options)  # noqa: E731
        run = step(call, backward)
        text = jax.jit(run).lower(params, state, x, where).compile().as_text()
    assert text is not None
    return collectives(text)


@layers
@axis_types
@masked
@passes
def test_a_sharded_batch_takes_one_sum_in_each_pass(layer: str, axis_type: AxisType, masked: bool, backward: bool) -> None:
    found = compiled_collectives(layer, axis_type, P("d"), backward, masked)
    assert [operation for operation, _ in found] == ["all-reduce"] * (1 + backward), found


@layers
@axis_types
@masked
@passes
def test_a_sharded_spatial_axis_takes_one_sum_in_each_pass(layer: str, axis_type: AxisType, masked: bool, backward: bool) -> None:
    found = compiled_collectives(layer, axis_type, P(None, "d"), backward, masked)
    assert [operation for operation, _ in found] == ["all-reduce"] * (1 + backward), found


@layers
@axis_types
@masked
@passes
def test_sharded_channels_share_one_bit_at_most(layer: str, axis_type: AxisType, masked: bool, backward: bool) -> None:
    """Whether any of them needs a second sum."""
    found = compiled_collectives(layer, axis_type, P(None, None, None, "d"), backward, masked)
    sums = [kind for operation, kind in found if operation == "all-reduce"]
    assert len(sums) <= 1
    assert all(re.match(r"pred\[\]", kind) for kind in sums), found


@layers
@pytest.mark.parametrize("check_vma", [True, False], ids=["vma", "no_vma"])
def test_shard_map_with_axis_name_takes_one_sum(layer: str, check_vma: bool) -> None:
    function, init, options = LAYERS[layer]
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    params, state = init(SHAPE[-1], **options)
    sharded = jax.shard_map(
        lambda params, state, x: function(params, state, x, train=True, axis_name="d", **options),
        mesh=mesh,
        in_specs=(P(), P(), P("d")),
        out_specs=(P("d"), P()),
        check_vma=check_vma,
    )
    text = jax.jit(sharded).lower(params, state, jnp.ones(SHAPE)).compile().as_text()
    assert text is not None
    assert [operation for operation, _ in collectives(text)] == ["all-reduce"]


def test_a_collective_in_a_branch_is_not_counted_and_one_in_a_loop_is() -> None:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

    def in_branch(x: jax.Array) -> jax.Array:
        return jax.lax.cond(jax.lax.axis_index("d") < 0, lambda x: jax.lax.psum(x, "d"), lambda x: 8 * x, x)

    def in_loop(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, x.size, lambda _, x: jax.lax.pmax(x + 1, "d"), x)

    for function, operations in ((in_branch, 0), (in_loop, 1)):
        sharded = jax.shard_map(function, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False)
        text = jax.jit(sharded).lower(jnp.ones(80)).compile().as_text()
        assert text is not None
        assert "all-reduce" in text
        assert len(collectives(text)) == operations
