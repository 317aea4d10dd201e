"""Training steps of Haiku, Equinox and `jax.numpy` alone, each healthy but for the one fault that it is asked for."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxnorm.diagnostics import Report, lint_step
from lint_programs.step_parts import BATCH, CLASSES, HIDDEN, INPUTS, Fault, batch_of_steps, mean_cross_entropy, random_weights

# Haiku


def haiku_step(fault: Fault) -> Report:
    hk = pytest.importorskip("haiku")

    def net(x: jax.Array) -> jax.Array:
        hidden = hk.BatchNorm(True, True, 0.9)(hk.Linear(HIDDEN, with_bias=False)(x), is_training=True)
        key = jax.random.PRNGKey(0) if fault == "constant" else hk.next_rng_key()
        return hk.Linear(CLASSES)(hk.dropout(key, 0.25, jax.nn.relu(hidden)))

    model, (x, labels) = hk.transform_with_state(net), batch_of_steps()
    params, averages = model.init(jax.random.key(0), x)
    optimizer = optax.adam(1e-2)
    state = (params, averages, optimizer.init(params), jax.random.PRNGKey(1), jnp.zeros((), jnp.int32))

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        params, averages, moments, key, epoch = state
        x, labels = batch
        new_key, drop = jax.random.split(key)
        if fault == "repeated":  # no step counts the epochs
            drop = jax.random.PRNGKey(epoch)

        def objective(params: Any) -> tuple[jax.Array, Any]:
            logits, new = model.apply(params, averages, drop, x)
            return mean_cross_entropy(logits, labels), new

        (loss, new), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        new = averages if fault == "averages" else new
        return (params, new, moments, key if fault == "key" else new_key, epoch), {"loss": loss}

    return lint_step(step, state, (x, labels))


# Equinox


def equinox_step(fault: Fault) -> Report:
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        first: Any
        norm: Any
        drop: Any
        last: Any

        def __init__(self, key: jax.Array):
            keys = jax.random.split(key)
            self.first = eqx.nn.Linear(INPUTS, HIDDEN, use_bias=False, key=keys[0])
            self.norm = eqx.nn.BatchNorm(HIDDEN, axis_name="batch", momentum=0.9, mode="batch")
            self.drop = eqx.nn.Dropout(0.25)
            self.last = eqx.nn.Linear(HIDDEN, CLASSES, key=keys[1])

        def __call__(self, x: jax.Array, averages: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            hidden, averages = self.norm(self.first(x), averages)
            hidden = self.drop(jax.nn.relu(hidden), key=key)
            if fault == "repeated":
                hidden = self.drop(jax.nn.relu(hidden - 0.1), key=key)
            return self.last(hidden), averages

    net, averages = eqx.nn.make_with_state(Net)(jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    optimizer = optax.sgd(0.1, momentum=0.9)
    cared_for = (params, eqx.filter(averages, eqx.is_inexact_array)) if fault == "optimizer" else params
    state = (params, averages, optimizer.init(cared_for), jax.random.key(1))

    @eqx.filter_jit
    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        params, averages, moments, key = state
        x, labels = batch
        new_key, drop = jax.random.split(key)
        if fault == "constant":
            drop = jax.random.key(0)

        def objective(params: Any) -> tuple[jax.Array, Any]:
            keys = jax.random.split(drop, BATCH)
            run = jax.vmap(eqx.combine(params, static), axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
            logits, new = run(x, averages, keys)
            if fault == "finite":
                logits = jnp.exp(jnp.exp(jnp.exp(9 + jnp.abs(logits))))
            return mean_cross_entropy(logits, labels), new

        (loss, new), grads = jax.value_and_grad(objective, has_aux=True)(params)
        if fault == "optimizer":
            zeros = jax.tree.map(jnp.zeros_like, eqx.filter(averages, eqx.is_inexact_array))
            updates, moments = optimizer.update((grads, zeros), moments)
            updates = updates[0]
        else:
            updates, moments = optimizer.update(grads, moments)
        if fault == "parameter":
            updates = eqx.tree_at(lambda tree: tree.first.weight, updates, replace_fn=jnp.zeros_like)
        params = eqx.apply_updates(params, updates)
        return (params, averages if fault == "averages" else new, moments, key if fault == "key" else new_key), loss

    return lint_step(step, state, batch_of_steps())


# jax.numpy alone, in a scan over layers of a network


def plain_step(fault: Fault) -> Report:
    keys = jax.random.split(jax.random.key(0), 3)
    layers = {"kernel": jax.vmap(lambda key: random_weights(key, HIDDEN, HIDDEN))(jax.random.split(keys[0], 2))}
    layers |= {"gain": jnp.ones((2, HIDDEN)), "shift": jnp.zeros((2, HIDDEN))}
    params = {"stem": random_weights(keys[1], INPUTS, HIDDEN), "layers": layers, "head": random_weights(keys[2], HIDDEN, CLASSES)}
    averages = {"running_mean": jnp.zeros((2, HIDDEN)), "running_var": jnp.ones((2, HIDDEN))}
    optimizer = optax.adam(1e-2)
    if fault == "optimizer":
        params["averages"] = averages
    state: Any = {"params": params, "moments": optimizer.init(params), "rng": jax.random.PRNGKey(1), "steps": 0}
    if fault != "optimizer":
        state["averages"] = averages

    def forward(params: Any, averages: Any, key: jax.Array, x: jax.Array) -> tuple[jax.Array, Any]:
        def layer(hidden: jax.Array, given: Any) -> tuple[jax.Array, Any]:
            layer, old = given
            hidden = hidden @ layer["kernel"]
            mean = hidden.mean(0)
            var = jnp.square(hidden - mean).mean(0)
            new = {"running_mean": 0.9 * old["running_mean"] + 0.1 * mean, "running_var": 0.9 * old["running_var"] + 0.1 * var}
            normed = (hidden - mean) * jax.lax.rsqrt(var + 1e-5)
            hidden = jax.nn.relu(normed * layer["gain"] + (0 if fault == "parameter" else layer["shift"]))
            return hidden, jax.lax.stop_gradient(new)

        of_input, of_hidden = jax.random.split(key)
        if fault == "repeated":
            of_hidden = of_input
        x = x * jax.random.bernoulli(of_input, 0.9, x.shape) / 0.9
        hidden, new = jax.lax.scan(layer, x @ params["stem"], (params["layers"], averages))
        hidden = hidden * jax.random.bernoulli(of_hidden, 0.75, hidden.shape) / 0.75
        return hidden @ params["head"], new

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        x, labels = batch
        rng, drop = jax.random.split(state["rng"])
        if fault == "constant":
            drop = jax.random.PRNGKey(3)

        def objective(params: Any) -> tuple[jax.Array, Any]:
            averages = params["averages"] if fault == "optimizer" else state["averages"]
            logits, new = forward(params, averages, drop, x)
            loss = mean_cross_entropy(logits, labels)
            return loss + (jnp.sqrt(jnp.sum(params["head"]) * 0) if fault == "finite" else 0), new

        (loss, new), grads = jax.value_and_grad(objective, has_aux=True)(state["params"])
        updates, moments = optimizer.update(grads, state["moments"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        steps = state["steps"] + (jnp.ones(()) if fault == "type" else 1)
        new_state = state | {"params": params, "moments": moments, "steps": steps}
        if fault != "key":
            new_state["rng"] = rng
        if fault not in ("averages", "optimizer"):
            new_state["averages"] = new
        return new_state, {"loss": loss}

    return lint_step(step, state, batch_of_steps())
