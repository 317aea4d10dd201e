"""Every layer under the transformations of jax, on one device: what `test_core_promises.py` does not try at first."""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Arguments, Case
from jax import export
from promises import (
    assert_equal_but_for_rounding,
    assert_higher_derivatives,
    compiled,
    compiled_gradient,
    each,
    each_form,
    each_random,
    each_stateful,
    finite,
    loss,
    new_key,
    signature,
    varied_and_rest,
    weights,
)

import jaxnorm

FIRST_OF_ITS_FUNCTION = {case.function: case for case in reversed(CASES)}


@each_form
def test_vmap_equals_a_loop(case: Case) -> None:
    """Pitfall 63."""
    lanes = 3
    arguments = case.arguments()
    xs = jnp.stack([arguments["x"] * (1 + i) + i for i in range(lanes)])
    keys = jax.random.split(new_key(), lanes)
    run = jax.jit(jax.vmap(lambda key, x: case(key, {**arguments, "x": x})))
    together = run(jax.random.clone(keys), xs)
    alone = [case(key, {**arguments, "x": x}) for key, x in zip(keys, xs, strict=True)]
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    chex.assert_trees_all_close(together, looped, rtol=2e-6, atol=2e-6)
    if case.is_random:  # the same draws, to the bit
        np.testing.assert_array_equal(together[0] == 0, looped[0] == 0)


@each_form
def test_vmap_of_the_amounts_equals_a_loop(case: Case) -> None:
    arguments = case.arguments()
    amounts = {name: jnp.stack([jnp.asarray(v, jnp.float32) for v in values]) for name, values in case.amounts.items()}
    if not amounts:
        return
    together = jax.jit(jax.vmap(lambda amounts: case(new_key(), {**arguments, **amounts})))(amounts)
    for i in range(3):
        alone = case(new_key(), {**arguments, **{name: values[i] for name, values in case.amounts.items()}})
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], together), alone, rtol=3e-6, atol=3e-6)


@each_stateful
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_state_keeps_tree_shape_dtype_and_weak_type(case: Case, dtype: Any) -> None:
    """Pitfall 56: traced; what comes of an eager call is in `test_core_promises.py`."""
    arguments = case.arguments(dtype)
    _, state = jax.eval_shape(case.__call__, new_key(), arguments)
    assert signature(state) == signature(arguments["state"])


@each
def test_static_limits_have_finite_gradients_in_both_modes(case: Case) -> None:
    arguments = case.arguments()

    def derivatives(x: jax.Array) -> Any:
        for position in (0, 2):
            static = {name: values[position] for name, values in case.amounts.items()}
            f = lambda x, static=static: loss(case, new_key(), {**arguments, **static, "x": x})  # noqa: E731
            yield jax.grad(f)(x), jax.jvp(f, (x,), (jnp.ones_like(x),))

    assert finite(jax.jit(lambda x: list(derivatives(x)))(jnp.full_like(arguments["x"], 2)))


@each_form
def test_derivatives_of_higher_orders_in_float64(case: Case) -> None:
    """Pitfall 61."""
    if case.holds_constants or case.own_derivative:  # those of its formula, with what is held, are in the tests of the layer
        return
    with jax.enable_x64(True):
        varied, rest = varied_and_rest(case.arguments(jnp.float64))
        third = case is FIRST_OF_ITS_FUNCTION[case.function]
        assert_higher_derivatives(lambda varied: loss(case, new_key(), {**rest, **varied}), varied, third=third)


@each_form
def test_checkpoint_changes_neither_value_nor_gradient_nor_state(case: Case) -> None:
    """Pitfall 58: whether all is saved or nothing."""
    varied, rest = varied_and_rest(case.arguments())

    def f(varied: Arguments, key: jax.Array) -> Any:
        y, state = case(key, {**rest, **varied})
        return jnp.sum(y * weights(y)), (y, state)

    (_, (y, state)), gradient = jax.jit(jax.value_and_grad(f, has_aux=True))(varied, new_key())
    for policy in (jax.checkpoint_policies.everything_saveable, jax.checkpoint_policies.nothing_saveable):
        saved = jax.checkpoint(f, policy=policy)
        (_, (y_again, state_again)), gradient_again = jax.jit(jax.value_and_grad(saved, has_aux=True))(varied, new_key())
        chex.assert_trees_all_close((y, state), (y_again, state_again), rtol=1e-6, atol=1e-6)
        assert_equal_but_for_rounding(gradient_again, gradient)
        if case.is_random and case.drops_to_zero:
            np.testing.assert_array_equal(gradient_again["x"] == 0, (y == 0))


@each_random
def test_nothing_but_the_key_and_the_amounts_is_kept_for_the_gradient(case: Case) -> None:
    if case.keeps:
        return
    arguments, key = case.arguments(), new_key()
    _, pullback = jax.vjp(lambda x: case(key, {**arguments, "x": x})[0], arguments["x"])
    amounts = max((np.size(usual) for _, usual, _ in case.amounts.values()), default=0)
    keys = 2 * 4  # of a join of three branches
    assert all(leaf.size <= max(keys, amounts) for leaf in jax.tree.leaves(pullback))


def bits_in_memory(case: Case) -> tuple[int, int]:
    """How many bits an element the form for CPUs keeps for the gradient, and how many it holds while it draws.

    It keeps packed masks, which takes less time than to draw them again. Of blocks it holds masks before and after each axis,
    which are not packed for a number of channels like here, 3. Of other noise it keeps nothing, but numbers of 16 bits go through
    memory; and XLA as of jax 0.10, which drops barriers, keeps them for the gradient.
    """
    if case.function is jaxnorm.drop_block:
        return 4 * 9, 0
    if case.function is jaxnorm.swapout:  # a mask of each of two arrays
        return 4, 0
    if case.name == "shake_drop-element":  # numbers of 16 bits for the value and for the derivative
        return 2 * 16, 2 * 16
    bits = case.options.get("bits", 16)
    if case.function not in (jaxnorm.gaussian_dropout, jaxnorm.uniform_dropout, jaxnorm.gaussian_noise):
        _, rate, _ = case.amounts.get("rate", (0, 0, 0))
        return (0 if np.ndim(rate) else 2), 0
    in_memory = 16 if bits == 16 else 0
    return (in_memory, 0) if jax.__version_info__ < (0, 11) else (0, in_memory)


def temporaries(layers: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> float:
    """Temporary bits an element of x in the compiled forward and backward pass of layers `(key, x) -> y`."""

    def forward_and_backward(key: jax.Array, x: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pullback = jax.vjp(lambda x: layers(key, x), x)
        return y, pullback(dy)[0]

    memory = jax.jit(forward_and_backward).lower(new_key(), x, x).compile().memory_analysis()
    return 8 * memory.temp_size_in_bytes / x.size


def on(case: Case, x: jax.Array) -> Arguments:
    """The arguments for an x of another shape."""
    return {**case.arguments(), **{name: jnp.full(x.shape, 2.0) for name in case.batched}, "x": x}


@each_random
@pytest.mark.parametrize("layers", [1, 5])
def test_compiled_layers_keep_a_mask_of_two_bits_at_most(case: Case, layers: int) -> None:
    if case.resized or case.keeps:  # one layer does not fit the other, or keeps its x
        return

    def chain(key: jax.Array, x: jax.Array) -> jax.Array:
        for own in jax.random.split(key, layers):
            x, _ = case(own, on(case, x))
        return x

    kept, drawing = bits_in_memory(case)
    assert temporaries(chain, jnp.ones((256, 2, 64, 3))) <= layers * (kept + 0.1) + drawing


@pytest.mark.parametrize("bits, kept", [(8, 1), (16, 1), (32, 1)])
def test_programs_for_cpus_draw_packed_masks(bits: int, kept: int) -> None:
    """Or they would hash at every element."""
    layer = lambda key, x: jaxnorm.dropout(key, x, 0.3, bits=bits)  # noqa: E731
    assert temporaries(layer, jnp.ones((256, 2, 64, 64))) == pytest.approx(kept, abs=0.1)


@each_random
def test_a_scan_over_layers_keeps_nothing_of_them(case: Case) -> None:
    """But for their keys: its temporaries are a few arrays like x, of one step, whatever the number of steps."""
    if case.resized or case.keeps:  # one layer does not fit the other, or keeps its x
        return

    def scanned(key: jax.Array, x: jax.Array, layers: int) -> jax.Array:
        step = lambda x, key: (case(key, on(case, x))[0], None)  # noqa: E731
        return jax.lax.scan(step, x, jax.random.split(key, layers))[0]

    x = jnp.ones((256, 2, 64, 3))
    few, many = (temporaries(partial(scanned, layers=layers), x) for layers in (6, 24))
    assert many - few < 0.1
    assert many < (8 if case.own_derivative else 6) * 32


@each_form
def test_memory_of_the_gradient_is_a_few_times_that_of_x(case: Case) -> None:
    """Pitfall 66."""
    varied, rest = varied_and_rest(case.arguments())
    varied, rest = (
        {name: jnp.tile(a, (64, *[1] * (a.ndim - 1))) if name in case.batched else a for name, a in part.items()}
        for part in (varied, rest)
    )
    memory = compiled_gradient(case).lower(varied, new_key(), rest).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= case.temporaries * varied["x"].nbytes + 2**12  # and what is as large as the statistics


@each_form
def test_donated_arguments_are_used_up_and_change_nothing(case: Case) -> None:
    if case.resized:  # y can't take x's place
        return
    arguments = case.arguments()
    expected = compiled(case)(new_key(), arguments)
    donated = {name: jax.tree.map(jnp.copy, arguments.pop(name)) for name in ("x", "state") if name in arguments}
    run = jax.jit(lambda donated, key: case(key, {**arguments, **donated}), donate_argnums=0)
    result = run(donated, new_key())
    chex.assert_trees_all_close(result, expected, rtol=3e-6, atol=3e-6)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))


@each
def test_eval_shape_and_ahead_of_time_compilation(case: Case) -> None:
    arguments = case.arguments()
    shapes = jax.eval_shape(case.__call__, new_key(), arguments)
    expected = compiled(case)(new_key(), arguments)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), expected)
    ahead = compiled(case).lower(new_key(), arguments).compile()
    chex.assert_trees_all_equal(ahead(new_key(), arguments), expected)


@each_form
def test_export_lowers_for_cpu_cuda_and_tpu(case: Case) -> None:
    arguments = case.arguments()
    traced, fixed = varied_and_rest(arguments)
    function = jax.jit(lambda key_data, traced: case(jax.random.wrap_key_data(key_data), {**fixed, **traced}))
    exported = export.export(function, platforms=("cpu", "cuda", "tpu"))(jax.random.key_data(new_key()), traced)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    result = exported.call(jax.random.key_data(new_key()), traced)
    chex.assert_trees_all_close(result, case(new_key(), arguments), rtol=3e-6, atol=3e-6)


@pytest.fixture
def leaks_are_errors() -> Iterator[None]:
    gc.freeze()  # or each check would go through all that the tests before have left in memory
    with jax.check_tracer_leaks():
        yield
    gc.unfreeze()


@each_form
@pytest.mark.usefixtures("leaks_are_errors")
def test_no_tracer_leaks(case: Case) -> None:
    """Pitfalls 59 and 63: leaks are seen at the end of a trace."""
    varied, rest = varied_and_rest(case.arguments())
    for _ in range(2):
        jax.jit(jax.grad(lambda varied: loss(case, new_key(), {**rest, **varied}))).trace(varied)
        jax.jit(jax.vmap(lambda x: case(new_key(), {**rest, **varied, "x": x}))).trace(varied["x"][None])


@pytest.mark.usefixtures("leaks_are_errors")
@pytest.mark.parametrize("transform", [jax.grad, jax.vmap])
def test_control_a_leak_is_seen_at_the_end_of_a_trace(transform: Callable[..., Any]) -> None:
    kept = []

    def leaking(x: jax.Array) -> jax.Array:
        kept.append(x)
        return jnp.sum(x)

    with pytest.raises(Exception, match="Leaked"):
        jax.jit(transform(leaking)).trace(jnp.ones(1))


@each_form
def test_no_nan_arises_inside_that_is_selected_away_later(case: Case) -> None:
    """Pitfall 35: one operation at a time, since of a program only the results are looked at; in those is no infinity either.

    Inside there are infinities: the variance of what nothing counts in, and what a maximum begins with.
    """
    for position in (0, 2):
        amounts = {name: values[position] for name, values in case.amounts.items()}
        varied, rest = varied_and_rest({**case.arguments(), **amounts})
        varied["x"] = jnp.zeros_like(varied["x"])
        with jax.disable_jit(), jax.debug_nans(True):
            jax.grad(lambda varied, rest=rest: loss(case, new_key(), {**rest, **varied}))(varied)
        with jax.debug_nans(True), jax.debug_infs(True):
            jax.block_until_ready(compiled_gradient(case)(varied, new_key(), rest))


@each_random
def test_key_reuse_is_seen(case: Case) -> None:
    """Pitfall 99: all tests run where a key that is used twice is an error."""
    arguments = case.arguments()
    key = new_key()
    case(key, arguments)
    with pytest.raises(jax.errors.KeyReuseError):
        case(key, arguments)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda key: (case(key, arguments), jax.random.uniform(key)))(new_key())


@each_random
def test_one_key_serves_a_value_and_its_gradient(case: Case) -> None:
    """An eager gradient draws from the key once, as far as a user is concerned."""
    arguments = case.arguments()
    key = new_key()
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(case(key, {**arguments, "x": x})[0]))(arguments["x"])
    assert finite((value, gradient))
