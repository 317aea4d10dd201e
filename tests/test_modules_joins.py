"""Joins of branches, noise in weights and maxout as modules of linen and of nnx: the functions' digits, flags and keys."""

from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_layers import batch
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

X, BRANCH = batch((6, 3, 4)), batch((6, 3, 4), seed=2)
JOINS: dict[str, tuple[str, dict[str, Any], tuple[Any, ...]]] = {
    "Swapout": ("swapout", {"rate": 0.3, "branch_rate": 0.6, "broadcast_dims": (1,), "bits": 8}, (X, BRANCH)),
    "FractalJoin": ("fractal_join", {"rate": 0.5, "per": "batch", "mode": "global", "columns": 3}, ([X, BRANCH],)),
    "ShakeDrop": ("shake_drop", {"rate": 0.5, "alpha": (0.0, 0.5), "beta": (0.5, 1.0), "per": "element"}, (X, BRANCH)),
    "ShakeShake": ("shake_shake", {"per": "element", "backward": "even"}, (X, BRANCH)),
}
IN_MEAN = ("rate", "branch_rate", "alpha")
APIS = ("linen", "nnx")

each_api = pytest.mark.parametrize("api", APIS)


def new_key(seed: int = 3) -> jax.Array:
    return jax.random.key(seed)


def call(api: str, name: str, options: dict[str, Any], branches: Any, deterministic: Any, key: jax.Array | None = None) -> Any:
    if api == "linen":
        return getattr(jaxnorm.linen, name)(**options).apply({}, *branches, deterministic=deterministic, rng=key)
    return getattr(jaxnorm.nnx, name)(**options)(*branches, deterministic=deterministic, rngs=key)


@each_api
@pytest.mark.parametrize("name", JOINS)
def test_joins_are_the_functions(api: str, name: str) -> None:
    """Pitfalls 79, 87, 89: in inference they are their mean, without a key, whichever way the flag is given."""
    function, options, branches = JOINS[name]
    wanted = getattr(jaxnorm, function)(new_key(), *branches, **options)
    assert_array_equal(call(api, name, options, branches, False, new_key()), wanted)
    known = getattr(jaxnorm, f"{function}_mean")
    in_mean = {option: value for option, value in options.items() if option in IN_MEAN and name != "FractalJoin"}
    mean = known(*branches, **{"alpha": in_mean["alpha"]} | {"rate": 0.5} if name == "ShakeDrop" else in_mean)
    assert_array_equal(call(api, name, options, branches, True), mean)
    traced = jax.jit(lambda flag: call(api, name, options, branches, flag, new_key()))
    assert_allclose(traced(True), mean, rtol=1e-6, atol=1e-6)
    assert_allclose(traced(False), wanted, rtol=1e-6, atol=1e-6)


def test_streams_and_modes() -> None:
    stack = flax.nnx.Sequential(lambda x: (x, BRANCH), jaxnorm.nnx.Swapout(0.5, rngs=flax.nnx.Rngs(0)))
    assert (stack(X) != stack(X)).any()
    stack.eval()
    assert_array_equal(stack(X), jaxnorm.swapout_mean(X, BRANCH, 0.5))
    layer = jaxnorm.linen.Swapout(0.5, deterministic=False)
    first, second = (layer.apply({}, X, BRANCH, rngs={"dropout": new_key(seed)}) for seed in (1, 2))
    assert (first != second).any()
    with pytest.raises(ValueError, match="no `rngs` argument was provided"):
        jaxnorm.nnx.Swapout(0.5)(X, BRANCH)


# Dense layers


def of_linen(name: str, *fields: Any, x: Any = X, **more: Any) -> tuple[Any, Any]:
    layer = getattr(jaxnorm.linen, name)(*fields, **more)
    return layer, layer.init({"params": new_key(0), "dropout": new_key(1)}, x, deterministic=True)


@pytest.mark.parametrize("factorised", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=str)
def test_noisy_linear(factorised: bool, use_bias: bool, dtype: Any) -> None:
    options = {"factorised": factorised, "use_bias": use_bias, "dtype": dtype}
    layer, variables = of_linen("NoisyLinear", 5, **options)
    held = {"bias": None, "bias_std": None, **variables["params"]}
    params = jaxnorm.NoisyLinearParams(**held)
    wanted = jaxnorm.noisy_linear(new_key(), params, X, factorised=factorised, dtype=dtype)
    mean = jaxnorm.noisy_linear_mean(params, X, dtype=dtype)
    assert_array_equal(layer.apply(variables, X, deterministic=False, rng=new_key()), wanted)
    assert_array_equal(layer.apply(variables, X, deterministic=True), mean)
    ours = jaxnorm.nnx.NoisyLinear(4, 5, rngs=flax.nnx.Rngs(0), **options)
    assert {name for name in held if getattr(ours, name) is not None} == set(variables["params"])
    for name, value in variables["params"].items():
        assert_array_equal(getattr(ours, name)[...].shape, value.shape)
        getattr(ours, name)[...] = value
    assert_array_equal(ours(X, rngs=new_key()), wanted)
    ours.eval()
    assert_array_equal(ours(X), mean)


@pytest.mark.parametrize("use_bias", [True, False])
def test_drop_connect_dense(use_bias: bool) -> None:
    layer, variables = of_linen("DropConnectDense", 5, 0.3, use_bias=use_bias, bias_init=flax.linen.initializers.ones)
    plain = flax.linen.Dense(5, use_bias=use_bias, bias_init=flax.linen.initializers.ones)
    reference = plain.init(new_key(0), X)
    assert jax.tree.map(jnp.shape, reference) == jax.tree.map(jnp.shape, variables)
    kernel, bias = variables["params"]["kernel"], variables["params"].get("bias")
    wanted = jaxnorm.drop_connect_dense(new_key(), kernel, bias, X, 0.3)
    with jax.numpy_rank_promotion("allow"):
        mean = plain.apply(variables, X)
    assert_array_equal(layer.apply(variables, X, deterministic=False, rng=new_key()), wanted)
    assert_allclose(layer.apply(variables, X, deterministic=True), mean, rtol=1e-6, atol=1e-6)
    ours = jaxnorm.nnx.DropConnectDense(4, 5, 0.3, use_bias=use_bias, rngs=flax.nnx.Rngs(0))
    for name, value in variables["params"].items():
        getattr(ours, name)[...] = value
    assert_array_equal(ours(X, rngs=new_key()), wanted)
    assert_allclose(ours(X, deterministic=True), mean, rtol=1e-6, atol=1e-6)


def test_maxout() -> None:
    wanted = jaxnorm.maxout(X, 3, channel_axis=1)
    assert_array_equal(jaxnorm.linen.Maxout(3, channel_axis=1).apply({}, X), wanted)
    assert_array_equal(jaxnorm.nnx.Maxout(3, channel_axis=1)(X), wanted)


# Layers whose weights are dropped


def test_drop_connect_of_a_layer_of_linen() -> None:
    """The same parameters as without; each kernel is dropped, a bias is not, and the gradient is the mask's."""
    net = flax.linen.Sequential([flax.linen.Dense(5), flax.linen.Dense(5, bias_init=flax.linen.initializers.ones)])
    layer = jaxnorm.linen.DropConnect(net, 0.3, bits=8)
    x = jnp.ones((2, 5))
    with jax.numpy_rank_promotion("allow"):
        variables = layer.init(new_key(0), x, deterministic=True)
        run = lambda kernels: layer.apply(  # noqa: E731
            {"params": kernels}, x, deterministic=False, rng=new_key()
        ).sum()
        gradient = jax.grad(run)(variables["params"])["layer_instance"]
        assert_array_equal(
            layer.apply(variables, x, deterministic=True), net.apply({"params": variables["params"]["layer_instance"]}, x)
        )
        zeros = {"params": jax.tree.map(jnp.zeros_like, variables["params"])}
        ones = jax.tree.map(jnp.ones_like, zeros)
        assert_array_equal(layer.apply(zeros, x, deterministic=False, rng=new_key()), jnp.zeros((2, 5)))
        y = layer.apply(ones, x, deterministic=False, rng=new_key())
    assert len(np.unique(y)) > 1
    dropped = gradient["layers_1"]["kernel"] == 0
    assert 0 < dropped.sum() < 25
    assert (gradient["layers_1"]["bias"] == 2).all()
    assert (dropped != (gradient["layers_0"]["kernel"] == 0)).any()


def test_drop_connect_of_a_layer_of_nnx() -> None:
    linear = flax.nnx.Linear(5, 5, kernel_init=flax.nnx.initializers.ones, rngs=flax.nnx.Rngs(0))
    layer = jaxnorm.nnx.DropConnect(linear, 0.3, rngs=flax.nnx.Rngs(1))
    first, second = layer(jnp.eye(5)), layer(jnp.eye(5))
    assert (first != second).any()
    assert set(np.unique(first.round(4))) == {0.0, np.float32(1 / 0.7).round(4)}
    assert_array_equal(linear.kernel[...], jnp.ones((5, 5)))
    layer.eval()
    assert_array_equal(layer(jnp.eye(5)), jnp.ones((5, 5)))


@each_api
def test_embedding_dropout_drops_words_everywhere_and_attend_takes_the_table(api: str) -> None:
    tokens = jnp.arange(40).reshape(4, 10) % 20
    if api == "linen":
        embed = flax.linen.Embed(20, 3, embedding_init=flax.linen.initializers.ones)
        layer = jaxnorm.linen.EmbeddingDropout(embed, 0.3)
        variables = layer.init(new_key(0), tokens, deterministic=True)
        y = layer.apply(variables, tokens, deterministic=False, rng=new_key())
        logits = embed.apply({"params": variables["params"]["layer_instance"]}, jnp.ones((1, 3)), method="attend")
    else:
        embed = flax.nnx.Embed(20, 3, embedding_init=flax.nnx.initializers.ones, rngs=flax.nnx.Rngs(0))
        layer = jaxnorm.nnx.EmbeddingDropout(embed, 0.3, rngs=flax.nnx.Rngs(1))
        y, logits = layer(tokens), embed.attend(jnp.ones((1, 3)))
    rows = np.asarray(y).reshape(2, 20, 3)
    assert_array_equal(rows[0], rows[1])
    assert_array_equal(rows, np.broadcast_to(rows[..., :1], rows.shape))
    assert 0 < (rows[0, :, 0] == 0).sum() < 20
    assert_array_equal(logits, jnp.full((1, 20), 3.0))


@jax.numpy_rank_promotion("allow")
def test_weight_drop_of_a_recurrent_layer_is_one_draw_for_all_steps() -> None:
    """methods.md 5.6: without an input, more steps than units are told by one matrix, which is not the kernel."""
    cell = flax.linen.SimpleCell(6, activation_fn=lambda a: a, carry_init=flax.linen.initializers.ones)
    layer = jaxnorm.linen.DropConnect(flax.linen.RNN(cell), 0.3, variable_filter=("h/kernel",))
    x = jnp.zeros((1, 16, 3))
    variables = layer.init(new_key(0), x, deterministic=True)

    def misfit(y: Any) -> float:
        states = np.concatenate([np.ones((1, 6)), y[0]]).astype(np.float64)
        matrix = np.linalg.lstsq(states[:-1], states[1:], rcond=None)[0]
        return np.abs(states[:-1] @ matrix - states[1:]).max() / np.abs(states[1:]).max()

    y, whole = (layer.apply(variables, x, deterministic=flag, rng=new_key()) for flag in (False, True))
    assert misfit(y) < 1e-5
    assert np.abs(y - whole).max() > 0.01
    spoiled = np.concatenate([y[:, :8], whole[:, 8:]], 1)  # a control: another matrix from a step on
    assert misfit(spoiled) > 1e-3


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="rate must be in"):
        jaxnorm.linen.Swapout(1.5).apply({}, X, BRANCH, deterministic=True)
    with pytest.raises(TypeError, match="deterministic must be True or False"):
        jaxnorm.nnx.ShakeShake()(X, BRANCH, deterministic="yes")
    with pytest.raises(ValueError, match="rate must be in"):
        jaxnorm.nnx.DropConnect(flax.nnx.Linear(4, 5, rngs=flax.nnx.Rngs(0)), 1.5, rngs=flax.nnx.Rngs(0))(X)
