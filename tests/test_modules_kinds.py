"""Conditional, domain-specific, split and ghost batch norm of linen and of nnx alike: the function's digits, and variables."""

from typing import Any

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_layers import batch

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

KINDS = jnp.asarray([0, 2, 0, 2, 1, 2])
ROWS: dict[str, tuple[Any, dict[str, Any], tuple[Any, ...], tuple[int, ...], tuple[int, ...]]] = {
    "ConditionalBatchNorm": (jaxnorm.conditional_batch_norm, {"num_classes": 3}, (KINDS,), (3, 5), (5,)),
    "DomainBatchNorm": (jaxnorm.domain_batch_norm, {"num_domains": 3}, (KINDS,), (3, 5), (3, 5)),
    "SplitBatchNorm": (jaxnorm.split_batch_norm, {"num_splits": 3}, (), (3, 5), (3, 5)),
    "GhostBatchNorm": (jaxnorm.ghost_batch_norm, {"ghost_size": 2}, (), (5,), (5,)),
}
each = pytest.mark.parametrize("name", ROWS)


def variables_of(name: str) -> tuple[jaxnorm.AffineParams, jaxnorm.RunningStats]:
    draw = np.random.default_rng(4)
    *_, of_params, of_state = ROWS[name]
    scale, bias, mean, var = (
        jnp.asarray(draw.uniform(0.5, 2, s), jnp.float32) for s in (of_params, of_params, of_state, of_state)
    )
    return jaxnorm.AffineParams(scale, bias), jaxnorm.RunningStats(mean, var)


@each
@pytest.mark.parametrize("frozen", [False, True], ids=["train", "infer"])
def test_modules_are_the_function(name: str, frozen: bool) -> None:
    function, fields, given, *_ = ROWS[name]
    x, (params, state) = batch((6, 3, 5)), variables_of(name)
    mask = np.arange(18).reshape(6, 3, 1) % 5 != 1
    of_function = {"ghost_size": 2} if name == "GhostBatchNorm" else {}
    wanted, new = function(
        params, state, x, *given, **of_function, train=not frozen, momentum=0.8, epsilon=1e-3, where=jnp.asarray(mask)
    )
    fields = {**fields, "momentum": 0.8, "epsilon": 1e-3}
    linen = getattr(jaxnorm.linen, name)(**fields)
    tree = {"params": params._asdict(), "batch_stats": state._asdict()}
    y, updates = linen.apply(tree, x, *given, use_running_average=frozen, mask=mask, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, wanted)
    for part, value in new._asdict().items():
        np.testing.assert_array_equal(updates["batch_stats"][part], value)
    nnx = getattr(jaxnorm.nnx, name)(5, **fields, rngs=flax.nnx.Rngs(0))
    for part, value in {**params._asdict(), **state._asdict()}.items():
        getattr(nnx, part).set_value(value)
    np.testing.assert_array_equal(nnx(x, *given, use_running_average=frozen, mask=mask), wanted)
    for part, value in new._asdict().items():
        np.testing.assert_array_equal(getattr(nnx, part)[...], value)


@each
def test_variables_have_a_row_for_each_kind(name: str) -> None:
    _, fields, given, of_params, of_state = ROWS[name]
    variables = getattr(jaxnorm.linen, name)(**fields).init(jax.random.key(0), batch((6, 5)), *given, use_running_average=False)
    module = getattr(jaxnorm.nnx, name)(5, **fields, rngs=flax.nnx.Rngs(0))
    shapes = {"scale": of_params, "bias": of_params, "mean": of_state, "var": of_state}
    assert {name: a.shape for part in variables.values() for name, a in part.items()} == shapes
    assert {part: getattr(module, part)[...].shape for part in shapes} == shapes


def test_domains_may_share_scale_and_bias() -> None:
    module = jaxnorm.nnx.DomainBatchNorm(5, num_domains=3, shared=True, rngs=flax.nnx.Rngs(0))
    assert module.scale is not None
    assert (module.scale[...].shape, module.mean[...].shape) == ((5,), (3, 5))
    variables = jaxnorm.linen.DomainBatchNorm(num_domains=3, shared=True).init(jax.random.key(0), batch((6, 5)), 1, False)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"scale": (5,), "bias": (5,)}


@pytest.mark.parametrize(("name", "field"), [("ConditionalBatchNorm", "num_classes"), ("SplitBatchNorm", "num_splits")])
def test_wrong_numbers_are_named(name: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        getattr(jaxnorm.nnx, name)(5, **{field: 0}, rngs=flax.nnx.Rngs(0))
    with pytest.raises(ValueError, match="ghost_size must be at least 1, got 0"):
        jaxnorm.nnx.GhostBatchNorm(5, ghost_size=0, rngs=flax.nnx.Rngs(0))(batch((6, 5)))
    with pytest.raises(TypeError, match="labels must be an array of ints"):
        jaxnorm.nnx.ConditionalBatchNorm(5, rngs=flax.nnx.Rngs(0))(batch((6, 5)), jnp.ones(6))
