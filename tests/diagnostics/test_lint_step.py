"""The lint of a training step: it finds what is sick, leaves alone what is healthy, and says what it did not look at."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lint_programs import is_found, judge, programs_of, steps, tiered

from jaxnorm.diagnostics import lint_step
from jaxnorm.diagnostics._lint.step_rules import STEP_RULES
from jaxnorm.training import init_train_state, linen_apply, make_train_step

pytestmark = pytest.mark.jax_defaults

OURS = programs_of(steps)
FIRST = ("nnx_step_averages_not_updated", "nnx_step_useless_parameter")
X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
BATCH = (jnp.asarray(X), jnp.asarray((X.sum(1) > 0).astype(np.int32)))


@pytest.mark.parametrize("program", tiered(OURS, FIRST))
def test_what_is_sick_is_found_at_its_place(program):
    report = judge(program, True)
    assert is_found(program, report), report


@pytest.mark.parametrize("program", tiered(OURS, FIRST))
def test_what_is_healed_is_silent(program):
    assert judge(program, False).findings == ()


def test_each_rule_has_programs_in_four_forms():
    rules = {rule.__name__.replace("_", "-") for rule in STEP_RULES}
    assert {program.rule for program in OURS} == rules
    for rule in rules:
        assert {program.form for program in OURS if program.rule == rule} >= {"jaxnorm", "linen", "nnx", "jax"}


# Steps that only look sick


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        for _ in range(2):
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(6, use_bias=False)(x)))
            x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(3)(x)


NET = Net()


@functools.cache
def variables() -> Any:
    return jax.jit(NET.init, static_argnames="train")(jax.random.key(0), X, train=False)


def by_hand() -> dict[str, Any]:
    return {"params": variables()["params"], "stats": variables()["batch_stats"], "key": jax.random.key(1)}


def made(optimizer: Any, apply: Any = None, **params: Any) -> tuple[Any, Any]:
    """Returns a step of ours, and its state, with some parameters in the place of others."""
    step = make_train_step(linen_apply(NET) if apply is None else apply, optimizer)
    return step, init_train_state(jax.random.key(1), variables()["params"] | params, variables()["batch_stats"], optimizer)


def loss_of(params: Any, stats: Any, key: jax.Array, x: Any, labels: Any) -> tuple[jax.Array, Any]:
    variables = {"params": params, "batch_stats": stats}
    logits, new = NET.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]


def step_by_hand(state: Any, batch: Any, loss: Any = loss_of) -> tuple[Any, Any]:
    key, used = jax.random.split(state["key"])
    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state["params"], state["stats"], used, *batch)
    params = jax.tree.map(lambda param, grad: param - 0.1 * grad, state["params"], grads)
    return state | {"params": params, "stats": stats, "key": key}, value


def label(params: Any) -> Any:
    return {name: "frozen" if name == "Dense_0" else "trained" for name in params}


OPTIMIZERS: dict[str, Any] = {
    "a rate that begins at 0": optax.sgd(optax.linear_schedule(0.0, 0.1, 100)),
    "gathered gradients": optax.MultiSteps(optax.sgd(0.1), 5),
    "an infinity in its state": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "factored moments": optax.adafactor(0.01),
    "clipping and decay": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, weight_decay=0.1)),
    "numbers in its state": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_do_nothing_for_a_while_are_no_fault(name):
    report = lint_step(*made(OPTIMIZERS[name]), BATCH)
    assert report.findings == ()
    assert (report.norms, report.noises) == (2, 2)


@pytest.mark.slow
def test_weights_behind_zeros_get_their_gradient_late():
    zeros = jax.tree.map(jnp.zeros_like, variables()["params"]["Dense_2"])
    assert lint_step(*made(optax.sgd(0.1), Dense_2=zeros), BATCH).findings == ()


@pytest.mark.slow
def test_frozen_layers_are_a_note():
    optimizer = optax.multi_transform({"trained": optax.sgd(0.1), "frozen": optax.set_to_zero()}, label)
    [found] = lint_step(*made(optimizer), BATCH).findings
    assert (found.rule, found.severity, found.where.path) == ("useless-parameter", "note", "params/Dense_0/kernel")


@pytest.mark.slow
def test_a_dead_parameter_is_found_though_decay_shrinks_it_and_clipping_touches_it():
    def apply(key: Any, params: Any, stats: Any, x: Any, *, train: bool) -> Any:
        return linen_apply(NET)(key, {name: own for name, own in params.items() if name != "head"}, stats, x, train=train)

    [found] = lint_step(*made(OPTIMIZERS["clipping and decay"], apply, head=jnp.ones(3)), BATCH).findings
    assert (found.rule, found.severity, found.where.path) == ("useless-parameter", "warning", "params/head")


@pytest.mark.slow
def test_copies_of_weights_are_neither_averages_nor_useless():
    optimizer = optax.adam(0.01)

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        new, loss = step_by_hand(state, batch)
        ema = jax.tree.map(lambda old, own: 0.9 * old + 0.1 * own, state["ema"], new["params"])
        gradient_like = jax.tree.map(jnp.subtract, state["params"], new["params"])
        _, moments = optimizer.update(gradient_like, state["moments"], state["params"])
        return new | {"ema": ema, "moments": moments}, loss

    params = by_hand()["params"]
    state = by_hand() | {"ema": params, "best": params, "moments": optimizer.init(params)}
    assert lint_step(step, state, BATCH).findings == ()


@pytest.mark.slow
def test_averages_that_a_frozen_norm_uses_may_stay():
    def loss(params: Any, stats: Any, key: jax.Array, x: Any, labels: Any) -> tuple[jax.Array, Any]:
        logits = NET.apply({"params": params, "batch_stats": stats}, x, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), stats

    assert lint_step(lambda state, batch: step_by_hand(state, batch, loss), by_hand(), BATCH).findings == ()


@pytest.mark.slow
def test_masks_that_a_gradient_draws_again_are_not_repeated():
    remat = jax.checkpoint(loss_of)
    report = lint_step(lambda state, batch: step_by_hand(state, batch, remat), by_hand(), BATCH)
    assert report.findings == ()
    assert (report.norms, report.noises) == (2, 2)


@pytest.mark.slow
def test_microbatches_with_keys_of_their_own_are_healthy():
    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        key, used = jax.random.split(state["key"])

        def part(carry: Any, given: Any) -> tuple[Any, Any]:
            total, stats = carry
            (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"], stats, *given)
            return (jax.tree.map(jnp.add, total, grads), stats), loss

        parts = jax.tree.map(lambda leaf: leaf.reshape(2, 16, *leaf.shape[1:]), batch)
        zeros = jax.tree.map(jnp.zeros_like, state["params"])
        (grads, stats), losses = jax.lax.scan(part, (zeros, state["stats"]), (jax.random.split(used), *parts))
        params = jax.tree.map(lambda param, grad: param - 0.1 * grad, state["params"], grads)
        return state | {"params": params, "stats": stats, "key": key}, losses.mean()

    assert lint_step(step, by_hand(), BATCH).findings == ()


# Keys


def noisy(state: Any, key: jax.Array, x: Any) -> tuple[Any, jax.Array]:
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    loss, grad = jax.value_and_grad(lambda w: jnp.mean(jnp.square(kept * x * w)))(state["w"])
    return state | {"w": state["w"] - 0.1 * grad}, loss


W = {"w": jnp.ones(4)}


def test_a_key_of_the_batch_is_no_fault_and_one_in_a_closure_is():
    key = jax.random.key(3)
    given = lint_step(lambda state, batch: noisy(state, batch[1], batch[0]), W, (X, key))
    assert (given.findings, given.noises) == ((), 1)
    folded = lint_step(
        lambda state, batch: noisy(state, jax.random.fold_in(state["key"], batch[1]), batch[0]), W | {"key": key}, (X, 5)
    )
    assert (folded.findings, folded.noises) == ((), 1)
    [found] = lint_step(lambda state, batch: noisy(state, key, batch), W, X).findings
    assert (found.rule, found.severity) == ("key-constant", "error")
    assert "test_lint_step.py" in found.where.line
    assert not key.is_deleted()
    jax.random.bits(key)  # was not used up


@pytest.mark.parametrize("raw", [False, True])
def test_a_key_that_a_counter_is_folded_into_may_stay(raw):
    key = jax.random.PRNGKey(0) if raw else jax.random.key(0)
    state = W | {"key": key, "step": 0}

    def counting(state: Any, x: Any) -> tuple[Any, Any]:
        new, loss = noisy(state, jax.random.fold_in(state["key"], state["step"]), x)
        return new | {"step": state["step"] + 1}, loss

    assert lint_step(counting, state, X).findings == ()
    [found] = lint_step(lambda state, x: noisy(state, jax.random.fold_in(state["key"], state["step"]), x), state, X).findings
    assert (found.rule, found.severity, found.where.path) == ("key-not-advanced", "error", "key")
    assert "the next step has the same noise" in found.why


def test_noise_added_by_a_constant_key_may_be_random_features():
    def step(state: Any, x: Any) -> tuple[Any, Any]:
        phases = jax.random.normal(jax.random.key(0), (4,))
        loss, grad = jax.value_and_grad(lambda w: jnp.mean(jnp.cos(x * w + phases)))(state["w"])
        return {"w": state["w"] - grad}, loss

    [found] = lint_step(step, W, X).findings
    assert (found.rule, found.severity) == ("key-constant", "warning")


# Types, numbers and callbacks


def stepping(change: Any) -> Any:
    return lambda state, x: (state | change(state), jnp.sum(state["w"]))


WEAK = "int32[], weakly typed becomes int32[]: a jitted step is compiled 2 times"
GROWS = "float32[2] becomes float32[3]: every step is compiled anew"


@pytest.mark.parametrize(
    "state, change, severity, why",
    [
        ({"n": 0}, lambda s: {"n": s["n"] + jnp.int32(1)}, "note", WEAK),
        ({"n": jnp.float16(0)}, lambda s: {"n": s["n"] + X.sum()}, "warning", "float16[] becomes float32[]: a jitted step"),
        ({"n": jnp.zeros(2)}, lambda s: {"n": jnp.append(s["n"], 1.0)}, "error", GROWS),
        ({"n": [jnp.zeros(2)]}, lambda s: {"n": tuple(s["n"])}, "warning", "the state becomes one of other containers"),
        ({}, lambda s: {"w": jnp.stack([s["w"], s["w"]])}, "error", "float32[4] becomes float32[2,4]"),
    ],
)
def test_types_that_change(state, change, severity, why):
    report = lint_step(stepping(change), W | state, X)
    [found] = [one for one in report.findings if one.rule == "state-changes-type"]
    assert found.severity == severity
    assert found.why.startswith(why)
    assert found.why.endswith("a scan over steps raises")


def test_a_next_step_that_raises_is_told_of():
    [found] = lint_step(lambda state, x: ({"w": state["w"] @ x.T}, jnp.sum(state["w"])), W, X).findings
    assert found.severity == "error"
    assert "the next step raises: " in found.why


def test_a_step_that_calls_python_is_not_run():
    called = []

    def step(state: Any, x: Any) -> tuple[Any, Any]:
        jax.debug.callback(called.append, state["w"])
        return noisy(state, jax.random.key(0), x)

    report = lint_step(step, W, X)
    assert not called
    assert [one.rule for one in report.findings] == ["key-constant"]
    assert report.said == ("The step calls Python (debug_callback) and was not run: only its program was looked at.",)


@pytest.mark.parametrize(
    "state, factor, path, when",
    [
        ({"w": jnp.array([1.0, jnp.nan])}, 1.0, "w", "in the given state"),
        ({"w": jnp.ones(2)}, jnp.inf, "returned/loss", "after a step"),
        ({"w": jnp.full(2, 1e15)}, 1.0, "w", "after step 2"),
        ({"w": jnp.ones(2), "best": jnp.array(jnp.inf)}, 1.0, None, ""),
    ],
)
def test_numbers_that_are_not_finite(state, factor, path, when):
    def step(state: Any, x: Any) -> tuple[Any, Any]:
        return state | {"w": state["w"] * jnp.abs(state["w"])}, {"loss": factor * jnp.sum(x)}

    report = lint_step(step, state, X)
    found = [one for one in report.findings if one.rule == "not-finite"]
    assert [one.where.path for one in found] == ([path] if path else [])
    assert all(one.why.startswith(f"not finite {when}") for one in found)


def test_what_is_given_stays_as_it_is():
    state = W | {"key": jax.random.key(0)}
    step = jax.jit(lambda state, x: noisy(state, state["key"], x), donate_argnums=0)
    assert [one.rule for one in lint_step(step, state, X).findings] == ["key-not-advanced"]
    np.testing.assert_array_equal(state["w"], np.ones(4))
    jax.random.bits(state["key"])


# Bad input


def test_bad_steps_are_told():
    with pytest.raises(TypeError, match=r"step must be a function step\(state, batch\) -> \(state, anything\), got 3"):
        lint_step(3, W, X)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"step must return a pair \(state, anything\), got tuple of length 3"):
        lint_step(lambda state, x: (state, 0, 1), W, X)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"step must return a pair \(state, anything\), got dict"):
        lint_step(lambda state, x: state, W, X)
    with pytest.raises(jax.errors.ConcretizationTypeError) as raised:
        lint_step(lambda state, x: (state, float(state["w"].sum())), W, X)
    assert raised.value.__notes__[-1] == "lint_step needs a step that jax can trace, as jax.jit(step)(state, batch) does."
