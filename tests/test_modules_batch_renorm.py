"""Batch renormalization of linen and of nnx alike: the function's values, its own fields, modes and errors."""

from typing import Any

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_layers import OURS, Variables, batch, new_variables

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm import AffineParams, RenormStats

each_api = pytest.mark.parametrize("api", OURS)


def variables_of(features: int, **options: Any) -> Variables:
    variables = new_variables((features,), **options)
    return {"std" if name == "var" else name: value for name, value in variables.items()}


def function(variables: Variables, x: jax.Array, **options: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    params = AffineParams(variables.get("scale"), variables.get("bias"))
    y, state = jaxnorm.batch_renorm(params, RenormStats(variables["mean"], variables["std"]), x, **options)
    return y, state._asdict()


@each_api
@pytest.mark.parametrize("frozen", [False, True], ids=["train", "inference"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_modules_are_the_function(api: str, frozen: bool, affine: bool) -> None:
    variables, x = variables_of(3, affine=affine), batch((8, 2, 3))
    options = {"momentum": 0.8, "epsilon": 1e-2, "r_max": 1.3, "d_max": 0.2}
    mask = jnp.arange(8)[:, None, None] < 5
    got = OURS[api].batch_layer("BatchRenorm", variables, x, frozen=frozen, mask=mask, **options)
    jax.tree.map(np.testing.assert_array_equal, got, function(variables, x, train=not frozen, where=mask, **options))


@each_api
def test_defaults_are_those_of_the_function(api: str) -> None:
    variables, x = variables_of(3), batch((8, 3), mean=40)
    got = OURS[api].batch_layer("BatchRenorm", variables, x)
    jax.tree.map(np.testing.assert_array_equal, got, function(variables, x, train=True))


@each_api
def test_the_axis_and_the_dtype_are_those_of_the_module(api: str) -> None:
    variables, x = variables_of(3), batch((4, 3, 5))
    y, stats = OURS[api].batch_layer("BatchRenorm", variables, x, axis=1, dtype=jnp.bfloat16)
    wanted_y, wanted = function(variables, x, train=True, channel_axis=1, dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, (y, stats), (wanted_y, wanted))


@each_api
def test_limits_may_be_traced(api: str) -> None:
    variables, x = variables_of(3), batch((8, 3))
    run = jax.jit(lambda r_max, d_max: OURS[api].batch_layer("BatchRenorm", variables, x, r_max=r_max, d_max=d_max)[0])
    for r_max, d_max in ((1.0, 0.0), (1.2, 0.5), (3.0, 5.0)):
        wanted, _ = function(variables, x, train=True, r_max=r_max, d_max=d_max)
        np.testing.assert_allclose(run(r_max, d_max), wanted, rtol=2e-6, atol=2e-6)


@each_api
def test_a_limit_out_of_range_is_named(api: str) -> None:
    with pytest.raises(ValueError, match=r"r_max must be in .*, got 0\.5"):
        OURS[api].batch_layer("BatchRenorm", variables_of(3), batch((8, 3)), r_max=0.5)


def test_linen_initializes_with_a_mean_of_0_and_a_deviation_of_1() -> None:
    variables = jaxnorm.linen.BatchRenorm(use_running_average=False).init(jax.random.key(0), batch((8, 3)))
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], {"mean": np.zeros(3), "std": np.ones(3)})
    jax.tree.map(np.testing.assert_array_equal, variables["params"], {"scale": np.ones(3), "bias": np.zeros(3)})


def test_nnx_changes_its_mode_with_the_model() -> None:
    norm, x = jaxnorm.nnx.BatchRenorm(3, rngs=flax.nnx.Rngs(0)), batch((8, 3))
    norm(x)
    after_training = np.asarray(norm.std[...])
    assert np.any(after_training != 1)
    norm.eval()
    running = {"mean": norm.mean[...], "std": norm.std[...]}
    np.testing.assert_array_equal(norm(x), function(running, x, train=False)[0])
    np.testing.assert_array_equal(norm.std[...], after_training)
