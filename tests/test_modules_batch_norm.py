"""Batch norm of linen and of nnx alike: parity with Flax's where that is right, masks, dtypes, state, flags, errors."""

import flax.errors
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_layers import FLAX, OURS, batch, close, new_variables

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm import AffineParams, RunningStats

each_api = pytest.mark.parametrize("api", OURS)


@each_api
def test_modules_are_the_function(api):
    variables, x = new_variables((3,)), batch((8, 3))
    y, stats = OURS[api].batch_norm(variables, x, momentum=0.8)
    params = AffineParams(variables["scale"], variables["bias"])
    wanted_y, wanted = jaxnorm.batch_norm(params, RunningStats(variables["mean"], variables["var"]), x, train=True, momentum=0.8)
    np.testing.assert_array_equal(y, wanted_y)
    jax.tree.map(np.testing.assert_array_equal, stats, wanted._asdict())


# Parity with Flax where Flax is right


@each_api
@pytest.mark.parametrize("frozen", [False, True], ids=["train", "inference"])
@pytest.mark.parametrize(("shape", "axis"), [((6, 3), -1), ((4, 5, 3), -1), ((4, 3, 5), 1), ((3, 4, 2), -3)], ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "bare"])
def test_batch_norm_has_the_values_and_gradients_of_flax(api, frozen, shape, axis, affine):
    variables, x = new_variables((3,), affine=affine), batch(shape)
    weights = batch(shape, seed=2)

    def loss(layers, variables, x):
        y, stats = layers[api].batch_norm(
            variables, x, frozen=frozen, axis=axis, momentum=0.8, epsilon=1e-3, use_fast_variance=False
        )
        return jnp.sum(y * weights), (y, stats)

    run = jax.value_and_grad(loss, argnums=(1, 2), has_aux=True)
    (_, (y, stats)), (d_variables, dx) = run(OURS, variables, x)
    (_, (flax_y, flax_stats)), (flax_d_variables, flax_dx) = run(FLAX, variables, x)
    close((y, stats), (flax_y, flax_stats))
    close((d_variables, dx), (flax_d_variables, flax_dx), atol=3e-6)


@each_api
@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 5, 1), (1, 5, 1), (4, 5, 3), (5, 1), (5, 3), (3,), ()], ids=str)
@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32], ids=["bool", "int", "float"])
def test_masks_of_any_rank_and_type_count_what_they_count_in_numpy(api, shape, dtype):
    x, variables = batch((4, 5, 3)), new_variables((3,))
    mask = np.random.default_rng(4).integers(0, 2, shape).astype(dtype)
    counted = np.broadcast_to(mask != 0, x.shape)
    _, stats = OURS[api].batch_norm(variables, x, mask=mask, momentum=0.0)
    for c in range(3):
        part = np.asarray(x, np.float64)[..., c][counted[..., c]]
        mean, var = (part.mean(), part.var()) if part.size else (variables["mean"][c], variables["var"][c])
        close((stats["mean"][c], stats["var"][c]), (mean, var), atol=3e-6)


@each_api
def test_mask_gives_the_values_of_flax(api):
    x, variables = batch((8, 3)), new_variables((3,))
    mask = np.array([True, True, False, True, False, True, True, False])[:, None]
    got, wanted = (layers[api].batch_norm(variables, x, mask=mask, use_fast_variance=False) for layers in (OURS, FLAX))
    close(got, wanted)


@each_api
def test_unbiased_averages_the_variance_that_pytorch_does(api):
    x, variables = batch((8, 3)), new_variables((3,))
    y, stats = OURS[api].batch_norm(variables, x, momentum=0.7, unbiased=True)
    close(stats["var"], 0.7 * np.asarray(variables["var"]) + 0.3 * np.asarray(x, np.float64).var(0, ddof=1))
    close(y, OURS[api].batch_norm(variables, x)[0])


@each_api
def test_several_axes_give_each_position_its_own_statistics(api):
    x = batch((4, 5, 3))
    y, stats = OURS[api].batch_norm(new_variables((4, 3)), x, axis=(-1, 0), momentum=0.0)
    close(stats, {"mean": x.mean(1), "var": x.var(1)}, atol=3e-6)
    assert y.shape == x.shape
    with jax.numpy_rank_promotion("allow"):
        wanted = FLAX["linen"].batch_norm(new_variables((4, 3)), x, axis=(-1, 0), momentum=0.0, use_fast_variance=False)
    close((y, stats), wanted, atol=3e-6)


@each_api
def test_mean_far_from_zero_does_not_cancel(api):
    x = batch((4096, 2)) / 2 + 1e4
    y, _ = OURS[api].batch_norm(new_variables((2,), affine=False), x)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-3)


@each_api
@pytest.mark.parametrize("frozen", [False, True], ids=["train", "inference"])
def test_narrow_output_rounds_only_the_output(api, frozen):
    """Pitfall 18."""
    x = 100.3 + 0.1 * batch((64, 1), mean=0) / 2
    variables = {**new_variables((1,)), "mean": jnp.full((1,), 100.3), "var": jnp.full((1,), 0.01)}
    wide, wide_stats = OURS[api].batch_norm(variables, x, frozen=frozen)
    narrow, stats = OURS[api].batch_norm(variables, x, frozen=frozen, dtype=jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    stored = {name: np.asarray(value, np.float64) for name, value in variables.items()}
    mean, var = (stored["mean"], stored["var"]) if frozen else (exact.mean(0), exact.var(0))
    wanted = (exact - mean) / np.sqrt(var + 1e-5) * stored["scale"] + stored["bias"]
    assert np.abs(np.asarray(narrow, np.float64) - wanted).max() <= 2**-7 * np.abs(wanted).max() + 1e-2
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, stats, wide_stats)


# Types

BF16, F16, F32, C64 = jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64


@each_api
@pytest.mark.parametrize("frozen", [False, True], ids=["train", "inference"])
@pytest.mark.parametrize(
    ("x_dtype", "param_dtype", "dtype", "wanted"),
    [
        (BF16, F32, None, F32),
        (BF16, BF16, None, BF16),
        (BF16, None, None, BF16),
        (F16, F32, None, F32),
        (F16, BF16, None, F32),
        (F16, None, None, F16),
        (F32, BF16, None, F32),
        (F32, F32, BF16, BF16),
        (BF16, F32, F16, F16),
        (BF16, None, F32, F32),
        (C64, F32, None, C64),
        (C64, None, C64, C64),
        (F32, F32, C64, C64),
    ],
    ids=lambda dtype: None if dtype is None else jnp.dtype(dtype).name,
)
def test_output_dtype_is_that_of_linen(api, frozen, x_dtype, param_dtype, dtype, wanted):
    is_complex = C64 in (x_dtype, dtype)
    mean_dtype = np.complex64 if is_complex else np.float32
    variables = new_variables((3,), affine=param_dtype is not None, param_dtype=param_dtype, mean_dtype=mean_dtype)
    fields = {"dtype": C64 if api == "nnx" and is_complex else dtype, "param_dtype": param_dtype or F32}
    x = batch((8, 3), dtype=x_dtype)
    y, stats = OURS[api].batch_norm(variables, x, frozen=frozen, **fields)
    assert y.dtype == wanted
    assert stats["mean"].dtype == mean_dtype
    assert stats["var"].dtype == F32
    with jax.numpy_dtype_promotion("standard"):
        flax_y, _ = FLAX["linen"].batch_norm(variables, x, frozen=frozen, **fields)
    assert flax_y.dtype == wanted
    if F16 not in (x_dtype, dtype) and BF16 not in (x_dtype, dtype):
        np.testing.assert_allclose(y, flax_y, rtol=1e-5, atol=1e-5)


@each_api
def test_large_float16_does_not_overflow(api):
    x = 150 * batch((512, 4), mean=0, dtype=np.float16)
    y, stats = OURS[api].batch_norm(new_variables((4,), affine=False), x, momentum=0.0)
    np.testing.assert_allclose(stats["var"], np.asarray(x, np.float64).var(0), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64).std(0), 1, atol=2e-3)


@each_api
def test_statistics_stay_in_float32_over_many_small_updates(api):
    """Pitfall 20."""
    x = jnp.full((4, 1), 1.005, jnp.bfloat16)
    variables = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
    step = jax.jit(lambda stats: OURS[api].batch_norm(stats, x, param_dtype=jnp.bfloat16)[1])
    for _ in range(1000):
        variables = step(variables)
    np.testing.assert_allclose(variables["mean"], np.asarray(x, np.float32)[0], atol=1e-3)


# State that is safe, and flags that are traced


@each_api
def test_bad_batches_leave_the_statistics(api):
    """Pitfalls 29, 37, 38 and 53."""
    variables, x = new_variables((3,)), batch((4, 3))
    _, nan = OURS[api].batch_norm(variables, x.at[0, 1].set(jnp.nan))
    _, good = OURS[api].batch_norm(variables, x)
    empty_y, empty = OURS[api].batch_norm(variables, x[:0])
    masked_y, masked = OURS[api].batch_norm(variables, x, mask=False)
    for name in ("mean", "var"):
        np.testing.assert_array_equal(nan[name], jnp.where(jnp.arange(3) == 1, variables[name], good[name]))
        np.testing.assert_array_equal(empty[name], variables[name])
        np.testing.assert_array_equal(masked[name], variables[name])
    assert empty_y.shape == (0, 3)
    assert jnp.isfinite(masked_y).all()


@each_api
@pytest.mark.parametrize("frozen", [False, True], ids=["train", "inference"])
def test_use_running_average_may_be_traced(api, frozen):
    variables, x = new_variables((3,)), batch((8, 3))

    def run(frozen):
        return OURS[api].batch_norm(variables, x, frozen=frozen)

    close(jax.jit(run)(jnp.array(frozen)), run(frozen))
    close(run(np.bool_(frozen)), run(frozen))


@each_api
def test_momentum_and_epsilon_may_be_traced(api):
    variables, x = new_variables((3,)), batch((8, 3))

    def run(momentum, epsilon):
        return OURS[api].batch_norm(variables, x, momentum=momentum, epsilon=epsilon)

    close(jax.jit(run)(0.7, 1e-3), run(0.7, 1e-3))


@each_api
def test_axis_name_pools_devices_by_what_they_count(api):
    variables, x = new_variables((3,)), batch((4, 5, 3))
    mask = jnp.arange(5)[None] < jnp.array([5, 3, 0, 1])[:, None]

    def shard(x, mask):
        return OURS[api].batch_norm(variables, x, mask=mask[:, None], axis_name="devices")

    y, stats = jax.vmap(shard, axis_name="devices")(x, mask)
    one_y, one_stats = OURS[api].batch_norm(variables, x, mask=mask[..., None])
    close(y, one_y, atol=3e-6)
    for lane in range(4):
        close(jax.tree.map(lambda s, lane=lane: s[lane], stats), one_stats)


@each_api
def test_axis_index_groups_pool_apart(api):
    variables, x = new_variables((3,)), batch((4, 5, 3))

    def shard(x):
        return OURS[api].batch_norm(variables, x, axis_name="devices", axis_index_groups=[[0, 1], [2, 3]])[0]

    y = jax.vmap(shard, axis_name="devices")(x)
    halves = [OURS[api].batch_norm(variables, half)[0] for half in (x[:2], x[2:])]
    close(y, jnp.concatenate(halves), atol=3e-6)


# Errors

X = jnp.ones((4, 3))
NORM_ERRORS = {
    "integers": ({"x": jnp.ones((4, 3), jnp.int32)}, TypeError, r"x must .* int32"),
    "bools": ({"x": jnp.ones((4, 3), bool)}, TypeError, r"x must .* bool"),
    "axis out of range": ({"axis": 2}, ValueError, r"^axis is out of range .* got 2"),
    "axis twice": ({"axis": (1, -1)}, ValueError, r"^axis names an axis twice, got \(1, -1\)"),
    "wrong length": ({"x": jnp.ones((4, 5))}, ValueError, r"\[5\] .*got \[3\]"),
    "length one": ({"x": jnp.ones((4, 1))}, ValueError, r"\[1\] .*got \[3\]"),
    "mask of another shape": ({"mask": jnp.ones(4, bool)}, ValueError, r"mask must broadcast to .* \[4, 3\], got shape \[4\]"),
    "mask of a higher rank": ({"mask": jnp.ones((1, 4, 3), bool)}, ValueError, r"mask must .* got shape \[1, 4, 3\]"),
    "momentum": ({"momentum": 1.5}, ValueError, r"momentum must be in \[0, 1\], got 1.5"),
    "epsilon": ({"epsilon": -1.0}, ValueError, r"epsilon must be .* got -1.0"),
    "dtype": ({"dtype": jnp.int32}, TypeError, r"dtype must be a type of floating point numbers, got .*int32"),
    "real dtype": ({"x": X.astype(C64), "dtype": F32}, TypeError, r"dtype must be complex or None .* got float32"),
    "complex x": ({"x": X.astype(C64)}, TypeError, r"mean must be complex .* got float32"),
    "flag": ({"frozen": 1}, TypeError, r"use_running_average must be True or False, .* got 1"),
    "unbound axis_name": ({"axis_name": "devices"}, ValueError, r"axis_name 'devices' is not bound"),
    "groups without axis_name": ({"axis_index_groups": [[0]]}, ValueError, r"axis_index_groups needs an axis_name"),
}


@each_api
@pytest.mark.parametrize("case", NORM_ERRORS)
def test_batch_norm_names_what_is_wrong(api, case):
    arguments, error, message = NORM_ERRORS[case]
    if api == "linen" and "length" in case:
        error, message = flax.errors.ScopeParamShapeError, r"scale"  # linen itself compares shapes of parameters
    with pytest.raises(error, match=message):
        OURS[api].batch_norm(new_variables((3,)), **{"x": X, **arguments})


# What Flax does not have


def _bound(api, **options):
    """A module of three features as a function of x, with new variables."""
    x = jnp.ones((2, 3))
    if api == "linen":
        module = jaxnorm.linen.BatchNorm(use_running_average=False, **options)
        variables = module.init(jax.random.key(0), x)
        return lambda x, **more: module.apply(variables, x, mutable=["batch_stats"], **more)[0]
    module = jaxnorm.nnx.BatchNorm(3, use_running_average=False, rngs=flax.nnx.Rngs(0), **options)
    graph, state = flax.nnx.split(module)
    return lambda x, **more: flax.nnx.merge(graph, state)(x, **more)


@each_api
def test_a_residual_and_an_activation_follow_in_one_step(api):
    x, residual = batch((8, 3)), batch((8, 3), seed=5)
    params, state = jaxnorm.init_batch_norm(3)
    wanted, _ = jaxnorm.batch_norm(params, state, x, train=True, residual=residual, activation=jax.nn.silu)
    np.testing.assert_array_equal(_bound(api, activation=jax.nn.silu)(x, residual=residual), wanted)


@each_api
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_half_x_is_kept_half_whatever_comes_out(api, dtype):
    variables, x = new_variables((3,)), batch((64, 3)).astype(jnp.bfloat16)
    y, pullback = jax.vjp(lambda x: OURS[api].batch_norm(variables, x, dtype=dtype)[0], x)
    assert y.dtype == (dtype or jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(pullback) if leaf.size == x.size} == {jnp.dtype(jnp.bfloat16)}
    exact, _ = OURS[api].batch_norm(variables, x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8 if dtype else 1e-6, atol=1e-6)
