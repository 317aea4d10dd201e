"""The modules of learned and adaptive dropout: their parameters, both modes, the regularizer in both, and errors."""

from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import data
from numpy.testing import assert_allclose, assert_array_equal

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

X, PREACTIVATION = data((6, 4)), data((6, 4), seed=3)
KERNEL = data((4, 2), seed=5)


def new_key(seed: int = 5) -> jax.Array:
    return jax.random.key(seed)


def of_linen(name: str, *inputs: Any, fields: Any = (), **more: Any) -> tuple[Any, Any]:
    layer = getattr(jaxnorm.linen, name)(*fields, **more)
    return layer, layer.init({"params": new_key(0), "dropout": new_key(1)}, *inputs, deterministic=True)


def with_params(layer: Any, params: Any) -> Any:
    """A module of nnx with the parameters of one of linen."""
    for name, value in params.items():
        assert getattr(layer, name)[...].shape == value.shape
        getattr(layer, name)[...] = value
    return layer


def assert_both_modes(linen: Any, variables: Any, nnx: Any, inputs: Any, noisy: Any, mean: Any, **more: Any) -> None:
    """What the functions give, by a flag that is known and by one that is traced; nnx's flag is an attribute too."""
    traced = jax.jit(lambda flag: linen.apply(variables, *inputs, deterministic=flag, rng=new_key(), **more))
    for flag, wanted in ((False, noisy), (True, mean)):
        got = linen.apply(variables, *inputs, deterministic=flag, rng=new_key(), **more)
        jax.tree.map(assert_array_equal, got, wanted)
        close = lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
        jax.tree.map(close, traced(flag), wanted)
        nnx.eval() if flag else nnx.train()
        jax.tree.map(assert_array_equal, nnx(*inputs, rngs=new_key(), **more), wanted)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("divergence", ["fit", "exact"])
def test_variational_dropout(shared: bool, divergence: Any) -> None:
    options = {"rate": 0.3, "shared": shared, "divergence": divergence}
    layer, variables = of_linen("VariationalDropout", X, **options)
    params = jaxnorm.VariationalDropoutParams(**variables["params"])
    assert_allclose(params.log_alpha, np.full(() if shared else 4, np.log(3 / 7)), rtol=1e-6)
    noisy = jaxnorm.variational_dropout(new_key(), params, X, divergence=divergence)
    ours = with_params(jaxnorm.nnx.VariationalDropout(4, rngs=flax.nnx.Rngs(0), **options), variables["params"])
    assert_both_modes(layer, variables, ours, (X,), noisy, (X, noisy[1]))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=str)
def test_variational_dense(use_bias: bool, dtype: Any) -> None:
    options = {"rate": 0.3, "shared": use_bias, "use_bias": use_bias, "dtype": dtype}
    layer, variables = of_linen("VariationalDense", X, fields=(3,), **options)
    params = jaxnorm.VariationalDenseParams(**{"bias": None, **variables["params"]})
    assert (params.bias is None, params.log_alpha.shape) == ((False, ()) if use_bias else (True, (4, 3)))
    y, kl = jaxnorm.variational_dense(new_key(), params, X, dtype=dtype)
    with jax.numpy_rank_promotion("allow"):
        mean = flax.linen.Dense(3, use_bias=use_bias).apply({"params": {**variables["params"]}}, X)
    ours = with_params(jaxnorm.nnx.VariationalDense(4, 3, rngs=flax.nnx.Rngs(0), **options), variables["params"])
    expected = mean if dtype is None else mean.astype(dtype)
    assert_both_modes(layer, variables, ours, (X,), (y, kl), (expected, kl)) if dtype is None else None
    assert layer.apply(variables, X, deterministic=False, rng=new_key())[0].dtype == (dtype or X.dtype)
    assert ours(X, deterministic=True)[0].dtype == expected.dtype


@pytest.mark.parametrize("use_bias", [True, False])
def test_sparse_variational_dense(use_bias: bool) -> None:
    options = {"threshold": -3.0, "log_var_init": -5.0, "use_bias": use_bias}
    layer, variables = of_linen("SparseVariationalDense", X, fields=(3,), **options)
    params = jaxnorm.SparseVariationalDenseParams(**{"bias": None, **variables["params"]})
    assert_array_equal(params.log_var, np.full((4, 3), -5))
    noisy = jaxnorm.sparse_variational_dense(new_key(), params, X)
    mean = jaxnorm.sparse_variational_dense_mean(params, X, threshold=-3.0)
    assert (mean != jaxnorm.sparse_variational_dense_mean(params, X)).any()
    ours = with_params(jaxnorm.nnx.SparseVariationalDense(4, 3, rngs=flax.nnx.Rngs(0), **options), variables["params"])
    assert_both_modes(layer, variables, ours, (X,), noisy, (mean, noisy[1]))


@pytest.mark.parametrize("dims", [(), (0,)], ids=str)
def test_concrete_dropout(dims: tuple[int, ...]) -> None:
    options = {"rate": 0.3, "temperature": 0.4, "broadcast_dims": dims, "length_scale": 0.5}
    layer, variables = of_linen("ConcreteDropout", X, **options)
    params = jaxnorm.ConcreteDropoutParams(**variables["params"])
    assert_allclose(params.logit, np.log(3 / 7), rtol=1e-6)
    ours = with_params(jaxnorm.nnx.ConcreteDropout(rngs=flax.nnx.Rngs(0), **options), variables["params"])
    given = {"temperature": 0.4, "broadcast_dims": dims, "length_scale": 0.5}
    without = jaxnorm.concrete_dropout(new_key(), params, X, **given)
    noisy = jaxnorm.concrete_dropout(new_key(), params, X, kernel=KERNEL, **given)
    assert noisy[1] > without[1]
    assert_both_modes(layer, variables, ours, (X,), noisy, (X, noisy[1]), kernel=KERNEL)
    jax.tree.map(assert_array_equal, layer.apply(variables, X, deterministic=False, rng=new_key()), without)


def test_standout() -> None:
    layer, variables = of_linen("Standout", PREACTIVATION, X, alpha_init=0.7, beta_init=-0.4)
    params = jaxnorm.StandoutParams(**variables["params"])
    assert_allclose(params, (0.7, -0.4), rtol=1e-6)
    ours = with_params(jaxnorm.nnx.Standout(alpha_init=0.7, rngs=flax.nnx.Rngs(0)), variables["params"])
    noisy = jaxnorm.standout(new_key(), params, PREACTIVATION, X)
    mean = jaxnorm.standout_mean(params, PREACTIVATION, X)
    assert_both_modes(layer, variables, ours, (PREACTIVATION, X), noisy, mean)


def test_the_gradient_of_a_network_reaches_every_amount_of_noise() -> None:
    """The loss with all regularizers, over N."""

    class Network(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            x, first = jaxnorm.linen.VariationalDense(5)(x, deterministic=False)
            x, second = jaxnorm.linen.VariationalDropout()(jnp.tanh(x), deterministic=False)
            x, third = jaxnorm.linen.ConcreteDropout()(x, deterministic=False)
            x, fourth = jaxnorm.linen.SparseVariationalDense(2)(x, deterministic=False)
            return x, first + second + third + fourth

    def loss(params: Any) -> jax.Array:
        y, total = Network().apply({"params": params}, X, rngs={"dropout": new_key()})
        return jnp.mean(y**2) + total / 100

    params = Network().init({"params": new_key(0), "dropout": new_key(1)}, X)["params"]
    gradient = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() and np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_modules_say_what_is_missing_or_wrong() -> None:
    with pytest.raises(ValueError, match="no `rngs` argument was provided"):
        jaxnorm.nnx.VariationalDropout(4)(X)
    with pytest.raises(TypeError, match=r"inputs must be .*int32"):
        jaxnorm.nnx.ConcreteDropout(rngs=flax.nnx.Rngs(0))(jnp.ones((2, 4), int))
    with pytest.raises(ValueError, match="divergence must be 'fit' or"):
        of_linen("VariationalDense", X, fields=(3,), divergence="kl")
    with pytest.raises(ValueError, match="rate must be above 0"):
        of_linen("ConcreteDropout", X, rate=0.0)
