"""What small models are made of: `relu(body(x)) @ head` in each library, and a batch norm that is written by hand in each."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics import lint
from jaxnorm.diagnostics._lint.report import Report

Moments = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""A function of `x` `[B, C]` that gives mean and variance `[C]`."""
Optimizer = optax.GradientTransformation


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> jax.Array:
    """A batch of 32 examples of 4 features, or of the shape given."""
    return mean + std * jax.random.normal(jax.random.key(0), shape or (32, 4))


def lint_pure(body: Any, params: dict, stats: Any, x: jax.Array, optimizer: Optimizer | None = None) -> Report:
    """The lint of `body(params, stats, x, train) -> (y, stats)` and a head, as functions."""
    train_width = jax.eval_shape(lambda: body(params, stats, x, False)[0]).shape[-1]
    params = {"head": normal(train_width, 2), **params}

    def apply(key: jax.Array, params: dict, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        y, stats = body(params, stats, x, train)
        return jax.nn.relu(y).astype(jnp.float32) @ params["head"], stats

    return lint(apply, params, stats, x, optimizer=optimizer)


def lint_linen(body: Any, x: jax.Array, optimizer: Optimizer | None = None, given: Any = lambda variables: variables) -> Report:
    """The lint of `body(x, train)` and a dense layer, in linen; `given` is what becomes of the variables."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            return nn.Dense(2, name="head")(nn.relu(body(x, train)))

    variables = given(Net().init(jax.random.key(1), x, train=False))
    return jaxnorm.linen.lint(Net(), variables, x, optimizer=optimizer)


class NnxNet(nnx.Module):
    """Layers by name, one after the other, and a linear one."""

    def __init__(self, width: int, **layers: Any):
        self.names = tuple(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.head = nnx.Linear(width, 2, rngs=nnx.Rngs(9))

    def __call__(self, x: jax.Array) -> jax.Array:
        for name in self.names:
            x = getattr(self, name)(x)
        return self.head(nnx.relu(x))


def lint_nnx(x: jax.Array, width: int, optimizer: Optimizer | None = None, **layers: Any) -> Report:
    """The lint of layers, the last of so many features, and a linear layer, in nnx."""
    return jaxnorm.nnx.lint(NnxNet(width, **layers), x, optimizer=optimizer)


def lint_haiku(body: Any, x: jax.Array, optimizer: Optimizer | None = None, given: Any = lambda stats: stats) -> Report:
    """The lint of `body(x, train)` and a linear layer, in Haiku; `given` is what becomes of its state."""
    import haiku as hk

    net = hk.transform_with_state(lambda x, train: hk.Linear(2, name="head")(jax.nn.relu(body(x, train))))
    params, stats = net.init(jax.random.key(1), x, True)

    def apply(key: jax.Array, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        return net.apply(params, stats, key, x, train)

    return lint(apply, params, given(stats), x, optimizer=optimizer)


def lint_equinox(layers: list, width: int, x: jax.Array, optimizer: Optimizer | None = None) -> Report:
    """The lint of layers, the last of so many features, and a linear layer, in Equinox: of an example, mapped over the batch."""
    import equinox as eqx

    head = [eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(width, 2, key=jax.random.key(1))]
    model, state = eqx.nn.make_with_state(eqx.nn.Sequential)([*layers, *head])
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(key: jax.Array, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        net = eqx.nn.inference_mode(eqx.combine(params, static), not train)
        return jax.vmap(net, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(x, stats)

    return lint(apply, params, state, x, optimizer=optimizer)


def exact(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance in two passes, in float32."""
    x = x.astype(jnp.float32)
    return x.mean(0), jnp.square(x - x.mean(0)).mean(0)


def stopped(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance as constants for the gradient."""
    return jax.lax.stop_gradient(exact(x))


def squares(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance as `E[x^2] - E[x]^2`."""
    return x.mean(0), jnp.square(x).mean(0) - jnp.square(x.mean(0))


def half(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance in two passes, in 16 bits."""
    x = x.astype(jnp.bfloat16)
    return x.mean(0), jnp.square(x - x.mean(0)).mean(0)


def own_norm(
    moments: Moments, params: Any, stats: Any, x: jax.Array, train: bool, epsilon: float = 1e-5
) -> tuple[jax.Array, Any]:
    """A batch norm by hand: params are scale and bias, stats mean and variance."""
    mean, var = moments(x) if train else stats
    scale, bias = params
    y = (x - mean) * jax.lax.rsqrt(var + epsilon) * scale + bias
    if train:
        stats = tuple((0.9 * old + 0.1 * new).astype(old.dtype) for old, new in zip(stats, (mean, var), strict=True))
    return y.astype(x.dtype), stats


def init_own_norm(features: int) -> tuple[Any, Any]:
    """Scale and bias, and mean and variance."""
    ones, zeros = jnp.ones(features), jnp.zeros(features)
    return (ones, zeros), (zeros, ones)


class LinenNorm(nn.Module):
    """`own_norm` in linen, its averages among the statistics or among the parameters."""

    moments: Moments = exact
    averages_in_params: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        shape = (x.shape[-1],)
        affine = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        if self.averages_in_params:
            return own_norm(self.moments, affine, (self.param("mean", zeros, shape), self.param("var", ones, shape)), x, train)[0]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        y, stats = own_norm(self.moments, affine, (mean.value, var.value), x, train)
        if train:
            mean.value, var.value = stats
        return y


class NnxNorm(nnx.Module):
    """`own_norm` in nnx, its averages variables of any kind."""

    def __init__(self, features: int, moments: Moments = exact, kind: type[nnx.Variable] = nnx.BatchStat):
        (scale, bias), (mean, var) = init_own_norm(features)
        self.scale, self.bias = nnx.Param(scale), nnx.Param(bias)
        self.mean, self.var = kind(mean), kind(var)
        self.moments, self.use_running_average = moments, False

    def __call__(self, x: jax.Array) -> jax.Array:
        affine, stats = (self.scale[...], self.bias[...]), (self.mean[...], self.var[...])
        y, (mean, var) = own_norm(self.moments, affine, stats, x, not self.use_running_average)
        self.mean[...], self.var[...] = mean, var
        return y


def haiku_norm(x: jax.Array, train: bool, moments: Moments = exact, averages_in_params: bool = False) -> jax.Array:
    """`own_norm` in Haiku, its averages among the state or among the parameters."""
    import haiku as hk

    shape, kept = (x.shape[-1],), hk.get_parameter if averages_in_params else hk.get_state
    affine = hk.get_parameter("scale", shape, init=jnp.ones), hk.get_parameter("bias", shape, init=jnp.zeros)
    stats = kept("mean", shape, init=jnp.zeros), kept("var", shape, init=jnp.ones)
    y, (mean, var) = own_norm(moments, affine, stats, x, train)
    if not averages_in_params:
        hk.set_state("mean", mean)
        hk.set_state("var", var)
    return y
