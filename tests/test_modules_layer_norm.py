"""Layer normalization of linen and of nnx alike: Flax's values, types and variables, and the function's digits."""

from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax_layers import FLAX, OURS, Variables, batch, close

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

each_api = pytest.mark.parametrize("api", OURS)


def params_of(*shape: int, dtype: Any = np.float32) -> Variables:
    draw = np.random.default_rng(5)
    return {"scale": jnp.asarray(draw.uniform(0.5, 2, shape), dtype), "bias": jnp.asarray(draw.normal(size=shape), dtype)}


@each_api
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"epsilon": 1e-2},
        {"use_fast_variance": False},
        {"reduction_axes": (1, 2)},
        {"reduction_axes": (-1, 0), "feature_axes": 1},
        {"reduction_axes": 1, "feature_axes": 1},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_flax(api: str, options: dict[str, Any]) -> None:
    x = batch((4, 3, 5))
    params = params_of(x.shape[options.get("feature_axes", -1)])

    def run(layers: Any) -> Any:
        y, pullback = jax.vjp(lambda params, x: layers.layer_norm(params, x, **options), params, x)
        return y, pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    close(*(jax.jit(run, static_argnums=0)(layers) for layers in (OURS[api], FLAX[api])), atol=5e-6)


@each_api
@pytest.mark.parametrize("parts", [("scale",), ("bias",), ()], ids=str)
def test_scale_and_bias_may_be_absent(api: str, parts: tuple[str, ...]) -> None:
    params, x = {name: value for name, value in params_of(5).items() if name in parts}, batch((4, 5))
    close(OURS[api].layer_norm(params, x), FLAX[api].layer_norm(params, x), atol=5e-6)


@each_api
def test_a_mask_is_that_of_flax(api: str) -> None:
    x, params = batch((4, 3, 8)), params_of(8)
    mask = np.arange(8) < np.array([8, 3, 5])[:, None]
    close(OURS[api].layer_norm(params, x, mask=mask), FLAX[api].layer_norm(params, x, mask=mask), atol=5e-6)


@each_api
def test_a_mask_of_numbers_and_of_less_rank_counts_where_it_is_not_0(api: str) -> None:
    x, params = batch((4, 3, 8)), params_of(8)
    numbers = np.array([1, 0, 2.5, 1, 0, 1, 1, 1], np.float32)
    wanted = OURS[api].layer_norm(params, x, mask=jnp.broadcast_to(jnp.asarray(numbers != 0), (1, 1, 8)))
    np.testing.assert_array_equal(OURS[api].layer_norm(params, x, mask=numbers), wanted)
    with pytest.raises(ValueError, match=r"mask must broadcast to the shape of x, \[4, 3, 8\], got shape \[3\]"):
        OURS[api].layer_norm(params, x, mask=numbers[:3])


@each_api
@pytest.mark.parametrize("dtype", [None, jnp.float16], ids=str)
@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("param_dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
def test_types_are_those_of_flax_and_only_the_output_is_rounded(api: str, dtype: Any, x_dtype: Any, param_dtype: Any) -> None:
    x, params = batch((16, 32), mean=100, dtype=x_dtype), params_of(32, dtype=param_dtype)
    y = OURS[api].layer_norm(params, x, dtype=dtype, param_dtype=param_dtype)
    with jax.numpy_dtype_promotion("standard"):  # which Flax needs
        assert y.dtype == FLAX[api].layer_norm(params, x, dtype=dtype, param_dtype=param_dtype).dtype
    exact = oracles.layer_norm((params["scale"], params["bias"]), x)
    eps = float(jnp.finfo(y.dtype).eps)
    np.testing.assert_allclose(np.float64(y), exact, rtol=eps, atol=5e-5)


@each_api
def test_modules_are_the_function(api: str) -> None:
    x, params = batch((4, 3, 5)), params_of(3)
    options = {"epsilon": 0.3, "reduction_axes": (0, 2), "feature_axes": 1}
    wanted = jaxnorm.layer_norm(jaxnorm.AffineParams(params["scale"], params["bias"]), x, **options)
    np.testing.assert_array_equal(OURS[api].layer_norm(params, x, **options), wanted)


@jax.numpy_dtype_promotion("standard")  # which Flax needs
def test_variables_are_those_of_flax() -> None:
    x = batch((4, 3, 5))
    for fields in ({}, {"feature_axes": (1, 2)}, {"use_bias": False}, {"param_dtype": jnp.bfloat16}):
        ours, flaxs = (package.LayerNorm(**fields).init(jax.random.key(0), x) for package in (jaxnorm.linen, flax.linen))
        jax.tree.map(np.testing.assert_array_equal, ours, flaxs)
        assert jax.tree.map(lambda a: a.dtype, ours) == jax.tree.map(lambda a: a.dtype, flaxs)
    for fields in ({}, {"use_scale": False}, {"param_dtype": jnp.bfloat16, "scale_init": flax.nnx.initializers.normal()}):
        ours, flaxs = (
            flax.nnx.to_pure_dict(flax.nnx.state(package.LayerNorm(5, rngs=flax.nnx.Rngs(0), **fields)))
            for package in (jaxnorm.nnx, flax.nnx)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, flaxs)


def test_several_feature_axes_and_metadata_in_nnx() -> None:
    norm = jaxnorm.nnx.LayerNorm((3, 5), feature_axes=(1, 2), rngs=flax.nnx.Rngs(0), scale_metadata={"note": "ours"})
    assert norm.scale is not None
    assert norm.scale.get_metadata()["note"] == "ours"
    assert norm(batch((4, 3, 5))).shape == (4, 3, 5)
    with pytest.raises(ValueError, match=r"params.scale must have shape \[5, 4\] \(the features of x\), got \[3, 5\]"):
        norm(batch((3, 5, 4)))


def test_linen_initializes_without_the_axis_that_it_pools_over() -> None:
    norm = jaxnorm.linen.LayerNorm(axis_name="model")
    variables = norm.init(jax.random.key(0), batch((4, 8)))
    x = batch((4, 8))
    divided = jax.vmap(lambda x: norm.apply(variables_of_half(variables), x), axis_name="model", in_axes=1, out_axes=1)
    np.testing.assert_allclose(
        divided(x.reshape(4, 2, 4)).reshape(4, 8), jaxnorm.linen.LayerNorm().apply(variables, x), rtol=1e-5, atol=1e-6
    )


def variables_of_half(variables: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[:4], variables)


@each_api
def test_wrong_fields_are_named(api: str) -> None:
    with pytest.raises(ValueError, match="feature_axes is out of range"):
        OURS[api].layer_norm(params_of(5), batch((4, 5)), feature_axes=2)
    with pytest.raises(ValueError, match="reduction_axes is out of range"):
        OURS[api].layer_norm(params_of(5), batch((4, 5)), reduction_axes=-3)
    with pytest.raises(TypeError, match="x must be an array of floating point numbers, got int32"):
        OURS[api].layer_norm(params_of(5), jnp.ones((4, 5), jnp.int32))
