"""Batch norm as an affine map, and folded into bare dense layers and convolutions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose
from tiers import then_slow

import jaxnorm
from jaxnorm import AffineParams, RunningStats
from jaxnorm.folding import as_affine, fold_conv, fold_dense, identity_batch_norm

LAYOUTS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NHWDC", "HWDIO", "NHWDC")}


def norm_of(channels: int, dtype: Any = np.float64) -> tuple[AffineParams, RunningStats]:
    random = np.random.default_rng(channels)
    scale, bias, mean = random.normal(size=(3, channels))
    var = random.uniform(0.1, 3, channels)
    params = AffineParams(*(jnp.asarray(a, dtype) for a in (scale, bias)))
    wide = np.float64 if dtype == np.float64 else np.float32
    return params, RunningStats(*(jnp.asarray(a, wide) for a in (mean, var)))


def normalized(params: AffineParams, state: RunningStats, x: jax.Array) -> jax.Array:
    return jaxnorm.batch_norm(params, state, x, train=False)[0]


# the affine map


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("without", [(), ("scale",), ("bias",), ("scale", "bias")])
def test_factor_and_offset_are_those_of_float64(dtype: Any, without: tuple[str, ...]) -> None:
    params, state = norm_of(5, dtype)
    params = params._replace(**dict.fromkeys(without))
    factor, offset = as_affine(params, state, epsilon=1e-3)
    scale, bias = (default if part is None else np.float64(part) for part, default in zip(params, (1, 0), strict=True))
    expected = scale / np.sqrt(np.float64(state.var) + 1e-3)
    assert factor.dtype == offset.dtype == jnp.float32
    assert_allclose(factor, np.broadcast_to(expected, 5), rtol=3e-7)
    assert_allclose(offset, np.broadcast_to(bias - np.float64(state.mean) * expected, 5), rtol=1e-6, atol=1e-6)


def test_the_map_of_complex_numbers() -> None:
    params, state = norm_of(3, np.float32)
    turned = np.asarray(params.bias) * np.complex64(1 + 1j), np.asarray(state.mean) * np.complex64(2 - 1j)
    params, state = params._replace(bias=jnp.asarray(turned[0])), state._replace(mean=jnp.asarray(turned[1]))
    x = jnp.asarray([[1 + 2j, 3j, -1]], jnp.complex64)
    factor, offset = as_affine(params, state)
    assert_allclose(np.asarray(factor) * np.asarray(x) + np.asarray(offset), normalized(params, state, x), rtol=1e-5)


def test_identity() -> None:
    _, state = norm_of(4, np.float32)
    x = jax.random.normal(jax.random.key(0), (6, 4))
    params = identity_batch_norm(state, epsilon=0.1)
    assert_allclose(jaxnorm.batch_norm(params, state, x, train=False, epsilon=0.1)[0], x, rtol=1e-5, atol=1e-6)


# dense layers


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_dense(before: bool, with_bias: bool) -> None:
    with jax.enable_x64(True):
        kernel, bias = jax.random.normal(jax.random.key(0), (5, 3), jnp.float64), jnp.arange(3.0) if with_bias else None
        params, state = norm_of(5 if before else 3)
        x = jax.random.normal(jax.random.key(1), (7, 5), jnp.float64)
        folded, moved = fold_dense(params, state, kernel, bias, before=before)
        own = jnp.zeros(3) if bias is None else bias
        if before:
            expected = normalized(params, state, x) @ kernel + own[None]
        else:
            expected = normalized(params, state, x @ kernel + own[None])
        assert_allclose(x @ folded + moved[None], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_weights_are_rounded_once(dtype: Any) -> None:
    kernel, bias = jax.random.normal(jax.random.key(0), (64, 32)).astype(dtype), jnp.ones(32, dtype)
    params, state = norm_of(32, dtype)
    folded, moved = fold_dense(params, state, kernel, bias)
    assert folded.dtype == moved.dtype == dtype
    factor = np.float64(params.scale) / np.sqrt(np.float64(state.var) + 1e-5)
    exact = np.float64(kernel) * factor
    assert np.all(np.abs(np.float64(folded) - exact) <= np.abs(exact) * float(jnp.finfo(dtype).eps) * 0.501 + 1e-7)
    assert_allclose(
        np.float64(moved),
        (1 - np.float64(state.mean)) * factor + np.float64(params.bias),
        rtol=0.01 if dtype == jnp.bfloat16 else 1e-3,
        atol=1e-3,
    )


def test_under_jit_and_the_gradient() -> None:
    """It is a function of its arguments, so that one can train through it."""
    params, state = norm_of(3, np.float32)
    kernel, x = jnp.ones((5, 3)), jax.random.normal(jax.random.key(0), (4, 5))

    def loss(kernel: jax.Array) -> jax.Array:
        folded, bias = fold_dense(params, state, kernel, None)
        return jnp.square(x @ folded + bias[None]).sum()

    expected = jax.grad(lambda kernel: jnp.square(normalized(params, state, x @ kernel)).sum())(kernel)
    assert_allclose(jax.jit(jax.grad(loss))(kernel), expected, rtol=1e-4, atol=1e-4)


# convolutions

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {  # the kernel's shape, features in, options
    "two axes": ((3, 3, 4, 6), 4, {"strides": 2}),
    "groups": ((3, 3, 2, 6), 4, {"feature_group_count": 2}),
    "depthwise": ((3, 3, 1, 8), 4, {"feature_group_count": 4}),
    "transposed kernel": ((3, 2, 6, 4), 4, {"transposed": True, "transpose_kernel": True, "strides": (2, 1)}),
    "dilated input": ((3, 4, 6), 4, {"input_dilation": 2}),
    "one axis": ((3, 4, 6), 4, {}),
    "three axes": ((2, 2, 2, 2, 3), 2, {}),
    "dilated kernel": ((3, 2, 4, 6), 4, {"kernel_dilation": (1, 2)}),
    "transposed": ((3, 3, 4, 6), 4, {"transposed": True, "strides": (2, 2)}),
}
PADDINGS: dict[str, Any] = {"VALID": "VALID", "SAME": "SAME", "one": 1, "uneven": (0, (1, 2)), "none": 0}


def convolution(x: jax.Array, kernel: jax.Array, options: dict[str, Any], padding: Any) -> jax.Array:
    """As the layers of Flax call it."""
    spatial = kernel.ndim - 2
    each = {
        name: (options.get(name, 1),) * spatial if isinstance(options.get(name, 1), int) else options[name]
        for name in ("strides", "input_dilation", "kernel_dilation")
    }
    if isinstance(padding, int):
        padding = [(padding, padding)] * spatial
    if isinstance(padding, tuple):
        padding = [(0, 0)] * (spatial - 1) + [padding[1]]
    shared = {"rhs_dilation": each["kernel_dilation"], "dimension_numbers": LAYOUTS[spatial]}
    if options.get("transposed"):
        flipped = options.get("transpose_kernel", False)
        return lax.conv_transpose(x, kernel, each["strides"], padding, transpose_kernel=flipped, **shared)
    groups = options.get("feature_group_count", 1)
    return lax.conv_general_dilated(
        x, kernel, each["strides"], padding, lhs_dilation=each["input_dilation"], feature_group_count=groups, **shared
    )


def features_out(shape: tuple[int, ...], options: dict[str, Any]) -> int:
    return shape[-2] if options.get("transpose_kernel") else shape[-1]


@pytest.mark.parametrize("kind", then_slow([*CONVOLUTIONS], 5))
def test_after_a_convolution(kind: str) -> None:
    shape, features, options = CONVOLUTIONS[kind]
    outputs = features_out(shape, options)
    with jax.enable_x64(True):
        kernel = jax.random.normal(jax.random.key(0), shape, jnp.float64)
        bias, x = jnp.arange(float(outputs)), jax.random.normal(jax.random.key(1), (2, *[6] * (len(shape) - 2), features))
        params, state = norm_of(outputs)
        bias = jnp.expand_dims(bias, range(len(shape) - 1))
        padding = 1 if "input_dilation" in options else "SAME"
        expected = normalized(params, state, convolution(x, kernel, options, padding) + bias)
        kernel, bias = fold_conv(params, state, kernel, bias.ravel(), **options)
        found = convolution(x, kernel, options, padding) + jnp.expand_dims(bias, range(len(shape) - 1))
        assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("padding", then_slow([*PADDINGS], 2))
@pytest.mark.parametrize("kind", then_slow([*CONVOLUTIONS], 5))
def test_before_a_convolution(kind: str, padding: str) -> None:
    shape, features, options = CONVOLUTIONS[kind]
    if "input_dilation" in options and isinstance(PADDINGS[padding], str):  # which as words jax does not take here
        padding = {"VALID": "none", "SAME": "uneven"}[padding]
    given = PADDINGS[padding] if padding != "uneven" else [0] * (len(shape) - 3) + [(1, 2)]
    outputs = features_out(shape, options)
    sizes = (6, 5, 4)[: len(shape) - 2]
    with jax.enable_x64(True):
        kernel, x = jax.random.normal(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), (2, *sizes, features))
        params, state = norm_of(features)
        expected = convolution(normalized(params, state, x), kernel, options, PADDINGS[padding])
        expected += jnp.expand_dims(jnp.arange(float(outputs)), range(x.ndim - 1))
        folded, bias = fold_conv(
            params, state, kernel, jnp.arange(float(outputs)), before=True, padding=given, spatial_shape=sizes, **options
        )
        plain = padding in ("VALID", "none") and not {"transposed", "input_dilation"} & set(options)
        assert bias.ndim == (1 if plain else len(shape) - 1)
        bias = jnp.expand_dims(bias, range(x.ndim - bias.ndim))
        assert_allclose(convolution(x, folded, options, PADDINGS[padding]) + bias, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("padding", ["CIRCULAR", "REFLECT", "CAUSAL"])
def test_paddings_of_flax(padding: str) -> None:
    nn = pytest.importorskip("flax.linen")
    conv, x = nn.Conv(6, (3,), padding=padding, kernel_dilation=2), jax.random.normal(jax.random.key(0), (2, 9, 4))
    variables = conv.init(jax.random.key(1), x)
    params, state = norm_of(4, np.float32)
    expected = conv.apply(variables, normalized(params, state, x))
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    options = {"padding": padding, "kernel_dilation": 2, "spatial_shape": (9,)}
    kernel, bias = fold_conv(params, state, kernel, bias, before=True, **options)
    assert bias.shape == ((9, 6) if padding == "CAUSAL" else (6,))
    found = conv.apply({"params": {"kernel": kernel, "bias": jnp.zeros(6)}}, x)
    assert_allclose(found + jnp.broadcast_to(bias, (9, 6))[None], expected, rtol=1e-5, atol=1e-5)


def test_offsets_of_zero_need_no_map() -> None:
    params, state = jaxnorm.init_batch_norm(3)
    kernel = jnp.ones((3, 3, 3, 2))
    folded, bias = fold_conv(params, state, kernel, None, before=True, padding="SAME")
    assert_allclose(folded, kernel / np.float32(np.sqrt(1 + 1e-5)), rtol=1e-6)
    assert_allclose(bias, jnp.zeros(2))


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_are_those_of_torch(transposed: bool) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    params, state = norm_of(6, np.float32)
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)
    bias = np.arange(6, dtype=np.float32)
    axes = (2, 3, 0, 1) if transposed else (3, 2, 0, 1)
    given = (torch.tensor(np.asarray(a)) for a in (kernel.transpose(axes), bias, *state))
    weight, moved = fuse_conv_bn_weights(*given, 1e-5, *(torch.tensor(np.asarray(a)) for a in params), transpose=transposed)
    options = {"transposed": True, "strides": 2} if transposed else {}
    folded, own = fold_conv(params, state, jnp.asarray(kernel), jnp.asarray(bias), **options)
    assert_allclose(np.asarray(folded).transpose(axes), weight.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert_allclose(own, moved.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_weights_of_an_explicit_sharding_keep_it() -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    after, before = norm_of(8, np.float32), norm_of(4, np.float32)
    with jax.set_mesh(mesh):
        kernel = jax.device_put(jnp.ones((3, 3, 2, 8)), NamedSharding(mesh, PartitionSpec(None, None, None, "a")))
        bias = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec("a")))
        options = {"feature_group_count": 2, "padding": "VALID"}
        results = [fold_conv(*after, kernel, bias, **options), fold_conv(*before, kernel, bias, before=True, **options)]
        state = jax.device_put(after[1], NamedSharding(mesh, PartitionSpec("b")))
        dense = jax.device_put(jnp.ones((4, 8)), NamedSharding(mesh, PartitionSpec("b", "a")))
        results += [fold_dense(after[0], state, dense, bias)]
    for (folded, moved), given in zip(results, (kernel, kernel, dense), strict=True):
        assert jax.typeof(folded) == jax.typeof(given)
        assert jax.typeof(moved) == jax.typeof(bias)


# bad input

DENSE = jnp.ones((5, 3))
IMAGE = jnp.ones((3, 3, 2, 4))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mean": [0.0, jnp.nan, 0.0]}, r"state.mean must be finite, got nan at \[1\]"),
        ({"mean": [0.0, 0.0, jnp.inf]}, r"state.mean must be finite, got inf at \[2\]"),
        ({"var": [1.0, 1.0, -0.5]}, r"state.var must be finite and at least 0, got -0.5 at \[2\]"),
        ({"var": [1.0, 1.0]}, r"state.var must have shape \[3\] \(that of the mean\), got \[2\]"),
        ({"mean": [0.0], "var": [1.0]}, r"params.scale must have shape \[1\]"),
    ],
)
def test_statistics_that_cannot_be_folded(change: dict[str, list[float]], message: str) -> None:
    params, state = jaxnorm.init_batch_norm(3)
    with pytest.raises(ValueError, match=message):
        fold_dense(params, state._replace(**{name: jnp.asarray(value) for name, value in change.items()}), DENSE, None)


def test_parameters_that_cannot_be_folded() -> None:
    params, state = jaxnorm.init_batch_norm(3)
    with pytest.raises(ValueError, match=r"params.scale must be finite, got nan at \[0\]"):
        as_affine(params._replace(scale=jnp.full(3, jnp.nan)), state)
    with pytest.raises(ValueError, match=r"1 / sqrt\(state.var \+ epsilon\) must be finite, got inf at \[0\]"):
        as_affine(params, state._replace(var=jnp.zeros(3)), epsilon=0.0)
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, inf\), got -1"):
        as_affine(params, state, epsilon=-1)
    with pytest.raises(TypeError, match="state must be RunningStats"):
        as_affine(params, (state.mean, state.var))  # type: ignore
    with pytest.raises(TypeError, match="params must be AffineParams"):
        fold_dense((None, None), state, DENSE, None)  # type: ignore
    with pytest.raises(ValueError, match=r"the folded kernel, in float16, must be finite, got inf"):
        fold_dense(params, state._replace(var=jnp.zeros(3)), jnp.full((5, 3), 60000.0, jnp.float16), None)
    with pytest.raises(TypeError, match="must be known when the function is traced"):
        jax.jit(lambda before: fold_dense(params, state, DENSE, None, before=before))(True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernel": jnp.ones((5, 4))}, r"params and state must be of the 4 features that the kernel \[5, 4\] gives, got 3"),
        ({"before": True}, r"params and state must be of the 5 features that the kernel \[5, 3\] takes, got 3"),
        ({"kernel": IMAGE}, r"kernel must be \[features in, features out\], got shape \[3, 3, 2, 4\]"),
        ({"bias": jnp.ones(4)}, r"bias must have shape \[3\] \(the features out\), got \[4\]"),
    ],
)
def test_dense_sizes_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    params, state = jaxnorm.init_batch_norm(3)
    with pytest.raises(ValueError, match=message):
        fold_dense(params, state, **({"kernel": DENSE, "bias": None} | arguments))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"feature_group_count": 3}, "feature_group_count must divide the 4 features out, got 3"),
        ({"feature_group_count": 2, "before": True, "padding": "VALID"}, None),
        ({"before": True, "padding": "VALID"}, r"must be of the 2 features that the kernel \[3, 3, 2, 4\] takes, got 4"),
        ({"feature_group_count": 2, "before": True}, "with padding 'SAME' adds zeros behind the batch norm: give spatial_shape"),
        ({"feature_group_count": 2, "before": True, "spatial_shape": (3,)}, r"spatial_shape must be 2 sizes, .* got \(3,\)"),
        ({"padding": "FULL"}, "padding must be one of SAME, CAUSAL, .* got 'FULL'"),
        ({"padding": "CAUSAL"}, "padding 'CAUSAL' is of one spatial axis, got a kernel with 2"),
        ({"padding": (1, 2, 3)}, r"padding must be an int, or one or two for each of the 2 spatial axes"),
        ({"transpose_kernel": True}, "transpose_kernel is of transposed convolutions"),
        ({"transposed": True, "feature_group_count": 2}, "feature_group_count must be 1 for a transposed convolution, got 2"),
        ({"transposed": True, "padding": "CIRCULAR"}, "padding must add zeros where x is transposed or dilated, got 'CIRCULAR'"),
        ({"strides": (1, 2, 3)}, "strides must be an int, or one for each of the 2 spatial dimensions"),
        ({"kernel": jnp.ones(4)}, r"kernel must be \[..., features in, features out\], got shape \[4\]"),
    ],
)
def test_convolutions_that_do_not_fit(arguments: dict[str, Any], message: str | None) -> None:
    params, state = jaxnorm.init_batch_norm(4)
    state = state._replace(mean=jnp.ones(4))
    given = {"kernel": IMAGE, "bias": None} | arguments
    if message is None:
        fold_conv(params, state, **given)
        return
    with pytest.raises(ValueError, match=message):
        fold_conv(params, state, **given)
