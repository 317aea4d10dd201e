"""Decorrelated batch norm of linen and of nnx alike: the function's values, the covariances of a new layer, modes and errors."""

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
from jaxnorm import AffineParams, CovarianceStats

each_api = pytest.mark.parametrize("api", OURS)


def variables_of(features: int, group_size: int, **options: Any) -> Variables:
    variables = new_variables((features,), **options)
    del variables["var"]
    roots = np.random.default_rng(7).normal(size=(features // group_size, group_size, group_size))
    cov = roots @ np.swapaxes(roots, 1, 2) + np.eye(group_size)
    return {**variables, "cov": jnp.asarray(cov, jnp.float32)}


def function(variables: Variables, x: jax.Array, **options: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    params = AffineParams(variables.get("scale"), variables.get("bias"))
    state = CovarianceStats(variables["mean"], variables["cov"])
    y, state = jaxnorm.decorrelated_batch_norm(params, state, x, **options)
    return y, state._asdict()


@each_api
@pytest.mark.parametrize("frozen", [False, True], ids=["train", "inference"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_modules_are_the_function(api: str, frozen: bool, affine: bool) -> None:
    variables, x = variables_of(6, 2, affine=affine), batch((8, 2, 6))
    options = {"momentum": 0.8, "epsilon": 1e-2, "group_size": 2, "unbiased": True}
    mask = jnp.arange(8)[:, None, None] < 5
    got = OURS[api].batch_layer("DecorrelatedBatchNorm", variables, x, frozen=frozen, mask=mask, **options)
    jax.tree.map(np.testing.assert_array_equal, got, function(variables, x, train=not frozen, where=mask, **options))


@each_api
def test_defaults_are_those_of_the_function(api: str) -> None:
    variables, x = variables_of(32, 16), batch((64, 32), mean=40)
    got = OURS[api].batch_layer("DecorrelatedBatchNorm", variables, x)
    jax.tree.map(np.testing.assert_array_equal, got, function(variables, x, train=True))


@each_api
def test_the_axis_and_the_dtype_are_those_of_the_module(api: str) -> None:
    variables, x = variables_of(4, 2), batch((6, 4, 5))
    y, stats = OURS[api].batch_layer("DecorrelatedBatchNorm", variables, x, axis=1, dtype=jnp.bfloat16, group_size=2)
    wanted = function(variables, x, train=True, channel_axis=1, dtype=jnp.bfloat16, group_size=2)
    assert y.dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, (y, stats), wanted)


@each_api
def test_a_group_that_does_not_divide_the_features_is_named(api: str) -> None:
    with pytest.raises(ValueError, match="group_size must divide the number of channels, 6, got 4"):
        OURS[api].batch_layer("DecorrelatedBatchNorm", variables_of(6, 2), batch((8, 6)), group_size=4)


def test_new_layers_have_no_mean_and_no_correlation() -> None:
    expected = {"mean": np.zeros(6), "cov": np.broadcast_to(np.eye(3), (2, 3, 3))}
    linen = jaxnorm.linen.DecorrelatedBatchNorm(use_running_average=False, group_size=3)
    jax.tree.map(np.testing.assert_array_equal, linen.init(jax.random.key(0), batch((8, 6)))["batch_stats"], expected)
    nnx = jaxnorm.nnx.DecorrelatedBatchNorm(6, group_size=3, rngs=flax.nnx.Rngs(0))
    jax.tree.map(np.testing.assert_array_equal, {"mean": nnx.mean[...], "cov": nnx.cov[...]}, expected)


def test_nnx_changes_its_mode_with_the_model() -> None:
    norm, x = jaxnorm.nnx.DecorrelatedBatchNorm(6, group_size=3, rngs=flax.nnx.Rngs(0)), batch((16, 6))
    norm(x)
    after_training = np.asarray(norm.cov[...])
    assert np.any(after_training != np.eye(3))
    norm.eval()
    running = {"mean": norm.mean[...], "cov": norm.cov[...]}
    np.testing.assert_array_equal(norm(x), function(running, x, train=False, group_size=3)[0])
    np.testing.assert_array_equal(norm.cov[...], after_training)
