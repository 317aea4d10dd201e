"""What the modules of linen and of nnx have in common: their interface, sharded arrays, and noise, with Flax's masks too."""

import inspect

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_layers import FLAX, OURS, batch, close, new_variables
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

NOISES = ("Dropout", "GaussianDropout", "UniformDropout")
OWN_ARGUMENTS = {  # those that Flax does not have
    "BatchNorm": {"__init__": ["unbiased", "activation"], "__call__": ["residual"]},
    "LayerNorm": {"__init__": [], "__call__": []},
    "Dropout": {"__init__": ["bits"], "__call__": []},
}

each_api = pytest.mark.parametrize("api", OURS)
each_noise = pytest.mark.parametrize("name", NOISES)


# Interface


@pytest.mark.parametrize(("ours", "flaxs"), [(jaxnorm.linen, flax.linen), (jaxnorm.nnx, flax.nnx)], ids=["linen", "nnx"])
@pytest.mark.parametrize("name", OWN_ARGUMENTS)
def test_arguments_are_those_of_flax(ours, flaxs, name):
    for method in ("__init__", "__call__"):
        wanted = inspect.signature(getattr(getattr(flaxs, name), method)).parameters
        got = inspect.signature(getattr(getattr(ours, name), method)).parameters
        extra = [p for p in got if p not in wanted]
        assert extra == OWN_ARGUMENTS[name][method]
        assert [p for p in got if p not in extra] == list(wanted)
        for argument, parameter in wanted.items():
            assert got[argument].kind == parameter.kind, argument
            if not callable(parameter.default):  # initializers are compared by what they make
                assert got[argument].default == parameter.default, argument


@pytest.mark.parametrize(
    ("package", "base"), [(jaxnorm.linen, flax.linen.Module), (jaxnorm.nnx, flax.nnx.Module)], ids=["linen", "nnx"]
)
def test_packages_export_their_classes(package, base):
    batch = ["BatchNorm", "BatchRenorm", "DecorrelatedBatchNorm", "GhostBatchNorm"]
    kinds = ["ConditionalBatchNorm", "DomainBatchNorm", "SplitBatchNorm"]
    sample = ["GatedRMSNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]
    between = ["BatchInstanceNorm", "FrozenBatchNorm", "SwitchableNorm", "TrackedInstanceNorm", "VirtualBatchNorm"]
    deviations = ["IterativeNorm", "LpBatchNorm", "MeanOnlyBatchNorm", "NoisyBatchNorm"]
    evonorm = [f"EvoNorm{kind}" for kind in ("B0", "B1", "B2", "S0", "S1", "S2")]
    response = ["FilterResponseNorm", "GlobalResponseNorm", "LocalResponseNorm"]
    weights = ["SpectralNorm", "WeightNorm"]
    patterns = ["AlphaDropout", "DropPath", "GaussianNoise", "HeadDropout", "LockedDropout", "SpatialDropout", "Zoneout"]
    regions = ["Cutout", "DropBlock", "MaxPoolDropout", "PatchDropout"]
    joins = ["FractalJoin", "ShakeDrop", "ShakeShake", "Swapout"]
    dropped = ["DropKey", "DropConnect", "DropConnectDense", "EmbeddingDropout", "Maxout", "NoisyLinear"]
    learned = ["ConcreteDropout", "SparseVariationalDense", "Standout", "VariationalDense", "VariationalDropout"]
    noises = [*NOISES, *learned, *patterns, *regions, *joins, *dropped]
    others = ["CosineNorm", "DynamicTanh", "LayerScale", "ScaleNorm", "UnitNorm"]
    functions = ["dot_product_attention", "fold", "lint", "reset"]
    functions += ["converting", "freezing", "replacing_layers"] if package is jaxnorm.linen else []
    functions += ["convert", "freeze", "replace_layers", "unfreeze"] if package is jaxnorm.nnx else []
    assert sorted(package.__all__) == sorted(
        [*functions, *batch, *kinds, *between, *deviations, *evonorm, *sample, *response, *weights, *others, *noises]
    )
    assert all(issubclass(getattr(package, name), base) for name in package.__all__ if name not in functions)


# Noise


@each_api
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("broadcast_dims", [(), (1,), (-1, 0)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32], ids=lambda dtype: jnp.dtype(dtype).name)
def test_dropout_with_32_bits_draws_the_mask_of_flax(api, rate, broadcast_dims, dtype):
    x = batch((4, 5, 3), mean=10, dtype=dtype)
    y = OURS[api].noise("Dropout", 7, x, rate, broadcast_dims=broadcast_dims, bits=32)
    wanted = FLAX[api].noise("Dropout", 7, x, rate, broadcast_dims=broadcast_dims)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y != 0, wanted != 0)
    as_float64 = (np.asarray(a, np.float64) for a in (y, wanted))
    np.testing.assert_allclose(*as_float64, rtol=2 * float(jnp.finfo(dtype).eps))


@each_api
def test_linen_and_nnx_agree_on_noise_with_the_functions(api):
    x = batch((3, 4))

    def draws(name, function, amount, **options):
        def call(seed):
            layer = getattr(OURS[api].package, name)(amount, **options)
            if api == "linen":
                return layer.apply({}, x, deterministic=False, rng=jax.random.key(seed))
            return layer(x, rngs=jax.random.key(seed))

        np.testing.assert_array_equal(call(3), function(jax.random.key(3), x, amount, **options))
        assert not np.array_equal(call(3), call(4))

    draws("Dropout", jaxnorm.dropout, 0.5)
    for bits in (8, 16, 32):
        draws("Dropout", jaxnorm.dropout, 0.3, bits=bits)
    for bits in (16, 32):
        draws("GaussianDropout", jaxnorm.gaussian_dropout, 0.5, bits=bits)
        draws("UniformDropout", jaxnorm.uniform_dropout, 0.5, bits=bits)


@each_api
@each_noise
def test_noise_is_drawn_with_16_bits_where_nothing_is_said(api, name):
    x = batch((8, 16))
    y, *said = (OURS[api].noise(name, 3, x, 0.3, **bits) for bits in ({}, {"bits": 16}, {"bits": 32}))
    assert [np.array_equal(y, other) for other in said] == [True, False]


@each_api
def test_dropout_of_a_small_rate_takes_32_bits(api):
    tiny = [OURS[api].noise("Dropout", 3, jnp.ones(100_000), 1e-4, bits=bits) for bits in (16, 32)]
    np.testing.assert_array_equal(*tiny)
    assert (tiny[0] == 0).any()


@each_api
@each_noise
def test_noise_shares_draws_along_broadcast_dims(api, name):
    y = OURS[api].noise(name, 3, jnp.ones((16, 5)), 0.5, broadcast_dims=(1,))
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1], y.shape))
    assert len(np.unique(y)) > 1


@each_api
@each_noise
@pytest.mark.parametrize("amount", [0.0, 0.3], ids=["none", "some"])
def test_deterministic_noise_is_the_identity_without_a_key(api, name, amount):
    x = batch((3, 4)).at[0, 0].set(jnp.nan)
    assert OURS[api].noise_without_key(name, x, amount, deterministic=True) is x
    if amount == 0:
        assert OURS[api].noise_without_key(name, x, amount) is x


@each_api
@pytest.mark.parametrize("rate", [1, 1.0, np.float32(1), np.ones((), np.int32)], ids=repr)
def test_dropping_everything_needs_no_key(api, rate):
    x = batch((3, 4)).at[0, 0].set(jnp.inf)
    np.testing.assert_array_equal(OURS[api].noise_without_key("Dropout", x, rate), jnp.zeros_like(x))
    grad = jax.grad(lambda x: OURS[api].noise_without_key("Dropout", x, rate).sum())(x)
    np.testing.assert_array_equal(grad, jnp.zeros_like(x))
    np.testing.assert_array_equal(OURS[api].noise_without_key("Dropout", x, rate, deterministic=True), x)


@each_api
@each_noise
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.9])
def test_amount_may_be_traced(api, name, amount):
    x = batch((3, 4))
    got = jax.jit(lambda amount: OURS[api].noise(name, 3, x, amount))(amount)
    close(got, OURS[api].noise(name, 3, x, amount))


@each_api
@each_noise
@pytest.mark.parametrize("deterministic", [False, True], ids=["train", "inference"])
def test_deterministic_may_be_traced(api, name, deterministic):
    x = batch((3, 4))

    def run(x, deterministic):
        y = OURS[api].noise(name, 3, x, 0.5, deterministic=deterministic)
        return jnp.sum(y * y), y

    grad = jax.grad(run, has_aux=True)
    got = jax.jit(grad)(x, jnp.array(deterministic))
    close(got, grad(x, deterministic))


@each_api
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_arrays_give_what_whole_ones_give(api, axis_type):
    variables, x, mask = new_variables((3,)), batch((16, 3)), np.array([True, False, True])

    def run(x):
        y, stats = OURS[api].batch_norm(variables, x, mask=mask)
        return y, stats, OURS[api].noise("Dropout", 3, x, 0.5)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        got = jax.jit(run)(sharded)
        assert got[0].sharding.is_equivalent_to(sharded.sharding, 2)
        assert got[2].sharding.is_equivalent_to(sharded.sharding, 2)
    close(got, run(x))


# Errors

X = jnp.ones((4, 3))


@each_api
@each_noise
@pytest.mark.parametrize("deterministic", [False, True], ids=["train", "inference"])
@pytest.mark.parametrize("amount", [-0.1, 1.5, float("nan"), np.float32(2)], ids=str)
def test_amount_out_of_range_raises(api, name, deterministic, amount):
    amount_name = "beta" if name == "UniformDropout" else "rate"
    with pytest.raises(ValueError, match=rf"^{amount_name} must be in \[0, 1.*got {str(amount)[:3]}"):
        OURS[api].noise(name, 3, X, amount, deterministic=deterministic)


@each_api
@each_noise
@pytest.mark.parametrize("amount", ["0.5", None, True], ids=repr)
def test_amount_that_is_no_number_raises(api, name, amount):
    with pytest.raises(TypeError, match=rf"^(rate|beta) must be a number in .* got {amount!r}"):
        OURS[api].noise(name, 3, X, amount)


@each_api
def test_gaussian_dropout_has_no_rate_of_one(api):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        OURS[api].noise("GaussianDropout", 3, X, 1.0)


@each_api
@each_noise
@pytest.mark.parametrize("deterministic", [False, True], ids=["train", "inference"])
@pytest.mark.parametrize("dtype", [np.int32, bool, np.complex64], ids=lambda d: np.dtype(d).name)
def test_noise_of_what_is_not_real_raises(api, name, deterministic, dtype):
    with pytest.raises(TypeError, match=rf"^inputs must .*{np.dtype(dtype).name}\[4, 3\]"):
        OURS[api].noise(name, 3, jnp.ones((4, 3), dtype), 0.5, deterministic=deterministic)


@each_api
def test_bits_and_axes_of_noise_are_checked(api):
    with pytest.raises(ValueError, match=r"bits must be 8, 16 or 32, got 7"):
        OURS[api].noise("Dropout", 3, X, 0.5, bits=7)
    for name in ("GaussianDropout", "UniformDropout"):
        with pytest.raises(ValueError, match=r"bits must be 16 or 32, got 8"):
            OURS[api].noise(name, 3, X, 0.5, bits=8, deterministic=True)
    for deterministic in (False, True):
        with pytest.raises(ValueError, match=r"bits must be 16 or 32 for a rate of 0.01, "):
            OURS[api].noise("Dropout", 3, X, 0.01, bits=8, deterministic=deterministic)
    with pytest.raises(ValueError, match=r"broadcast_dims is out of range .* got \(2,\)"):
        OURS[api].noise("Dropout", 3, X, 0.5, broadcast_dims=(2,))
    with pytest.raises(TypeError, match=r"deterministic must be True or False, .* got 1"):
        OURS[api].noise("Dropout", 3, X, 0.5, deterministic=1)
