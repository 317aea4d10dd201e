"""RMS, group and instance normalization of linen and of nnx alike: Flax's values and variables, and the function's digits."""

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
FUNCTIONS = {"RMSNorm": jaxnorm.rms_norm, "GroupNorm": jaxnorm.group_norm, "InstanceNorm": jaxnorm.instance_norm}
FIELDS: dict[str, dict[str, Any]] = {"RMSNorm": {}, "GroupNorm": {"num_groups": 2}, "InstanceNorm": {}}
each_norm = pytest.mark.parametrize("name", FUNCTIONS)


def params_of(name: str, size: int, dtype: Any = np.float32) -> Variables:
    draw = np.random.default_rng(5)
    params = {"scale": jnp.asarray(draw.uniform(0.5, 2, size), dtype), "bias": jnp.asarray(draw.normal(size=size), dtype)}
    return {"scale": params["scale"]} if name == "RMSNorm" else params


def affine(params: Variables) -> jaxnorm.AffineParams:
    return jaxnorm.AffineParams(params.get("scale"), params.get("bias"))


@each_api
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RMSNorm", {}),
        ("RMSNorm", {"epsilon": 1e-2, "use_fast_variance": False}),
        ("RMSNorm", {"reduction_axes": (1, 2)}),
        ("RMSNorm", {"reduction_axes": 0, "feature_axes": 1}),
        ("GroupNorm", {"num_groups": 2}),
        ("GroupNorm", {"num_groups": 6, "epsilon": 1e-2}),
        ("GroupNorm", {"num_groups": None, "group_size": 2}),
        ("GroupNorm", {"num_groups": 3, "reduction_axes": (1, 2, 3)}),
        ("InstanceNorm", {}),
        ("InstanceNorm", {"epsilon": 1e-2}),
        ("InstanceNorm", {"feature_axes": 1}),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_flax(api: str, name: str, options: dict[str, Any]) -> None:
    x = batch((4, 3, 5, 6))
    params = params_of(name, x.shape[options.get("feature_axes", -1)])

    def run(layers: Any) -> Any:
        y, pullback = jax.vjp(lambda params, x: layers.sample_layer(name, params, x, **options), params, x)
        return y, pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    close(*(jax.jit(run, static_argnums=0)(layers) for layers in (OURS[api], FLAX[api])), atol=1e-5)


def test_reduction_axes_that_flax_takes_for_others_in_nnx() -> None:
    """Flax's nnx module repeats the statistics of groups along axis 1, whatever that is, and is wrong; not its linen module."""
    x, params = batch((4, 3, 5, 6)), params_of("GroupNorm", 6)
    options = {"num_groups": 2, "reduction_axes": (2, 3)}
    wanted = FLAX["linen"].sample_layer("GroupNorm", params, x, **options)
    for ours in OURS.values():
        close(ours.sample_layer("GroupNorm", params, x, **options), wanted, atol=1e-5)


@each_api
@each_norm
def test_scale_and_bias_may_be_absent(api: str, name: str) -> None:
    x = batch((4, 5, 6))
    parts = [(), ("scale",), ("bias",)] if name != "RMSNorm" else [()]
    for names in parts:
        params = {part: value for part, value in params_of(name, 6).items() if part in names}
        close(*(layers[api].sample_layer(name, params, x, **FIELDS[name]) for layers in (OURS, FLAX)), atol=5e-6)


@each_api
@each_norm
def test_a_mask_is_that_of_flax(api: str, name: str) -> None:
    x, params = batch((4, 9, 8)), params_of(name, 8)
    mask = np.broadcast_to(np.arange(72).reshape(9, 8) % 5 != 1, x.shape)
    close(*(layers[api].sample_layer(name, params, x, mask=mask, **FIELDS[name]) for layers in (OURS, FLAX)), atol=5e-6)


@each_api
@each_norm
def test_a_mask_of_numbers_and_of_less_rank_counts_where_it_is_not_0(api: str, name: str) -> None:
    x, params = batch((4, 3, 8)), params_of(name, 8)
    numbers = np.array([1, 0, 2.5, 1, 0, 1, 1, 1], np.float32)
    wanted = FUNCTIONS[name](affine(params), x, where=jnp.asarray(numbers != 0)[None, None], **FIELDS[name])
    np.testing.assert_array_equal(OURS[api].sample_layer(name, params, x, mask=numbers, **FIELDS[name]), wanted)


@each_api
@each_norm
@pytest.mark.parametrize("dtype", [None, jnp.float16], ids=str)
@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
def test_types_are_those_of_flax_and_only_the_output_is_rounded(api: str, name: str, dtype: Any, x_dtype: Any) -> None:
    x, params = batch((8, 16, 32), mean=100, dtype=x_dtype), params_of(name, 32, dtype=jnp.bfloat16)
    options = {"dtype": dtype, "param_dtype": jnp.bfloat16, **FIELDS[name]}
    y = OURS[api].sample_layer(name, params, x, **options)
    with jax.numpy_dtype_promotion("standard"):  # which Flax needs
        assert y.dtype == FLAX[api].sample_layer(name, params, x, **options).dtype
    exact = getattr(oracles, FUNCTIONS[name].__name__)((params["scale"], params.get("bias")), x, **FIELDS[name])
    np.testing.assert_allclose(np.float64(y), exact, rtol=float(jnp.finfo(y.dtype).eps), atol=5e-5)


@each_norm
@jax.numpy_dtype_promotion("standard")  # which Flax needs
def test_variables_are_those_of_flax(name: str) -> None:
    x = batch((4, 3, 6))
    for fields in ({}, {"use_scale": False}, {"param_dtype": jnp.bfloat16, "scale_init": flax.nnx.initializers.normal()}):
        ours, flaxs = (
            getattr(package, name)(**fields, **FIELDS[name]).init(jax.random.key(0), x) for package in (jaxnorm.linen, flax.linen)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, flaxs)
        assert jax.tree.map(lambda a: a.dtype, ours) == jax.tree.map(lambda a: a.dtype, flaxs)
        ours, flaxs = (
            flax.nnx.to_pure_dict(flax.nnx.state(getattr(package, name)(6, rngs=flax.nnx.Rngs(0), **fields, **FIELDS[name])))
            for package in (jaxnorm.nnx, flax.nnx)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, flaxs)


def test_attributes_of_groups_are_those_of_flax() -> None:
    for package in (jaxnorm.nnx, flax.nnx):
        norm = package.GroupNorm(12, None, 3, rngs=flax.nnx.Rngs(0))
        assert (norm.num_groups, norm.group_size) == (4, 3)
    with pytest.raises(ValueError, match="num_groups must divide the number of channels, 12, got 5"):
        jaxnorm.nnx.GroupNorm(12, 5, rngs=flax.nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_groups or group_size must be given, and not both, got 32 and 3"):
        jaxnorm.nnx.GroupNorm(96, group_size=3, rngs=flax.nnx.Rngs(0))


def test_metadata_in_nnx_and_fields_beyond_those_of_flax() -> None:
    x = batch((4, 6))
    options = {"scale_offset": 1.0, "fraction": 0.5, "round_before_scale": True}
    norm = jaxnorm.nnx.RMSNorm(6, **options, dtype=jnp.bfloat16, rngs=flax.nnx.Rngs(0), scale_metadata={"note": "ours"})
    assert norm.scale is not None
    assert norm.scale.get_metadata()["note"] == "ours"
    scale = params_of("RMSNorm", 6)["scale"]
    norm.scale.set_value(scale)
    params = jaxnorm.AffineParams(scale, None)
    wanted = jaxnorm.rms_norm(params, x, **options, dtype=jnp.bfloat16)
    assert (wanted != jaxnorm.rms_norm(params, x, **options | {"round_before_scale": False}, dtype=jnp.bfloat16)).any()
    np.testing.assert_array_equal(norm(x), wanted)
    linen = jaxnorm.linen.RMSNorm(**options, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(linen.apply({"params": {"scale": scale}}, x), wanted)


@each_api
@pytest.mark.parametrize("gate_first", [False, True], ids=["after", "first"])
def test_the_gated_norm_is_the_function(api: str, gate_first: bool) -> None:
    x, gate, scale = batch((4, 6)), batch((4, 6), seed=3), params_of("RMSNorm", 6)["scale"]
    mask = np.arange(6) < 4
    if api == "linen":
        norm = jaxnorm.linen.GatedRMSNorm(gate_first=gate_first, activation=jax.nn.sigmoid)
        y = norm.apply({"params": {"scale": scale}}, x, gate, mask=mask)
    else:
        norm = jaxnorm.nnx.GatedRMSNorm(6, gate_first=gate_first, activation=jax.nn.sigmoid, rngs=flax.nnx.Rngs(0))
        assert norm.scale is not None
        norm.scale.set_value(scale)
        y = norm(x, gate, mask=mask)
    where, params = jnp.asarray(mask)[None], jaxnorm.AffineParams(scale, None)
    wanted = jaxnorm.gated_rms_norm(params, x, gate, gate_first=gate_first, activation=jax.nn.sigmoid, where=where)
    np.testing.assert_array_equal(y, wanted)


@each_norm
def test_linen_initializes_without_the_axis_that_it_pools_over(name: str) -> None:
    x = batch((4, 6, 8))
    axis = 2 if name == "RMSNorm" else 1
    norm, alone = (getattr(jaxnorm.linen, name)(axis_name=axis_name, **FIELDS[name]) for axis_name in ("model", None))
    variables = norm.init(jax.random.key(0), x)
    here = jax.tree.map(lambda leaf: leaf[:4], variables) if axis == 2 else variables
    parts = jnp.stack(jnp.split(x, 2, axis))
    y = jax.vmap(lambda x: norm.apply(here, x), axis_name="model")(parts)
    np.testing.assert_allclose(jnp.concatenate(list(y), axis), alone.apply(variables, x), rtol=1e-5, atol=1e-6)


@each_api
@each_norm
def test_wrong_fields_are_named(api: str, name: str) -> None:
    run = lambda x, **fields: OURS[api].sample_layer(name, params_of(name, 6), x, **FIELDS[name] | fields)  # noqa: E731
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, inf\)"):
        run(batch((4, 3, 6)), epsilon=-1.0)
    with pytest.raises(TypeError, match="x must be an array of floating point numbers, got int32"):
        run(jnp.ones((4, 3, 6), jnp.int32))
    if name == "InstanceNorm":
        with pytest.raises(ValueError, match="channel_axis must not be the first axis"):
            run(batch((6, 3, 4)), feature_axes=0)
    else:
        with pytest.raises(ValueError, match="reduction_axes is out of range"):
            run(batch((4, 3, 6)), reduction_axes=(3, 2))
