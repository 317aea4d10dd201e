"""Memory and compilation: residuals of functions for which they are known, and the figures of a compiled program."""

import jax
import jax.numpy as jnp
import pytest

import jaxnorm
from jaxnorm.benchmarks._costs import compile_program, residuals

X = jax.ShapeDtypeStruct((8, 16), jnp.float32)
BYTES = 8 * 16 * 4


@pytest.mark.parametrize("name, function, nbytes, keeps_input", [
    ("nothing", lambda p, x: 2 * x, 0, False),
    ("the derivative", lambda p, x: jnp.sin(x), BYTES, False),
    ("two derivatives", lambda p, x: jnp.sin(jnp.sin(x)), 2 * BYTES, False),
    ("the input", lambda p, x: x * x, 0, True),
    ("the output, once", lambda p, x: jnp.exp(x), BYTES, False),
    ("both arguments", lambda p, x: p * x, 0, True),
    ("a constant array", lambda p, x: x * jnp.arange(16.0), 16 * 4, False),
    ("the input, to compute anew", lambda p, x: jax.checkpoint(lambda x: jnp.sin(jnp.cos(x)))(x), 0, True),
    ("the input of a jit", lambda p, x: jax.jit(lambda x: x * x)(x), 0, True),
])  # fmt: skip
def test_residuals_of_known_functions(name, function, nbytes, keeps_input) -> None:
    found = residuals(lambda p, x: (function(p, x), None), X, X)
    assert found == (nbytes, keeps_input), name


def test_half_precision_counts_half() -> None:
    half = jax.ShapeDtypeStruct(X.shape, jnp.bfloat16)
    assert residuals(lambda p, x: (jnp.sin(x), None), (), half).nbytes == BYTES // 2


def test_auxiliary_outputs_are_not_kept() -> None:
    assert residuals(lambda p, x: (2 * x, jnp.sin(x)), (), X).nbytes == 0


def test_residuals_of_our_own_layers() -> None:
    """What the benchmark is to show of them: a key, and x."""
    key = jax.random.key(0)
    found = residuals(lambda p, x: (jaxnorm.dropout(key, x, 0.1), None), (), X)
    assert found.nbytes < 64
    assert not found.keeps_input
    params, state = jaxnorm.init_batch_norm(16)
    found = residuals(lambda p, x: jaxnorm.batch_norm(p, state, x, train=True), params, X)
    assert found.nbytes < 16 * 4 * 12
    assert found.keeps_input


def test_a_compiled_program_runs_and_says_what_it_cost() -> None:
    def function(x: jax.Array) -> jax.Array:
        return (jnp.sort(x, 0) @ x.T)[::2]

    x = jnp.arange(12.0).reshape(3, 4)
    run, costs = compile_program(function, x)
    assert jnp.array_equal(run(x), function(x))
    assert costs.keys() == {"temporary_bytes", "trace_seconds", "compile_seconds"}
    assert costs["temporary_bytes"] >= 0
    assert costs["trace_seconds"] > 0
    assert costs["compile_seconds"] > 0
