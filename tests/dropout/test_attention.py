"""Attention with dropout of its weights: its mask, what it has in common with Flax's, and attention in blocks of queries."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import randomness
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal
from promises import assert_equal_but_for_rounding, check_vma, mesh, other_key
from randomness import ALPHA

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.benchmarks._costs import residuals

BATCH, QUERIES, KEYS, HEADS, DEPTH = 2, 7, 8, 4, 3
OURS = {"linen": jaxnorm.linen.dot_product_attention, "nnx": jaxnorm.nnx.dot_product_attention}
FLAX = {"linen": flax.linen.dot_product_attention, "nnx": flax.nnx.dot_product_attention}

each_api = pytest.mark.parametrize("api", OURS)
each_bits = pytest.mark.parametrize("bits", [8, 16, 32])


def new_key(seed: int = 11) -> jax.Array:
    return jax.random.key(seed)


def noisy(function: Callable[..., jax.Array], **options: Any) -> Callable[..., jax.Array]:
    """Attention with dropout by a key that is always the same, a mask for each example and head if the options say no other."""
    options = {"dropout_rate": 0.3, "broadcast_dropout": False} | options
    return lambda *given, **more: function(*given, **{"dropout_rng": new_key(), **options, **more})


linen = functools.partial(noisy, jaxnorm.linen.dot_product_attention)


def inputs(
    queries: int = QUERIES, keys: int = KEYS, *, batch: int = BATCH, groups: int = HEADS, dtype: Any = np.float32
) -> tuple[jax.Array, ...]:
    """Query, key and value; fewer heads of the last two are shared."""
    random = np.random.default_rng(0)
    shapes = ((batch, queries, HEADS, DEPTH), (batch, keys, groups, DEPTH), (batch, keys, groups, DEPTH + 2))
    return tuple(jnp.asarray(random.normal(0.3, 1.5, shape), dtype) for shape in shapes)


def bias_and_mask(queries: int = QUERIES, keys: int = KEYS, *, batch: int = BATCH) -> dict[str, jax.Array]:
    random = np.random.default_rng(1)
    return {
        "bias": jnp.asarray(random.normal(0, 1, (1, HEADS, queries, keys)), jnp.float32),
        "mask": jnp.asarray(random.uniform(size=(batch, 1, queries, keys)) < 0.8).at[..., 0].set(True),
    }


def weights_as_output(queries: int, keys: int) -> tuple[jax.Array, ...]:
    """Query, key and value for which y has in each row the weights of a query, 1 / K without dropout."""
    zeros = jnp.zeros((BATCH, queries, HEADS, DEPTH)), jnp.zeros((BATCH, keys, HEADS, DEPTH))
    return *zeros, jnp.broadcast_to(jnp.eye(keys)[:, None], (BATCH, keys, HEADS, keys))


def arrays_in(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Yields the shapes of all that a program computes, loops and branches included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda part: hasattr(part, "eqns")):
            part = getattr(inner, "jaxpr", inner)
            if hasattr(part, "eqns"):
                yield from arrays_in(part)


def largest(function: Callable[..., Any], *arguments: Any) -> int:
    return max(int(np.prod(shape)) for shape in arrays_in(jax.make_jaxpr(function)(*arguments).jaxpr))


def derivatives(attention: Callable[..., jax.Array]) -> Callable[..., Any]:
    """y, its gradient and its derivative along a direction."""

    def all_of(*given: jax.Array) -> Any:
        y, pullback = jax.vjp(attention, *given)
        return y, pullback(jnp.cos(jnp.arange(y.size).reshape(y.shape)).astype(y.dtype)), jax.jvp(attention, given, given)[1]

    return jax.jit(all_of)


def with_gradient(attention: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Attention and its gradient, as a function of the cotangent and of the arguments."""

    def both(cotangent: jax.Array, *given: jax.Array) -> Any:
        y, pullback = jax.vjp(attention, *given)
        return y, pullback(cotangent)

    return both


# The mask


@each_bits
@pytest.mark.parametrize("block_size", [None, 3], ids=["whole", "blocks"])
@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({"broadcast_dropout": True}, (0, 1)),
        ({"broadcast_dropout": False}, ()),
        ({"broadcast_dims": (0,)}, (0,)),
        ({"broadcast_dims": (-2, 1)}, (1, 2)),
    ],
    ids=["broadcast", "each", "of examples", "of queries"],
)
def test_mask_and_scale(options: dict[str, Any], shared: tuple[int, ...], block_size: int | None, bits: int) -> None:
    """Of the key alone; pitfall 85: what is kept is divided by what is realised, and what is dropped has no weight."""
    y = linen(dropout_rate=0.1, bits=bits, block_size=block_size, **options)(*weights_as_output(7, 16))
    drawn = tuple(1 if axis in shared else n for axis, n in enumerate((BATCH, HEADS, 7, 16)))
    kept = np.broadcast_to(oracles.keep_mask((0, 11), drawn, 0.1, bits), (BATCH, HEADS, 7, 16))
    assert_allclose(np.swapaxes(y, 1, 2), kept / oracles.realised(0.1, bits) / 16, rtol=1e-6)


@each_bits
@pytest.mark.parametrize("keys", [5, 16, 32])
def test_blocks_have_the_mask_of_the_whole(keys: int, bits: int) -> None:
    """To the bit, whether or not rows are whole groups of elements that share a hash."""
    y = jax.jit(linen(bits=bits, block_size=3))(*weights_as_output(10, keys))
    assert_array_equal(np.swapaxes(y, 1, 2) > 0, oracles.keep_mask((0, 11), (BATCH, HEADS, 10, keys), 0.3, bits))


def test_how_much_is_dropped() -> None:
    """And that weights are 1 in the sum in expectation alone (methods_supplement.md S2.5)."""
    y = jax.jit(linen(dropout_rate=0.05, block_size=128))(*weights_as_output(400, 256))
    dropped, probability = np.asarray(y) == 0, 1 - float(oracles.realised(0.05))
    assert randomness.rate(dropped, probability) > ALPHA
    assert randomness.rate(dropped, 0.053) < ALPHA  # a control
    assert min(randomness.lag(dropped, 1, axis, probability) for axis in range(4)) > ALPHA
    sums = np.asarray(y, np.float64).sum(-1)
    sigma = np.sqrt(probability / (1 - probability) / 256 / sums.size)
    assert abs(sums.mean() - 1) < 4 * sigma
    assert sums.std() > 0.01


# Flax's


@each_api
@pytest.mark.parametrize("broadcast_dropout", [True, False])
def test_with_32_bits_attention_is_that_of_flax(api: str, broadcast_dropout: bool) -> None:
    """Its mask for the same key: values and gradients."""
    options = {"broadcast_dropout": broadcast_dropout, **bias_and_mask()}
    cotangent = np.random.default_rng(3).normal(size=(BATCH, QUERIES, HEADS, DEPTH + 2)).astype(np.float32)
    got = jax.jit(with_gradient(noisy(OURS[api], bits=32, **options)))(cotangent, *inputs())
    expected = jax.jit(with_gradient(noisy(FLAX[api], **options)))(cotangent, *inputs())
    assert_equal_but_for_rounding(got, expected, 2e-6)


@pytest.mark.slow
@each_api
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_that_of_flax(api: str, dtype: Any) -> None:
    """But for the division by the probability to keep, which is in float32 here (pitfall 86)."""
    given = inputs(dtype=dtype)
    y, expected = noisy(OURS[api], bits=32)(*given), noisy(FLAX[api])(*given)
    assert y.dtype == expected.dtype == dtype
    assert_allclose(
        np.float64(y), np.float64(expected), atol=4 * float(jnp.finfo(dtype).eps) * np.abs(np.float64(expected)).max()
    )
    assert noisy(OURS[api], dtype=jnp.float32, block_size=4)(*given).dtype == jnp.float32


@each_api
def test_without_dropout_attention_is_that_of_flax(api: str) -> None:
    """Pitfalls 79 and 87: to the bit, and no key is asked for, whatever the rate is."""
    query, key, _ = inputs()
    for options in (bias_and_mask(), {"precision": "highest"}):
        run = functools.partial(OURS[api], query, key, key, **options)
        for rate in (0.0, 0.3):
            expected = FLAX[api](query, key, key, dropout_rate=rate, deterministic=True, **options)
            assert_array_equal(run(dropout_rate=rate, deterministic=True), expected)
        assert_array_equal(run(dropout_rate=1.0, deterministic=True), expected)
        assert_allclose(run(dropout_rate=0.0), expected, rtol=1e-5, atol=1e-6)
        assert_allclose(run(dropout_rate=0.3, deterministic=True, block_size=3), expected, rtol=1e-5, atol=1e-6)


def test_a_query_sees_nothing_that_comes_later() -> None:
    """The same as with a mask, of which none is needed; whole and in blocks."""
    padding = bias_and_mask()["mask"][:, :, :1]
    seen = jnp.tril(jnp.ones((1, 1, QUERIES, KEYS), bool))
    run = noisy(jaxnorm.nnx.dot_product_attention)
    expected = run(*inputs(), mask=seen & padding)
    for block_size in (None, 3):
        got = run(*inputs(), mask=padding, is_causal=True, block_size=block_size)
        assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    alone = run(*inputs(), is_causal=True, block_size=64)
    assert_allclose(alone, run(*inputs(), mask=seen), rtol=1e-5, atol=1e-6)


def test_heads_of_queries_share_heads_of_keys() -> None:
    """Grouped-query attention, of nnx: as if keys and values were repeated."""
    query, key, value = inputs(groups=2)
    repeated = query, jnp.repeat(key, 2, -2), jnp.repeat(value, 2, -2)
    run = noisy(jaxnorm.nnx.dot_product_attention)
    for block_size in (None, 3):
        assert_allclose(run(query, key, value, block_size=block_size), run(*repeated), rtol=1e-5, atol=1e-6)


def test_einsums_and_products_of_ones_own() -> None:
    """Are called, and with what Flax calls them."""
    run, called = linen(), []
    expected = run(*inputs())

    def einsum(*given: Any) -> jax.Array:
        called.append(given[0])
        return jnp.einsum(*given)

    def dot_general(*given: Any, **more: Any) -> jax.Array:
        called.append("dot_general")
        return jax.lax.dot_general(*given, **more)

    of_einsums = {"qk_attn_weights_einsum": einsum, "attn_weights_value_einsum": einsum}
    assert_allclose(run(*inputs(), **of_einsums), expected, rtol=1e-5, atol=1e-6)
    assert called == ["...qhd,...khd->...hqk", "...hqk,...khd->...qhd"]
    assert_allclose(run(*inputs(), einsum_dot_general=dot_general), expected, rtol=1e-5, atol=1e-6)
    assert "dot_general" in called


def test_layers_of_linen_take_it() -> None:
    """And draw from their stream; the weights that are sown are those before dropout; pitfall 97."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 8)), jnp.float32)
    ours = {"attention_fn": functools.partial(jaxnorm.linen.dot_product_attention, bits=32)}
    layers = [
        flax.linen.MultiHeadDotProductAttention(4, dropout_rate=0.3, deterministic=False, **fields) for fields in (ours, {})
    ]
    variables = layers[0].init({"params": new_key(), "dropout": new_key(1)}, x)
    run = lambda layer, seed: layer.apply(  # noqa: E731
        variables, x, rngs={"dropout": new_key(seed)}, sow_weights=True, mutable=["intermediates"]
    )
    got, expected = run(layers[0], 3), run(layers[1], 3)
    jax.tree.map(functools.partial(assert_allclose, rtol=1e-5, atol=1e-6), got, expected)
    assert (run(layers[0], 4)[0] != got[0]).any()
    blocks = functools.partial(jaxnorm.linen.dot_product_attention, bits=32, block_size=4)
    assert_allclose(layers[0].clone(attention_fn=blocks).apply(variables, x, rngs={"dropout": new_key(3)}), got[0], atol=1e-6)


def test_layers_of_nnx_take_it() -> None:
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 8)), jnp.float32)
    block = functools.partial(jaxnorm.nnx.dot_product_attention, block_size=4, bits=32)
    layers = [
        flax.nnx.MultiHeadAttention(4, 8, dropout_rate=0.3, decode=False, rngs=flax.nnx.Rngs(0), **fields)
        for fields in ({"attention_fn": block}, {})
    ]
    run = flax.nnx.jit(lambda layer: layer(x, is_causal=True, deterministic=False))
    assert_allclose(run(layers[0]), run(layers[1]), atol=1e-6)
    assert (run(layers[0]) != run(layers[0])).any()
    assert_allclose(layers[0](x, deterministic=True), layers[1](x, deterministic=True), atol=1e-6)


# Memory and derivatives


def test_derivatives_in_blocks_are_those_of_the_whole() -> None:
    """In both modes."""
    run, given = linen(is_causal=True, **bias_and_mask(11, 12)), inputs(11, 12)
    expected = derivatives(run)(*given)
    assert_equal_but_for_rounding(derivatives(functools.partial(run, block_size=4))(*given), expected, 3e-6)


@pytest.mark.slow
def test_second_derivatives_and_those_of_a_bias() -> None:
    with jax.enable_x64(True):
        query, key, value = inputs(5, 4, batch=1, dtype=np.float64)
        bias = bias_and_mask(5, 4)["bias"].astype(np.float64)

        def loss(block_size: int | None, query: jax.Array, bias: jax.Array) -> jax.Array:
            return jnp.sum(linen(block_size=block_size)(query, key, value, bias) ** 2)

        def second(block_size: int | None) -> Any:
            gradient = jax.grad(functools.partial(loss, block_size), (0, 1))
            return jax.jit(lambda *given: jax.jvp(gradient, given, given))(query, bias)

        assert_equal_but_for_rounding(second(2), second(None), 1e-12)


def test_blocks_never_hold_all_weights_or_a_mask() -> None:
    """In either mode of differentiation: nothing is as large as one example's weights of a head."""
    given = inputs(64, 72, batch=1)
    for block_size, at_most in ((8, 64 * 72 - 1), (None, None)):
        run = noisy(jaxnorm.nnx.dot_product_attention, block_size=block_size, is_causal=True)
        reverse = lambda *given, run=run: jax.vjp(run, *given)[1](jnp.ones((1, 64, HEADS, DEPTH + 2)))  # noqa: E731
        for function in (run, reverse, lambda *given, run=run: jax.jvp(run, given, given)):
            size = largest(function, *given)
            assert size <= at_most if at_most else size >= HEADS * 64 * 72  # a control


def test_only_weights_and_key_are_kept() -> None:
    """Of the whole form: no mask, and no weights after dropout; in blocks no weights at all. Flax's keeps more."""
    query, key, value = inputs(32, 40)
    of_weights = BATCH * HEADS * 32 * 40 * 4

    def kept(attention: Any, **options: Any) -> int:
        def run(data: Any, query: jax.Array) -> tuple[jax.Array, None]:
            rng = jax.random.wrap_key_data(data)
            return noisy(attention, dropout_rng=rng, **options)(query, key, value), None

        return residuals(run, np.zeros(2, np.uint32), query).nbytes

    small = query.nbytes + key.nbytes + value.nbytes + 64
    assert of_weights <= kept(jaxnorm.linen.dot_product_attention) <= of_weights + small
    assert kept(jaxnorm.linen.dot_product_attention, block_size=8) <= small
    assert kept(flax.linen.dot_product_attention) > of_weights + small


@pytest.mark.slow
def test_blocks_take_a_fraction_of_the_memory_of_flax() -> None:
    """Of programs for a CPU, with the gradient; the whole form takes less than Flax's too."""
    specs = [jax.ShapeDtypeStruct((1, 4096, 2, 64), jnp.float32)] * 4

    def temporaries(attention: Callable[..., jax.Array]) -> int:
        return jax.jit(with_gradient(attention)).lower(*specs).compile().memory_analysis().temp_size_in_bytes

    flax_takes = temporaries(noisy(FLAX["linen"]))
    assert temporaries(linen(block_size=256)) < flax_takes / 10
    assert temporaries(linen()) < flax_takes


# Limits


@pytest.mark.parametrize("block_size", [None, 3], ids=["whole", "blocks"])
def test_rates_may_be_traced_and_have_limits(block_size: int | None) -> None:
    """Pitfalls 78, 80 and 81: gradients at 0 and 1 are finite, and a rate that is none gives NaN everywhere."""
    run = linen(block_size=block_size)
    all_of = jax.jit(lambda rate: derivatives(lambda *given: run(*given, dropout_rate=rate))(*inputs()))
    assert_equal_but_for_rounding(all_of(0.3)[0], run(*inputs(), dropout_rate=0.3), 3e-6)
    assert_equal_but_for_rounding(all_of(0.0)[0], FLAX["linen"](*inputs()), 3e-6)
    for part in jax.tree.leaves((all_of(1.0), run(*inputs(), dropout_rate=1.0))):
        assert_array_equal(part, jnp.zeros_like(part))
    for rate in (-0.1, 1.5, np.nan):
        assert jnp.isnan(all_of(rate)[0]).all()


@each_api
@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan"), float("inf"), "0.5", None, True])
def test_bad_rates_are_named(api: str, bad: Any) -> None:
    """Pitfall 80: in inference too."""
    for deterministic in (False, True):
        with pytest.raises((ValueError, TypeError), match=r"^dropout_rate must be .*\[0, 1\], got"):
            OURS[api](*inputs(), dropout_rng=new_key(), dropout_rate=bad, deterministic=deterministic)


@each_api
def test_bad_arguments_are_named(api: str) -> None:
    """Pitfalls 88 and 103."""
    query, key, value = inputs()
    for error, words, given in (
        (ValueError, "dropout_rng is required for a dropout_rate of 0.3 in training, got None", {"dropout_rng": None}),
        (TypeError, "dropout_rng must be one key", {"dropout_rng": 3}),
        (ValueError, "dropout_rng must be one key", {"dropout_rng": jax.random.split(new_key())}),
        (TypeError, "deterministic must be", {"deterministic": None}),
        (TypeError, "is_causal must be", {"is_causal": 1}),
        (ValueError, "bits must be 8, 16 or 32, got 4", {"bits": 4}),
        (ValueError, "broadcast_dims is out of range", {"broadcast_dims": (4,)}),
        (ValueError, "broadcast_dims names an axis twice", {"broadcast_dims": (0, -4)}),
        (ValueError, "block_size must be at least 1, got 0", {"block_size": 0}),
        (TypeError, "block_size must be an int", {"block_size": 2.0}),
        (ValueError, "block_size must be None where weights are sown", {"block_size": 2, "module": object()}),
        (ValueError, "same rank, got query", {"query": query[0]}),
        (ValueError, "same batch dims", {"query": query[:1]}),
        (ValueError, "lengths must match", {"value": value[:, :-1]}),
        (ValueError, "depths must match", {"key": key[..., :-1]}),
        (ValueError, "must be a multiple", {"key": key[..., :3, :], "value": value[..., :3, :]}),
        (ValueError, "mask must broadcast to the shape of the weights", {"mask": jnp.ones((2, 2, 7, 8), bool)}),
        (ValueError, "bias must broadcast to the shape of the weights", {"bias": jnp.ones((7,))}),
    ):
        named = {"query": query, "key": key, "value": value, "dropout_rng": new_key(), "dropout_rate": 0.3}
        with pytest.raises(error, match=words):
            OURS[api](**named | given)
    run = noisy(OURS[api])
    assert_array_equal(run(query, key, value, dropout_rng=jax.random.PRNGKey(11)), run(query, key, value))


def test_what_blocks_cannot_do_is_said() -> None:
    run = functools.partial(linen(block_size=3), *inputs())
    einsums = {"qk_attn_weights_einsum": jnp.einsum, "attn_weights_value_einsum": jnp.einsum}
    with pytest.raises(ValueError, match="block_size must be None with einsums of your own, got 3"):
        run(**einsums)
    with pytest.raises(ValueError, match="must be given together"):
        run(qk_attn_weights_einsum=jnp.einsum)
    with pytest.raises(ValueError, match="bits must be 8 or 16 with block_size and a key of rbg, got 32"):
        run(dropout_rng=other_key(3, "rbg"), bits=32)
    y, expected = (run(dropout_rng=other_key(3, "rbg"), block_size=block_size) for block_size in (3, None))
    assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_key_reuse_is_seen() -> None:
    """Pitfall 99, whole and in blocks."""
    for block_size in (None, 3):
        key = new_key()
        linen(dropout_rng=key, block_size=block_size)(*inputs())
        with pytest.raises(jax.errors.KeyReuseError):
            linen(dropout_rng=key, block_size=block_size)(*inputs())


# Transformations and devices


@pytest.mark.parametrize("block_size", [None, 3], ids=["whole", "blocks"])
def test_lanes_of_vmap_are_calls(block_size: int | None) -> None:
    run = lambda key: linen(block_size=block_size, dropout_rng=key)(*inputs())  # noqa: E731
    keys = jax.random.split(new_key(), 3)
    lanes = jax.jit(jax.vmap(run))(jax.random.clone(keys))
    _, steps = jax.lax.scan(lambda _, key: (None, jax.checkpoint(run)(key)), None, jax.random.clone(keys))
    for one, step, key in zip(lanes, steps, keys, strict=True):
        expected = run(key)
        assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
        assert_allclose(step, expected, rtol=1e-5, atol=1e-6)
    assert (lanes[0] != lanes[1]).any()


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("block_size", [None, 4], ids=["whole", "blocks"])
def test_y_does_not_depend_on_how_arrays_are_sharded(block_size: int | None, axis_type: AxisType) -> None:
    """Pitfall 92: heads and examples divided over devices, by the compiler or by type, which y then has too."""
    given, spec = inputs(8, batch=4), P("a", None, "b")
    run = jax.jit(with_gradient(linen(block_size=block_size)))
    cotangent = np.random.default_rng(3).normal(size=(4, 8, HEADS, DEPTH + 2)).astype(np.float32)
    expected = run(cotangent, *given)
    devices = jax.make_mesh((2, 2), ("a", "b"), axis_types=(axis_type,) * 2, devices=jax.devices()[:4])
    with jax.set_mesh(devices):
        y, gradients = run(*(jax.device_put(x, NamedSharding(devices, spec)) for x in (cotangent, *given)))
        if axis_type == AxisType.Explicit:
            assert {jax.typeof(part).sharding.spec for part in (y, *gradients)} == {P("a", None, "b", None)}
    assert_equal_but_for_rounding((y, gradients), expected, 3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [P("d"), P(None, None, "d")], ids=["examples", "heads"])
@pytest.mark.parametrize("block_size", [None, 4], ids=["whole", "blocks"])
def test_devices_exchange_nothing(block_size: int | None, spec: P) -> None:
    """Forward and backward: each draws for its own examples or heads."""
    given = inputs(8, batch=4)
    cotangent = np.zeros((4, 8, HEADS, DEPTH + 2), np.float32)
    sharding = NamedSharding(mesh(4), spec)
    program = jax.jit(
        with_gradient(linen(block_size=block_size)), in_shardings=sharding, out_shardings=(sharding, (sharding,) * 3)
    )
    text = program.lower(cotangent, *given).compile().as_text()
    assert not re.findall(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", text)


@pytest.mark.slow
@check_vma
@pytest.mark.parametrize("block_size", [None, 3], ids=["whole", "blocks"])
def test_examples_in_shard_map(block_size: int | None, check_vma: bool) -> None:
    given = inputs(batch=4)

    def part(*given: jax.Array) -> jax.Array:
        rng = jax.random.fold_in(new_key(), jax.lax.axis_index("d"))
        return linen(dropout_rng=rng, block_size=block_size)(*given)

    run = jax.shard_map(part, mesh=mesh(4), in_specs=P("d"), out_specs=P("d"), check_vma=check_vma)
    cotangent = np.random.default_rng(3).normal(size=(4, QUERIES, HEADS, DEPTH + 2)).astype(np.float32)
    got = jax.jit(with_gradient(run))(cotangent, *given)
    alone = jax.jit(lambda rng, *given: with_gradient(linen(dropout_rng=rng))(*given))
    for i in range(4):
        own = jax.tree.map(lambda x, i=i: x[i : i + 1], (got, cotangent, given))
        expected = alone(jax.random.fold_in(new_key(), i), own[1], *own[2])
        assert_equal_but_for_rounding(own[0], expected, 3e-6)


@pytest.mark.parametrize("block_size", [None, 3], ids=["whole", "blocks"])
def test_programs_for_any_batch_are_exported(block_size: int | None) -> None:
    """In blocks with a known number of queries, which is said; alone with any."""
    shapes = ("b, 7, 4, 3", "b, k, 4, 3", "b, k, 4, 5") if block_size else ("b, t, 4, 3", "b, k, 4, 3", "b, k, 4, 5")
    scope = export.SymbolicScope()
    specs = [jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), jnp.float32) for shape in shapes]
    run = linen(block_size=block_size)
    program = export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(*specs)
    assert_allclose(program.call(*inputs()), run(*inputs()), rtol=1e-5, atol=1e-6)
    if block_size:
        specs[0] = jax.ShapeDtypeStruct(export.symbolic_shape("b, t, 4, 3", scope=scope), jnp.float32)
        with pytest.raises(ValueError, match="block_size must be None for an unknown number of queries, t, got 3"):
            export.export(jax.jit(run))(*specs)


def test_float64_is_that_of_the_oracle() -> None:
    """Given the mask that the key stands for."""
    with jax.enable_x64(True):
        given = inputs(dtype=np.float64)
        more = bias_and_mask()
        more["bias"] = more["bias"].astype(np.float64)
        kept = oracles.keep_mask((0, 11), (BATCH, HEADS, QUERIES, KEYS), 0.3)
        expected = oracles.attention(*given, more["bias"], more["mask"], kept, oracles.realised(0.3))
        for api, block_size in (("linen", None), ("nnx", 3)):
            y = jax.jit(noisy(OURS[api], block_size=block_size, **more))(*given)
            assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
