"""Training steps of jaxnorm's functions and of Flax's modules, each healthy but for the one fault that it is asked for."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxnorm
from jaxnorm.diagnostics import Report, lint_step
from jaxnorm.training import init_train_state, make_train_step
from lint_programs.step_parts import BATCH, CLASSES, HIDDEN, INPUTS, Fault, batch_of_steps, mean_cross_entropy, random_weights

# jaxnorm's own functions, state and step


class _Net(NamedTuple):
    first: jax.Array
    norm: Any
    last: jax.Array
    skip: jax.Array


def jaxnorm_step(fault: Fault) -> Report:
    norm, stats = jaxnorm.init_batch_norm(HIDDEN)
    first, last, skip = (
        random_weights(jax.random.key(i), *shape)
        for i, shape in enumerate([(INPUTS, HIDDEN), (HIDDEN, CLASSES), (INPUTS, CLASSES)])
    )
    params: Any = _Net(first, norm, last, skip)
    if fault == "type":
        params = params._replace(first=first.astype(jnp.bfloat16))
    optimizer = optax.sgd(0.1, momentum=0.9)
    if fault == "optimizer":
        params, stats = (params, stats), ()

    def apply(key: jax.Array, params: Any, stats: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        net, averages = params if fault == "optimizer" else (params, stats)
        hidden = jax.nn.relu(x @ net.first)
        hidden, new = jaxnorm.batch_norm(net.norm, averages, hidden, train=train)
        if train:
            key = jax.random.key(0) if fault == "constant" else key
            hidden = jaxnorm.dropout(key, hidden, 0.25)
            if fault == "repeated":
                hidden = jaxnorm.dropout(key, jax.nn.relu(hidden), 0.25)
        logits = hidden @ net.last
        if fault == "finite":
            logits = logits + jnp.log(jax.nn.relu(x).sum(1, keepdims=True) * 0)
        # Of a shortcut that is computed nothing is used.
        logits = logits + (0 if fault == "parameter" else x @ net.skip)
        return logits, () if fault == "optimizer" else averages if fault == "averages" else new

    train = make_train_step(apply, optimizer)

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        new, metrics = train(state, batch)
        if fault == "type":
            wide = new.params._replace(first=new.params.first.astype(jnp.float32))
            new = new._replace(params=wide)
        return new._replace(step=state.step) if fault == "key" else new, metrics

    return lint_step(
        jax.jit(step, donate_argnums=0), init_train_state(jax.random.key(0), params, stats, optimizer), batch_of_steps()
    )


# Flax's linen, with a step by hand and Flax's TrainState


def linen_step(fault: Fault) -> Report:
    import flax.linen as nn
    from flax.training.train_state import TrainState

    class State(TrainState):
        batch_stats: Any
        key: jax.Array

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            hidden = nn.Dense(HIDDEN, use_bias=False)(x)
            if fault == "parameter":
                hidden = jax.lax.stop_gradient(hidden)
            hidden = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden))
            return nn.Dense(CLASSES)(nn.Dropout(0.25, deterministic=not train)(hidden))

    net, (x, labels) = Net(), batch_of_steps()
    variables = net.init(jax.random.key(0), x, train=False)
    cared_for = variables if fault == "optimizer" else variables["params"]
    state: Any = State.create(
        apply_fn=net.apply,
        params=cared_for,
        tx=optax.adam(1e-2),
        batch_stats={} if fault == "optimizer" else variables["batch_stats"],
        key=jax.random.key(1),
    )

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        x, labels = batch
        key, drop = jax.random.split(state.key)
        if fault == "constant":
            drop = jax.random.key(0)

        def objective(params: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
            all_variables = params if fault == "optimizer" else {"params": params, "batch_stats": state.batch_stats}
            logits, new = net.apply(all_variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": drop})
            if fault == "finite":
                logits = logits / jnp.zeros(())
            return mean_cross_entropy(logits, labels), new

        differentiate = jax.value_and_grad(objective, has_aux=True)
        if fault == "repeated":  # two microbatches, and one key for both

            def add(total: Any, part: Any) -> tuple[Any, Any]:
                (loss, new), grads = differentiate(state.params, *part)
                return jax.tree.map(jnp.add, total, grads), (loss, new)

            parts = jax.tree.map(lambda a: a.reshape(2, BATCH // 2, *a.shape[1:]), (x, labels))
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            grads, (losses, news) = jax.lax.scan(add, zeros, parts)
            loss, new = losses.mean(), jax.tree.map(lambda a: a[-1], news)
        else:
            (loss, new), grads = differentiate(state.params, x, labels)
        state = state.apply_gradients(grads=grads)
        if fault not in ("averages", "optimizer"):
            state = state.replace(batch_stats=new["batch_stats"])
        if fault == "type":
            state = state.replace(batch_stats=jax.tree.map(lambda a: a.astype(jnp.bfloat16), state.batch_stats))
        return state if fault == "key" else state.replace(key=key), {"loss": loss}

    return lint_step(step, state, (x, labels))


# Flax's nnx, made functional


def nnx_step(fault: Fault) -> Report:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = nnx.Linear(INPUTS, HIDDEN, use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(HIDDEN, momentum=0.9, rngs=rngs)
            self.drop = nnx.Dropout(0.25, rngs=rngs)
            self.last = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)
            self.other_head = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            if fault == "constant":
                self.drop.rngs = nnx.Rngs(7).fork()
            hidden = self.drop(nnx.relu(self.norm(self.first(x))))
            return self.last(hidden) if fault == "parameter" else self.last(hidden) + self.other_head(hidden)

    graph, params, stats, streams = nnx.split(Net(nnx.Rngs(0)), nnx.Param, nnx.BatchStat, ...)
    optimizer = optax.sgd(0.1, momentum=0.9)
    cared_for = (params, stats) if fault == "optimizer" else params
    state: Any = {"params": params, "stats": stats, "streams": streams, "optimizer": optimizer.init(cared_for)}
    if fault == "type":
        state["losses"] = ()
    if fault == "repeated":
        state["seed"] = 0

    @jax.jit
    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        x, labels = batch

        def objective(cared_for: Any) -> tuple[jax.Array, Any]:
            params, stats = cared_for if fault == "optimizer" else (cared_for, state["stats"])
            net = nnx.merge(graph, params, stats, state["streams"], copy=True)
            net.train()
            if fault == "repeated":
                net.drop.rngs = nnx.Rngs(jax.random.key(state["seed"])).fork()
            logits = net(x)
            if fault == "finite":
                logits = jnp.sqrt(logits - logits)  # its gradient is infinite times 0
            _, _, new_stats, streams = nnx.split(net, nnx.Param, nnx.BatchStat, ...)
            return mean_cross_entropy(logits, labels), (
                new_stats,
                state["streams"] if fault in ("constant", "repeated") else streams,
            )

        given = (state["params"], state["stats"]) if fault == "optimizer" else state["params"]
        (loss, (stats, streams)), grads = jax.value_and_grad(objective, has_aux=True)(given)
        updates, moments = optimizer.update(grads, state["optimizer"], given)
        params = optax.apply_updates(given, updates)
        if fault == "optimizer":
            params, stats = params
        new = state | {"params": params, "optimizer": moments}
        if fault != "averages":
            new["stats"] = stats
        if fault != "key":
            new["streams"] = streams
        if fault == "type":
            new["losses"] = (*state["losses"], loss)
        return new, loss

    return lint_step(step, state, batch_of_steps())
