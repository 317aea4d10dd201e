"""Response and length norms, dynamic tanh and layer scale of linen and of nnx alike: the function's digits, and variables."""

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

ROWS: dict[str, tuple[Any, dict[str, Any], dict[str, tuple[int, ...]]]] = {  # function, options, and shapes of the parameters
    "FilterResponseNorm": (jaxnorm.filter_response_norm, {"epsilon": 1e-3}, {"scale": (5,), "bias": (5,), "threshold": (5,)}),
    "GlobalResponseNorm": (jaxnorm.global_response_norm, {"epsilon": 1e-3}, {"scale": (5,), "bias": (5,)}),
    "LocalResponseNorm": (jaxnorm.local_response_norm, {"size": 3, "k": 1.0, "alpha": 0.5, "beta": 0.6}, {}),
    "UnitNorm": (jaxnorm.unit_norm, {"k": 0.5, "epsilon": 1e-3, "reduction_axes": (1, 2)}, {}),
    "ScaleNorm": (jaxnorm.scale_norm, {"epsilon": 1e-3}, {"scale": ()}),
    "DynamicTanh": (jaxnorm.dynamic_tanh, {}, {"scale": (5,), "bias": (5,), "alpha": ()}),
    "LayerScale": (jaxnorm.layer_scale, {}, {"scale": (5,)}),
    "CosineNorm": (jaxnorm.cosine_norm, {"centered": True, "epsilon": 1e-3}, {"kernel": (5, 4)}),
}
MASKED = ("FilterResponseNorm", "GlobalResponseNorm", "UnitNorm", "ScaleNorm")
KINDS: dict[str, Any] = {"FilterResponseNorm": jaxnorm.FilterResponseParams, "DynamicTanh": jaxnorm.DynamicTanhParams}
each = pytest.mark.parametrize("name", ROWS)


def modules(name: str, **fields: Any) -> tuple[Any, Any]:
    """The modules of linen and nnx."""
    sizes = {"CosineNorm": (5, 4), "UnitNorm": (), "LocalResponseNorm": ()}.get(name, (5,))
    rngs = {} if name in ("UnitNorm", "LocalResponseNorm", "ScaleNorm", "LayerScale") else {"rngs": flax.nnx.Rngs(0)}
    features = {"features": 4} if name == "CosineNorm" else {}
    return getattr(jaxnorm.linen, name)(**features, **fields), getattr(jaxnorm.nnx, name)(*sizes, **rngs, **fields)


def arguments(name: str, variables: dict[str, jax.Array]) -> tuple[Any, ...]:
    """The first arguments of the function."""
    if name == "CosineNorm":
        return (variables["kernel"],)
    if not variables:
        return ()
    return (KINDS.get(name, jaxnorm.AffineParams)(**{"scale": None, "bias": None, **variables}),)


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_modules_are_the_function(name: str, dtype: Any) -> None:
    function, options, shapes = ROWS[name]
    draw = np.random.default_rng(4)
    variables = {part: jnp.asarray(draw.uniform(0.5, 2, shape), jnp.float32) for part, shape in shapes.items()}
    x = batch((6, 3, 5), dtype=dtype)
    for mask in (None, np.arange(18).reshape(6, 3, 1) % 5 != 1)[: 2 if name in MASKED else 1]:
        where = {} if mask is None else {"where": jnp.asarray(mask)}
        given = {} if mask is None else {"mask": mask}
        wanted = function(*arguments(name, variables), x, dtype=jnp.float32 if variables else dtype, **options, **where)
        linen, nnx = modules(name, **options)
        for part, value in variables.items():
            getattr(nnx, part).set_value(value)
        for y in (linen.apply({"params": variables}, x, **given), nnx(x, **given)):
            assert y.dtype == wanted.dtype
            np.testing.assert_array_equal(y, wanted)
        half = modules(name, dtype=jnp.float16, **options)[0].apply({"params": variables}, x, **given)
        assert half.dtype == jnp.float16


@each
def test_variables_are_those_of_a_new_function(name: str) -> None:
    _, _, shapes = ROWS[name]
    linen, nnx = modules(name)
    variables = linen.init(jax.random.key(0), batch((6, 3, 5))).get("params", {})
    of_nnx = flax.nnx.to_pure_dict(flax.nnx.state(nnx, flax.nnx.Param))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, of_nnx) == shapes
    init = getattr(jaxnorm, f"init_{ROWS[name][0].__name__}", None)
    if init is not None:
        new = {part: value for part, value in init(5)._asdict().items() if value is not None}
        jax.tree.map(np.testing.assert_array_equal, new, variables)
        jax.tree.map(np.testing.assert_array_equal, new, of_nnx)


@pytest.mark.parametrize("name", ["FilterResponseNorm", "GlobalResponseNorm", "DynamicTanh"])
def test_parameters_may_be_absent_and_of_another_type(name: str) -> None:
    x = batch((6, 3, 5))
    for use in ("use_scale", "use_bias"):
        linen, nnx = modules(name, **{use: False}, param_dtype=jnp.bfloat16)
        variables = linen.init(jax.random.key(0), x)
        assert use.removeprefix("use_") not in variables["params"]
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.bfloat16)}
        np.testing.assert_array_equal(linen.apply(variables, x), nnx(x))


def test_a_learned_epsilon_is_a_variable_and_a_threshold_may_be_absent() -> None:
    x = batch((6, 1, 5))
    linen, nnx = modules("FilterResponseNorm", use_threshold=False, learned_epsilon=0.25)
    variables = linen.init(jax.random.key(0), x)
    assert sorted(variables["params"]) == ["bias", "epsilon_offset", "scale"]
    wanted = jaxnorm.filter_response_norm(
        jaxnorm.FilterResponseParams(jnp.ones(5), jnp.zeros(5), None, jnp.float32(0.25)), x, epsilon=1e-6
    )
    np.testing.assert_array_equal(linen.apply(variables, x), wanted)
    np.testing.assert_array_equal(nnx(x), wanted)


def test_one_factor_for_all_channels() -> None:
    linen, nnx = modules("LayerScale", shared=True, init_value=0.5)
    x = batch((6, 3, 5))
    variables = linen.init(jax.random.key(0), x)
    assert variables["params"]["scale"].shape == nnx.scale[...].shape == ()
    np.testing.assert_array_equal(linen.apply(variables, x), 0.5 * x)
    np.testing.assert_array_equal(nnx(x), 0.5 * x)


def test_channels_on_another_axis() -> None:
    x = batch((6, 5, 3))
    for name in ("FilterResponseNorm", "GlobalResponseNorm", "LocalResponseNorm", "DynamicTanh", "LayerScale"):
        linen, nnx = modules(name, channel_axis=1)
        wanted = modules(name)[1](jnp.moveaxis(x, 1, -1))
        for y in (linen.apply(linen.init(jax.random.key(0), x), x), nnx(x)):
            np.testing.assert_allclose(jnp.moveaxis(y, 1, -1), wanted, rtol=2e-6, atol=1e-6)


def test_mapped_axes_are_pooled_and_not_asked_for_in_initialization() -> None:
    x = batch((4, 2, 6, 5))
    for name in ("FilterResponseNorm", "GlobalResponseNorm"):
        linen, _ = modules(name, axis_name="d")
        variables = linen.init(jax.random.key(0), x[0])
        y = jax.vmap(lambda x, linen=linen, v=variables: linen.apply(v, x), axis_name="d")(x)
        whole, _ = modules(name)
        wanted = whole.apply(variables, jnp.moveaxis(x, 0, 1).reshape(2, 24, 5))
        np.testing.assert_allclose(jnp.moveaxis(y, 0, 1).reshape(2, 24, 5), wanted, rtol=2e-6, atol=1e-6)
