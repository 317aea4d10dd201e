"""Nets that take the wrong statistics: of the batch in inference, of the past in training, of few elements, of one device."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics import lint
from jaxnorm.diagnostics._lint.report import Report
from lint_programs import program
from lint_programs.batch_nets import (
    MOMENTUM,
    data,
    lint_over_devices,
    plain_norm,
    plain_variables,
    pure_layer,
    pure_variables,
    weights,
)
from lint_programs.forms import equinox_functions, haiku_functions


class LinenBlock(nn.Module):
    """A linear layer and a norm, which takes running averages unless it is told otherwise."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, axis_name=self.axis_name)
        return nn.relu(norm(nn.Dense(8, use_bias=False)(x)))


class LinenNet(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(3)(LinenBlock(self.axis_name)(x, train))


class NnxNet(nnx.Module):
    def __init__(self, **options: Any) -> None:
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=MOMENTUM, rngs=rngs, **options)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(nnx.relu(self.norm(self.linear(x))))


def linen_functions(net: nn.Module, always: bool = False) -> tuple[Any, Any, Any]:
    """Returns apply, params and stats of a net; `always`: it is applied as in training."""
    variables = net.init(jax.random.key(1), data(), train=False)

    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": stats}
        outputs, updates = net.apply(variables, x, train=train or always, mutable=["batch_stats"])
        return outputs, updates["batch_stats"]

    return apply, variables["params"], variables["batch_stats"]


# Statistics of the batch in inference.


@program("batch-statistics-in-inference", "jaxnorm", where="hidden")
def pure_norm_always_in_training(sick: bool) -> Report:
    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        y, new = pure_layer(params["hidden"], stats["hidden"], x, train=sick or train)
        return y @ params["last"], {"hidden": new if train else stats["hidden"]}

    return lint(apply, *pure_variables("hidden"), data())


@program("batch-statistics-in-inference", "linen", where="BatchNorm_0")
def linen_net_evaluated_as_in_training(sick: bool) -> Report:
    return lint(*linen_functions(LinenNet(), always=sick), data())


@program("batch-statistics-in-inference", "linen", where="BatchNorm_0", deep="scan")
def linen_scanned_blocks_evaluated_as_in_training(sick: bool) -> Report:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
            y = nn.Dense(4, use_bias=False)(x)
            return x + nn.relu(nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)(y)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            stack = nn.scan(Body, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, in_axes=(nn.broadcast,), length=3)
            return nn.Dense(3)(stack()(x, train)[0])

    return lint(*linen_functions(Net(), always=sick), data())


@program("batch-statistics-in-inference", "nnx", where="norm")
def nnx_call_that_overrides_eval(sick: bool) -> Report:
    class Net(NnxNet):
        def __call__(self, x: jax.Array) -> jax.Array:
            y = self.linear(x)
            y = self.norm(y, use_running_average=False) if sick else self.norm(y)
            return self.last(nnx.relu(y))

    return jaxnorm.nnx.lint(Net(), data())


@program("batch-statistics-in-inference", "haiku", where="batch_norm")
def haiku_local_statistics_in_the_test(sick: bool) -> Report:
    hk = pytest.importorskip("haiku")

    def forward(x: jax.Array, train: bool) -> jax.Array:
        y = hk.Linear(8, with_bias=False)(x)
        y = hk.BatchNorm(True, True, MOMENTUM)(y, is_training=train, test_local_stats=sick)
        return hk.Linear(3)(jax.nn.relu(y))

    return lint(*haiku_functions(forward, data()), data())


@program("batch-statistics-in-inference", "jax", where="apply", deep="loop")
def plain_mean_of_the_batch_taken_out(sick: bool) -> Report:
    """Examples are mixed without a norm, in every round of a loop."""

    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        def round_of(number: jax.Array, x: jax.Array) -> jax.Array:
            y = jnp.tanh(x @ params["turn"])
            return y - jnp.mean(y, 0 if sick else -1, keepdims=True)

        return jax.lax.fori_loop(0, 3, round_of, x) @ params["last"], stats

    return lint(apply, {"turn": weights(4, 4), "last": weights(4, 3)}, {}, data())


# Running statistics in training.


@program("running-statistics-in-training", "jaxnorm", where="second")
def pure_second_norm_without_train(sick: bool) -> Report:
    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        y, first = pure_layer(params["first"], stats["first"], x, train=train)
        y, second = pure_layer(params["second"], stats["second"], y, train=train and not sick)
        return y @ params["last"], {"first": first, "second": second}

    return lint(apply, *pure_variables("first", "second"), data())


@program("running-statistics-in-training", "jaxnorm", where="second", deep="branch")
def pure_switch_of_the_wrong_way(sick: bool) -> Report:
    """One norm learns whether it trains from a traced flag, and the flag of the second is turned around."""

    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        flag = jnp.asarray(train)
        y, first = pure_layer(params["first"], stats["first"], x, train=train)
        training, inference = (functools.partial(pure_layer, train=train) for train in (True, False))
        flag = ~flag if sick else flag
        y, second = jax.lax.cond(flag, training, inference, params["second"], stats["second"], y)
        return y @ params["last"], {"first": first, "second": second}

    return lint(apply, *pure_variables("first", "second"), data())


@program("running-statistics-in-training", "linen", where="second/BatchNorm_0")
def linen_block_that_is_not_told(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            y = LinenBlock(name="first")(x, train)
            return nn.Dense(3)(LinenBlock(name="second")(y) if sick else LinenBlock(name="second")(y, train))

    return jaxnorm.linen.lint(Net(), Net().init(jax.random.key(1), data(), train=False), data())


@program("running-statistics-in-training", "linen", where="second/BatchNorm_0", deep="remat")
def linen_checkpointed_block_that_is_not_told(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            block = nn.remat(LinenBlock, static_argnums=(2,))
            y = block(name="first")(x, train)
            return nn.Dense(3)(block(name="second")(y, train and not sick))

    return jaxnorm.linen.lint(Net(), Net().init(jax.random.key(1), data(), train=False), data())


@program("running-statistics-in-training", "nnx", where="second")
def nnx_norm_left_frozen(sick: bool) -> Report:
    class Net(NnxNet):
        def __init__(self) -> None:
            super().__init__()
            self.between = nnx.Linear(8, 8, use_bias=False, rngs=nnx.Rngs(1))
            self.second = nnx.BatchNorm(8, momentum=MOMENTUM, rngs=nnx.Rngs(2))

        def __call__(self, x: jax.Array) -> jax.Array:
            y = self.between(nnx.relu(self.norm(self.linear(x))))
            y = self.second(y, use_running_average=True) if sick else self.second(y)
            return self.last(nnx.relu(y))

    return jaxnorm.nnx.lint(Net(), data())


@program("running-statistics-in-training", "equinox", where="second", deep="vmap")
def equinox_norm_left_in_inference(sick: bool) -> Report:
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        kernels: list[jax.Array]
        first: Any
        second: Any

        def __init__(self, key: jax.Array) -> None:
            self.kernels = [weights(4, 8), weights(8, 8), weights(8, 3)]
            self.first = eqx.nn.BatchNorm(8, "batch", momentum=MOMENTUM, mode="batch")
            self.second = eqx.nn.BatchNorm(8, "batch", momentum=MOMENTUM, mode="batch")

        def __call__(self, x: jax.Array, stats: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            y, stats = self.first(x @ self.kernels[0], stats)
            y, stats = self.second(jax.nn.relu(y) @ self.kernels[1], stats, inference=True if sick else None)
            return jax.nn.relu(y) @ self.kernels[2], stats

    return lint(*equinox_functions(Net), data())


# Few elements.


@program("few-elements", "jaxnorm", where="hidden")
def pure_ghosts_of_four(sick: bool) -> Report:
    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        layer, y = params["hidden"], x @ params["hidden"]["kernel"]
        y, new = jaxnorm.ghost_batch_norm(layer["norm"], stats["hidden"], y, 4 if sick else 32, train=train, momentum=MOMENTUM)
        return jax.nn.relu(y) @ params["last"], {"hidden": new}

    return lint(apply, *pure_variables("hidden"), data())


@program("few-elements", "linen", where="BatchNorm_0")
def linen_batch_of_four(sick: bool) -> Report:
    x = data(4 if sick else 64)
    return jaxnorm.linen.lint(LinenNet(), LinenNet().init(jax.random.key(1), x, train=False), x)


@program("few-elements", "nnx", where="norm")
def nnx_three_examples_of_four_positions(sick: bool) -> Report:
    return jaxnorm.nnx.lint(NnxNet(), data(12 if sick else 256).reshape(-1, 4, 4))


@program("few-elements", "haiku", where="batch_norm")
def haiku_batch_of_one(sick: bool) -> Report:
    hk = pytest.importorskip("haiku")

    def forward(x: jax.Array, train: bool) -> jax.Array:
        y = hk.Linear(8, with_bias=False)(x)
        return hk.Linear(3)(jax.nn.relu(hk.BatchNorm(True, True, MOMENTUM)(y, is_training=train)))

    return lint(*haiku_functions(forward, data()), data(1 if sick else 64))


@program("few-elements", "jax", where="plain_norm", deep="vmap")
def plain_parts_of_the_batch(sick: bool) -> Report:
    """The batch is cut into parts that are normalized each by itself, and the averages are those over the parts."""

    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        parts = (x @ params["hidden"]).reshape(-1, 4 if sick else 32, 8)
        y, new = jax.vmap(lambda part: plain_norm(stats["hidden"], part, train=train))(parts)
        new = jax.tree.map(lambda a: jnp.mean(a, 0), new)
        return jax.nn.relu(y.reshape(-1, 8)) @ params["last"], {"hidden": new}

    return lint(apply, *plain_variables("hidden"), data())


# Statistics of one device.


@program("statistics-per-device", "jaxnorm", where="hidden", deep="shard_map")
def pure_norm_without_axis_name(sick: bool) -> Report:
    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        y, new = pure_layer(params["hidden"], stats["hidden"], x, train=train, axis_name=None if sick else "data")
        return y @ params["last"], {"hidden": new}

    return lint_over_devices(apply, *pure_variables("hidden"), data(128))


@program("statistics-per-device", "linen", where="BatchNorm_0", deep="shard_map")
def linen_norm_without_axis_name(sick: bool) -> Report:
    return lint_over_devices(*linen_functions(LinenNet(None if sick else "data")), data(128))


@program("statistics-per-device", "nnx", where="norm", deep="shard_map")
def nnx_norm_without_axis_name(sick: bool) -> Report:
    apply, params, stats = jaxnorm.training.nnx_apply(NnxNet() if sick else NnxNet(axis_name="data"))
    return lint_over_devices(apply, params, stats, data(128))


@program("statistics-per-device", "haiku", where="batch_norm", deep="shard_map")
def haiku_norm_without_cross_replica_axis(sick: bool) -> Report:
    hk = pytest.importorskip("haiku")

    def forward(x: jax.Array, train: bool) -> jax.Array:
        y = hk.Linear(8, with_bias=False)(x)
        pooled = None if sick or hk.running_init() else "data"
        y = hk.BatchNorm(True, True, MOMENTUM, cross_replica_axis=pooled)(y, is_training=train)
        return hk.Linear(3)(jax.nn.relu(y))

    return lint_over_devices(*haiku_functions(forward, data()), data(128))


@program("statistics-per-device", "jax", where="plain_norm", deep="shard_map")
def plain_norm_of_one_device(sick: bool) -> Report:
    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        y, new = plain_norm(stats["hidden"], x @ params["hidden"], train=train, axis_name=None if sick else "data")
        return jax.nn.relu(y) @ params["last"], {"hidden": new}

    return lint_over_devices(apply, *plain_variables("hidden"), data(128))
