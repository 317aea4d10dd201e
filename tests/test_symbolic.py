"""Every layer in programs exported with symbolic sizes, as they come back from a file: value, new state and gradient.

The program that a CPU, a GPU or a TPU would be given, one for each row in turn, is run on the CPU: the same masks bit for bit,
numbers within rounding.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Arguments, Case
from jax import export
from platforms import as_on
from promises import assert_equal_but_for_rounding, core_of_files, each_layer, new_key, varied_and_rest

import jaxnorm

PLATFORMS = ("cpu", "cuda", "tpu")


def step(case: Case, fixed: Arguments, key_data: jax.Array, given: Arguments) -> Any:
    """Output, new state and gradient; `fixed` are arguments that aren't of the program."""
    key = jax.random.wrap_key_data(key_data)
    varied, rest = varied_and_rest({**fixed, **given})
    y, pullback, state = jax.vjp(lambda varied: case(key, {**rest, **varied}), varied, has_aux=True)
    return y, state, pullback(jnp.cos(y))[0]


def of_program(case: Case, arguments: Arguments) -> tuple[Arguments, Arguments]:
    """Splits into what the program is called with, and what stands in it: amounts."""
    given = {name: value for name, value in arguments.items() if name not in case.amounts}
    return given, {name: value for name, value in arguments.items() if name in case.amounts}


def with_rows(case: Case, arguments: Arguments, size: int) -> Arguments:
    """The arguments with another size of the batch."""
    own = arguments["x"].shape[0]
    index = np.arange(size) % own
    return {name: np.asarray(value)[index] if name in case.batched else value for name, value in arguments.items()}


def symbolic(arguments: Arguments, axes: tuple[int, ...], names: tuple[str, ...]) -> Arguments:
    """Shapes of the arguments, with symbolic sizes of axes where an array has what x has there."""
    known = [arguments["x"].shape[axis] for axis in axes]
    letters = [f"n{axis}" for axis in axes]
    constraints = [f"{n} >= {min(size, 3)}" for n, size in zip(letters, known, strict=True)]  # blocks and windows fit
    sizes = export.symbolic_shape(", ".join(letters), constraints=constraints)

    def shape(name: str, leaf: jax.Array) -> jax.ShapeDtypeStruct:
        whole = list(leaf.shape)
        for axis, own, size in zip(axes, known, sizes, strict=True):
            if name in names and axis < leaf.ndim and whole[axis] == own:
                whole[axis] = size
        return jax.ShapeDtypeStruct(tuple(whole), leaf.dtype)

    return {name: jax.tree.map(functools.partial(shape, name), value) for name, value in arguments.items()}


def compare(case: Case, got: Any, expected: Any) -> None:
    assert_equal_but_for_rounding(got, expected, 5e-6)
    if case.is_random:
        np.testing.assert_array_equal(np.asarray(got[0]) == 0, np.asarray(expected[0]) == 0)
        np.testing.assert_array_equal(np.asarray(got[2]["x"]) == 0, np.asarray(expected[2]["x"]) == 0)


def test_control_the_cpu_runs_the_part_of_another_platform() -> None:
    branches = {name: lambda x, i=i: x + i for i, name in enumerate(PLATFORMS)}
    program = export.export(jax.jit(lambda x: jax.lax.platform_dependent(x, **branches)), platforms=PLATFORMS)(np.float32(1))
    assert [float(as_on(platform, program).call(np.float32(1))) for platform in PLATFORMS] == [1, 2, 3]


@pytest.mark.parametrize("case", core_of_files)
def test_a_program_with_a_symbolic_batch_gives_what_the_layer_gives(case: Case) -> None:
    given, fixed = of_program(case, case.arguments())
    run = jax.jit(functools.partial(step, case, fixed))
    key_data = np.asarray(jax.random.key_data(new_key()))
    serialized = export.export(run, platforms=PLATFORMS)(key_data, symbolic(given, (0,), case.batched)).serialize()
    program = export.deserialize(serialized)
    assert program.platforms == PLATFORMS
    arguments = with_rows(case, given, 6)
    expected = run(key_data, arguments)
    platform = "cpu" if case.calls_library else PLATFORMS[CASES.index(case) % len(PLATFORMS)]  # each row tries the next one
    compare(case, as_on(platform, program).call(key_data, arguments), expected)


@each_layer
def test_a_program_with_symbolic_sizes_gives_what_the_layer_gives(case: Case) -> None:
    """Of all axes but the batch whose sizes are not those of parameters or options."""
    known = (*case.feature_axes, *([1] if case.function is jaxnorm.patch_dropout else []))
    axes = tuple(axis for axis in (1, 2) if axis not in known)
    given, fixed = of_program(case, case.arguments())
    run = jax.jit(functools.partial(step, case, fixed))
    key_data = np.asarray(jax.random.key_data(new_key()))
    program = export.export(run, platforms=PLATFORMS)(key_data, symbolic(given, axes, case.batched))
    compare(case, export.deserialize(program.serialize()).call(key_data, given), run(key_data, given))
