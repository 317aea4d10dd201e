"""Nets whose running averages are wrong: thrown away, made twice in a step, of few batches only, of other data."""

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
from jaxnorm.training import linen_apply, nnx_apply
from lint_programs import program
from lint_programs.batch_nets import (
    MOMENTUM,
    data,
    plain_norm,
    plain_variables,
    pure_layer,
    pure_variables,
    settled,
    weights,
)
from lint_programs.forms import equinox_functions, haiku_functions

TORCHS = 0.1
"""The weight of the new statistics in PyTorch, given as that of the old ones."""


class LinenNet(nn.Module):
    momentum: float = MOMENTUM
    ours: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = jaxnorm.linen.BatchNorm if self.ours else nn.BatchNorm
        y = norm(use_running_average=not train, momentum=self.momentum)(nn.Dense(8, use_bias=False)(x))
        return nn.Dense(3)(nn.relu(y))


class NnxNet(nnx.Module):
    def __init__(self, momentum: float = MOMENTUM, norm: type = nnx.BatchNorm) -> None:
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
        self.norm = norm(8, momentum=momentum, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(nnx.relu(self.norm(self.linear(x))))


def lint_linen(net: nn.Module) -> Report:
    return jaxnorm.linen.lint(net, net.init(jax.random.key(1), data(), train=False), data())


def haiku_net(momentum: float) -> Any:
    hk = pytest.importorskip("haiku")

    def forward(x: jax.Array, train: bool) -> jax.Array:
        y = hk.Linear(8, with_bias=False)(x)
        return hk.Linear(3)(jax.nn.relu(hk.BatchNorm(True, True, momentum)(y, is_training=train)))

    return haiku_functions(forward, data())


def equinox_net(momentum: float) -> Any:
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        first: Any
        norm: Any
        last: Any

        def __init__(self, key: jax.Array) -> None:
            first, last = jax.random.split(key)
            self.first = eqx.nn.Linear(4, 8, use_bias=False, key=first)
            self.norm = eqx.nn.BatchNorm(8, "batch", momentum=momentum, mode="batch")
            self.last = eqx.nn.Linear(8, 3, key=last)

        def __call__(self, x: jax.Array, stats: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            y, stats = self.norm(self.first(x), stats)
            return self.last(jax.nn.relu(y)), stats

    return equinox_functions(Net)


def pure_net(momentum: float) -> Any:
    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        y, new = pure_layer(params["hidden"], stats["hidden"], x, train=train, momentum=momentum)
        return y @ params["last"], {"hidden": new}

    return apply, *pure_variables("hidden")


def plain_net(momentum: float) -> Any:
    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        y, new = plain_norm(stats["hidden"], x @ params["hidden"], train=train, momentum=momentum)
        return jax.nn.relu(y) @ params["last"], {"hidden": new}

    return apply, *plain_variables("hidden")


def forgetful(functions: Any, sick: bool) -> Any:
    """Returns functions whose apply gives the old statistics back, if sick."""
    apply, *variables = functions

    def forgets(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        outputs, new = apply(key, params, stats, x, train=train)
        return outputs, stats if sick else new

    return forgets, *variables


# New averages that are thrown away.


@program("averages-not-updated", "jaxnorm", where="hidden")
def pure_new_statistics_thrown_away(sick: bool) -> Report:
    return lint(*forgetful(pure_net(MOMENTUM), sick), data())


@program("averages-not-updated", "linen", where="BatchNorm_0")
def linen_updates_thrown_away(sick: bool) -> Report:
    """Mutable, as Flax asks for, but the updates are not taken."""
    variables = LinenNet().init(jax.random.key(1), data(), train=False)
    functions = linen_apply(LinenNet()), variables["params"], variables["batch_stats"]
    return lint(*forgetful(functions, sick), data())


@program("averages-not-updated", "nnx", where="norm", deep="remat")
def nnx_checkpointed_copy_updated(sick: bool) -> Report:
    """A copy of the norm is checkpointed, and its new state does not come back to the model."""

    class Net(NnxNet):
        def __call__(self, x: jax.Array) -> jax.Array:
            graph, state = nnx.split(self.norm)

            def normalize(state: Any, y: jax.Array) -> Any:
                norm = nnx.merge(graph, state)
                return norm(y), nnx.state(norm)

            y, new = jax.checkpoint(normalize)(state, self.linear(x))
            if not sick:
                nnx.update(self.norm, new)
            return self.last(nnx.relu(y))

    return jaxnorm.nnx.lint(Net(), data())


@program("averages-not-updated", "nnx", where="norm")
def nnx_momentum_of_one(sick: bool) -> Report:
    return jaxnorm.nnx.lint(NnxNet(1.0 if sick else MOMENTUM), data())


@program("averages-not-updated", "haiku", where="batch_norm")
def haiku_state_thrown_away(sick: bool) -> Report:
    return lint(*forgetful(haiku_net(MOMENTUM), sick), data())


@program("averages-not-updated", "equinox", where="norm", deep="vmap")
def equinox_state_thrown_away(sick: bool) -> Report:
    return lint(*forgetful(equinox_net(MOMENTUM), sick), data())


@program("averages-not-updated", "jaxnorm", where="stack", deep="scan")
def pure_scanned_layers_give_no_statistics(sick: bool) -> Report:
    layers, stats = jax.vmap(lambda _: jaxnorm.init_batch_norm(4))(jnp.arange(3))
    params = {"stack": {"kernel": weights(3, 4, 4), "norm": layers}, "last": weights(4, 3)}

    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        def layer(x: jax.Array, variables: Any) -> tuple[jax.Array, Any]:
            y, new = pure_layer(*variables, x, train=train)
            return x + y, None if sick else new

        y, new = jax.lax.scan(layer, x, (params["stack"], stats["stack"]))
        return y @ params["last"], stats if sick else {"stack": new}

    return lint(apply, params, {"stack": stats}, data())


# Averages that are made twice in a step.


@program("averages-updated-twice", "jaxnorm", where="shared", deep="scan")
def pure_statistics_carried_through_a_recurrence(sick: bool) -> Report:
    """One norm at every time of a recurrence; healed, each time has averages of its own."""
    norm, stats = jaxnorm.init_batch_norm(8)
    params = {"in": weights(4, 8), "turn": weights(8, 8), "shared": norm, "last": weights(8, 3)}
    stats = stats if sick else jax.tree.map(lambda a: jnp.stack([a] * 3), stats)

    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        def advance(hidden: jax.Array, stats: Any) -> tuple[jax.Array, Any]:
            y = x @ params["in"] + hidden @ params["turn"]
            y, stats = jaxnorm.batch_norm(params["shared"], stats, y, train=train, momentum=MOMENTUM)
            return jnp.tanh(y), stats

        def carrying(carry: Any, _: None) -> tuple[Any, None]:
            return advance(*carry), None

        hidden = jnp.zeros((len(x), 8))
        if sick:
            (hidden, new), _ = jax.lax.scan(carrying, (hidden, stats["shared"]), None, length=3)
        else:
            hidden, new = jax.lax.scan(advance, hidden, stats["shared"])
        return hidden @ params["last"], {"shared": new}

    return lint(apply, params, {"shared": stats}, data())


@program("averages-updated-twice", "linen", where="norm", deep="shared")
def linen_norm_of_two_layers(sick: bool) -> Report:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            norm = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, name="norm")
            second = norm if sick else nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)
            y = nn.relu(norm(nn.Dense(8, use_bias=False)(x)))
            return nn.Dense(3)(nn.relu(second(nn.Dense(8, use_bias=False)(y))))

    return lint_linen(Net())


@program("averages-updated-twice", "nnx", where="norm", deep="shared")
def nnx_two_views_one_after_the_other(sick: bool) -> Report:
    """The two halves of the batch go through the net one by one; healed, together."""

    class Net(NnxNet):
        def __call__(self, x: jax.Array) -> jax.Array:
            if not sick:
                return super().__call__(x)
            first, second = jnp.split(x, 2)
            return jnp.concatenate([super().__call__(first), super().__call__(second)])

    return jaxnorm.nnx.lint(Net(), data())


@program("averages-updated-twice", "haiku", where="batch_norm", deep="shared")
def haiku_norm_of_two_layers(sick: bool) -> Report:
    hk = pytest.importorskip("haiku")

    def forward(x: jax.Array, train: bool) -> jax.Array:
        first = hk.BatchNorm(True, True, MOMENTUM)
        second = first if sick else hk.BatchNorm(True, True, MOMENTUM)
        y = jax.nn.relu(first(hk.Linear(8, with_bias=False)(x), is_training=train))
        return hk.Linear(3)(jax.nn.relu(second(hk.Linear(8, with_bias=False)(y), is_training=train)))

    return lint(*haiku_functions(forward, data()), data())


@program("averages-updated-twice", "jax", where="hidden", deep="scan")
def plain_parts_one_after_the_other(sick: bool) -> Report:
    """The parts of a batch are accumulated, and each moves the averages."""

    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        def part(stats: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            y, stats = plain_norm(stats, x @ params["hidden"], train=train)
            return stats, jax.nn.relu(y) @ params["last"]

        new, outputs = jax.lax.scan(part, stats["hidden"], x.reshape(2 if sick else 1, -1, 4))
        return outputs.reshape(len(x), 3), {"hidden": new}

    return lint(apply, *plain_variables("hidden"), data())


# Averages of few batches only.


@program("averages-too-short", "jaxnorm", where="hidden")
def pure_momentum_of_torch(sick: bool) -> Report:
    return lint(*pure_net(TORCHS if sick else MOMENTUM), data())


@program("averages-too-short", "jaxnorm.linen", where="BatchNorm_0")
def our_linen_momentum_of_torch(sick: bool) -> Report:
    return lint_linen(LinenNet(TORCHS if sick else MOMENTUM, ours=True))


@program("averages-too-short", "linen", where="BatchNorm_0", deep="scan")
def linen_scanned_layers_with_momentum_of_torch(sick: bool) -> Report:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
            norm = nn.BatchNorm(use_running_average=not train, momentum=TORCHS if sick else MOMENTUM)
            return x + nn.relu(norm(nn.Dense(4, use_bias=False)(x))), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            axes = {"params": 0, "batch_stats": 0}
            stack = nn.scan(Layer, axes, split_rngs={"params": True}, in_axes=(nn.broadcast,), length=3)
            return nn.Dense(3)(stack()(x, train)[0])

    return lint_linen(Net())


@program("averages-too-short", "nnx", where="norm")
def nnx_momentum_of_torch(sick: bool) -> Report:
    return jaxnorm.nnx.lint(NnxNet(TORCHS if sick else MOMENTUM), data())


@program("averages-too-short", "haiku", where="batch_norm")
def haiku_decay_of_torch(sick: bool) -> Report:
    return lint(*haiku_net(TORCHS if sick else MOMENTUM), data())


@program("averages-too-short", "equinox", where="norm", deep="vmap")
def equinox_momentum_of_torch(sick: bool) -> Report:
    return lint(*equinox_net(TORCHS if sick else MOMENTUM), data())


@program("averages-too-short", "jax", where="hidden", deep="branch")
def plain_momentum_of_torch_in_a_branch(sick: bool) -> Report:
    """The first 100 steps, as the statistics count them, average over less."""

    def apply(key: Any, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[Any, Any]:
        def layer(momentum: float) -> Any:
            return lambda stats, y: plain_norm(stats, y, train=train, momentum=momentum)

        steps, late, early = stats["steps"], layer(TORCHS if sick else MOMENTUM), layer(0.8)
        y, new = jax.lax.cond(steps < 100, early, late, stats["hidden"], x @ params["hidden"])
        return jax.nn.relu(y) @ params["last"], {"hidden": new, "steps": steps + train}

    params, stats = plain_variables("hidden")
    return lint(apply, params, {**stats, "steps": jnp.asarray(200)}, data())


# Averages of other data, or of other weights.


def lint_settled(functions: Any, sick: bool) -> Report:
    """Lints with the averages of another batch: of twice the deviation and far from 0."""
    apply, params, stats = functions
    return lint(apply, params, settled(apply, params, stats, 2 * data() + 3 if sick else data()), data())


@program("averages-stale", "jaxnorm", where="hidden")
def pure_averages_of_other_data(sick: bool) -> Report:
    return lint_settled(pure_net(MOMENTUM), sick)


@program("averages-stale", "linen", where="BatchNorm_0")
def linen_averages_of_other_weights(sick: bool) -> Report:
    """Parameters from the end of training beside averages from before."""
    variables = LinenNet().init(jax.random.key(1), data(), train=False)
    apply, params = linen_apply(LinenNet()), variables["params"]
    stats = settled(apply, params, variables["batch_stats"], data())
    trained = jax.tree.map(lambda a: 3 * a, params["Dense_0"]) if sick else params["Dense_0"]
    return jaxnorm.linen.lint(LinenNet(), {"params": {**params, "Dense_0": trained}, "batch_stats": stats}, data())


@program("averages-stale", "nnx", where="second", deep="second")
def nnx_averages_of_the_second_norm_alone(sick: bool) -> Report:
    class Net(NnxNet):
        def __init__(self) -> None:
            super().__init__()
            self.between = nnx.Linear(8, 8, use_bias=False, rngs=nnx.Rngs(1))
            self.second = nnx.BatchNorm(8, momentum=MOMENTUM, rngs=nnx.Rngs(2))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.last(nnx.relu(self.second(self.between(nnx.relu(self.norm(self.linear(x)))))))

    net = Net()
    apply, params, stats = nnx_apply(net)
    stats = settled(apply, params, stats, data())
    if sick:
        stats["second"]["var"] *= 4
    nnx.update(net, stats)
    return jaxnorm.nnx.lint(net, data())


@program("averages-stale", "haiku", where="batch_norm")
def haiku_averages_of_other_data(sick: bool) -> Report:
    return lint_settled(haiku_net(MOMENTUM), sick)


@program("averages-stale", "equinox", where="norm", deep="vmap")
def equinox_averages_of_other_data(sick: bool) -> Report:
    return lint_settled(equinox_net(MOMENTUM), sick)


@program("averages-stale", "jax", where="hidden")
def plain_averages_of_other_data(sick: bool) -> Report:
    return lint_settled(plain_net(MOMENTUM), sick)
