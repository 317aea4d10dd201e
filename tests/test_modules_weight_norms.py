"""Weight and spectral norm of linen and of nnx: Flax's values and variables, and parameters that are never overwritten."""

from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_layers import batch, close

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

X = batch((6, 4))


def linear(**options: Any) -> flax.nnx.Linear:
    return flax.nnx.Linear(4, 5, rngs=flax.nnx.Rngs(0), **options)


def of_linen(package: Any, name: str, **fields: Any) -> Any:
    return getattr(package, name)(flax.linen.Dense(5), **fields)


# Flax's values and variables


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_scale": False},
        {"epsilon": 0.1},
        {"feature_axes": 0},
        {"feature_axes": None},
        {"feature_axes": (0, 1)},
        {"dtype": jnp.bfloat16},
        {"param_dtype": jnp.bfloat16},
        {"scale_init": flax.linen.initializers.constant(3.0)},
    ],
    ids=lambda fields: "-".join(fields),
)
@jax.numpy_dtype_promotion("standard")  # which Flax needs
def test_weight_norm_of_linen_is_that_of_flax(fields: dict[str, Any]) -> None:
    ours, flaxs = (of_linen(package, "WeightNorm", **fields) for package in (jaxnorm.linen, flax.linen))
    variables = flaxs.init(jax.random.key(0), X)
    close(ours.init(jax.random.key(0), X), variables)
    got, wanted = (layer.apply(variables, X) for layer in (ours, flaxs))
    assert got.dtype == wanted.dtype
    if "dtype" not in fields and "param_dtype" not in fields:
        close(got, wanted)


@pytest.mark.parametrize("names", [None, {"kernel"}, {"bias"}], ids=str)
def test_parameters_are_chosen_by_their_names(names: Any) -> None:
    if names is None:
        with jax.numpy_dtype_promotion("standard"):
            flaxs = of_linen(flax.linen, "WeightNorm", variable_filter=None).init(jax.random.key(0), X)
        assert sorted(of_linen(jaxnorm.linen, "WeightNorm", variable_filter=None).init(jax.random.key(0), X)["params"]) == sorted(
            flaxs["params"]
        )
        return
    variables = of_linen(jaxnorm.linen, "WeightNorm", variable_filter=names).init(jax.random.key(0), X)
    (name,) = names
    assert sorted(variables["params"]) == ["layer_instance", f"layer_instance/{name}/scale"]


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("update", [True, False])
def test_spectral_norm_of_linen_is_that_of_flax(steps: int, update: bool) -> None:
    ours, flaxs = (of_linen(package, "SpectralNorm", n_steps=steps) for package in (jaxnorm.linen, flax.linen))
    variables = flaxs.init(jax.random.key(0), X, update_stats=False)
    close(ours.init(jax.random.key(0), X, update_stats=False), variables)
    results = (layer.apply(variables, X, update_stats=update, mutable=["batch_stats"]) for layer in (ours, flaxs))
    close(*results, atol=1e-5)


def test_gradients_of_linen_are_those_of_flax() -> None:
    for name, given in (("WeightNorm", {}), ("SpectralNorm", {"update_stats": False})):
        gradients = []
        for package in (jaxnorm.linen, flax.linen):
            layer = of_linen(package, name)
            variables = layer.init(jax.random.key(0), X, **given)

            def loss(params: Any, layer: Any = layer, variables: Any = variables, given: Any = given) -> jax.Array:
                return jnp.sum(jnp.sin(layer.apply({**variables, "params": params}, X, **given)))

            gradients.append(jax.grad(loss)(variables["params"]))
        close(*gradients, atol=1e-5)


def test_steps_below_1_normalize_nothing_and_matrices_may_be_asked_for() -> None:
    layer = of_linen(jaxnorm.linen, "SpectralNorm", n_steps=0)
    variables = layer.init(jax.random.key(0), X, update_stats=True)
    assert list(variables) == ["params"]
    wide = jaxnorm.linen.SpectralNorm(flax.linen.DenseGeneral((3, 4)), error_on_non_matrix=True)
    with pytest.raises(ValueError, match=r"Input is 3D but error_on_non_matrix is True, got shape \[4, 3, 4\]"):
        wide.init(jax.random.key(0), X, update_stats=True)
    conv = flax.nnx.Conv(4, 5, (3, 3), rngs=flax.nnx.Rngs(0))
    with pytest.raises(ValueError, match="Layer instance parameter is 4D but error_on_non_matrix is True"):
        jaxnorm.nnx.SpectralNorm(conv, error_on_non_matrix=True, rngs=flax.nnx.Rngs(0))


def test_layers_of_linen_inside_keep_their_statistics() -> None:
    """Flax's WeightNorm gives its layer no mutable statistics."""

    class Inner(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return jaxnorm.linen.BatchNorm(use_running_average=False, momentum=0.5)(flax.linen.Dense(5)(x))

    for layer, given in (
        (jaxnorm.linen.WeightNorm(Inner()), {}),
        (jaxnorm.linen.SpectralNorm(Inner()), {"update_stats": True}),
    ):
        variables = layer.init(jax.random.key(0), X, **given)
        _, updates = layer.apply(variables, X, **given, mutable=["batch_stats"])
        before, after = (tree["batch_stats"]["layer_instance"]["BatchNorm_0"]["mean"] for tree in (variables, updates))
        assert not np.array_equal(before, after)


def test_a_parameter_of_0_is_left_alone_from_then_on() -> None:
    """As in Flax: a new bias of several axes is none to be normalized, and its first step would else go to a norm of 1."""
    layer = jaxnorm.linen.SpectralNorm(flax.linen.DenseGeneral((3, 4)))
    variables = layer.init(jax.random.key(0), X, update_stats=True)
    _, updates = layer.apply(variables, X, update_stats=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(updates["batch_stats"]["layer_instance/bias/u"], jnp.zeros((1, 4)))
    moved = jax.tree.map(lambda a: a, variables["params"])
    moved["layer_instance"]["bias"] = jnp.full((3, 4), 1e-3)
    before, after = (layer.apply({"params": params, **updates}, X, update_stats=False) for params in (variables["params"], moved))
    np.testing.assert_allclose(after - before, 1e-3, rtol=1e-2)


# nnx


def test_weight_norm_of_nnx_is_the_function_and_its_parameters_stay() -> None:
    """google/flax#5576: there every call overwrites the kernel, and the scales are no parameters."""
    inner = linear()
    kernel, bias = inner.kernel[...], inner.bias[...]
    layer = jaxnorm.nnx.WeightNorm(inner, scale_init=flax.nnx.initializers.constant(2.0), rngs=flax.nnx.Rngs(0))
    scale = jnp.full(5, 2.0)
    wanted = X @ jaxnorm.weight_norm(jaxnorm.WeightNormParams(kernel, scale)) + bias[None]
    for _ in range(2):
        close(layer(X), wanted, atol=1e-5)
        np.testing.assert_array_equal(inner.kernel[...], kernel)
    assert jax.tree.map(jnp.shape, flax.nnx.to_pure_dict(flax.nnx.state(layer, flax.nnx.Param))) == {
        "layer_instance": {"kernel": (4, 5), "bias": (5,)},
        "scales": {("kernel",): (5,)},
    }
    gradient = flax.nnx.grad(lambda layer: jnp.sum(jnp.sin(layer(X))))(layer)
    expected = jax.grad(
        lambda k, s: jnp.sum(jnp.sin(X @ jaxnorm.weight_norm(jaxnorm.WeightNormParams(k, s)) + bias[None])), (0, 1)
    )
    close(flax.nnx.to_pure_dict(gradient)["layer_instance"]["kernel"], expected(kernel, scale)[0], atol=1e-5)
    close(flax.nnx.to_pure_dict(gradient)["scales"][("kernel",)], expected(kernel, scale)[1], atol=1e-5)


def test_spectral_norm_of_nnx_is_the_function_and_its_parameters_stay() -> None:
    inner = linear(use_bias=False)
    kernel = inner.kernel[...]
    layer = jaxnorm.nnx.SpectralNorm(inner, rngs=flax.nnx.Rngs(1))
    state = jaxnorm.SpectralStats(layer.batch_stats[("kernel", "u")][0], layer.batch_stats[("kernel", "sigma")][...])
    for _ in range(3):
        y = layer(X)
        wanted, state = jaxnorm.spectral_norm(state, kernel, train=True)
        close(y, X @ wanted, atol=1e-5)
        close(layer.batch_stats[("kernel", "u")][0], state.u)
        np.testing.assert_array_equal(inner.kernel[...], kernel)
    layer.eval()
    first, second = layer(X), layer(X)
    np.testing.assert_array_equal(first, second)
    close(layer.batch_stats[("kernel", "sigma")][...], state.sigma)
    np.testing.assert_array_equal(layer(X, update_stats=True), first)
    assert not np.array_equal(layer(X), first)


def test_the_first_call_of_nnx_is_that_of_flax() -> None:
    for name in ("WeightNorm", "SpectralNorm"):
        ours, flaxs = (getattr(package, name)(linear(), rngs=flax.nnx.Rngs(1)) for package in (jaxnorm.nnx, flax.nnx))
        close(ours(X), flaxs(X), atol=1e-5)


def test_training_steps_of_nnx_move_the_parameters() -> None:
    class Net(flax.nnx.Module):
        def __init__(self) -> None:
            rngs = flax.nnx.Rngs(0)
            self.first = jaxnorm.nnx.SpectralNorm(linear(), rngs=rngs)
            self.norm = jaxnorm.nnx.BatchNorm(5, rngs=rngs)
            self.last = jaxnorm.nnx.WeightNorm(flax.nnx.Linear(5, 1, rngs=rngs), rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.last(jnp.tanh(self.norm(self.first(x))))

    net, y = Net(), jnp.sin(X.sum(-1, keepdims=True))

    @flax.nnx.jit
    def step(net: Net) -> jax.Array:
        loss, gradient = flax.nnx.value_and_grad(lambda net: jnp.mean((net(X) - y) ** 2))(net)
        params = flax.nnx.state(net, flax.nnx.Param)
        flax.nnx.update(net, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
        return loss

    u = net.first.batch_stats[("kernel", "u")][...]
    losses = [float(step(net)) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert not np.array_equal(net.first.batch_stats[("kernel", "u")][...], u)


def test_layers_of_nnx_inside_keep_their_statistics_and_counts() -> None:
    class Inner(flax.nnx.Module):
        def __init__(self) -> None:
            self.dense = linear()
            self.norm = jaxnorm.nnx.BatchNorm(5, momentum=0.5, rngs=flax.nnx.Rngs(0))
            self.drop = jaxnorm.nnx.Dropout(0.5, rngs=flax.nnx.Rngs(dropout=0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.drop(self.norm(self.dense(x)))

    inner = Inner()
    layer = jaxnorm.nnx.WeightNorm(inner, rngs=flax.nnx.Rngs(0))
    first, second = layer(X), layer(X)
    assert not np.array_equal(first == 0, second == 0)
    assert (inner.norm.mean[...] != 0).all()


def test_a_layer_that_lost_a_parameter_is_named() -> None:
    layer = jaxnorm.nnx.WeightNorm(linear(), rngs=flax.nnx.Rngs(0))
    layer.layer_instance = flax.nnx.BatchNorm(5, rngs=flax.nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"layer_instance must have the parameters that it had, \[\('kernel',\)\], got \[\]"):
        layer(X)
